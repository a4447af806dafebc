"""The study's steps and what each waits for (`plan`), and the lab that belongs to one study alone (`claim`)."""

import json
from pathlib import Path

from salad.errors import SaladError
from salad.miniature.world import BROAD
from salad.study.config import StudyConfig
from salad.study.runner import Step
from store import atomic

COVERAGE = {"stories": "covered", "family": "partly covered"} | dict.fromkeys(BROAD, "uncovered") | {"user": "user"}


def claim(lab: Path | str, config: StudyConfig, user_corpus: Path | str | None = None) -> None:
    """Make `lab` this study's, or find that it is; a lab of another study is refused, naming the difference."""
    path = Path(lab) / "study.json"
    record = {
        "study": "miniature",
        "config": config.model_dump(mode="json"),
        "corpus": None if user_corpus is None else str(Path(user_corpus).resolve()),
        "p_web": config.world.p_web,
        "coverage": COVERAGE,
        "scoring": {"span_units": list(config.scoring_spans)},
    }
    if path.exists():
        there = json.loads(path.read_text())
        there["config"] = {"scoring": {"span_units": [1, 4]}, **(there.get("config") or {})}  # from before a study said so
        # the seed of the study is that of all its parts: shown once
        asked = {key: record[key] for key in ("study", "config", "corpus")}
        found = _differences({key: there.get(key) for key in asked}, asked)
        differences = [d for d in sorted(found, key=lambda d: d.split(" is ")[0].count(".")) if ".seed is" not in d]
        if differences:
            raise SaladError(
                f"{lab} holds another study: {'; '.join(differences[:4])}. "
                "Give another --lab, or the options that it was made with"
            )
        if "scoring" not in there:
            atomic.write_json(path, there | {"scoring": record["scoring"]})
        return
    if (Path(lab) / "runs").exists():
        raise SaladError(f"{lab} holds runs but no study.json, so it is not the demo's; give another --lab")
    try:
        atomic.write_json(path, record)
    except OSError as error:
        raise SaladError(f"cannot write to {lab}: {error.strerror or error}; give another --lab") from None


def _differences(there, here, where=""):
    for key in sorted(there.keys() | here.keys()):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{where}{key}.")
        elif a != b:
            yield f"{(where + key).removeprefix('config.')} is {json.dumps(a)} there, {json.dumps(b)} asked for"


def plan(lab: Path | str, config: StudyConfig, user_corpus: Path | str | None = None) -> list[Step]:
    """The study's steps, the longest way first. Each can be run again at no cost, and resumes what was stopped."""
    from salad.selection import rounds, strategy
    from salad.study import steps

    arms = [config.arm(spec) for spec in config.arms]
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise SaladError(f"arms: {', '.join(config.arms) or 'none'}: each needs a name of its own")
    shares = [f"share_{k}" for k in range(steps.SHARES)]
    for arm in arms:
        strategy(arm.strategy)
        rounds(config.stage2, config.budget_h, arm.rounds)

    lab = str(Path(lab).resolve())
    both = (lab, config)

    def step(name, title, function, *after, arguments=()):
        return Step(name, title, function, (*both, *arguments), after)

    graph = [
        step("world", "World: corpora, items, tokenizer", steps.world, arguments=(user_corpus,)),
        step("encoder", "Phone encoder", steps.encoder),
        step("teacher", "Teacher", steps.teacher, "world"),
        step("natural", "Natural speech", steps.natural, "world"),
        step("frames", "Encoder frames", steps.encoder_frames, "encoder", "natural", arguments=("natural",)),
        step("stage1", "Stage I", steps.stage1, "teacher", "encoder", "frames"),
        step("clusters", "Clusters", steps.clusters, "teacher"),
        step("recogniser", "Recogniser", steps.recogniser, "encoder", "world"),
        step("probe", "Probe speech", steps.probe, "clusters", "recogniser"),
        step("divergences", "Divergences of Stage I", steps.stage1_divergences, "stage1", "probe"),
        step("selection", "Selections", steps.selection, "divergences", "clusters"),
        *(
            step(name, f"Synthesis, part {k + 1} of {steps.SHARES}", steps.synthesis_share, "selection", arguments=(k,))
            for k, name in enumerate(shares)
        ),
    ]
    # syntheses stand one after the other: a text that two of them draw is spoken once
    spoken, training, drawn = shares, [], {}
    for number in range(1, max(arm.rounds for arm in arms) + 1):
        for arm in arms:
            if number > arm.rounds:
                continue
            of = f"{arm.name}_{number}" if arm.rounds > 1 else arm.name
            title = arm.name.replace("_", " ") + (f", round {number} of {arm.rounds}" if arm.rounds > 1 else "")
            ready = [drawn[arm.name]] if arm.name in drawn else []
            which = (arm.spec, number)
            graph.append(step(f"synthesis_{of}", f"Synthesis, {title}", steps.synthesis, *spoken, *ready, arguments=which))
            spoken = [f"synthesis_{of}"]
            training.append(step(f"stage2_{of}", f"Stage II, {title}", steps.stage2, *spoken, arguments=which))
            if number < arm.rounds:
                drawn[arm.name] = f"draw_{arm.name}_{number + 1}"
                training.append(step(drawn[arm.name], f"Probe and draw again, {arm.name.replace('_', ' ')}",
                                     steps.next_round, f"stage2_{of}", arguments=which))  # fmt: skip
            else:
                training.append(step(f"results_{of}", f"Results, {title}", steps.stage2_results, f"stage2_{of}",
                                     "spoken", arguments=(arm.spec,)))  # fmt: skip
    return [
        *graph,
        *sorted(training, key=lambda one: one.name.startswith("results_")),
        step("spoken", "Held-out and test speech", steps.spoken, "recogniser"),
        step("teacher_results", "Teacher's results", steps.teacher_results, "teacher", "spoken"),
        step("stage1_results", "Results of Stage I", steps.stage1_results, "stage1", "spoken"),
    ]
