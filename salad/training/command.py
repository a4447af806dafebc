"""`python -m salad.training --lab LAB RUN_ID`: train a prepared run, or resume it."""

import os
import sys
import time

import store
from salad.training.loop import train


def main(arguments: list[str] | None = None) -> int:
    """`python -m salad.training --lab LAB RUN_ID`"""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m salad.training", description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("--lab", default=os.environ.get("SALAD_LAB", "lab"))
    options = parser.parse_args(arguments)

    began: list = []

    def report(step: int, steps: int, means: dict) -> None:
        values = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        began.append((step, time.monotonic()))
        (first, since), (_, now) = began[0], began[-1]
        left = (now - since) / (step - first) * (steps - step) if step > first else None
        print(f"step {step}/{steps} {values}" + ("" if left is None else f" {_clock(left)} left"), flush=True)

    try:
        train(options.lab, options.run_id, report)
    except store.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
