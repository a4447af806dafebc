"""The miniature study: SALAD end to end on two CPU cores. `salad demo` runs it; `StudyConfig` is all it depends on."""

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from salad import recipes
from salad.config import Frozen, RunConfig
from salad.errors import SaladError
from salad.miniature.encoder import EncoderConfig
from salad.miniature.recogniser import RecogniserConfig
from salad.miniature.steps import Step
from salad.miniature.teacher import TeacherConfig
from salad.miniature.world import BROAD, WorldConfig
from store import atomic

NATURAL_VOICES = tuple(
    f"{voice}@rate={rate},pitch={pitch}"
    for voice, rate, pitch in (
        ("en-us+m1", 150, 45), ("en-us+m2", 175, 40), ("en-us+m3", 165, 55), ("en-us+m4", 190, 35),
        ("en-us+m7", 160, 50), ("en-us+f1", 155, 55), ("en-us+f2", 180, 60), ("en-us+f3", 170, 50),
        ("en-us+f4", 160, 65), ("en-gb-x-rp", 165, 50), ("gmw/en", 175, 45), ("en-gb-x-rp+f3", 185, 55),
    )
)  # fmt: skip
VOICES = ("en-us@rate=195",)  # of the synthesiser: about 5 s a document
PROBE_VOICES = (*VOICES, "en-us+f3@rate=195")  # what is in the voice is not in the text
COVERAGE = {"stories": "covered", "family": "partly covered"} | dict.fromkeys(BROAD, "uncovered") | {"user": "user"}


class Arm(NamedTuple):
    """A Stage II of the study: what draws its texts. `spec` is how StudyConfig.arms names it."""

    spec: str
    strategy: str
    gamma: float
    rounds: int

    @property
    def name(self) -> str:
        """As it stands in a contender's name: `active`, `active_gamma5`, `active_rounds`, or a function's name."""
        strategy, _, values = self.spec.partition("@")
        values = values.replace("=", "").replace(",", "_")
        return strategy.rpartition(":")[2] + (f"_{values}" if values else "")


class StudyConfig(Frozen):
    """A whole study. Everything that `salad demo` makes follows from this."""

    seed: int = 0
    world: WorldConfig = WorldConfig()
    teacher: TeacherConfig = TeacherConfig()
    encoder: EncoderConfig = EncoderConfig()
    recogniser: RecogniserConfig = RecogniserConfig(voices=VOICES)
    natural_voices: tuple[str, ...] = NATURAL_VOICES
    tts: str = "espeak"
    voices: tuple[str, ...] = VOICES
    speech_faults: float = Field(0.02, ge=0, le=0.25, description="share of the synthesis, per kind of planted fault")
    recogniser_texts: int = Field(360, description="texts that the recogniser learns from")
    probe_voices: tuple[str, ...] = Field(PROBE_VOICES, description="each text of the probe is spoken in all of them")
    n_clusters: int = Field(16, gt=1)
    probe_per_cluster: int = Field(6, gt=0)
    gamma: float = Field(2.0, ge=0, description="the paper's 5 over-concentrates here: d runs from 0.02 to 4")
    arms: tuple[str, ...] = Field(
        ("active", "uniform"),
        description="a Stage II each: a strategy, or one with values of its own: active@gamma=5, active_rounds@rounds=4",
    )
    rounds: int = Field(2, gt=0, description="into which the arm active_rounds divides its budget and steps")
    budget_h: float = Field(2.4, gt=0, description="hours of synthesised speech an arm")
    max_cer: float = Field(0.5, description="clusters whose mean CER is above are left out of the draw")
    stage1: RunConfig = recipes.miniature_stage1()
    stage2: RunConfig = recipes.miniature_stage2()

    def arm(self, spec: str) -> Arm:
        """What an entry of `arms` stands for; SaladError where it says nothing that an arm has."""
        strategy, _, values = spec.partition("@")
        given = {"gamma": self.gamma, "rounds": self.rounds}
        if strategy in ("uniform", "uniform_clusters", "oracle"):
            given["gamma"] = 0.0  # plays no part
        for pair in filter(None, values.split(",")):
            name, _, value = pair.partition("=")
            try:
                given[name] = {"gamma": float, "rounds": int}[name](value)
            except (KeyError, ValueError):
                raise SaladError(f"arms: {spec!r}: {pair!r} is neither gamma=NUMBER nor rounds=NUMBER") from None
        if strategy != "active_rounds":
            given["rounds"] = 1
        return Arm(spec, strategy, **given)

    def seeded(self, seed: int) -> "StudyConfig":
        """The same study from another seed."""
        parts = ("world", "teacher", "encoder", "recogniser", "stage1", "stage2")
        update = {name: getattr(self, name).model_copy(update={"seed": seed}) for name in parts}
        return self.model_copy(update={"seed": seed, **update})

    def full(self) -> "StudyConfig":
        """Every LLM weight trains, in both stages; the teacher is a second, frozen copy."""
        update = {
            name: (run := getattr(self, name)).model_copy(
                update={"llm": run.llm.model_copy(update={"finetune": "full"}),
                        "optim": run.optim.model_copy(update={"lr_llm": 5e-4})}
            )
            for name in ("stage1", "stage2")
        }  # fmt: skip
        return self.model_copy(update=update)

    def smoke(self) -> "StudyConfig":
        """The smallest study that goes through everything: a minute, and results that mean nothing."""
        short = lambda run, **optim: run.model_copy(update={"optim": run.optim.model_copy(update=optim)})  # noqa: E731
        return self.model_copy(
            update={
                "world": self.world.model_copy(
                    update={"pretrain_per_domain": 150, "natural": {"stories": 40}, "broad": 300,
                            "heldout_per_domain": 6, "items_per_domain": 8}
                ),
                "teacher": self.teacher.model_copy(update={"steps": 40}),
                "encoder": self.encoder.smoke(),
                "recogniser": self.recogniser.smoke(),
                "recogniser_texts": 40,
                "n_clusters": 4,
                "probe_per_cluster": 2,
                "budget_h": 0.03,
                "max_cer": 10.0,
                "stage1": short(self.stage1, steps=30, warmup=5, decay=10, checkpoint_every=10),
                "stage2": short(self.stage2, steps=30, warmup=5, decay=20, checkpoint_every=10),
            }
        )  # fmt: skip


