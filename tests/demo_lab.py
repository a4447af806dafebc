"""The finished lab of `salad demo --smoke`, undisturbed: made once for all files of tests and all of pytest's workers."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import store

SALAD = [sys.executable, "-m", "workbench.cli"]
DEMO = ("demo", "--smoke", "--seed", "7")


class Demo(NamedTuple):
    """The lab, which no test may change, and what the command printed when it made it."""

    lab: Path
    out: str
    err: str


def salad(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*SALAD, *map(str, arguments)], capture_output=True, text=True, **options)


def finished(tmp_path_factory) -> Demo:
    """The lab, made by whoever asks first; others wait for it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # the workers' common one
    lab, printed = folder / "demo" / "lab", folder / "demo" / "printed.json"
    with open(folder / "demo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = salad(*DEMO, "--lab", lab)
            assert done.returncode == 0, done.stderr + done.stdout
            results(lab)  # what the store keeps beside a lab is there before many look at it at once
            printed.write_text(json.dumps([done.stdout, done.stderr]))
    return Demo(lab, *json.loads(printed.read_text()))


def results(lab) -> list[tuple]:
    """Everything measured, without what depends on the clock."""
    con = store.connect(lab)
    return [
        con.execute(f"select {columns} from {table} order by all").fetchall()
        for table, columns in (
            ("evaluations", "contender, run_id, step, task, modality, item_id, scores, correct_norm"),
            ("divergences", "run_id, step, sample_id, synthesis_id, pattern, m, f, d"),
            ("selected", "selection_id, sample_id, draw"),
        )
    ]
