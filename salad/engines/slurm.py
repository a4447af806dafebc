"""Slurm, through submitit: jobs that go back into the queue when they are preempted or their walltime ends.

The run's folder is on a disk that the nodes share. A run works with the code as it was at launch, laid out in its
folder. Without accounting Slurm forgets ended jobs, so the queue only says what lives: the rest is the run's own word.
"""

import contextlib
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from salad.engines import codesync, supervisor
from salad.engines.base import Engine, Finding, Life
from salad.engines.gres import choose, gpus_of
from salad.engines.spec import Spec, command, secrets
from salad.errors import SaladError
from salad.runs import RunFolder, now, read_json
from store import atomic

LONGEST_MIN = 7 * 24 * 60
SIGNAL_DELAY_S = 120
PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SLURM_CONF", "OMP_NUM_THREADS",
             "HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")  # fmt: skip
WAITS = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "SUSPENDED",
    "RESIZING",
}


class InJob:
    """What submitit runs in the job, once a node. On SIGUSR2 (the walltime ends) the job is put back by itself."""

    def __init__(self, lab: str, run_id: str, shard: int = 0):
        self.lab, self.run_id, self.shard = lab, run_id, shard

    def __call__(self) -> int:
        run = RunFolder.open(self.lab, self.run_id)
        spec = Spec.of(run)
        if spec is None:
            raise SaladError(f"{run.path} has no launch.json; launch the run again")
        rendezvous, first = Slurm.rendezvous(spec)
        walltime = []

        def ends(number, frame):
            walltime.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, ends)
        if first:
            supervisor.mark_supervisor(run, self.shard, os.getpid())
        code = supervisor.supervise(run, spec, self.shard, rendezvous, first)
        if walltime and code == supervisor.PREEMPTED_CODE and first:
            requeue(run, os.environ["SLURM_JOB_ID"])
        return code


def requeue(run: RunFolder, job_id: str) -> None:
    """Put this job back into the queue; where Slurm refuses, the run's status says so, for nothing will start it again."""
    refusal = _order("scontrol", "requeue", job_id)
    if refusal is not None:
        error = f"its walltime ended and Slurm refused to requeue it: {refusal}; resume the run to continue"
        run.reread()
        run.status(state="stopped", error=error, settled=True, ended_at=now())
        run.log(error)


