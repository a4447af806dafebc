"""The study's steps and what each waits for (`plan`), and the lab that belongs to one study alone (`claim`)."""

import json
from pathlib import Path
from typing import Any

from salad.errors import SaladError
from salad.miniature.world import BROAD
from salad.study import state
from salad.study.config import Arm, BaseStudy, MiniatureStudy, Study
from salad.study.runner import Step
from store import atomic

COVERAGE = {"stories": "covered", "family": "partly covered"} | dict.fromkeys(BROAD, "uncovered") | {"user": "user"}


# what may change from one call to the next: it decides when, where and how often things are done, not what they are
FREE = ("seeds", "seed", "review", "engines", "workers", "gpus", "contenders")


def claim(lab: Path | str, config: BaseStudy, user_corpus: Path | str | None = None) -> None:
    """Make `lab` this study's, or find that it is; a lab of another study is refused, naming the difference."""
    path = Path(lab) / "study.json"
    record: dict[str, Any] = {
        "study": config.name,
        "config": config.model_dump(mode="json"),
        "corpus": None if user_corpus is None else str(Path(user_corpus).resolve()),
        "scoring": {"span_units": list(config.scoring_spans)},
    }
    if isinstance(config, MiniatureStudy):
        record |= {"p_web": config.world.p_web, "coverage": COVERAGE}
    there = state.study_of(lab)
    if there is not None:
        there["config"] = {"scoring": {"span_units": [1, 4]}, **(there.get("config") or {})}  # from before a study said so
        asked = {key: record[key] for key in ("study", "config", "corpus")}
        found = _differences({key: there.get(key) for key in asked}, asked)
        found = [d for d in found if not any(d.startswith((f"{key} is", f"{key}.")) for key in FREE[2:])]
        if isinstance(config, Study) and (there["config"].get("seeds") or [None])[0] == config.seeds[0]:
            found = [d for d in found if not d.startswith("seeds is")]  # further seeds have labs of their own
        # the seed of the study is that of all its parts: shown once
        differences = [d for d in sorted(found, key=lambda d: d.split(" is ")[0].count(".")) if ".seed is" not in d]
        if differences:
            raise SaladError(
                f"{lab} holds another study: {'; '.join(differences[:4])}. "
                "Give another --lab, or the options that it was made with"
            )
        changed = {} if "scoring" in there else {"scoring": record["scoring"]}
        if isinstance(config, Study) and any(there["config"].get(key) != record["config"].get(key) for key in FREE):
            changed["config"] = record["config"]
        if changed:
            atomic.write_json(path, there | changed)
        return
    if (Path(lab) / "runs").exists():
        raise SaladError(f"{lab} holds runs but no study.json, so it was not made by `salad study`; give another --lab")
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


def arms_of(config: BaseStudy) -> list[Arm]:
    """The study's arms, checked: names of their own, strategies that exist, rounds that divide the budget and steps."""
    from salad.selection import rounds, strategy

    arms = [config.arm(spec) for spec in config.arms]
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise SaladError(f"arms: {', '.join(config.arms) or 'none'}: each needs a name of its own")
    for arm in arms:
        strategy(arm.strategy)
        rounds(config.stage2, config.budget_h, arm.rounds)
    return arms


def plan(lab: Path | str, config: BaseStudy, user_corpus: Path | str | None = None) -> list[Step]:
    """The study's steps, the longest way first. Each can be run again at no cost, and resumes what was stopped."""
    if isinstance(config, Study):
        first = Path(lab)
        return [step for seed in config.seeds for step in seed_steps(lab_of(first, config, seed), config, seed)]
    assert isinstance(config, MiniatureStudy)
    return miniature_steps(lab, config, user_corpus)


def lab_of(first: Path | str, config: BaseStudy, seed: int) -> Path:
    """The lab of a seed: the first seed's is the study's own."""
    return Path(first) if seed == config.seeds[0] else Path(first) / "studies" / config.name / f"seed-{seed}"


