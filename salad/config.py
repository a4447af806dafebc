"""What a run is, as data: frozen pydantic models that refuse unknown keys, and one way to override them."""

import difflib
import json
from typing import Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from salad.errors import SaladError

ModelT = TypeVar("ModelT", bound=BaseModel)
LATER: dict[str, JsonValue] = {"later": True}


class Frozen(BaseModel):
    """Base of every configuration: values cannot be reassigned, unknown keys are refused.

    A field that joined after configurations were stored is declared with `json_schema_extra=LATER`. Its default must mean
    what was done before there was a choice: stored configurations (`model_dump(mode="json")`, of which run ids are hashes)
    leave it out where it holds that default, so that ids and labs from before it stay what they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _leave_out_later_defaults(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict:
        data = handler(self)
        if info.mode == "json" and isinstance(self, BaseModel):  # not a dict that `model_copy` put in its place
            for name, field in type(self).model_fields.items():
                if field.json_schema_extra == LATER and getattr(self, name) == field.get_default(call_default_factory=True):
                    data.pop(name, None)
        return data


class LLMConfig(Frozen):
    """The text LLM: teacher as it stands, student with what fine-tuning adds."""

    name: str = Field("models/teacher", description="folder (in the lab, or anywhere) or a hub name")
    finetune: Literal["lora", "full"] = "lora"
    lora_rank: int = Field(16, gt=0)
    lora_alpha: float = Field(32.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] | Literal["all-linear", "peft"] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of layers; all-linear: every linear layer of the decoder; peft: what peft's own table has for the "
        "architecture. The default names mean all-linear for an LLM whose layers have other names",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    teacher: str | None = Field(
        None, description="a different LLM with the same tokenizer as the teacher; by default the LLM before training"
    )


class EncoderConfig(Frozen):
    """The frozen speech encoder: a folder or hub name (Mimi, Whisper, the miniature's), or `logmel`."""

    name: str = "models/encoder"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="in which it computes; frames are float32")
    window: Literal["full", "speech"] = Field(
        "full", description="Whisper's windows: padded to 30 s, or as long as the speech, many at a time", json_schema_extra=LATER
    )
    stack: int = Field(
        1,
        ge=1,
        description="neighbouring positions in one frame, for encoders that look ahead: Whisper's 50 Hz by 4 is 12.5 Hz",
        json_schema_extra=LATER,
    )
    layer: int | tuple[float, ...] | None = Field(
        None,
        description="which layer's positions: the last, one by its number (0 is what goes into the first), or a weight for each, "
        "from 0 on",
        json_schema_extra=LATER,
    )


class WarmStartConfig(Frozen):
    """Before Stage I, with no LLM in the loop: the adapter's output for a word is drawn to the mean embedding of the word's
    tokens, on Stage I's own natural speech. Not in the paper; off by default. It is supervised by word times."""

    steps: int = Field(0, ge=0, description="0: no warm start")
    lr: float = Field(1e-3, gt=0, description="of AdamW, falling linearly to 0")
    spans: int = Field(64, gt=1, description="speech spans a step; their words are each other's negatives")
    temperature: float = Field(0.05, gt=0, description="of the contrastive loss (InfoNCE) among the words of a step")
    squared_weight: float = Field(1.0, ge=0, description="weight of the squared error, which sets the scale")
    loss: Literal["words", "ctc"] = Field(
        "words", json_schema_extra=LATER, description="words: each word's frames are drawn to its embedding, by word times; ctc: "
        "the control that knows no times, CTC over the same embeddings",
    )  # fmt: skip
    save_every: int = Field(100, gt=0, description="steps between states from which a killed run resumes")


class AdapterConfig(Frozen):
    """Causal transformer between encoder and LLM: Llama layers (gated MLP, RMS norms, no biases)."""

    layers: int = Field(12, ge=1)
    width: int = 960
    mlp: int = 2560
    heads: int = 15
    kv_heads: int = 5
    match_embedding_rms: bool = Field(
        False, description="end with an RMS norm whose gain starts at the RMS of the LLM's embeddings"
    )
    warm_start: WarmStartConfig = Field(WarmStartConfig(), json_schema_extra=LATER)

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError("width must be a multiple of heads, and heads of kv_heads")
        return self


