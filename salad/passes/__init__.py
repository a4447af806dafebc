"""Passes: embed, cluster, probe, synthesise, score. Each is a plain function that writes store units and Shar only.

A pass is a run of kind `pass`: its configuration is what the work is made from, done means that its units exist, and
doing it again skips what is done.
"""

from collections.abc import Callable
from pathlib import Path

from salad.runs import RunFolder, renewing, running

Progress = Callable[[int, int], None]


def as_run(lab: Path | str, name: str, config: dict, work: Callable[[RunFolder], None], kind: str = "pass",
           parent: str | None = None) -> RunFolder:  # fmt: skip
    """Do `work(run)` inside a run folder of its own, unless that run is done already. Returns the folder."""
    run = RunFolder.create(lab, kind, name, config, parent)
    if run.read_status().get("state") != "done":
        with renewing(lab), running(run):
            work(run)
    return run