def seed_steps(lab: Path | str, config: Study, seed: int) -> list[Step]:
    """The steps of one seed of a study of real models. Named as they are in the first seed's lab, and "<seed>:<name>" in the
    others'."""
    from salad.study import material, steps

    arms, lab = arms_of(config), str(Path(lab).resolve())
    first, own = seed == config.seeds[0], config.seeded(seed)
    prefix = "" if first else f"{seed}:"
    graph: list[Step] = []

    def step(name, title, function, *after, arguments=(), device=False):
        shown = title if len(config.seeds) == 1 else f"{title}, seed {seed}"
        graph.append(Step(prefix + name, shown, function, (lab, own, *arguments), tuple(prefix + a for a in after), name,
                          device and own.engine_of(name) == "here"))  # fmt: skip

    texts = []
    if config.tasks:
        step("tasks", "Tasks", material.tasks)
        texts = ["tasks"]  # overlap with them is looked for
    for name in own.natural_speech:
        step(
            name,
            f"Natural speech{name.removeprefix('natural').replace('_', ' ')}",
            material.natural,
            arguments=(name,),
            device=True,
        )
    step("stage1", "Stage I", steps.stage1, *own.natural_speech, "text", device=True)
    step("text", "Texts", material.text, *texts)
    if config.heldout_text is not None:
        step("heldout_text", "Held-out texts", material.heldout_text, *texts)
    step("clusters", "Clusters", material.clusters, "text", *(["stage1"] if config.embeddings == "teacher" else []), device=True)
    step("probe", "Probe speech", material.probe, "clusters", device=True)
    step("divergences", "Divergences of Stage I", material.divergences, "stage1", "probe", arguments=("probe", "stage1"),
         device=True)  # fmt: skip
    step("selection", "Selections", steps.selection, "divergences")
    measured: list[str] = []
    if config.heldout_text is not None:
        step("spoken", "Held-out speech, synthesised", material.spoken, "heldout_text", device=True)
        measured.append("spoken")
    if config.heldout is not None:
        step("heldout", "Held-out speech, natural", material.heldout, device=True)
        measured.append("heldout")
    spoken = "selection"
    drawn: dict[str, str] = {}
    rounds = [(number, arm) for number in range(1, max(arm.rounds for arm in arms) + 1) for arm in arms if number <= arm.rounds]
    for number, arm in rounds:
        of = steps.round_name(arm, number)
        title = of.replace("_", " ")
        after = [drawn[arm.name]] if arm.name in drawn else []
        note, budget = steps.note_name("selection", arm, number), steps.round_of(own, arm, number).budget_h
        step(f"synthesis_{of}", f"Synthesis, {title}", material.synthesis, spoken, *after, arguments=(note, budget), device=True)
        spoken = f"synthesis_{of}"  # one after the other: a text that two of them draw is spoken once
        ready = spoken
        if config.review and number == 1:
            step(f"refill_{of}", f"Synthesis after review, {title}", material.synthesis, state.PAUSE, arguments=(note, budget),
                 device=True)  # fmt: skip
            ready = f"refill_{of}"
        step(f"stage2_{of}", f"Stage II, {title}", steps.stage2, ready, arguments=(arm.spec, number), device=True)
        if number < arm.rounds:
            drawn[arm.name] = f"draw_{arm.name}_{number + 1}"
            step(drawn[arm.name], f"Probe and draw again, {title}", steps.next_round, f"stage2_{of}",
                 arguments=(arm.spec, number), device=True)  # fmt: skip
        else:
            name = f"stage2_{arm.name}"
            step(f"results_{arm.name}", f"Results, {title}", steps.study_results, f"stage2_{of}", *measured, *texts,
                 arguments=(name, name), device=True)  # fmt: skip
    if config.review:
        first_round = [f"synthesis_{steps.round_name(arm, 1)}" for arm in arms]
        step(state.PAUSE, "Review", material.review, *first_round)
    step("results_teacher", "Results of the teacher", steps.study_results, *measured, *texts, arguments=("teacher", None),
         device=True)  # fmt: skip
    step("results_stage1", "Results of Stage I", steps.study_results, "stage1", *measured, *texts,
         arguments=("stage1", "stage1"), device=True)  # fmt: skip
    for number, contender in enumerate(config.contenders, 1):
        step(f"results_contender_{number}", f"Results of {contender}", steps.contender_results, *texts, arguments=(contender,),
             device=True)  # fmt: skip
    return graph


def miniature_steps(lab: Path | str, config: MiniatureStudy, user_corpus: Path | str | None = None) -> list[Step]:
    """The steps of the study in miniature, which makes its world and its small models first."""
    from salad.study import steps

    arms = arms_of(config)
    shares = [f"share_{k}" for k in range(steps.SHARES)]

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
    spoken, training = shares, list[Step]()
    drawn: dict[str, str] = {}
    for number in range(1, max(arm.rounds for arm in arms) + 1):
        for arm in arms:
            if number > arm.rounds:
                continue
            of = steps.round_name(arm, number)
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
