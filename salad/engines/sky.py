"""Any cloud or Kubernetes, through SkyPilot: a managed job that is recovered when its machine is taken away.

This writes a task YAML and drives the `sky` command, which lives in an environment of its own (its old click and
protobuf fit no other). The lab's inputs and what the run writes travel through the target's bucket; a managed job
ends its machine with itself, so there is no stopped machine to forget.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

from salad.engines import codesync, supervisor
from salad.engines.base import Engine, Finding, Life
from salad.engines.fetching import inputs
from salad.engines.folders import copy_new
from salad.engines.spec import Spec, secrets
from salad.errors import SaladError
from salad.runs import ENDED, PREEMPTED_CODE, RunFolder, now, read_json
from store import atomic, ids

LAB = "~/salad-lab"
ENV = "~/salad-env"
LOOK_S = 10.0
WAITS = {"PENDING", "SUBMITTED", "STARTING", "RECOVERING"}
LIVES = {"RUNNING", "WINDING_DOWN", "CANCELLING"}
SETUP = f"""\
test -e {ENV}/.ready && exit 0
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
uv venv --clear --python 3.12 {ENV}
uv pip install --python {ENV}/bin/python --constraint .packages.txt .
touch {ENV}/.ready
"""
SMALL = ("status*.json", "metrics-*.jsonl", "log.txt", "attempts*.jsonl")


class Sky(Engine):
    shares_lab = False
    requeues = True
    knows_prices = True

    def __init__(self, target):
        super().__init__(target)
        self._looked: tuple[float, Life | None] | None = None

    @staticmethod
    def rendezvous(spec: Spec) -> tuple[list[str], bool]:
        """torchrun's arguments on this node, and whether this is the first node."""
        nodes, rank = os.environ.get("SKYPILOT_NUM_NODES", "1"), os.environ.get("SKYPILOT_NODE_RANK", "0")
        if nodes == "1" or spec.workers > 1:
            return [], True
        first = os.environ["SKYPILOT_NODE_IPS"].split()[0]
        return ["--nnodes", nodes, "--node_rank", rank, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first}:29400",
                "--rdzv_id", os.environ.get("SKYPILOT_TASK_ID", "salad")], rank == "0"  # fmt: skip

    def _sky(self, *words: str, env: dict | None = None, timeout: float = 600) -> subprocess.CompletedProcess:
        name = self.target.sky or "sky"
        try:
            return subprocess.run(
                [str(Path(name).expanduser()), *words], capture_output=True, text=True, timeout=timeout,
                env=os.environ | (env or {}), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return subprocess.CompletedProcess(words, 127, "", str(error))

    def check(self) -> list[Finding]:
        """Whether a launch would work, one finding per requirement. Starts nothing."""
        try:
            self._able()
        except SaladError as error:
            return [Finding(False, str(error))]
        completed = self._sky("check")
        findings = [
            Finding(
                not completed.returncode,
                f"sky check: {_last(completed.stdout) if not completed.returncode else _last(completed.stderr)}",
            )
        ]
        bucket = self._copy(f"{(self.target.bucket or '').rstrip('/')}/", None)
        return [*findings, Finding(bucket is None, bucket or f"{self.target.bucket} can be read")]

    def _able(self) -> None:
        if shutil.which(str(Path(self.target.sky or "sky").expanduser())) is None:
            raise SaladError("no sky here: uv tool install 'skypilot[aws]', or name the command as sky = \"…\" in targets.toml")
        if not self.target.bucket:
            raise SaladError('the target has no bucket; write bucket = "s3://…" in targets.toml')
        _scheme(self.target.bucket)

    def preflight(self, spec: Spec) -> None:
        """Raise SaladError, in one line, if this launch cannot work. Writes nothing."""
        self._able()
        if not codesync.ROOT.joinpath(".git").exists():
            raise SaladError(f"{codesync.ROOT} is not a git checkout, so its code cannot be sent; clone the project with git")
        if spec.workers > 1 and spec.nodes > 1:
            raise SaladError(f"--workers {spec.workers} with --nodes {spec.nodes}: on sky each worker has a node of its own")
        if spec.gpus and not spec.gpu_type:
            raise SaladError(f"--gpus {spec.gpus}: name the type for a cloud, as in H200:{spec.gpus}")
        secrets(spec.env)
        if spec.gpu_type:
            cheapest = self._cheapest(spec)
            cost, cap = cheapest * _nodes(spec), spec.max_hourly_cost
            if cap is not None and cost > cap:
                what = f"{_nodes(spec)} × {spec.gpu_type}:{spec.gpus}"
                raise SaladError(f"--max-hourly-cost {cap:g}: the cheapest {what} costs {cost:g} an hour")

    def _cheapest(self, spec: Spec) -> float:
        """The lowest price per hour of a node with these GPUs, spot where the target says so."""
        words = ["gpus", "list", f"{spec.gpu_type}:{spec.gpus}", "--output", "json"]
        if self.target.cloud:
            words += ["--cloud", self.target.cloud]
        completed = self._sky(*words)
        if completed.returncode:
            raise SaladError(f"sky gpus list: {_last(completed.stderr)}")
        listed = _json(completed.stdout, dict)
        if listed is None:
            raise SaladError(f"sky gpus list: {_last(completed.stdout)}")
        offers = [item for items in listed.values() for item in items]
        name = "spot_price" if self.target.spot else "price"
        prices = [item[name] for item in offers if item.get(name) is not None and item["accelerator_count"] == spec.gpus]
        if not prices:
            raise SaladError(f"--gpus {spec.gpu_type}:{spec.gpus}: no cloud that sky knows offers that")
        return min(prices)

    def task(self, run: RunFolder, spec: Spec, workdir: str) -> dict:
        """The SkyPilot task, as its YAML says it. No value of a secret is in it."""
        target, lab = self.target, LAB
        if _scheme(target.bucket) == "file":  # the same path on every machine
            lab = self._bucket(run).removeprefix("file://")
        resources = {
            "use_spot": target.spot,
            "disk_size": target.disk_gb,
            "autostop": {"idle_minutes": 10, "down": True},
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [PREEMPTED_CODE]},
        }
        if spec.gpu_type:
            resources["accelerators"] = f"{spec.gpu_type}:{spec.gpus}"
        if spec.max_hourly_cost is not None:
            resources["max_hourly_cost"] = spec.max_hourly_cost / _nodes(spec)
        if target.cloud:
            resources["infra"] = target.cloud + (f"/{target.region}" if target.region else "")
        if target.container:
            resources["image_id"] = f"docker:{target.container}"
        return {
            "name": _name(run),
            "workdir": workdir,
            "num_nodes": _nodes(spec),
            "resources": resources,
            "envs": {"SALAD_RUN": run.run_id},
            **({} if lab != LAB else {"file_mounts": {LAB: {"source": self._bucket(run), "mode": "MOUNT_CACHED"}}}),
            "setup": SETUP,
            "run": "cd ~/sky_workdir\n" + _command_line(spec, lab),
        }

    def _bucket(self, run: RunFolder) -> str:
        """This lab's place in the bucket."""
        return f"{(self.target.bucket or '').rstrip('/')}/{ids.hash_id('w', socket.gethostname(), str(run.lab))}"

    def _command(self, path, env: tuple[str, ...]) -> list[str]:
        words = ["jobs", "launch", "--yes", "--detach-run", "--no-job-group"]
        for name in env:  # by name: sky takes the value from the environment
            words += ["--secret", name]
        return [*words, str(path)]

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, as text for --dry-run."""
        sent = "".join(f"# to {self._bucket(run)}/{name}\n" for name in inputs(run))
        shown = shlex.join([self.target.sky or "sky", *self._command("task.yaml", spec.env)])
        return f"{sent}{_yaml(self.task(run, spec, './code'))}# {shown}"

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. Raises SaladError if it did not start."""
        code = run.path / "code"
        if not code.exists():
            unfinished = run.path / ".code.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            codesync.restore(run, spec.code, unfinished)
            shutil.copy(run.path / "packages.txt", unfinished / ".packages.txt")
            os.replace(unfinished, code)
        bucket = self._bucket(run)
        for name in inputs(run):
            completed = self._copy(str(run.lab / name), f"{bucket}/{name}")
            if completed:
                raise SaladError(f"sending {name} to {bucket}: {completed}")
        path = run.path / "sky.yaml"
        atomic.write_bytes(path, _yaml(self.task(run, spec, str(code))).encode())
        done = self._sky(*self._command(path, spec.env), env=secrets(spec.env), timeout=1800)
        if done.returncode:
            raise SaladError(f"sky jobs launch: {_last(done.stderr) or _last(done.stdout)}")
        jobs = [job for job in self._queue() or [] if job.get("job_name") == _name(run)]
        if not jobs:
            raise SaladError(f"sky took the job but does not list {_name(run)}; look with `sky jobs queue`")
        job = max(int(job["job_id"]) for job in jobs)
        atomic.write_json(run.path / "sky.json", {"job_id": job, "bucket": bucket, "submitted_at": now()})
        self._looked = None

    def _queue(self) -> list[dict] | None:
        completed = self._sky("jobs", "queue", "--all", "--output", "json", timeout=120)
        if completed.returncode:
            return None
        return _json(completed.stdout, list)

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """Copy the run's small files here and return its state from SkyPilot's queue; None if SkyPilot cannot be asked."""
        if self._looked and time.monotonic() - self._looked[0] < LOOK_S:
            return self._looked[1]
        life = self._look(run, spec)
        self._looked = (time.monotonic(), life)
        return life

    def _look(self, run: RunFolder, spec: Spec) -> Life | None:
        launched = read_json(run.path / "sky.json")
        if launched is None:
            return "gone"
        jobs = self._queue()
        unread = self._copy(f"{launched['bucket']}/runs/{run.run_id}", str(run.path), SMALL)
        supervisor.merge(run, spec)  # the workers' status is put together here: in the bucket each node sees its own first
        if jobs is None:
            return None
        job = next((job for job in jobs if int(job["job_id"]) == launched["job_id"]), None)
        state = str((job or {}).get("status") or "LOST").rpartition(".")[2].upper()
        if state in WAITS:
            return "queued"
        if state in LIVES:
            return "alive"
        run.reread()
        if run.read_status().get("state") in ENDED:
            return "gone"
        # the job has ended and the run did not say so itself
        reason = (job or {}).get("failure_reason") or ""
        if unread:
            reason = f"{reason} (its files in the bucket cannot be read: {unread})"
        ends = {
            "SUCCEEDED": ("done", None),
            "CANCELLED": ("stopped", "cancelled with sky; resume it to go on"),
            "FAILED_NO_RESOURCE": ("failed", f"no capacity: {reason or 'no cloud had such a machine'}"),
            "LOST": ("failed", "sky no longer knows the job; resume it to go on"),
        }
        end, error = ends.get(state, ("failed", f"{state.lower()}: {reason or 'see `sky jobs logs`'}"))
        run.status(state=end, error=error, settled=True, ended_at=now())
        return "gone"

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and keep it from being restarted."""
        launched = read_json(run.path / "sky.json")
        if launched is None:
            return
        done = self._sky("jobs", "cancel", "--yes", str(launched["job_id"]))
        if done.returncode:
            raise SaladError(f"sky jobs cancel: {_last(done.stderr)}")
        self._looked = None

    def fetch(self, run: RunFolder, spec: Spec, tables_only: bool = False, compare: bool = False) -> None:
        """Copy units and, unless `tables_only`, checkpoints and audio into this lab; repeatable. `compare`: byte by byte."""
        launched = read_json(run.path / "sky.json")
        if launched is None:
            raise SaladError(f"{run.run_id} has not been started with sky; there is nothing to fetch")
        parts = ["tables"] if tables_only else ["tables", "speech", f"runs/{run.run_id}/checkpoints"]
        for part in parts:
            failed = self._copy(f"{launched['bucket']}/{part}", str(run.lab / part), compare=compare)
            if failed:
                raise SaladError(f"fetching {part} from {launched['bucket']}: {failed}; do it again to go on")

    def _copy(self, source: str, to: str | None, only: tuple[str, ...] = (), compare: bool = False) -> str | None:
        """Copy a file or folder to or from the bucket, what is there already left out; None to only look.
        Returns what went wrong, in one line."""
        scheme = _scheme(self.target.bucket)
        folder = "://" in source or Path(source).is_dir()
        if to is not None and "://" not in to:
            Path(to).mkdir(parents=True, exist_ok=True)
        if scheme == "file":  # a disk that the cluster mounts too
            source, to = source.removeprefix("file://"), to and to.removeprefix("file://")
            if to is None:
                return None if Path(source).is_dir() else f"{source} is not there"
            if not Path(source).exists():
                return None
            try:  # what is small is compared whole: a status written twice in a tick of the clock has one size and time
                copy_new(source, to, only, compare=compare or bool(only))
            except OSError as error:
                return f"{error.filename}: {error.strerror}"
            return None
        if scheme == "s3":
            chosen = ["--exclude", "*"] * bool(only) + [word for name in only for word in ("--include", name)]
            words = ["aws", "s3", "ls", source] if to is None else (
                ["aws", "s3", "sync", "--only-show-errors", *chosen, source, to] if folder
                else ["aws", "s3", "cp", "--only-show-errors", source, to]
            )  # fmt: skip
        else:
            verb = ["rsync", "--recursive"] if folder else ["cp"]
            words = ["gcloud", "storage", "ls", source] if to is None else ["gcloud", "storage", *verb, source, to]
            if only and to is not None:  # gcloud has no include
                words += [r"--exclude=(checkpoints|code|slurm)/.*|(launch|config|sky)\.json|.*\.(yaml|txt\.tmp|diff)$"]
        done = subprocess.run(words, capture_output=True, text=True)
        return None if done.returncode == 0 else _last(done.stderr)


def _json(text: str, kind: type):
    """The JSON list or object (`kind`) that starts a line of what sky prints, whatever else it prints; None without one."""
    decoder, opening = json.JSONDecoder(), "[" if kind is list else "{"
    for match in re.finditer(rf"^\s*{re.escape(opening)}", text, re.M):
        try:
            value, end = decoder.raw_decode(text, match.end() - 1)
        except ValueError:
            continue
        if isinstance(value, kind) and not text[end:].partition("\n")[0].strip():
            return value
    return None


def _scheme(bucket: str | None) -> str:
    """The kind of bucket; SaladError for another kind, or where its command is not installed here."""
    scheme = (bucket or "").partition("://")[0]
    tools = {"s3": "aws", "gs": "gcloud", "file": None}
    if scheme not in tools:
        raise SaladError(f"bucket {bucket!r}: write s3://…, gs://…, or file:///… for a disk that the cluster mounts")
    tool = tools[scheme]
    if tool is not None and shutil.which(tool) is None:
        raise SaladError(f"bucket {bucket}: the command {tool} is not installed here")
    return scheme


def _nodes(spec: Spec) -> int:
    """Machines of a job: those of a run, or one for each worker of a pass."""
    return max(spec.nodes, spec.workers)


def _command_line(spec: Spec, lab: str) -> str:
    """What each node runs. A worker that fails says so in its status and exits 0: else sky would end the others too."""
    words = f"{ENV}/bin/python -m salad.engines --lab {lab} $SALAD_RUN"
    if spec.workers == 1:
        return f"exec {words}\n"
    return f"{words} --shard $SKYPILOT_NODE_RANK\ntest $? -ne {PREEMPTED_CODE} || exit {PREEMPTED_CODE}\n"


def _name(run: RunFolder) -> str:
    return f"salad-{run.run_id}"


def _yaml(value: dict) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, width=200)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no message"
