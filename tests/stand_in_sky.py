"""A stand-in for the `sky` command: it plays back what a test wrote, and never asks a cloud for anything.

$SKY_STAND_IN is its folder: `play` holds the job's states, one a line, of which each `jobs queue` takes the next (the
last one stays); `RUN` there lets the task's own `run` command work on this machine; `calls` keeps what was asked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(os.environ["SKY_STAND_IN"])


def main(words: list[str]) -> int:
    with open(HERE / "calls", "a") as file:
        file.write(json.dumps(words) + "\n")
    jobs = json.loads((HERE / "jobs").read_text()) if (HERE / "jobs").exists() else []
    if words[:2] == ["jobs", "launch"]:
        task = yaml.safe_load(Path(words[-1]).read_text())
        if (HERE / "refuse").exists():
            print("RuntimeError: no credentials", file=sys.stderr)
            return 1
        jobs.append({"job_id": len(jobs) + 1, "job_name": task["name"], "failure_reason": None})
        (HERE / "jobs").write_text(json.dumps(jobs))
        if (HERE / "RUN").exists():
            run(task)
        return 0
    if words[:2] == ["jobs", "queue"]:
        states = (HERE / "play").read_text().split("\n")
        state = states.pop(0) if len(states) > 1 else states[0]
        (HERE / "play").write_text("\n".join(states or [state]))
        if state == "DOWN":
            print("Error: cannot connect to the API server", file=sys.stderr)
            return 1
        for job in jobs:
            job["status"], _, job["failure_reason"] = state.partition(" ")
        print("[INFO] Checking the queue ...\n[] of 2 notices: {}")
        print(json.dumps([] if state == "LOST" else jobs))
        return 0
    if words[:2] == ["jobs", "cancel"]:
        (HERE / "play").write_text("CANCELLED")
        return 0
    if words[:2] == ["gpus", "list"]:
        kind, _, number = words[2].partition(":")
        offers = [{"accelerator_count": float(number), "price": 4.0 * int(number), "spot_price": 1.0 * int(number)}]
        print("{notice} prices are of today")
        print(json.dumps({kind: offers} if kind == "H200" else {}, indent=1))
        return 0
    if words == ["check"]:
        print("Enabled: stand-in")
        return 0
    print(f"unknown command {words}", file=sys.stderr)
    return 2


def run(task: dict) -> None:
    """What a machine would do, on this one: workdir and environment at their places in a home of its own."""
    home = HERE / "home"
    (home / "salad-env" / "bin").mkdir(parents=True, exist_ok=True)
    python = home / "salad-env" / "bin" / "python"
    python.unlink(missing_ok=True)
    python.symlink_to(sys.executable)
    workdir = home / "sky_workdir"
    workdir.unlink(missing_ok=True)
    workdir.symlink_to(task["workdir"])
    env = os.environ | task["envs"] | {"HOME": str(home), "PYTHONPATH": os.environ["SKY_STAND_IN_PACKAGES"]}
    with open(HERE / "output", "ab") as log:
        for rank in range(task["num_nodes"]):
            node = {"SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": str(rank)}
            subprocess.Popen(["sh", "-c", task["run"]], env=env | node, stdout=log, stderr=log, start_new_session=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
