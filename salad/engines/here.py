"""This machine: a process session of its own, so that the run outlives the notebook and the shell."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

from salad.engines import supervisor
from salad.engines.base import Engine, Finding, Life
from salad.engines.spec import Spec, command, secrets
from salad.errors import SaladError
from salad.runs import RunFolder

_children: list[subprocess.Popen] = []  # kept so that those of this process are reaped


def gpus() -> int:
    """How many NVIDIA GPUs this machine has, without importing torch; CUDA_VISIBLE_DEVICES counts."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


class Here(Engine):
    runs_recorded_code = False

    def check(self) -> list[Finding]:
        """Whether a launch would work, one finding per requirement. Starts nothing."""
        return [Finding(True, f"{sys.executable}, {gpus()} GPUs")]

    def preflight(self, spec: Spec) -> None:
        """Raise SaladError, in one line, if this launch cannot work. Writes nothing."""
        if spec.nodes > 1:
            raise SaladError("--nodes: this machine is one node; use --on slurm or --on sky")
        have = gpus() if self.target.gpus is None else self.target.gpus
        if spec.gpus is not None and spec.gpus > have:
            raise SaladError(f"--gpus {spec.gpus}: this machine has {have}")
        secrets(spec.env)

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, as text for --dry-run."""
        return shlex.join(command(spec, str(run.lab)))

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. Raises SaladError if it did not start."""
        for shard in range(spec.workers):
            log = open(run.path / "log.txt", "ab")
            child = subprocess.Popen(
                [sys.executable, "-m", "salad.engines", "--lab", str(run.lab), "--shard", str(shard), run.run_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | secrets(spec.env),
            )
            log.close()
            _children.append(child)
            with contextlib.suppress(Exception):  # the mark closes the gap until the supervisor writes its own
                supervisor.mark_supervisor(run, shard, child.pid)

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """The run's state: alive or gone."""
        for child in _children[:]:
            if child.poll() is not None:
                _children.remove(child)
        alive = supervisor.is_alive(run)
        return None if alive is None else "alive" if alive else "gone"

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and keep it from being restarted."""
        run.request_stop()
        supervisor.signal_processes(run, signal.SIGTERM)
