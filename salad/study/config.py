"""A whole study as data: `MiniatureStudy`, which `salad demo` runs, and `Study`, of real models on real data."""

import math
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    """A Stage II of the study: what draws its texts. `spec` is how a study's `arms` name it."""

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


class BaseStudy(Frozen):
    """What every study says, whatever its size: who speaks, how texts are chosen, the arms, and both stages of training."""

    seed: int = 0
    tts: str = Field("espeak", description="what synthesises the probe and the selections; see salad.speech.load_tts")
    voices: tuple[str, ...] = Field(VOICES, description="a synthesised text is spoken in one of them")
    probe_voices: tuple[str, ...] = Field(PROBE_VOICES, description="each text of the probe is spoken in all of them")
    n_clusters: int = Field(16, gt=1)
    probe_per_cluster: int = Field(6, gt=0)
    gamma: float = Field(2.0, ge=0, description="sharpness of the draw: P_target is proportional to P_web times d to the gamma")
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

    if TYPE_CHECKING:  # a field of Study, a property of MiniatureStudy

        @property
        def name(self) -> str: ...

        @property
        def seeds(self) -> tuple[int, ...]: ...

        def seeded(self, seed: int) -> "BaseStudy": ...

        def smoke(self) -> "BaseStudy": ...

    @property
    def scoring_spans(self) -> tuple[int, int]:
        """Shortest and longest span in which all contenders are scored, in units."""
        return self.scoring.span_units or self.stage1.sequences.span_units

    def arm(self, spec: str) -> Arm:
        """What an entry of `arms` stands for; SaladError where it says nothing that an arm has."""
        strategy, _, values = spec.partition("@")
        parts.trust(strategy)
        given: dict[str, Any] = {"gamma": self.gamma, "rounds": self.rounds}
        if strategy in ("uniform", "uniform_clusters", "oracle", "marginal"):
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


class MiniatureStudy(BaseStudy):
    """The study in miniature, which makes its own texts, items, LLM, encoder and recogniser: what `salad demo` runs.

    `recipes.miniature()` returns it."""

    world: WorldConfig = WorldConfig()
    teacher: TeacherConfig = TeacherConfig()
    encoder: PhoneEncoderConfig = PhoneEncoderConfig()
    recogniser: RecogniserConfig = RecogniserConfig(voices=VOICES)
    natural_voices: tuple[str, ...] = NATURAL_VOICES
    speech_faults: float = Field(0.02, ge=0, le=0.25, description="share of the synthesis, per kind of planted fault")
    recogniser_texts: int = Field(360, description="texts that the recogniser learns from")

    @property
    def name(self) -> str:
        return "miniature"

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    def seeded(self, seed: int) -> "MiniatureStudy":
        """The same study from another seed."""
        parts = ("world", "teacher", "encoder", "recogniser", "stage1", "stage2")
        update = {name: getattr(self, name).model_copy(update={"seed": seed}) for name in parts}
        return self.model_copy(update={"seed": seed, **update})

    def full(self) -> "MiniatureStudy":
        """Every LLM weight trains, in both stages; the teacher is a second, frozen copy."""
        update = {
            name: (run := getattr(self, name)).model_copy(
                update={"llm": run.llm.model_copy(update={"finetune": "full"}),
                        "optim": run.optim.model_copy(update={"lr_llm": 5e-4})}
            )
            for name in ("stage1", "stage2")
        }  # fmt: skip
        return self.model_copy(update=update)

    def smoke(self) -> "MiniatureStudy":
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


class Source(Frozen):
    """Where a study's data lie: a file or folder under the data folder (`--data`, `SALAD_DATA`), or an absolute path."""

    path: str
    licence: str = "unknown"
    language: str = "en"
    get: str = Field("", description="how to get it where it is missing: a command, or an address")
    gb: float = Field(0.0, ge=0, description="size of that download, in GB")


Share = tuple[float, float]


def _check_share(name: str, share: Share) -> None:
    if not 0 <= share[0] < share[1] <= 1:
        raise ValueError(f"{name} must be (from, to) with 0 <= from < to <= 1")


