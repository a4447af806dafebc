"""Is it what was to be said? Error rates under a speech recogniser, and acoustic flags.

    recogniser = load_recogniser("lab/models/recogniser")        # or "openai/whisper-small", "facebook/wav2vec2-…"
    check(samples, text, recogniser)                              # -> Check(cer=0.02, wer=0.1, …, flags=[])

Only the normalised rates exclude anything: text and transcript both go through one normaliser (`normalise`), so that
"$1,000" and "one thousand dollars" agree. The raw ones stand beside them.

Long because the recognisers that it asks, a class for each kind of model, stand in it too.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import store
from salad import parts
from salad.errors import SaladError
from salad.speech.languages import find_language
from salad.speech.spoken import spoken_form
from salad.speech.utterance import SAMPLE_RATE
from salad.speech.words import runs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MIN_S = 0.1  # shorter is empty
SPEAKING_RATE = (4 / 15, 2.0)  # letters and digits of what is spoken, re what is fluent in the language
LONGEST_PAUSE_S = 1.5
NO_SOUND = 1e-3  # RMS of the louder frames below which nothing is heard
EXPECTED = (0.5, 2.0)  # of the expected duration
TOKENS_PER_S = 6.5  # at most, as Moonshine's authors limit an answer; more is a loop
QWEN_TOKENS_PER_S = 12.0


class Recogniser(Protocol):
    """What the ASR check asks of a speech recogniser. `name` is stored beside every transcript."""

    name: str

    def transcribe(self, samples: list[np.ndarray]) -> list[str]:
        """float32 [T] at 16 kHz each -> their transcripts, in order. Where something else than English is spoken, it is
        called with `languages=` too, a code of ISO 639-1 for each."""
        ...


@dataclass(frozen=True)
class Check:
    """cer, wer: normalised; raw_cer, raw_wer: as written. Shares of the reference: above 1 where more is inserted."""

    cer: float
    wer: float
    raw_cer: float
    raw_wer: float
    text_asr: str
    asr: str
    flags: list[str]

    def columns(self) -> dict:
        """Columns of the store's `syntheses`, flags apart."""
        return {key: value for key, value in asdict(self).items() if key != "flags"}


_BRACKETS = str.maketrans(dict.fromkeys("()[]<>{}.,%$¢€£", " "))  # within brackets Whisper's normalisers leave words out
_HUNDREDS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_SAME_READING = [
    (re.compile(r"\b(\w) (?=\w\b)"), r"\1"),  # letters that are spelled: "p m" is "pm"
    (re.compile(r"\b(hundred|thousand) and\b"), r"\1"),
    *((re.compile(rf"\b{word} hundred\b(?!s)"), f"one thousand {digit} hundred")
      for word, digit in zip(_HUNDREDS, "one two three four five six seven eight nine".split(), strict=True)),
]  # fmt: skip


@cache
def _normaliser(code: str):
    # The British-American spelling table is part of a Whisper checkpoint, not of transformers: both sides go without.
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if code != "en":
        return BasicTextNormalizer()
    made = EnglishTextNormalizer({})
    made.standardize_numbers = str  # numbers are words by now, and its way back makes "one zero" ten
    return made


@cache
def _simplified():
    """Traditional Chinese characters to simplified ones: recognisers write either, whatever was read."""
    import opencc

    return opencc.OpenCC("t2s").convert


def normalise(text: str, language: str = "en") -> str:
    """`text` as it is compared: its reading (`spoken_form`), then Whisper's normaliser of the language (transformers), so
    that "$1,000", "one thousand dollars" and "1000 dollars" agree, "don’t" and "don't", "3 p.m." and "three PM". Chinese comes
    out in simplified characters; texts of scripts without blanks between words come out without blanks."""
    row = find_language(language)
    if row.code == "zh":
        text = _simplified()(text)
    plain = _normaliser(row.code)(spoken_form(text, row.code).spoken.translate(_BRACKETS))
    if not row.spaced:
        return "".join(plain.split())
    for pattern, same in _SAME_READING:
        plain = pattern.sub(same, plain)
    return " ".join(plain.split())


