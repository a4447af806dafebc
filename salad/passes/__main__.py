"""A pass, or one shard of it, as an engine starts it; `salad pass NAME --on here --workers 2` does.

python -m salad.passes --lab LAB RUN_ID [--shard I/N]
"""

import argparse
import os
import sys

import store
from salad.passes.run import run_shard
from salad.runs import Preempted


def main(arguments: list[str] | None = None) -> int:
    """The command line: run one shard of a prepared pass. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m salad.passes", description=__doc__.split(";")[0])
    parser.add_argument("run_id")
    parser.add_argument("--lab", default=os.environ.get("SALAD_LAB", "lab"))
    parser.add_argument("--shard", default="0/1", metavar="I/N")
    options = parser.parse_args(arguments)
    shard, _, shards = options.shard.partition("/")
    try:
        print(run_shard(options.lab, options.run_id, int(shard), int(shards or 1)), flush=True)
    except Preempted:
        raise
    except store.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
