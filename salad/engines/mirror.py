"""Copies the status, metrics and log of a run on another machine into this lab every 15 s until the run has ended.

python -m salad.engines.mirror --lab LAB RUN_ID
"""

import argparse
import os
import time

from salad.engines import processes
from salad.engines.handle import Run
from salad.engines.ssh import SYNC_S
from salad.runs import ENDED, read_json

GIVES_UP_S = 24 * 3600


def main() -> None:
    """The command line: copy until the run has ended. Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_id")
    parser.add_argument("--lab", required=True)
    given = parser.parse_args()
    run = Run.open(given.lab, given.run_id)
    last_change = time.monotonic()
    while (status := run.status())["state"] not in ENDED and run.folder.path.exists():
        if status["state"] != "stalled":
            last_change = time.monotonic()
        if time.monotonic() - last_change > GIVES_UP_S:
            return  # whoever asks for the status next starts it again
        time.sleep(SYNC_S)
        marked = read_json(run.folder.path / "mirror.json") or {}
        if processes.alive(marked) and marked["pid"] != os.getpid():
            return  # another one has taken over


if __name__ == "__main__":
    main()