def voices_of(tts: str) -> dict:
    """The voices that a study takes with this TTS."""
    kokoro = {"voices": ("af_heart",), "probe_voices": ("af_heart", "am_michael")}
    return kokoro if tts.startswith("kokoro") else {}


def claim(lab: Path | str, config: StudyConfig, user_corpus: Path | str | None = None) -> None:
    """Make `lab` this study's, or find that it is; a lab of another study is refused, naming the difference."""
    path = Path(lab) / "study.json"
    told = {
        "study": "miniature",
        "config": config.model_dump(mode="json"),
        "corpus": None if user_corpus is None else str(Path(user_corpus).resolve()),
        "p_web": config.world.p_web,
        "coverage": COVERAGE,
    }
    if path.exists():
        there = json.loads(path.read_text())
        # the seed of the study is that of all its parts: told once
        asked = {key: told[key] for key in ("study", "config", "corpus")}
        found = _differences({key: there.get(key) for key in asked}, asked)
        differences = [d for d in sorted(found, key=lambda d: d.split(" is ")[0].count(".")) if ".seed is" not in d]
        if differences:
            raise SaladError(
                f"{lab} holds another study: {'; '.join(differences[:4])}. "
                "Give another --lab, or the options that it was made with"
            )
        return
    if (Path(lab) / "runs").exists():
        raise SaladError(f"{lab} holds runs but no study.json, so it is not the demo's; give another --lab")
    try:
        atomic.write_json(path, told)
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
    """The study's steps, the longest way first. Each can be run again at no cost and taken up where it was left."""
    from salad.miniature import work
    from salad.selection import rounds, strategy

    arms = [config.arm(spec) for spec in config.arms]
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise SaladError(f"arms: {', '.join(config.arms) or 'none'}: each needs a name of its own")
    shares = [f"share_{k}" for k in range(work.SHARES)]
    for arm in arms:
        strategy(arm.strategy)
        rounds(config.stage2, config.budget_h, arm.rounds)

    lab = str(Path(lab).resolve())
    both = (lab, config)

    def step(name, title, function, *after, arguments=()):
        return Step(name, title, function, (*both, *arguments), after)

    steps = [
        step("world", "World: corpora, items, tokenizer", work.world, arguments=(user_corpus,)),
        step("encoder", "Phone encoder", work.encoder),
        step("teacher", "Teacher", work.teacher, "world"),
        step("natural", "Natural speech", work.natural, "world"),
        step("frames", "Encoder frames", work.encoder_frames, "encoder", "natural", arguments=("natural",)),
        step("stage1", "Stage I", work.stage1, "teacher", "encoder", "frames"),
        step("clusters", "Clusters", work.clusters, "teacher"),
        step("recogniser", "Recogniser", work.recogniser, "encoder", "world"),
        step("probe", "Probe speech", work.probe, "clusters", "recogniser"),
        step("divergences", "Divergences of Stage I", work.stage1_divergences, "stage1", "probe"),
        step("selection", "Selections", work.selection, "divergences", "clusters"),
        *(
            step(name, f"Synthesis, part {k + 1} of {work.SHARES}", work.synthesis_share, "selection", arguments=(k,))
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
            steps.append(step(f"synthesis_{of}", f"Synthesis, {title}", work.synthesis, *spoken, *ready, arguments=which))
            spoken = [f"synthesis_{of}"]
            training.append(step(f"stage2_{of}", f"Stage II, {title}", work.stage2, *spoken, arguments=which))
            if number < arm.rounds:
                drawn[arm.name] = f"draw_{arm.name}_{number + 1}"
                training.append(step(drawn[arm.name], f"Probe and draw again, {arm.name.replace('_', ' ')}",
                                     work.next_round, f"stage2_{of}", arguments=which))  # fmt: skip
            else:
                training.append(step(f"results_{of}", f"Results, {title}", work.stage2_results, f"stage2_{of}",
                                     "spoken", arguments=(arm.spec,)))  # fmt: skip
    return [
        *steps,
        *sorted(training, key=lambda one: one.name.startswith("results_")),
        step("spoken", "Held-out and test speech", work.spoken, "recogniser"),
        step("teacher_results", "Teacher's results", work.teacher_results, "teacher", "spoken"),
        step("stage1_results", "Results of Stage I", work.stage1_results, "stage1", "spoken"),
    ]