class TextSource(Source):
    """Documents, cut into passages by `salad prepare text`."""

    column: str = "text"
    min_s: float = Field(5.0, gt=0, description="least expected speech of a passage, in seconds")
    max_s: float = Field(30.0, gt=0)
    documents: Share = Field((0.0, 1.0), description="which documents, by a hash of their ids: two disjoint ranges share none")
    max_domain_share: float = Field(
        1.0, gt=0, le=1, description="a domain gives at most this share of all characters; documents above are left out"
    )
    limit: int | None = Field(None, gt=0, description="at most so many documents")
    megabytes: float = Field(0.0, ge=0, description="about how much text there is, for estimates of time and disk")
    workers: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _shares(self):
        _check_share("documents", self.documents)
        return self


class SpeechSource(Source):
    """Recordings with transcripts, aligned and checked by `salad prepare speech`."""

    layout: Literal["auto", "librispeech", "cuts", "emilia", "webdataset", "table"] = "auto"
    rows: Share = Field((0.0, 1.0), description="which recordings, in the source's order: contiguous blocks are held out")
    limit: int | None = Field(None, gt=0, description="at most so many of them")
    domain: str | None = None
    max_s: float = Field(60.0, gt=0)
    max_cer: float = Field(0.5, gt=0)
    hours: float = Field(0.0, ge=0, description="about how many there are, for estimates of time and disk")

    @model_validator(mode="after")
    def _shares(self):
        _check_share("rows", self.rows)
        return self


class TaskSource(Source):
    """Items of a task. An empty `path` takes the data set that lm-evaluation-harness downloads for `name`."""

    path: str = ""
    name: str = Field(description="as lm-evaluation-harness names it, or a name of your own for items in salad's format")
    format: Literal["rows", "piqa", "arc"] = Field(
        "rows", description="rows: as lab/tasks holds them; piqa, arc: the original files of PIQA (with .labels) and ARC"
    )
    rows: Share = Field((0.0, 1.0), description="which items, in the file's order")
    limit: int | None = Field(None, gt=0, description="at most so many items")

    @model_validator(mode="after")
    def _shares(self):
        _check_share("rows", self.rows)
        return self


