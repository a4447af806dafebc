"""A run small enough for tests of the engines: a real process with steps, checkpoints, resume and an exact state.

    python -m tests.tiny_run --lab LAB RUN_ID

Its configuration: steps, pause (seconds a step), every (steps a checkpoint), and at will fail_at, die_at, hang_at
(what happens at that step), say (an environment variable whose length is logged), unit (publish this many rows).
"""

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time

import store
from salad.runs import RunFolder, running
from store import atomic


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_id")
    parser.add_argument("--lab", required=True)
    parser.add_argument("--shard", default=None)
    given = parser.parse_args()
    run = RunFolder.open(given.lab, given.run_id)
    try:
        with running(run, device="tiny"):
            work(run, given)
    except store.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def work(run: RunFolder, given) -> None:
    config = run.config
    kept = run.checkpoints()
    state = json.loads((kept[-1] / "state.json").read_text()) if kept else {"step": 0, "x": 1.0}
    step, x = state["step"], state["x"]
    run.log(f"from step {step} with {__file__} {given.shard or ''}")
    if "say" in config:
        run.log(f"{config['say']} has {len(os.environ[config['say']])} characters")
    if config.get("gang"):
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        run.log(f"{int(total)} ranks, CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}")
        dist.destroy_process_group()
    if config.get("refuse"):
        raise store.UserError("the teacher is missing; make it first")
    writer = run.metrics_writer(step + 1)
    if given.shard:
        index, shards = map(int, given.shard.split("/"))
        rows = [{"sample_id": f"s{n:012x}", "text": f"text {n}", "corpus": "tiny"} for n in range(index, 12, shards)]
        store.publish(run.lab, "samples", rows, made_from={"tiny": run.run_id, "shard": [index, shards]})
    while step < config["steps"]:
        for fault, number in (("die_at", signal.SIGKILL), ("hang_at", signal.SIGSTOP)):
            if config.get(fault) == step and not kept:
                run.status(state="running", step=step)
                os.kill(os.getpid(), number)
        if config.get("fail_at") == step:
            raise RuntimeError(f"broken at {step}")
        time.sleep(config.get("pause", 0))
        x = math.sin(x + step)
        step += 1
        if run.leader and not given.shard:
            writer.log(step, step * 10, loss=x)
        run.status(step=step, max_steps=config["steps"], tokens=step * 10)
        end = run.should_stop()
        if run.leader and not given.shard and (step % config.get("every", 5) == 0 or end):
            save(run, step, x)
        if end:
            raise end
    if config.get("unit") and run.leader and not given.shard:
        rows = [{"sample_id": f"s{n:012x}", "text": f"text {n}", "corpus": "tiny"} for n in range(config["unit"])]
        store.publish(run.lab, "samples", rows, made_from={"tiny": run.run_id})


def save(run: RunFolder, step: int, x: float) -> None:
    folder = run.path / "checkpoints" / f"step-{step}"
    path = atomic.write_json(folder / "state.json", {"step": step, "x": x})
    checksum = {"state.json": hashlib.sha256(path.read_bytes()).hexdigest()}
    atomic.write_json(folder / "manifest.json", {"step": step, "sha256": checksum})


if __name__ == "__main__":
    sys.exit(main())
