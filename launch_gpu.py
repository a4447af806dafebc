"""Start, watch, stop and resume runs on this machine, over SSH, on Slurm or in a cloud. See docs/launch.md.

    python launch_gpu.py RECIPE [--set key=value ...] [--on here|ssh:HOST|slurm|sky|NAME] [--gpus H200:8] ...
    python launch_gpu.py list
    python launch_gpu.py check [NAME]
    python launch_gpu.py logs|stop|resume|fetch RUN

From Python: `from launch_gpu import launch`; `run = launch("miniature_stage1", on="here")`.
"""

import argparse
import os
import sys

from salad import parts
from salad.engines import Run, codesync, launch, runs
from store.errors import UserError

__all__ = ["Run", "launch", "runs", "main"]
RESERVED = ("list", "check", "logs", "stop", "resume", "fetch")


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-hours", type=float, metavar="H", help="hard limit on hours, over all attempts")
    parser.add_argument("--budget", type=float, metavar="AMOUNT", help="hard limit on cost: hours times price per hour")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lab", metavar="DIR", help="the lab (default: $SALAD_LAB, else ./lab)")


def _launch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="launch_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="name of a recipe (an unknown name lists all), or path of a run's config.json"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=VALUE", help="set a configuration key; may be repeated"
    )
    parser.add_argument(
        "--on", metavar="WHERE", help="where to run: here, ssh:[user@]host[:port], slurm, sky, or the name of a target"
    )
    parser.add_argument("--gpus", metavar="[TYPE:]N", help="GPUs per node, such as 2 or H200:8")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines that train together (slurm, sky)")
    _limits(parser)
    parser.add_argument("--max-hourly-cost", type=float, metavar="C", help="refuse a machine that costs more per hour")
    parser.add_argument(
        "--stall-minutes", type=float, default=15.0, help="report the run as stalled after this many minutes without a step"
    )
    parser.add_argument("--again", action="store_true", help="start another run of the same configuration")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; start nothing")
    parser.add_argument("--follow", action="store_true", help="show the log until the run ends")
    parser.add_argument(
        "--targets", metavar="FILE", help="targets file (default: ./targets.toml, else ~/.config/salad/targets.toml)"
    )
    _common(parser)
    given = parser.parse_args(argv)
    from salad.config import parse_set

    run = launch(
        given.recipe, given.on, parse_set(given.set), given.lab, gpus=given.gpus, nodes=given.nodes,
        max_hours=given.max_hours, budget=given.budget, max_hourly_cost=given.max_hourly_cost,
        stall_minutes=given.stall_minutes, again=given.again, dry_run=given.dry_run, targets=given.targets,
    )  # fmt: skip
    if given.dry_run:
        print(run)
        return 0
    print(run)
    for line in codesync.summary(run.spec.code):
        print(line)
    if given.follow:
        return _show(run, follow=True)
    print(f"watch it: python launch_gpu.py logs {run.run_id} --follow --lab {run.lab}")
    return 0


def _list(argv: list[str]) -> int:
    import store

    parser = argparse.ArgumentParser(prog="launch_gpu.py list", description="List the lab's runs, newest first.")
    _common(parser)
    lab = store.lab_path(parser.parse_args(argv).lab)
    found_runs = runs(lab)
    if not found_runs:
        print(f"no runs in {lab}; start one with: python launch_gpu.py RECIPE")
        return 0
    form = "{:13}  {:10}  {:18}  {:12}  {:>15}  {:>9}  {}"
    print(form.format("run", "kind", "recipe", "where", "step", "left", "state"))
    for run in found_runs:
        status, record = run.status(), run.folder.record
        step = "" if status.get("step") is None else f"{status['step']:,}/{status.get('max_steps') or '?'}"
        left = _duration(status.get("seconds_left")) if status["state"] == "running" else ""
        description = status["state"] + (f": {status['error']}" if status.get("error") else "")
        print(
            form.format(run.run_id, record["kind"], record["recipe"][:18], status.get("on") or "by hand", step, left, description)
        )
    return 0


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} m {seconds:02} s"


def _check(argv: list[str]) -> int:
    from salad.engines.base import load
    from salad.engines.targets import resolve

    parser = argparse.ArgumentParser(prog="launch_gpu.py check", description="Check whether a target would work.")
    parser.add_argument("name", nargs="?", help="here, ssh:HOST, slurm, sky, or the name of a target")
    parser.add_argument("--targets", metavar="FILE")
    given = parser.parse_args(argv)
    name, target = resolve(given.name, given.targets)
    findings = load(target).check()
    unset = [variable for variable in target.env if variable not in os.environ]
    for variable in target.env:
        print(f"no  {variable} is not set here" if variable in unset else f"ok  {variable} is set here")
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'no '} {finding.message}")
    works = not unset and all(finding.ok for finding in findings)
    print(f"{name} {'would work' if works else 'would not work'}")
    return 0 if works else 1


def _one(name: str, argv: list[str]) -> int:
    import store

    descriptions = {
        "logs": "Show a run's log.",
        "stop": "Ask a run to write a checkpoint and end.",
        "resume": "Resume a run from its last checkpoint.",
        "fetch": "Copy a run's units and checkpoints into this lab.",
    }
    parser = argparse.ArgumentParser(prog=f"launch_gpu.py {name}", description=descriptions[name])
    parser.add_argument("run_id", metavar="RUN", help="id of the run, as `list` shows it")
    _common(parser)
    if name in ("logs", "resume"):
        parser.add_argument("--follow", action="store_true", help="show new lines until the run ends")
    if name == "resume":
        _limits(parser)
    if name == "stop":
        parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait up to S seconds for the run to end")
    if name == "fetch":
        parser.add_argument("--tables-only", action="store_true", help="skip audio and checkpoints")
    given = parser.parse_args(argv)
    run = Run.open(store.lab_path(given.lab), given.run_id)
    if name == "logs":
        return _show(run, given.follow)
    if name == "stop":
        run.stop(given.wait)
    elif name == "resume":
        limits = {"max_hours": given.max_hours, "budget": given.budget}
        run = run.resume(**{key: value for key, value in limits.items() if value is not None})
        if given.follow:
            return _show(run, follow=True)
    elif name == "fetch":
        fetched = run.fetch(tables_only=given.tables_only)
        print(f"{fetched['checkpoints']} checkpoints and {fetched['units']} units are here and complete")
        for line in fetched["damaged"]:
            print(f"damaged: {line}")
        return 1 if fetched["damaged"] else 0
    print(run)
    return 0


def _show(run: Run, follow: bool) -> int:
    if not follow:
        print(run.logs(), end="")
        return 0
    for line in run.logs(follow=True):
        print(line, flush=True)
    status = run.status()
    print(run)
    return 0 if status["state"] == "done" else 1


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code; a person's error is one line on stderr and 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        argv = parts.take_flags(argv)
        if argv and argv[0] in RESERVED:
            name, rest = argv[0], argv[1:]
            return _list(rest) if name == "list" else _check(rest) if name == "check" else _one(name, rest)
        return _launch(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("detached; the run continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