class SequenceConfig(Frozen):
    """How interleaved sequences are drawn in training (units are whole words, or words spoken as one)."""

    prompt: Literal["plain", "chat"] = Field(
        "plain", description="chat: the tokenizer's own template; the user's turn may be speech, the answer carries the loss"
    )
    shots: int = Field(
        0, ge=0, description="answered items that the A/B app puts before a question: a base model answers after some"
    )
    system: str | None = Field(None, description="chat: the system prompt; without one, what the template itself puts")
    template: dict[str, bool | int | float | str | None] = Field(
        {}, json_schema_extra=LATER, description='chat: arguments of the tokenizer\'s template, as {"enable_thinking": false}'
    )
    span_units: tuple[int, int] = Field((1, 6), description="shortest and longest span, in units, uniform")
    span_weights: tuple[float, ...] = Field(
        (), description="how likely each length from the shortest to the longest is; empty: all equally"
    )
    p_speech_first: float = Field(0.25, ge=0, le=1, description="one long speech span first, then text")
    p_all_text: float = Field(0.0, ge=0, le=1, description="the whole sequence stays text")
    p_all_speech: float = Field(0.0, ge=0, le=1, description="the whole sequence is speech, which carries no loss")
    context: int = Field(2048, gt=1, description="longest sequence in tokens and frames; what is longer is cut there")

    @model_validator(mode="after")
    def _spans(self):
        shortest, longest = self.span_units
        if not 1 <= shortest <= longest:
            raise ValueError("span_units must be (shortest, longest) with 1 <= shortest <= longest")
        weights = self.span_weights
        if weights and (len(weights) != longest - shortest + 1 or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"span_weights needs a weight for each of the {longest - shortest + 1} lengths of span_units")
        if self.p_speech_first + self.p_all_text + self.p_all_speech > 1 + 1e-9:
            raise ValueError("p_speech_first, p_all_text and p_all_speech add up to more than 1")
        return self


class AugmentConfig(Frozen):
    """What is done to the recordings of a source before they are encoded; each part with its own probability."""

    p_speed: float = Field(0.0, ge=0, le=1)
    speed: tuple[float, float] = Field((0.9, 1.1), description="slowest and fastest")
    p_room: float = Field(0.0, ge=0, le=1, description="a room's impulse response")
    p_noise: float = Field(0.0, ge=0, le=1)
    noise: str = Field("white", description="white, or a folder under lab/speech whose recordings are mixed in")
    snr_db: tuple[float, float] = Field((10.0, 30.0), description="lowest and highest")
    p_codec: float = Field(0.0, ge=0, le=1)
    codecs: tuple[Literal["mp3", "opus", "vorbis", "gsm"], ...] = ("mp3", "vorbis", "gsm")

    @model_validator(mode="after")
    def _ranges(self):
        if not 0.5 <= self.speed[0] <= self.speed[1] <= 2:
            raise ValueError("speed must be (slowest, fastest) between 0.5 and 2")
        if self.snr_db[0] > self.snr_db[1] or not self.codecs:
            raise ValueError("snr_db must be (lowest, highest), and codecs name at least one")
        return self


class DataConfig(Frozen):
    natural: tuple[str, ...] = Field(("natural",), description="speech folders under lab/speech")
    text: tuple[str, ...] = Field(("broad",), description="corpora of the text-only batches")
    p_text: float = Field(1 / 3, ge=0, lt=1, description="probability of a text-only batch")
    p_selected: float = Field(0.75, ge=0, le=1, description="share of selected speech in a Stage II batch")
    augment: dict[str, AugmentConfig] = Field({}, description="by source: a folder of `natural`, or `selected`")
    keep_gb: float = Field(4.0, ge=0, description="encoder frames are kept in memory if all of them take at most this")
    prefetch: int = Field(2, ge=0, description="steps whose batches are made ahead, beside the training")
    workers: int = Field(4, gt=0, description="threads that read and decode recordings, where frames are not kept")

    @model_validator(mode="after")
    def _sources(self):
        unknown = sorted(self.augment.keys() - {*self.natural, "selected"})
        if unknown:
            raise ValueError(f"augment names {', '.join(unknown)}, which is neither a folder of `natural` nor `selected`")
        return self


