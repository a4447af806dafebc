"""Run a study with progress, show its plan, and print what came out."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from salad.errors import SaladError
from salad.study import conduct, costs, runner, state
from salad.study.config import BaseStudy, MiniatureStudy, Study


def with_seeds(config: BaseStudy, seeds: str) -> BaseStudy:
    """The study with the seeds of a comma-separated list."""
    try:
        numbers = tuple(int(part) for part in seeds.split(","))
    except ValueError:
        raise SaladError(f"--seeds {seeds}: write whole numbers, separated by commas") from None
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise SaladError(f"--seeds {seeds}: each once, from 0 on")
    if isinstance(config, MiniatureStudy):
        if len(numbers) > 1:
            raise SaladError("the miniature has one seed a lab; `salad findings` runs it over several")
        return config.seeded(numbers[0])
    return config.model_copy(update={"seeds": numbers})


def in_time(seconds: float) -> str:
    """Seconds for a person: 40 s, 12 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_plan(lab: Path, config: BaseStudy) -> None:
    """Print every step with what is done, time, GB and money, and what would be downloaded."""
    costs.check_engines(config)
    found = costs.costs(config, conduct.steps_of(lab, config))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, side in (("step", "left"), ("what", "left"), ("waits for", "left"), ("where", "left"), ("state", "left"),
                       ("time", "right"), ("GB", "right"), ("money", "right")):  # fmt: skip
        table.add_column(head, justify=side, overflow="fold")
    left = gb = money = 0.0
    for cost in found:
        spent = "" if cost.done or not cost.seconds else in_time(cost.seconds) + ("" if cost.measured else " *")
        waits = cost.step.own_name == state.PAUSE and not cost.done
        table.add_row(cost.step.name, cost.step.title, ", ".join(cost.step.after), cost.where,
                      "done" if cost.done else "waits for you" if waits else "to do",
                      spent, f"{cost.gb:.2f}" if cost.gb >= 0.005 else "", f"{cost.money:.2f}" if cost.money else "")  # fmt: skip
        if not cost.done:
            left, gb, money = left + cost.seconds, gb + cost.gb, money + cost.money
    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, highlight=False, width=150)
    console.print(table)
    done = sum(cost.done for cost in found)
    console.print(f"\n{done} of {len(found)} steps are done; left: {in_time(left)} of work, {gb:.2f} GB of disk"
                  + (f", {money:.2f} in money" if money else ""))  # fmt: skip
    if not all(cost.measured or not cost.seconds for cost in found):
        console.print("* assumed; steps of the same kind that this lab has done give measured times")
    here = any(cost.where == "here" and cost.unit == "tokens" and not cost.done for cost in found)
    if here and not costs.has_gpu():
        console.print("this machine has no GPU, so trainings are counted on its CPU cores; "
                      """--set engines='{"stage": "ssh:HOST"}' counts them on a GPU elsewhere""", soft_wrap=True)  # fmt: skip
    if isinstance(config, Study):
        wanted = costs.downloads(config, lab)
        for name, size in wanted:
            console.print(f"download: {name}" + (f", {size:g} GB" if size else ", size not known"))
        for what, source in sources_missing(config):
            console.print(f"missing: {what}: {source}")


def sources_missing(config: Study) -> list[tuple[str, str]]:
    """(what for, how to get it) of every source that is not there."""
    from salad.study import sources

    return [(what, why) for what, source in sources.of_study(config) if (why := sources.missing(source))]


def mark_reviewed(lab: Path, config: BaseStudy) -> None:
    """Say for every seed whose texts are selected that a person has reviewed them. SaladError where none is selected yet."""
    ready = [path for _, path in conduct.all_labs(lab, config) if "selection" in state.records(path)]
    if not ready:
        raise SaladError(f"{lab}: nothing is selected yet, so there is nothing that can be reviewed; run the study first")
    for path in ready:
        state.mark_reviewed(path)


