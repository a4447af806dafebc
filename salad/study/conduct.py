"""Run a study of any size: what is left of its graph of steps, in order, resumable at any point."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import store
from salad.errors import SaladError
from salad.study import costs, graph, runner, state
from salad.study.config import BaseStudy, Study
from salad.study.notes import recall
from salad.study.runner import Outcome, Step
from store import atomic


@dataclass
class Conducted:
    """What came of a call: steps that were gone through, those that failed, and labs that wait for a person's review."""

    outcomes: list[Outcome] = field(default_factory=list)
    waiting: list[Path] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed]


def steps_of(lab: Path | str, config: BaseStudy, corpus: str | None = None) -> list[Step]:
    """Every step of a study, over all seeds, with SaladError where one waits for a step that does not exist."""
    steps = graph.plan(lab, config, corpus)
    names = {step.name for step in steps}
    for step in steps:
        for before in step.after:
            if before not in names:
                raise SaladError(f"step {step.name} waits for {before}, which this study does not have")
    return steps


def labs_of(lab: Path | str, config: BaseStudy) -> list[Path]:
    """The lab of each seed, the first seed's first."""
    return [graph.lab_of(lab, config, seed) for seed in config.seeds]


def chosen(steps: list[Step], until: str | None = None, only: str | None = None) -> list[Step]:
    """The steps up to `until` (that step and all that it waits for), or `only` one. A step may be named without its seed: then
    it is that step of every seed. SaladError for a step that there is not."""
    if until is not None and only is not None:
        raise SaladError("--until and --only: name one of them")
    wanted = until or only
    if wanted is None:
        return steps
    named = [step for step in steps if wanted in (step.name, step.own_name)]
    if not named:
        near = get_close_matches(wanted, [step.name for step in steps], 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(step.name for step in steps)}"
        raise SaladError(f"this study has no step {wanted!r}; {hint}")
    if only is not None:
        return named
    needed, by_name = set(), {step.name: step for step in steps}

    def need(step: Step) -> None:
        if step.name not in needed:
            needed.add(step.name)
            for before in step.after:
                need(by_name[before])

    for step in named:
        need(step)
    return [step for step in steps if step.name in needed]


def beyond(steps: list[Step], names: set[str]) -> set[str]:
    """The steps that wait, directly or not, for one of `names`, and those themselves."""
    found = set(names)
    while True:
        more = {step.name for step in steps if found & set(step.after)} - found
        if not more:
            return found
        found |= more


def evidence(lab: Path | str, name: str) -> list[str]:
    """Files of the lab, relative to it, that show that a step is done: reports, noted runs' checkpoints, passes' folders."""
    lab, found = Path(lab), []
    reports = {
        "text": "corpora/broad.json", "heldout_text": "corpora/heldout.json", "natural": "speech/natural.json",
        "heldout": "speech/heldout_natural.json", "spoken": "speech/heldout", "world": "corpora/world.json",
    }  # fmt: skip
    if name.startswith("natural_"):
        reports[name] = f"speech/{name}.json"
    if name in reports and (lab / reports[name]).exists():
        found.append(reports[name])
    noted = state.noted(lab, name)
    if name.startswith(("stage1", "stage2")) and isinstance(noted, list):
        found.append(f"runs/{noted[0]}/checkpoints/step-{noted[1]}/manifest.json")
    for path in sorted((lab / ".study").glob(f"pass_{name}*.json")):
        run = recall(lab, path.stem)
        found.append(f"runs/{run}/config.json")
    return [file for file in found if (lab / file).exists()]


def conduct(lab: Path | str, config: BaseStudy, watch: Callable, *, corpus: str | None = None, workers: int = 2,
            until: str | None = None, only: str | None = None, again: str | None = None,
            keep_going: bool = True) -> Conducted:  # fmt: skip
    """Do what is left of a study. `watch` as in `salad.study.runner.run`. A step that fails is told and what does not wait for
    it goes on (with `keep_going`); the same call again resumes it.

    `until`, `only`: as `chosen`. `again`: a step that is done afresh, though it is done: a training as a further run, beside
    which the first one stays; what follows from its run is made anew. SaladError before anything is started where the study
    names what does not exist, its engines are unknown, or the disk has no room."""
    costs.check_engines(config)
    steps = steps_of(lab, config, corpus)
    todo = chosen(steps, until, only)
    costs.check_present(config, lab)
    costs.room(config, lab, costs.costs(config, todo))
    if only is not None:
        done = {path: state.records(path) for path in {step.lab for step in steps}}
        by_name = {step.name: step for step in steps}
        for step in todo:
            lacking = [b for b in step.after if by_name[b].own_name not in done[step.lab]]
            if lacking:
                raise SaladError(f"--only {only}: it waits for {', '.join(lacking)}; `--until {only}` does those first")
        todo = [replace(step, after=()) for step in todo]
    for path in labs_of(lab, config):
        graph.claim(path, config, corpus)
    if again is not None:
        _again(steps, again)
    made = Conducted()
    pausing = {s.name for s in todo if s.own_name == state.PAUSE and not state.is_reviewed(s.lab)}
    if pausing:
        made.waiting = sorted({Path(s.lab) for s in todo if s.name in pausing})
        held = beyond(todo, pausing)
        todo = [s for s in todo if s.name not in held]

    def note(event: str, step: Step, *details) -> None:
        if event == "done":
            outcome = details[0]
            size, unit = costs.size_of(config, step.own_name)
            state.record(step.lab, step.own_name, outcome.seconds, size, unit, outcome.message, evidence(step.lab, step.own_name))
        watch(event, step, *details)

    gpu = isinstance(config, Study) and costs.has_gpu()
    made.outcomes = runner.run(todo, workers, note, keep_going=keep_going, one_device=gpu, threads=_threads(config, workers))
    for path in {Path(step.lab) for step in todo}:
        store.renew(path)
    return made


def _threads(config: BaseStudy, workers: int) -> int:
    """OpenMP threads of each process: one in miniature, whose models are too small for more."""
    import os

    return max(1, (os.cpu_count() or 1) // workers) if isinstance(config, Study) else 1


def _again(steps: list[Step], name: str) -> None:
    """Have a step done afresh: trainings, in every seed that it is named in."""
    named = chosen(steps, only=name)
    fixed = [step.name for step in named if not step.own_name.startswith(("stage1", "stage2"))]
    if fixed:
        raise SaladError(
            f"--again {name}: only a training (stage1, stage2_…) is done again, as a further run. What other steps make depends "
            "on their inputs alone: where it is damaged, `salad verify --repair` and the study once more make it anew"
        )
    for step in named:
        state.ask_again(step.lab, step.own_name)


def save_config(path: Path | str, config: BaseStudy) -> None:
    """Write a study's whole configuration as JSON, from which `salad study FILE` starts it again."""
    atomic.write_json(Path(path), {"kind": type(config).__name__, "config": config.model_dump(mode="json")})


def all_labs(lab: Path | str, config: BaseStudy) -> Iterable[tuple[int, Path]]:
    """(seed, lab) of every seed whose lab is there."""
    return [(seed, path) for seed in config.seeds if (path := graph.lab_of(lab, config, seed)).exists()]