def words_in(normalised: str) -> list[str]:
    """What a word error rate counts: words, and in scripts without blanks between them characters."""
    return [normalised[start:end] for start, end in runs(normalised)]


def _rates(reference: str, hypothesis: str) -> tuple[float, float]:
    import jiwer

    if not reference.strip():
        missed = float(bool(hypothesis.strip()))
        return missed, missed
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    words = " ".join(words_in(reference)), " ".join(words_in(hypothesis))
    return float(jiwer.cer(reference, hypothesis)), float(jiwer.wer(*words))


def levels(samples: np.ndarray, rate: int) -> tuple[int, np.ndarray]:
    """Samples a frame of 20 ms, and the frames' RMS, float64."""
    frame = max(int(0.02 * rate), 1)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame).astype(np.float64)
    return frame, np.sqrt((frames**2).mean(1))


def is_silent(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bool:
    """Whether there is no sound at all, as against long pauses."""
    return float(np.quantile(levels(samples, rate)[1], 0.95)) < NO_SOUND


def acoustic_flags(
    samples: np.ndarray, text: str, rate: int = SAMPLE_RATE, expected_s: float | None = None, language: str = "en"
) -> list[str]:
    """What is wrong with the sound alone: "empty", "not finite", "sample rate", "clipping", "silence" (no sound at
    all, or a pause above 1.5 s), "cut off" (ends at full voice), "speaking rate", "duration". `text`: what is said."""
    flags = []
    if rate != SAMPLE_RATE:
        flags.append("sample rate")
    duration = len(samples) / rate
    if duration < MIN_S:
        return [*flags, "empty"]
    if not np.isfinite(samples).all():
        return [*flags, "not finite"]
    peak = float(np.abs(samples).max())
    flat = np.abs(samples) >= max(0.98 * peak, 1e-9)
    if peak >= 0.98 and int((flat[:-2] & flat[1:-1] & flat[2:]).sum()) > 1e-4 * len(samples):
        flags.append("clipping")
    frame, level = levels(samples, rate)
    loudest = float(np.quantile(level, 0.95))
    quiet = level < max(0.02 * loudest, 1e-4)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet, [0]])))
    longest = max((edges[1::2] - edges[::2]).tolist(), default=0) * frame / rate
    if loudest < NO_SOUND or longest > LONGEST_PAUSE_S:
        flags.append("silence")
    if loudest >= NO_SOUND and level[-1] > 0.3 * loudest:
        flags.append("cut off")
    fluent = sum(c.isalnum() for c in text) / duration / find_language(language).characters_per_s
    if not SPEAKING_RATE[0] <= fluent <= SPEAKING_RATE[1]:
        flags.append("speaking rate")
    if expected_s and not EXPECTED[0] <= duration / expected_s <= EXPECTED[1]:
        flags.append("duration")
    return flags


def check(samples: np.ndarray, text: str, recogniser: Recogniser, *, spoken: str | None = None, rate: int = SAMPLE_RATE,
          expected_s: float | None = None, language: str = "en") -> Check:  # fmt: skip
    """One recording. samples: float32 [T] at `rate` Hz; text: what stands written, in `language`; spoken: what the voice
    was given, where it differs; expected_s: the duration that is expected. See `check_many`."""
    return check_many([samples], [text], recogniser, spoken=[spoken or text], rates=[rate], expected_s=[expected_s],
                      languages=[language])[0]  # fmt: skip