class ObjectiveConfig(Frozen):
    alpha: float = Field(1.0, ge=0, le=1, description="L = alpha D + (1 - alpha) NLL")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl", description="D is the forward KL; the others are ablations"
    )
    teacher_cache: bool = Field(
        False, description="keep what the teacher says in lab/caches, for further seeds and alphas (LoRA, one process)"
    )
    teacher_cache_gb: float = Field(50.0, gt=0, description="a larger teacher cache is refused until this is raised")
    compile: bool = Field(False, description="fuse the loss between its products with torch.compile (needs a compiler)")

    @model_validator(mode="after")
    def _cached(self):
        if self.teacher_cache and self.divergence != "forward_kl":
            raise ValueError("teacher_cache holds what forward_kl needs; the other divergences need the teacher itself")
        if self.compile and (self.teacher_cache or self.divergence != "forward_kl"):
            raise ValueError("compile is for forward_kl without teacher_cache; set one of the two back")
        return self


class OptimConfig(Frozen):
    steps: int = Field(gt=0)
    batch: int = Field(8, gt=0, description="samples a step, over all processes")
    batch_tokens: int = Field(
        0, ge=0, description="instead of `batch`: tokens and frames a step, over all processes, packed without leaks"
    )
    micro_batch: int = Field(0, ge=0, description="samples a forward pass of one process; 0: all of the step's")
    micro_tokens: int = Field(0, ge=0, description="the same in tokens and frames, with `batch_tokens`")
    gradient_checkpointing: bool = Field(False, description="compute layers again in the backward pass: less memory")
    lr_adapter: float = Field(gt=0)
    lr_llm: float = Field(gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    decay: int = Field(0, ge=0, description="last steps, over which the learning rate falls to 0")
    checkpoint_every: int = Field(200, gt=0)
    keep: tuple[int, ...] = Field((), description="steps whose checkpoints stay beside the last, to be measured")
    log_every: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _phases(self):
        if self.warmup + self.decay > self.steps:
            raise ValueError(f"warmup + decay ({self.warmup} + {self.decay}) exceed steps ({self.steps})")
        return self


class RunConfig(Frozen):
    """One training run, Stage I or II. A run's config.json holds this and is enough to start it again."""

    kind: Literal["stage1", "stage2"]
    seed: int = 0
    contender: str = Field(description="the name under which evaluations report this run")
    parent: str | None = Field(None, description="a run id, or `stage1`: the lab's newest finished one")
    selection: str | None = Field(None, description="a selection id (l…) for Stage II")
    llm: LLMConfig = LLMConfig()
    encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    sequences: SequenceConfig = SequenceConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice")
    trackers: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = Field(
        (), description="also send the metrics there, through accelerate; its package must be installed"
    )

    @model_validator(mode="after")
    def _stages(self):
        if self.kind == "stage2" and self.parent is None:
            raise ValueError("a stage2 run needs `parent`: a run id, or `stage1`")
        return self


def parse_set(pairs: list[str]) -> dict:
    """`["a.b=3", "c=text"]` → {"a.b": 3, "c": "text"}; a VALUE is read as JSON, else taken as a string."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SaladError(f"--set {pair}: write it as a.b=VALUE")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    return overrides


def apply_overrides(config: ModelT, overrides: dict) -> ModelT:
    """A copy of `config` with dotted keys replaced; an unknown key or bad value is a one-line SaladError."""
    data = config.model_dump()
    known = list(_keys(data))
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise SaladError(f"unknown configuration key {key!r}; {hint}")
        node = data
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = value
    return validate(type(config), data)


def _keys(data: dict, prefix: str = ""):
    for key, value in data.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def validate(kind: type[ModelT], data: dict) -> ModelT:
    """`kind(**data)`, with pydantic's validation errors in one line, as a SaladError."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SaladError("; ".join(_describe(item) for item in error.errors())) from None


def _describe(item: ErrorDetails) -> str:
    where = ".".join(map(str, item["loc"])) or "configuration"
    got = f" (got {item['input']!r})" if item["loc"] and not isinstance(item["input"], dict) else ""
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{got}"
