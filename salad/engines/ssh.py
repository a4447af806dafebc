"""Any machine with Python, rsync and a key: a rented box, the department's server.

There, under the target's `scratch` (~/salad without one): code/<tree>/ what is run, env/<id>/ the project's own
install with the run's versions, labs/<id>/ a lab of its own for each lab here. Nothing is shared: the inputs that a
run needs go over at launch, its status, metrics and log come back every 15 s, its units and checkpoints by `fetch`.
"""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from salad.engines import codesync, processes, remote_shell
from salad.engines.base import Engine, Finding, Life
from salad.engines.fetching import inputs
from salad.engines.spec import Spec, command, secrets
from salad.errors import SaladError
from salad.runs import ENDED, RunFolder, now, read_json
from store import atomic, ids

SYNC_S = 15.0
LOOK_S = 2.0  # within so long, asking again gives the same answer
INSTALL_S = 3600
NEEDED = """\
for name in python3.12 python3.11 python3; do found=$(command -v $name) && break; done
echo "python=$found"
echo "rsync=$(command -v rsync)"
echo "gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU ')"
"""
SMALL = ("status*.json", "metrics-*.jsonl", "log.txt", "attempts*.jsonl")


class Ssh(Engine):
    shares_lab = False

    def __init__(self, target):
        super().__init__(target)
        self._looked: tuple[float, Life | None] | None = None

    # the machine

    @property
    def _name(self) -> str:
        return f"{self.target.user}@{self.target.host}" if self.target.user else str(self.target.host)

    def _ssh_options(self) -> list[str]:
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
                   "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR"]  # fmt: skip
        if self.target.port:
            options += ["-p", str(self.target.port)]
        if self.target.identity:
            options += ["-i", str(Path(self.target.identity).expanduser()), "-o", "IdentitiesOnly=yes"]
        return options + list(self.target.ssh_options)

    def _ask(self, script: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess:
        """Run a bash script there, whatever the login shell; see `remote_shell.run` for what 255 and NOTHING_RAN mean."""
        if self.target.modules:
            script = "".join(f"module load {shlex.quote(name)} >&2 || exit 1\n" for name in self.target.modules) + script
        return remote_shell.run(["ssh", *self._ssh_options(), self._name], script, stdin, timeout)

    def _do(self, script: str, what: str, stdin: str = "", timeout: float = 60) -> str:
        done = self._ask(script, stdin, timeout)
        if done.returncode:
            raise SaladError(f"{what} on {self._name}: {_last(done.stderr) or _last(done.stdout)}")
        return done.stdout

    def _rsync(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess:
        shell = shlex.join(remote_shell.rsync_shell(["ssh", *self._ssh_options()]))
        # no owner or group: the other machine has other people
        return subprocess.run(
            ["rsync", "-rltp", "--partial-dir=.rsync-partial", "--timeout=60", "-e", shell, *words],
            input=stdin,
            capture_output=True,
            text=True,
        )

    def _send(self, *words: str, stdin: str = "") -> None:
        done = self._rsync(*words, stdin=stdin)
        if done.returncode:
            raise SaladError(f"sending files to {self._name}: {_last(done.stderr)}")

    # the engine

    def check(self) -> list[Finding]:
        """Whether a launch would work, one finding per requirement. Starts nothing."""
        try:
            python, gpus = self._look_around()
            findings = [Finding(True, f"{self._name} answers: {python}, {gpus} GPUs, rsync")]
            if self.target.python is None:
                version = self._do(f"{python} -c 'import sys; print(sys.version_info[:2])'", "asking Python").strip()
                findings.append(Finding(version in ("(3, 11)", "(3, 12)"), f"Python {version} for the project's install"))
            else:
                torch = self._ask(f"{shlex.quote(self.target.python)} -c 'import torch; print(torch.__version__)'")
                findings.append(Finding(not torch.returncode, _last(torch.stdout if not torch.returncode else torch.stderr)))
            base = self._base()
            free = self._do(f"df -Pk {shlex.quote(base)} | tail -1", "asking for disk space").split()[3]
            findings.append(Finding(int(free) > 10 * 2**20, f"{int(free) / 2**20:.0f} GiB free under {base}"))
            return findings
        except SaladError as error:
            return [Finding(False, str(error))]

    def preflight(self, spec: Spec) -> None:
        """Raise SaladError, in one line, if this launch cannot work. Writes nothing."""
        if spec.nodes > 1:
            raise SaladError(f"--nodes: {self._name} is one node; use --on slurm or --on sky")
        if codesync.ROOT.joinpath(".git").exists() is False:
            raise SaladError(f"{codesync.ROOT} is not a git checkout, so its code cannot be sent; clone the project with git")
        _, gpus = self._look_around()
        have = gpus if self.target.gpus is None else self.target.gpus
        if (spec.gpus or 0) > have:
            raise SaladError(f"--gpus {spec.gpus}: {self._name} has {have}")
        secrets(spec.env)

    def _look_around(self) -> tuple[str, int]:
        """(Python there, number of GPUs); SaladError where the machine cannot be reached or lacks something."""
        if not self.target.host:
            raise SaladError('the target has no host; write host = "…" in targets.toml, or --on ssh:HOST')
        for tool in ("ssh", "rsync"):
            if shutil.which(tool) is None:
                raise SaladError(f"{tool} is not installed here; --on ssh needs it")
        answer = self._ask(NEEDED)
        if answer.returncode == 255:
            raise SaladError(f"cannot reach {self._name}: {_last(answer.stderr)}")
        if answer.returncode == remote_shell.NOTHING_RAN:
            raise SaladError(f"{self._name}: bash did not run there (is it installed?): {_last(answer.stderr)}")
        if answer.returncode:
            raise SaladError(f"{self._name}: {_last(answer.stderr)}")
        there = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
        for tool in ("rsync", "python"):
            if not there.get(tool):
                raise SaladError(f"{self._name} has no {tool}; install it there")
        return there["python"], int(there.get("gpus") or 0)

    def _base(self) -> str:
        where = self.target.scratch or "salad"
        quoted = where if where.startswith("~") else shlex.quote(where)
        return self._do(f"mkdir -p {quoted} && cd {quoted} && pwd", "making the scratch folder").strip().split("\n")[-1]

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, as text for --dry-run."""
        there = self.target.scratch or "~/salad"
        python = self.target.python or f"{there}/env/…/bin/python"
        sent = "\n".join(f"  {name}" for name in inputs(run))
        return f"rsync to {self._name}:{there}\n{sent}\n" + shlex.join(command(spec, f"{there}/labs/…", python))

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. Raises SaladError if it did not start."""
        base = self._base()
        lab = f"{base}/labs/{ids.hash_id('w', socket.gethostname(), str(run.lab))}"
        code = f"{base}/code/{spec.code['tree']}"
        with tempfile.TemporaryDirectory() as folder:
            codesync.restore(run, spec.code, Path(folder))
            self._do(f"mkdir -p {shlex.quote(code)} {shlex.quote(lab)}", "making folders")
            self._send("--delete", f"{folder}/", f"{self._name}:{code}/")
        python = self.target.python or self._install(run, base, code)
        self._send("--recursive", "--files-from=-", "--exclude=.store-cache", f"{run.lab}/", f"{self._name}:{lab}/",
                   stdin="\n".join(inputs(run)))  # fmt: skip
        atomic.write_json(run.path / "ssh.json", {"lab": lab, "code": code, "python": python, "started_at": now()})
        handed = json.dumps(secrets(spec.env)) + "\n"
        for shard in range(spec.workers):
            self._do(self._there(run, f"--shard {shard} --secrets-on-stdin --detach"), "starting", handed)
        self._looked = None
        self._mirror(run)

    def _install(self, run: RunFolder, base: str, code: str) -> str:
        """The project's own install with the run's versions, made once for each set of them; returns its Python."""
        env = f"{base}/env/{codesync.environment_id(run)}"
        self._send(str(run.path / "packages.txt"), f"{self._name}:{code}/.packages.txt")
        python = self._look_around()[0]
        script = codesync.install_script(python, env, code, f"{code}/.packages.txt")
        self._do(script, "installing", timeout=INSTALL_S)
        return f"{env}/bin/python"

    def _there(self, run: RunFolder, flags: str) -> str:
        launched = read_json(run.path / "ssh.json")
        if launched is None:
            raise SaladError(f"{run.run_id} has no ssh.json: it was not started by ssh; launch it again")
        return (
            f"cd {shlex.quote(launched['code'])} && exec {shlex.quote(launched['python'])} -m salad.engines "
            f"--lab {shlex.quote(launched['lab'])} {flags} {run.run_id}"
        )

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """Copy the run's small files here and return its state on the host; None if the host cannot be reached."""
        if self._looked and time.monotonic() - self._looked[0] < LOOK_S:
            return self._looked[1]
        life = self._bring(run)
        self._looked = (time.monotonic(), life)
        if run.read_status().get("state") not in ENDED:
            self._mirror(run)
        return life

    def _bring(self, run: RunFolder) -> Life | None:
        """The small files of the run's folder, brought here; whether it lives, None where it cannot be asked."""
        there = read_json(run.path / "ssh.json")
        if there is None:
            return "gone"
        answer = self._ask(self._there(run, "--look"))
        if answer.returncode:
            return None
        chosen = [f"--include={name}" for name in SMALL]
        source = f"{self._name}:{there['lab']}/runs/{run.run_id}/"
        if self._rsync("--delete", *chosen, "--exclude=*", source, f"{run.path}/").returncode:
            return None
        return json.loads(answer.stdout.strip().splitlines()[-1])["life"]

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and keep it from being restarted."""
        self._do(self._there(run, "--stop"), "stopping")
        self._looked = None

    def fetch(self, run: RunFolder, spec: Spec, tables_only: bool = False, compare: bool = False) -> None:
        """Copy units and, unless `tables_only`, checkpoints and audio into this lab; repeatable. `compare`: byte by byte."""
        there = read_json(run.path / "ssh.json")
        if there is None:
            raise SaladError(f"{run.run_id} has not been started on {self._name}; there is nothing to fetch")
        extra = ["--checksum"] if compare else []
        parts = ["tables"] if tables_only else ["tables", "speech", f"runs/{run.run_id}/checkpoints"]
        made = self._do(f"cd {shlex.quote(there['lab'])} && ls -d {' '.join(parts)} 2>/dev/null; true", "looking")
        for part in made.split():
            (run.lab / part).mkdir(parents=True, exist_ok=True)
            # what says that a thing is whole comes last
            for choice in (["--exclude=manifest.json", "--exclude=unit-*.json"], []):
                done = self._rsync("--exclude=.*", *extra, *choice, f"{self._name}:{there['lab']}/{part}/", f"{run.lab / part}/")
                if done.returncode:
                    raise SaladError(f"fetching from {self._name}: {_last(done.stderr)}; do it again to go on")
        # what the run did inside passes is runs of their own
        self._rsync("--ignore-existing", "--include=/r*/", "--include=config.json", "--include=status.json",
                    "--include=metrics-*.jsonl", "--exclude=*", f"{self._name}:{there['lab']}/runs/",
                    f"{run.lab / 'runs'}/")  # fmt: skip

    def _mirror(self, run: RunFolder) -> None:
        """See to it that a process of its own brings the run's small files every 15 s, whoever looks or not."""
        marked = run.path / "mirror.json"
        if processes.alive(read_json(marked)):
            return
        child = subprocess.Popen(
            [sys.executable, "-m", "salad.engines.mirror", "--lab", str(run.lab), run.run_id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _children.append(child)
        atomic.write_json(marked, processes.mark(child.pid))


_children: list[subprocess.Popen] = []  # kept, so that Python does not complain of what outlives us


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no message"
