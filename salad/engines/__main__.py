"""The supervisor's command line, which the engines start where a run is to run; see salad/engines/supervisor.py.

python -m salad.engines --lab LAB RUN_ID [--shard I] [--secrets-on-stdin] [--detach]
"""

import argparse
import json
import os
import subprocess
import sys

from salad.engines.base import Engine, Life, load
from salad.engines.handle import reconcile_status
from salad.engines.spec import Spec
from salad.engines.supervisor import (
    USER_ERROR_CODE,
    clear_failures,
    is_alive,
    mark_supervisor,
    signal_processes,
    supervise,
)
from salad.errors import SaladError
from salad.runs import RunFolder
from store.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 on a user error (one line on stderr), 75 to be restarted, else failed."""
    parser = argparse.ArgumentParser(prog="python -m salad.engines", description=__doc__.split(";")[0])
    parser.add_argument("run_id")
    parser.add_argument("--lab", required=True)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--look", action="store_true", help="say whether it lives, as JSON")
    parser.add_argument("--stop", action="store_true", help="ask it to end")
    parser.add_argument("--secrets-on-stdin", action="store_true", help="a JSON object of environment variables")
    parser.add_argument("--detach", action="store_true", help="go on in a process session of its own")
    arguments = parser.parse_args(argv)
    try:
        run = RunFolder.open(arguments.lab, arguments.run_id)
        spec = Spec.of(run)
        if spec is None:
            raise SaladError(f"{run.path} has no launch.json; start it by launch_gpu.py")
        if arguments.look:
            life: Life = "alive" if is_alive(run) else "gone"
            print(json.dumps({"life": life, "state": reconcile_status(run, spec, _engine(spec), life)["state"]}))
            return 0
        if arguments.stop:
            run.request_stop()
            signal_processes(run)
            return 0
        handed = sys.stdin.readline() if arguments.secrets_on_stdin else ""
        if arguments.detach:
            clear_failures(run)  # a person starts it: what ended it before no longer counts
            _detach(run, arguments, handed)
            return 0
        os.environ.update(json.loads(handed or "{}"))
        mark_supervisor(run, arguments.shard, os.getpid())
        return supervise(run, spec, arguments.shard, *_engine(spec).rendezvous(spec))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_CODE


def _engine(spec: Spec) -> Engine:
    """The run's engine; a plain one where a class of the user's own is not installed on this machine."""
    try:
        return load(spec.target)
    except SaladError:
        return Engine(spec.target)


def _detach(run: RunFolder, arguments: argparse.Namespace, handed: str) -> None:
    """Start this command again in a session of its own, with no terminal or pipe to whoever asked; hand it `handed`."""
    words = [sys.executable, "-m", "salad.engines", "--lab", arguments.lab, "--shard", str(arguments.shard)]
    with open(run.path / "log.txt", "ab") as log:
        child = subprocess.Popen([*words, "--secrets-on-stdin", run.run_id], stdin=subprocess.PIPE, stdout=log,
                                 stderr=log, start_new_session=True, text=True)  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(handed or "{}\n")
    child.stdin.close()
    mark_supervisor(run, arguments.shard, child.pid)


if __name__ == "__main__":
    sys.exit(main())