def run_study(lab: Path, config: BaseStudy, *, corpus: str | None = None, smoke: bool = False, until: str | None = None,
              only: str | None = None, again: str | None = None, workers: int = 2, real: bool = True,
              keep_going: bool = True) -> int:  # fmt: skip
    """Do what is left of a study, then print its table and what to open next. 0 done or waiting for a person, 1 a step failed."""
    console = Console()
    began = time.monotonic()
    note = " (smoke: figures mean nothing)" if smoke else ""
    if real:
        console.print(f"study {config.name}, seeds {', '.join(map(str, config.seeds))}, lab {lab}{note}", highlight=False)
    with watching(console, left_of(lab, config, workers) if real else None) as watch:
        made = conduct.conduct(lab, config, watch, corpus=corpus, workers=workers, until=until, only=only, again=again,
                               keep_going=keep_going)  # fmt: skip
    seconds, busy = time.monotonic() - began, sum(outcome.seconds for outcome in made.outcomes)
    at_once = "two at a time" if workers == 2 else f"{workers} at a time"
    console.print(f"all steps: {seconds:.0f} s ({busy:.0f} s of work, {at_once})\n", highlight=False)
    failed = made.failed
    if failed:
        ran = [outcome for outcome in failed if outcome.seconds]
        console.print(
            f"{len(ran)} of {len(made.outcomes)} steps failed, each with its reason above"
            + (f", and {len(failed) - len(ran)} wait for them" if len(failed) > len(ran) else "")
            + "; rerun the command to try them again.", highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 1
    for path in made.waiting:
        where = "" if path == Path("lab").resolve() else f"SALAD_LAB={path} "
        console.print(
            f"waits for a person: {where}marimo edit notebooks/selection.py shows what was selected, to listen and to drop. "
            f"Then press its button, or give this command with --reviewed: Stage II begins.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if until is None and only is None and not made.waiting:
        show_results(console, lab, config)
    return 0


def show_results(console: Console, lab: Path, config: BaseStudy) -> None:
    """The table of each seed's lab, the table that joins them, and what to open next."""
    from workbench.reports import report
    from workbench.reports.study import study_tables

    for seed, path in conduct.all_labs(lab, config):
        if len(config.seeds) > 1:
            console.print(f"seed {seed}", highlight=False)
        if isinstance(config, Study) and not config.tasks:
            continue  # nothing is evaluated; the divergences stand in the table of all seeds
        told = report(path)
        told.print()
        console.print(f"report: {path / 'report.html'} and {path / 'report.md'}\n", highlight=False, soft_wrap=True)
    if isinstance(config, Study):
        for path in study_tables(lab, config).write(lab):
            console.print(f"tables of all seeds: {path}", highlight=False, soft_wrap=True)
    where = "" if lab == Path("lab") else f"SALAD_LAB={lab} "
    console.print("Open next:")
    for what, line in (
        ("see and hand-filter the selection", f"{where}marimo edit notebooks/selection.py   (make select)"),
        ("compare text and speech answers", f"{where}python -m workbench.arena               (make arena)"),
        ("ask the tables", f"{where}salad sql \"from misalignment limit 9\"   (make sql)"),
    ):  # fmt: skip
        console.print(f"  {what:<34} {line}", highlight=False, soft_wrap=True)


def left_of(lab: Path, config: BaseStudy, workers: int) -> Callable[[set[str]], float]:
    """A function of the names of steps that are done: about the seconds that are left of the whole study."""
    found = costs.costs(config, conduct.steps_of(lab, config))
    seconds = {cost.step.name: cost.seconds for cost in found if not cost.done}
    after = {cost.step.name: cost.step.after for cost in found}

    def left(done: set[str]) -> float:
        open_, longest = {name: s for name, s in seconds.items() if name not in done}, {}

        def path(name: str) -> float:
            if name not in longest:
                longest[name] = open_.get(name, 0.0) + max((path(before) for before in after[name]), default=0.0)
            return longest[name]

        return max(sum(open_.values()) / workers, max((path(name) for name in open_), default=0.0))

    return left


@contextmanager
def watching(console: Console, left: Callable[[set[str]], float] | None = None):
    """What `runner.run` tells, as a bar and the time left for each step and for the whole, and a line for what is done or has
    failed."""
    columns = (
        TextColumn("{task.description:<32}"), BarColumn(30), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    known: dict[str, int] = {}
    done: set[str] = set()

    def watch(event: str, step: runner.Step, *details) -> None:
        if event == "start":
            known[step.name] = bars.add_task(step.title, total=None)
        elif event == "progress":
            bars.update(known[step.name], completed=details[0], total=details[1])
        else:
            if step.name not in known:  # it waited for a step that failed, and whose line stands above
                return
            bars.remove_task(known.pop(step.name))
            outcome = details[0]
            message = f"failed: {outcome.message}" if outcome.failed else outcome.message
            done.add(step.name)
            seconds = left(done) if left is not None and not outcome.failed else 0.0
            rest = f"   (left: about {in_time(seconds)})" if seconds > 60 else ""
            bars.console.print(f"{step.title:<32} {outcome.seconds:6.1f} s  {message}{rest}", highlight=False, soft_wrap=True)

    with bars:
        yield watch
