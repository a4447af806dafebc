"""`salad demo`: the miniature study from corpus to report, with progress, to be interrupted and taken up at will."""

import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from salad import recipes
from salad.errors import SaladError
from salad.study import graph, runner
from salad.study.config import voices_of

NEEDED_GB = 1.0


def run_demo(lab: Path, seed: int = 0, corpus: str | None = None, smoke: bool = False, tts: str | None = None,
         full: bool = False, overrides: dict | None = None) -> None:  # fmt: skip
    """Run what is not done yet of the miniature study in `lab`, then print its table and what to open next."""
    import store
    from salad.config import apply_overrides
    from workbench.reports import report

    console = Console()
    began = time.monotonic()
    config = recipes.miniature().seeded(seed)
    config = config.smoke() if smoke else config
    config = config.full() if full else config
    if tts is not None:
        config = config.model_copy(update={"tts": tts} | voices_of(tts))
    config = apply_overrides(config, overrides or {})
    if corpus is not None and not Path(corpus).is_file():
        raise SaladError(f"--corpus {corpus}: there is no such file")
    if config.tts != "espeak":
        from salad.speech import load_tts

        load_tts(config.tts).speak("Ready.", config.voices[0], 0)  # what it lacks is told now, not in the middle
    _room_for(lab)
    graph.claim(lab, config, corpus)
    console.print(f"SALAD in miniature: seed {seed}, lab {lab}" + (" (smoke: figures mean nothing)" if smoke else ""))
    if config.tts == "espeak":
        console.print("espeak-ng speaks; where Kokoro's weights are at hand, --tts kokoro:FOLDER takes its place.",
                      soft_wrap=True)  # fmt: skip
    with watching(console) as watch:
        outcomes = runner.run(graph.plan(lab, config, corpus), 2, watch)
    store.renew(lab)
    seconds = time.monotonic() - began
    busy = sum(outcome.seconds for outcome in outcomes)
    console.print(f"all steps: {seconds:.0f} s ({busy:.0f} s of work, two at a time)\n")
    summary = report(lab)
    summary.print()
    console.print(f"report: {lab / 'report.html'} and {lab / 'report.md'}")
    where = "" if lab == Path("lab") else f"SALAD_LAB={lab} "
    console.print("Open next:")
    for what, command in (
        ("see and hand-filter the selection", f"{where}marimo edit notebooks/selection.py   (make select)"),
        ("compare text and speech answers", f"{where}python -m workbench.arena               (make arena)"),
        ("ask the tables", f"{where}salad sql \"from misalignment limit 9\"   (make sql)"),
    ):  # fmt: skip
        console.print(f"  {what:<34} {command}", highlight=False, soft_wrap=True)


def _room_for(lab: Path) -> None:
    place = lab
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < NEEDED_GB:
        raise SaladError(f"{place} has {free:.2f} GB free; the demo needs about {NEEDED_GB:g} GB. Give another --lab")


@contextmanager
def watching(console: Console):
    """What `runner.run` tells, as a bar and the time left for each step, and a line for what is done or has failed."""
    columns = (
        TextColumn("{task.description:<32}"), BarColumn(30), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty())
    known: dict[str, int] = {}

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
            bars.console.print(f"{step.title:<32} {outcome.seconds:6.1f} s  {message}", highlight=False, soft_wrap=True)

    with bars:
        yield watch