class Study(BaseStudy):
    """A study of real models on real data, whole: everything that `salad study NAME` does follows from this.

    Names are those of the hub; a folder of models (`--models`) stands in for it. See docs/studies.md."""

    name: str = Field(description="letters, digits, - and _; further seeds lie in studies/<name>/")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="the first fills the lab itself")
    text: TextSource = Field(description="the broad texts that are clustered, probed and drawn from: the corpus `broad`")
    heldout_text: TextSource | None = Field(None, description="texts that are only measured on, spoken by `eval_tts`")
    heldout_per_domain: int = Field(20, gt=0, description="passages of each domain of `heldout_text` that are spoken")
    natural: SpeechSource = Field(description="the natural speech of Stage I: speech folder `natural`")
    further_natural: tuple[SpeechSource, ...] = Field((), description="more of it: speech folders natural_2, natural_3 …")
    heldout: SpeechSource | None = Field(None, description="natural speech, only measured on: speech folder `heldout_natural`")
    tasks: tuple[TaskSource, ...] = ()
    recogniser: str = Field(description="a CTC model or Whisper: aligns and checks natural speech, checks synthesis, cascades")
    embeddings: str = Field("teacher", description="teacher: the LLM's own hidden states; else a sentence-transformers model")
    eval_tts: str | None = Field(None, description="what speaks held-out texts and items; by default `tts`")
    eval_voices: tuple[str, ...] = Field((), description="by default `voices`")
    modalities: tuple[Literal["text", "speech", "cascade", "deaf", "silent"], ...] = ("text", "speech", "cascade", "deaf")
    contenders: tuple[str, ...] = Field((), description="further ones, as `salad evaluate --contender` names them")
    review: bool = Field(False, description="wait for a person between synthesis and Stage II")
    engines: dict[str, str] = Field(
        {}, description='where steps run, by the beginning of their names: {"stage": "ssh:gpu", "synthesis": "slurm"}; else here'
    )
    workers: dict[str, int] = Field({}, description="processes of a pass, by the beginning of the step's name; else 1")
    gpus: int | None = Field(None, gt=0, description="GPUs a training; by default what a single process finds")

    @model_validator(mode="after")
    def _consistent(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name):
            raise ValueError(f"name {self.name!r}: letters, digits, - and _, at most 64")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} name one twice")
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks {names} name one twice")
        for stage in ("stage1", "stage2"):
            unknown = [name for name in getattr(self, stage).data.natural if name not in self.natural_speech]
            if unknown or getattr(self, stage).data.text != ("broad",):
                raise ValueError(
                    f"{stage}.data: a study's natural speech is {', '.join(self.natural_speech)} and its text corpus is broad"
                )
        if not self.eval_voices and self.eval_tts not in (None, self.tts):
            raise ValueError("eval_tts needs eval_voices of its own")
        return self

    @property
    def natural_speech(self) -> dict[str, SpeechSource]:
        """The speech folders of natural speech, each with its source."""
        more = {f"natural_{number}": source for number, source in enumerate(self.further_natural, 2)}
        return {"natural": self.natural, **more}

    @property
    def heldout_speech(self) -> tuple[str, ...]:
        """Speech folders on which every checkpoint's divergences are measured."""
        pairs = (("heldout", self.heldout_text), ("heldout_natural", self.heldout))
        return tuple(name for name, source in pairs if source is not None)

    def engine_of(self, step: str) -> str:
        """Where a step runs: the entry of `engines` with the longest matching beginning, else here."""
        found = [name for name in self.engines if step.startswith(name)]
        return self.engines[max(found, key=len)] if found else "here"

    def workers_of(self, step: str) -> int:
        found = [name for name in self.workers if step.startswith(name)]
        return self.workers[max(found, key=len)] if found else 1

    def seeded(self, seed: int) -> "Study":
        """The same study from another seed: clusters, probe, draws, voices and both trainings; the data stay."""
        stages = {name: getattr(self, name).model_copy(update={"seed": seed}) for name in ("stage1", "stage2")}
        return self.model_copy(update={"seed": seed, **stages})

    def smoke(self) -> "Study":
        """The same steps at the smallest size: minutes on two cores, and figures that mean nothing."""

        def fewer(source, **update):
            return None if source is None else source.model_copy(update=update)

        def short(run: RunConfig, steps: int) -> RunConfig:
            tokens = min(run.optim.batch_tokens, 200)
            optim = {"steps": steps, "warmup": min(2, run.optim.warmup), "decay": steps // 3, "checkpoint_every": 8, "keep": (),
                     "batch_tokens": tokens, "micro_tokens": 0, "batch": min(run.optim.batch, 2)}  # fmt: skip
            warm = run.adapter.warm_start
            warm = warm.model_copy(update={"steps": min(warm.steps, 20), "spans": 16, "save_every": 10})
            adapter = run.adapter.model_copy(update={"warm_start": warm})
            return run.model_copy(update={"optim": run.optim.model_copy(update=optim), "adapter": adapter})

        return self.model_copy(
            update={
                "text": fewer(self.text, limit=40, max_s=min(self.text.max_s, 10.0), min_s=min(self.text.min_s, 4.0)),
                "heldout_text": fewer(self.heldout_text, limit=30, max_s=6.0, min_s=3.0),
                "heldout_per_domain": 1,
                "natural": fewer(self.natural, limit=16),
                "further_natural": tuple(fewer(source, limit=16) for source in self.further_natural),
                "heldout": fewer(self.heldout, limit=4),
                "tasks": tuple(fewer(task, limit=4) for task in self.tasks[:1]),
                "contenders": (),
                "seeds": self.seeds[:1],
                "n_clusters": 4,
                "probe_per_cluster": 2,
                "budget_h": 0.01,
                "max_cer": 10.0,
                "stage1": short(self.stage1, 24),
                "stage2": short(self.stage2, 12),
            }
        )


def voices_of(tts: str) -> dict:
    """The voices that a study takes with this TTS."""
    kokoro = {"voices": ("af_heart",), "probe_voices": ("af_heart", "am_michael")}
    return kokoro if tts.startswith("kokoro") else {}