def check_many(samples: list, texts: list[str], recogniser: Recogniser, *, spoken: list[str] | None = None,
               rates: list[int] | None = None, expected_s: list | None = None, transcripts: list[str] | None = None,
               languages: list[str] | None = None) -> list[Check]:  # fmt: skip
    """Many recordings, transcribed in batches (or as `transcripts` says, where the recogniser has heard them already).
    The reference of the rates is the reading of `text` (`normalise`), whatever the voice was given: where `spoken` was
    wrong, what was said shows as an error. `spoken` serves for the speaking rate. languages: English where None."""
    from salad.speech.shar import to_rate

    spoken, rates = spoken or texts, rates or [SAMPLE_RATE] * len(texts)
    expected_s, languages = expected_s or [None] * len(texts), languages or ["en"] * len(texts)
    resampled = [np.nan_to_num(to_rate(np.asarray(s, np.float32), r)) for s, r in zip(samples, rates, strict=True)]
    audible = [i for i, h in enumerate(resampled) if len(h) >= MIN_S * SAMPLE_RATE]
    if transcripts is None:
        spoken_in = [languages[i] for i in audible]
        more = {"languages": spoken_in} if set(spoken_in) - {"en"} else {}
        by_index = dict(zip(audible, recogniser.transcribe([resampled[i] for i in audible], **more), strict=True))
        transcripts = [by_index.get(i, "") for i in range(len(texts))]
    checks = []
    for i, (text, handed) in enumerate(zip(texts, spoken, strict=True)):
        transcript = transcripts[i]
        cer, wer = _rates(normalise(text, languages[i]), normalise(transcript, languages[i]))
        raw_cer, raw_wer = _rates(text, transcript)
        flags = acoustic_flags(samples[i], handed, rates[i], expected_s[i], languages[i])
        checks.append(Check(cer, wer, raw_cer, raw_wer, transcript, recogniser.name, flags))
    return checks


def load_recogniser(folder: str, device: str = "cpu", batch_s: float = 120.0) -> Recogniser:
    """A recogniser that transformers loads, by folder or repository: CTC models, Whisper, Moonshine, Parakeet's transducers and
    Qwen3-ASR, each by its class; or `package.module:name`, called without arguments. `batch_s`:
    seconds of padded speech a batch. Raises SaladError where `folder` is no such model."""
    if parts.is_part(folder):
        return parts.load(folder)()
    from transformers import AutoConfig, AutoProcessor

    import salad.models.phone  # noqa: F401  registers the miniature's recogniser
    from salad.models.names import loading, quiet, resolve

    quiet()
    place = folder if Path(folder).is_dir() or Path(folder).is_absolute() else resolve(folder, None)
    store.files.check(place)
    with loading(f'the recogniser "{folder}"'):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind = class_of(config)
        model = model_class(config).from_pretrained(place, use_safetensors=True, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    return kind(str(folder), model.to(device).eval(), processor, batch_s)


class BatchedRecogniser:
    """A model of transformers that hears recordings in batches of like length; a subclass defines `_batch`."""

    def __init__(self, name: str, model, processor, batch_s: float):
        self.name, self.model, self.processor, self.batch_s = name, model, processor, batch_s

    @property
    def _masks(self) -> bool:
        """Whether the model is given an attention mask."""
        return True

    def _features(self, samples: list[np.ndarray], **how):
        return self.processor.feature_extractor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=self._masks, **how
        ).to(self.model.device)

    def _batch(self, samples: list[np.ndarray], language: str) -> list[str]:
        """The transcripts of a batch in one language."""
        raise NotImplementedError

    def transcribe(self, samples: list[np.ndarray], languages: list[str] | None = None) -> list[str]:
        """float32 [T] at 16 kHz each -> transcripts, in order; batched by length, longest first. languages: what is
        spoken in each, English where None; raises SaladError where the model does not have one of them."""
        languages = languages or ["en"] * len(samples)
        out = [""] * len(samples)
        for code in dict.fromkeys(languages):
            those = [i for i, other in enumerate(languages) if other == code]
            transcripts = self._batched([samples[i] for i in those], partial(self._batch, language=code), "")
            for i, transcript in zip(those, transcripts, strict=True):
                out[i] = transcript.strip()
        return out

    def _batched(self, samples: list[np.ndarray], work, nothing) -> list:
        import torch

        out: list = [nothing] * len(samples)
        rest = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
        with torch.inference_mode():
            while rest:
                size = max(int(self.batch_s * SAMPLE_RATE / max(len(samples[rest[0]]), 1)), 1)
                batch, rest = rest[:size], rest[size:]
                for i, result in zip(batch, work([samples[i] for i in batch]), strict=True):
                    out[i] = result
        return out


