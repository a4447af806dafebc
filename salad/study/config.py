"""A whole study as data: `StudyConfig`, from which everything that `salad demo` makes follows."""

import math
from typing import NamedTuple

from pydantic import Field, model_validator

from salad import parts
from salad.config import Frozen, RunConfig
from salad.errors import SaladError
from salad.miniature.encoder import PhoneEncoderConfig
from salad.miniature.recogniser import RecogniserConfig
from salad.miniature.teacher import TeacherConfig
from salad.miniature.voices import NATURAL_VOICES, PROBE_VOICES, VOICES
from salad.miniature.world import WorldConfig


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


class ScoringConfig(Frozen):
    """How every contender of a study is scored: M, F and D of one range of spans do not compare with another's."""

    span_units: tuple[int, int] | None = Field(
        None, description="shortest and longest span of the scoring's patterns, in units; by default those of Stage I"
    )

    @model_validator(mode="after")
    def _spans(self):
        if self.span_units is not None and not 1 <= self.span_units[0] <= self.span_units[1]:
            raise ValueError("span_units must be (shortest, longest) with 1 <= shortest <= longest")
        return self


class StudyConfig(Frozen):
    """A whole study. Everything that `salad demo` makes follows from this; `recipes.miniature()` returns the demo's."""

    seed: int = 0
    world: WorldConfig = WorldConfig()
    teacher: TeacherConfig = TeacherConfig()
    encoder: PhoneEncoderConfig = PhoneEncoderConfig()
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
    scoring: ScoringConfig = ScoringConfig()
    stage1: RunConfig
    stage2: RunConfig

    @property
    def scoring_spans(self) -> tuple[int, int]:
        """Shortest and longest span in which all contenders are scored, in units."""
        return self.scoring.span_units or self.stage1.sequences.span_units

    def arm(self, spec: str) -> Arm:
        """What an entry of `arms` stands for; SaladError where it says nothing that an arm has."""
        strategy, _, values = spec.partition("@")
        parts.trust(strategy)
        given = {"gamma": self.gamma, "rounds": self.rounds}
        if strategy in ("uniform", "uniform_clusters", "oracle"):
            given["gamma"] = 0.0  # plays no part
        for pair in filter(None, values.split(",")):
            name, _, value = pair.partition("=")
            try:
                given[name] = {"gamma": float, "rounds": int}[name](value)
            except (KeyError, ValueError):
                raise SaladError(f"arms: {spec!r}: {pair!r} is neither gamma=NUMBER nor rounds=NUMBER") from None
        if not (math.isfinite(given["gamma"]) and given["gamma"] >= 0 and given["rounds"] > 0):
            raise SaladError(f"arms: {spec!r}: gamma must be a number from 0 on, and rounds 1 or more")
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