class Slurm(Engine):
    requeues = True

    @staticmethod
    def rendezvous(spec: Spec) -> tuple[list[str], bool]:
        """torchrun's arguments on this node, and whether this is the first node."""
        first = os.environ.get("SLURM_NODEID", "0") == "0"
        if spec.nodes == 1:
            return [], first
        from submitit import JobEnvironment

        job = JobEnvironment()
        number = int(re.split(r"\D", job.job_id)[0])
        return ["--nnodes", str(spec.nodes), "--node_rank", os.environ["SLURM_NODEID"], "--rdzv_backend", "c10d",
                "--rdzv_endpoint", f"{job.hostnames[0]}:{29400 + number % 1000}", "--rdzv_id", str(number)], first  # fmt: skip

    def check(self) -> list[Finding]:
        """Whether a launch would work, one finding per requirement. Starts nothing."""
        try:
            self.preflight(Spec(run_id="r000000000000", on="slurm", engine="slurm", target=self.target))
        except SaladError as error:
            return [Finding(False, str(error))]
        where = f"partition {self.target.partition}" if self.target.partition else "the default partition"
        most = max((sum(node.values()) for node in _gpus(self._nodes() or [])), default=0)
        return [Finding(True, f"Slurm answers; {where} has {most} GPUs on a node, jobs of up to {self._walltime_min() / 60:g} h")]

    def preflight(self, spec: Spec) -> None:
        """Raise SaladError, in one line, if this launch cannot work. Writes nothing."""
        if shutil.which("sbatch") is None:
            raise SaladError("no Slurm here: sbatch is not on the PATH; go to the cluster's login node")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise SaladError("submitit is not installed; pip install 'salad-workbench[slurm]'") from None
        partitions = self._nodes()
        if partitions is None:
            raise SaladError("Slurm does not answer (sinfo failed); is slurmctld up?")
        if not partitions:
            raise SaladError(f"Slurm has no partition {self.target.partition!r}")
        nodes = sum(int(line.split()[0]) for line in partitions)
        if spec.nodes > nodes:
            raise SaladError(f"--nodes {spec.nodes}: the partition has {nodes}")
        if spec.gpus:
            choose(_gpus(partitions), spec.gpu_type, spec.gpus)
        secrets(spec.env)

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, as text for --dry-run."""
        from submitit.slurm.slurm import _make_sbatch_string

        parameters = self._parameters(run, spec)
        return _make_sbatch_string(" ".join(command(spec, str(run.lab))), folder=run.path / "slurm", **parameters)

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. Raises SaladError if it did not start."""
        import submitit

        code = run.path / "code"
        if spec.code.get("commit") and not code.exists():
            unfinished = run.path / ".code.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            codesync.restore(run, spec.code, unfinished)
            os.replace(unfinished, code)
        # not AutoExecutor: it renames Slurm's own words
        executor = submitit.SlurmExecutor(
            folder=run.path / "slurm", max_num_timeout=10_000, python=shlex.quote(self._python(run))
        )
        executor.update_parameters(**self._parameters(run, spec))
        jobs = [InJob(str(run.lab), run.run_id, shard) for shard in range(spec.workers)]
        with _environment(secrets(spec.env)):
            try:
                if spec.workers == 1:
                    job_id = executor.submit(jobs[0]).job_id
                else:
                    job_id = executor.map_array(operator.call, jobs)[0].job_id.partition("_")[0]
            except submitit.core.utils.FailedJobError as error:
                raise SaladError(f"Slurm refused the job: {str(error).strip().splitlines()[-1]}") from None
        atomic.write_json(run.path / "slurm.json", {"job_id": job_id, "submitted_at": now()})

    def _python(self, run: RunFolder) -> str:
        """The target's own Python; else this one, or where its packages are no longer those that the run began with,
        an environment with those, made once under the target's `scratch` (or the lab's .environments)."""
        if self.target.python:
            return str(Path(self.target.python).expanduser())
        changed, code = codesync.changed_packages(run), run.path / "code"
        if not changed or not code.exists():
            return sys.executable
        base = Path(self.target.scratch).expanduser() if self.target.scratch else run.lab / ".environments"
        env = base.absolute() / "env" / codesync.environment_id(run)
        run.log(f"installing the run's own versions into {env}: {', '.join(changed[:8])}")
        base.mkdir(parents=True, exist_ok=True)
        words = [shlex.quote(str(word)) for word in (sys.executable, env, code, run.path / "packages.txt")]
        done = subprocess.run(["bash", "-c", codesync.install_script(*words)], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise SaladError(f"installing the run's own versions into {env}: {reason}; or name a python in targets.toml")
        return str(env / "bin" / "python")

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """The job's state in Slurm's queue: queued, alive or gone; None if Slurm cannot be asked."""
        job = read_json(run.path / "slurm.json")
        if job is None:
            return "gone"
        answer = _ask("squeue", "--noheader", "--format=%T", f"--jobs={job['job_id']}")
        if answer is None:
            return None
        states = set(answer.split())
        return "gone" if not states else "queued" if states <= WAITS else "alive"

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and keep it from being restarted."""
        run.request_stop()
        job = read_json(run.path / "slurm.json")
        if job is None:
            return
        if self.look(run, spec) == "queued":
            refusal = _order("scancel", job["job_id"])
            if refusal is not None:
                raise SaladError(f"Slurm refused to cancel job {job['job_id']}: {refusal}")
            run.reread()
            run.status(state="stopped", error="stopped by hand before it started", ended_at=now())
        else:
            refusal = _order("scancel", "--signal=TERM", job["job_id"])
            if refusal is not None:  # it sees the `stop` file within some seconds all the same
                run.log(f"Slurm refused to signal job {job['job_id']}: {refusal}")

    def _parameters(self, run: RunFolder, spec: Spec) -> dict:
        target = self.target
        minutes = self._walltime_min()
        if spec.limits.seconds < float("inf"):
            minutes = min(minutes, spec.limits.seconds / 60 + 10)
        env = ",".join(dict.fromkeys([name for name in PASSED_ON if name in os.environ] + list(spec.env)))
        log = str(run.path / "log.txt")
        setup = [f"module load {name}" for name in target.modules]
        code = run.path / "code" if spec.code.get("commit") else codesync.ROOT
        setup.append(f'export PYTHONPATH="{code}:$PYTHONPATH"')
        # without its own list, srun would export sbatch's, which lacks what the script adds
        srun_args = ["--export=ALL", f"--output={log}", "--open-mode=append"]
        additional: dict[str, Any] = {"requeue": True, "export": env, "output": log, "chdir": str(code)}
        parameters = {
            "job_name": f"salad-{run.run_id}", "time": max(int(minutes), 1), "nodes": spec.nodes,
            "ntasks_per_node": 1, "partition": target.partition, "account": target.account, "qos": target.qos,
            "constraint": target.constraint, "setup": setup, "signal_delay_s": SIGNAL_DELAY_S,
            "stderr_to_stdout": True,
            "additional_parameters": additional, "srun_args": srun_args,
        }  # fmt: skip
        if target.container:
            srun_args.append(f"--container-image={target.container}")
        if spec.gpus:
            kind = choose(_gpus(self._nodes() or []), spec.gpu_type, spec.gpus)
            additional["gres"] = f"gpu:{kind}:{spec.gpus}" if kind else f"gpu:{spec.gpus}"
        return {name: value for name, value in parameters.items() if value is not None}

    def _nodes(self) -> list[str] | None:
        """Lines `number of nodes, longest time, gres` of the partition; None where Slurm does not answer."""
        choice = [f"--partition={self.target.partition}"] if self.target.partition else []
        listing = _ask("sinfo", "--noheader", "--format=%D %l %G", *choice)
        return None if listing is None else listing.splitlines()

    def _walltime_min(self) -> float:
        if self.target.walltime_hours is not None:
            return self.target.walltime_hours * 60
        times = [line.split()[1] for line in self._nodes() or []]
        return min([_minutes(time) for time in times] + [LONGEST_MIN])


def _gpus(lines: list[str]) -> list[dict[str | None, int]]:
    """The GPUs of each kind of node, from the lines of `Slurm._nodes`."""
    return [gpus_of(line.split(maxsplit=2)[2]) for line in lines]


def _minutes(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds, or infinite."""
    if not re.match(r"[\d:-]+$", text):
        return LONGEST_MIN
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = ([0, 0, 0] + [int(part) for part in clock.split(":")])[-3:]
    return int(days or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60


def _ask(*words: str) -> str | None:
    """What one of Slurm's commands says; None where Slurm cannot be asked. A job it has forgotten is no error."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout


def _order(*words: str) -> str | None:
    """Have one of Slurm's commands done: None where it was, else why not, in one line. A job that is gone is no refusal
    to end it."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]}: {getattr(error, 'strerror', None) or 'no answer'}"
    gone = words[0] == "scancel" and "Invalid job id" in done.stderr
    if not done.returncode or gone:
        return None
    return (done.stderr.strip() or done.stdout.strip() or f"{words[0]} failed with exit code {done.returncode}").splitlines()[-1]


@contextlib.contextmanager
def _environment(values: dict[str, str]):
    """sbatch takes the values of --export's names from its own environment: they stand in no file."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