class CTCRecogniser(BatchedRecogniser):
    """The best path of a CTC model, decoded by its own tokenizer.

    A model of the wav2vec2-base kind normalises each channel over the whole recording and was trained without an attention
    mask, as its processor says; padding would change what it hears, so it takes one recording at a time."""

    @property
    def _masks(self) -> bool:
        """As the processor has it: a model that was trained without a mask is given none."""
        return bool(getattr(self.processor.feature_extractor, "return_attention_mask", True))

    @property
    def _alone(self) -> bool:
        return not self._masks or getattr(self.model.config, "feat_extract_norm", None) == "group"

    @cached_property
    def hop(self) -> float:
        """Samples from one frame of logits to the next."""
        if ratio := getattr(self.model.config, "inputs_to_logits_ratio", None):
            return float(ratio)
        import torch

        with torch.inference_mode():
            short, long = (self.model(**self._features([np.zeros(n, np.float32)])).logits.shape[1] for n in (160_000, 320_000))
        return 160_000 / (long - short)

    @property
    def delay_s(self) -> tuple[float, float]:
        """How late word starts and ends fire (salad.speech.align.delays), from the model's configuration; else 0."""
        start, end = getattr(self.model.config, "word_delay_s", None) or (0.0, 0.0)
        return float(start), float(end)

    def log_probs(self, samples: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [frames, vocabulary] of each, without the frames of the padding."""
        import torch

        if self._alone and len(samples) > 1:
            return [self.log_probs([recording])[0] for recording in samples]
        with torch.inference_mode():
            features = self._features(samples, padding=True)
            logits = self.model(**features).logits.float().log_softmax(-1).cpu()
        if hasattr(self.model, "_get_feat_extract_output_lengths"):
            frames = self.model._get_feat_extract_output_lengths(torch.tensor([len(s) for s in samples])).tolist()
        elif hasattr(self.model, "_get_subsampling_output_length") and "attention_mask" in features:  # Parakeet's
            frames = self.model._get_subsampling_output_length(features["attention_mask"].sum(-1)).tolist()
        else:
            frames = [round(len(s) / self.hop) for s in samples]
        return [row[: max(int(n), 1)].numpy() for row, n in zip(logits, frames, strict=True)]

    def hear(self, samples: list[np.ndarray], languages: list[str] | None = None) -> list[tuple[str, np.ndarray]]:
        """(transcript, log-probabilities float32 [frames, vocabulary]) of each: both from one run of the model, which
        hears whatever language it has learnt."""
        return [(self._decode(row), row) for row in self._batched(samples, self.log_probs, None)]

    def _decode(self, log_probs_TV: np.ndarray) -> str:
        return self.processor.tokenizer.decode(log_probs_TV.argmax(-1).tolist()).strip()

    def _batch(self, samples, language):
        return [self._decode(row) for row in self.log_probs(samples)]


class WhisperRecogniser(BatchedRecogniser):
    """Whisper and its kin, greedy, in the language that is spoken; above 30 s by its own long form."""

    WINDOW = 30 * SAMPLE_RATE

    measured_delay_s: tuple[float, float] | None = None  # set once by `salad.speech.align`, where the configuration says nothing

    @property
    def delay_s(self) -> tuple[float, float] | None:
        """How late word starts and ends come out by cross-attention, in seconds: from the model's configuration, else as
        `salad.speech.align` has measured it; None before."""
        return getattr(self.model.config, "word_delay_s", None) or self.measured_delay_s

    def hear(self, samples: list[np.ndarray], languages: list[str] | None = None) -> list[tuple[str, None]]:
        """(transcript, None) of each: alignment looks at the sound and its text together, after this."""
        return [(transcript, None) for transcript in self.transcribe(samples, languages)]

    def attention(self, samples: np.ndarray, ids: list[int], language: str = "en") -> tuple[np.ndarray, np.ndarray]:
        """How the decoder looks at the sound while it writes a text: (cross-attention of the model's alignment heads float32
        [heads, tokens + 1, frames of 20 ms], one row for each token that is predicted, the last for the end; log-probability
        float32 [tokens] of each token). Raises SaladError
        for more than 30 s, or more tokens than the decoder takes."""
        import torch

        if len(samples) > self.WINDOW:
            raise SaladError(f"{len(samples) / SAMPLE_RATE:.1f} s of speech: {self.name} aligns at most 30 s at once")
        tokens, how = self.model.generation_config, self._how(language)
        prefix = [tokens.decoder_start_token_id]
        if how:
            prefix += [tokens.lang_to_id[f"<|{language}|>"], tokens.task_to_id["transcribe"]]
        prefix.append(tokens.no_timestamps_token_id)
        fed = [*prefix, *ids, self.model.config.eos_token_id]
        if len(fed) > self.model.config.max_target_positions:
            raise SaladError(f"{len(ids)} tokens of text: {self.name} takes at most {self.model.config.max_target_positions}")
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the others do not give their weights
        try:
            with torch.inference_mode():
                out = self.model(**self._features([samples]), decoder_input_ids=torch.tensor([fed], device=self.model.device),
                                 output_attentions=True)  # fmt: skip
        finally:
            self.model.set_attn_implementation(before)
        layers = self.model.config.decoder_layers
        heads = getattr(tokens, "alignment_heads", None) or [
            [layer, head] for layer in range(layers // 2, layers) for head in range(self.model.config.decoder_attention_heads)
        ]
        frames = max(min(-(-len(samples) // 320), out.cross_attentions[0].shape[-1]), 1)
        weights = torch.stack([out.cross_attentions[layer][0, head] for layer, head in heads])
        log_probs = out.logits[0].float().log_softmax(-1)
        at = torch.arange(len(ids))
        token_log_probs = log_probs[at + len(prefix) - 1, torch.tensor(ids, dtype=torch.long)]
        return weights[:, len(prefix) - 1 : -1, :frames].float().cpu().numpy(), token_log_probs.cpu().numpy()

    def _how(self, language: str) -> dict:
        """What `generate` is told. Raises SaladError where the model knows no such language."""
        if not getattr(self.model.generation_config, "is_multilingual", False):
            if language != "en":
                raise SaladError(
                    f"{self.name} hears English alone, and this is {find_language(language).name}: name a multilingual one"
                )
            return {}
        return {"language": language, "task": "transcribe"}

    def _batch(self, samples, language):
        how = self._how(language)
        if len(samples[0]) > self.WINDOW:  # longest first, and such a batch is small
            texts = []
            for recording in samples:
                long = len(recording) > self.WINDOW
                features = self._features([recording], **({"truncation": False, "padding": "longest"} if long else {}))
                ids = self.model.generate(**features, **how, **({"return_timestamps": True} if long else {}))
                texts += self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return texts
        ids = self.model.generate(**self._features(samples), **how)
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def _most(samples: np.ndarray, tokens_per_s: float) -> int:
    """The most tokens that a recording is heard as, whatever is heard beside it."""
    return max(int(tokens_per_s * len(samples) / SAMPLE_RATE), 4)


class TransducerRecogniser(BatchedRecogniser):
    """Parakeet's transducers (TDT, RNN-T), greedy, by transformers' own loop, in whatever language they have learnt. One at a
    time: in a batch that loop (5.24) writes on behind a shorter recording's end, in what pads it."""

    def _batch(self, samples, language):
        return [self._heard(one) for one in samples]

    def _heard(self, samples: np.ndarray) -> str:
        ids = self.model.generate(**self._features([samples], padding=True), return_dict_in_generate=True).sequences
        return self.processor.decode(ids[0], skip_special_tokens=True)


class MoonshineRecogniser(BatchedRecogniser):
    """Moonshine, greedy: samples go in as they are, and an answer is at most as long as somebody can speak. One at a time: its
    first layers are normalised over time, so they would hear what pads a shorter one."""

    def _batch(self, samples, language):
        if language != "en":
            spoken = find_language(language).name
            raise SaladError(f"{self.name} hears English alone, and this is {spoken}: name a multilingual one")
        ids = [self.model.generate(**self._features([one], padding=True), max_new_tokens=_most(one, TOKENS_PER_S))[0]
               for one in samples]  # fmt: skip
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


class Qwen3ASRRecogniser(BatchedRecogniser):
    """Qwen3-ASR by its processor's own request, in the language that is spoken. One at a time: beside a longer recording a
    shorter one came out otherwise (transformers 5.24)."""

    def _batch(self, samples, language):
        return [self._heard(one, find_language(language).name) for one in samples]

    def _heard(self, samples: np.ndarray, language: str) -> str:
        given = self.processor.apply_transcription_request(audio=[np.asarray(samples, np.float32)], language=[language])
        most = _most(samples, QWEN_TOKENS_PER_S)
        ids = self.model.generate(**given.to(self.model.device), max_new_tokens=most, do_sample=False)
        return self.processor.decode(ids[0, given["input_ids"].shape[1] :], return_format="transcription_only")


BY_TYPE: dict[str, type[BatchedRecogniser]] = {
    "whisper": WhisperRecogniser,
    "moonshine": MoonshineRecogniser,
    "qwen3_asr": Qwen3ASRRecogniser,
    "parakeet_tdt": TransducerRecogniser,
    "parakeet_rnnt": TransducerRecogniser,
}


def class_of(config: "PreTrainedConfig") -> type[BatchedRecogniser]:
    """Which class reads a model of this configuration; SaladError where none does."""
    from transformers import MODEL_FOR_CTC_MAPPING

    found = BY_TYPE.get(config.model_type) or (CTCRecogniser if type(config) in MODEL_FOR_CTC_MAPPING else None)
    if found is None:
        raise SaladError(f"{config.model_type} is no recogniser that is known here: neither a CTC model nor {', '.join(BY_TYPE)}")
    return found


def model_class(config: "PreTrainedConfig") -> Any:
    """The Auto class of transformers that loads such a model."""
    import transformers

    names = {"parakeet_tdt": "AutoModelForTDT", "parakeet_rnnt": "AutoModelForRNNT", "whisper": "AutoModelForSpeechSeq2Seq",
             "moonshine": "AutoModelForSpeechSeq2Seq", "qwen3_asr": "Qwen3ASRForConditionalGeneration"}  # fmt: skip
    return getattr(transformers, names.get(config.model_type, "AutoModelForCTC"))


def recogniser_of(lab: Path | str, name: str | None) -> tuple[str | None, Callable[[], Recogniser]]:
    """(name, what loads it) of a recogniser: a folder of the lab, a folder, a hub name, or the lab's own by default;
    (None, …) where there is none. A hub name stays a name, though SALAD_MODELS has a folder for it."""
    from salad.models.names import resolve

    if name is None:
        own = Path(lab) / "models" / "recogniser"
        name = str(own) if own.is_dir() else None
    else:
        path = resolve(name, lab)  # SaladError where it looks like a folder and is none
        name = path if (Path(lab) / name).is_dir() else name
    return name, partial(load_recogniser, name)  # type: ignore[arg-type]  # never called where there is no name
