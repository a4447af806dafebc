"""Kokoro-82M from its ONNX export (int8: about 3 x real time on a core) behind the TTS interface.

    load_tts("kokoro-onnx:/models/kokoro-onnx").speak("The cat sat.", "af_heart", seed=0)

A folder holds one model (*.onnx), the styles of its voices (voices*.npz or voices*.bin, as kokoro-onnx publishes them) and
the phonemes' ids (vocab.json, or config.json of the original). Every voice reads English, by misaki's espeak phonemes
(a Japanese voice too, and well). The durations of the phonemes are an output of the model (added when it is loaded), so word
times are exact to a frame (25 ms); where it has none that can be found, words are aligned: kokoro-onnx:FOLDER::RECOGNISER.
"""

import json
import logging
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.speech.onnx_model import OnnxModel, content_hash, weights
from salad.speech.phonemes import phonemised
from salad.speech.utterance import SAMPLE_RATE, Utterance
from salad.speech.words import pieces, runs, words_of

NATIVE_RATE = 24_000
PIECE = 350  # characters; see salad.speech.kokoro
MOST_PHONEMES = 510
LATE_S = 0.025  # a frame: by so much the durations run after the sound (the median at 52 pauses was 30 ms)
_NAMES = {"tokens": ("tokens", "input_ids"), "style": ("style", "ref_s"), "speed": ("speed",)}


@cache
def misaki(text: str, british: str) -> str:
    """Kokoro's own notation of what espeak hears in `text`, by misaki ("en-us" or "en-gb"); words apart by blanks."""
    return _g2p(british)(text)[0]


@cache
def _g2p(language: str):
    from misaki.espeak import EspeakG2P

    logging.getLogger("phonemizer").setLevel(logging.ERROR)  # it warns of words that espeak says as one
    return EspeakG2P(language=language)


class KokoroOnnx:
    """`source`: a folder. A speed is drawn for each utterance from 1 ± `jitter` by its seed; the model has no other chance.

    Flags of an utterance: "skipped words" (a word of which the model has no phoneme), "truncated" (a sentence of over 510
    phonemes), "empty". Output is resampled to 16 kHz. `name` is "kokoro-onnx@" and a hash of model, styles and ids: no
    path. Raises SaladError where the folder lacks one of them, or durations are missing and no `recogniser` is named."""

    def __init__(self, source: str, recogniser: str | None = None, jitter: float = 0.1):
        self.folder, self.recogniser, self.jitter = Path(source), recogniser, jitter
        if not self.folder.is_dir():
            raise SaladError(f"no folder {source!r} with Kokoro's ONNX export; name one as kokoro-onnx:FOLDER")
        models = weights(self.folder) or weights(self.folder / "onnx")
        styles = sorted([*self.folder.glob("voices*.npz"), *self.folder.glob("voices*.bin")])
        vocabulary = [path for name in ("vocab.json", "config.json") if (path := self.folder / name).is_file()]
        for what, files in (("one *.onnx", models[:2]), ("voices*.npz or voices*.bin", styles), ("vocab.json", vocabulary)):
            if not files or (what == "one *.onnx" and len(models) > 1):
                raise SaladError(f"{self.folder} does not hold {what}: it is no folder of Kokoro's ONNX export")
        self._model_file, self._style_files, self._vocabulary_file = models[0], styles, vocabulary[0]
        self.voices = tuple(sorted(self._styles))
        self._vocabulary = self._read_vocabulary()

    @cached_property
    def name(self) -> str:
        return f"kokoro-onnx@{content_hash([self._model_file, *self._style_files, self._vocabulary_file])}"

    @cached_property
    def _styles(self) -> dict[str, np.ndarray]:
        styles: dict[str, np.ndarray] = {}
        for path in self._style_files:
            try:
                with np.load(path, allow_pickle=False) as file:
                    styles |= {name: file[name].astype(np.float32).reshape(-1, 256) for name in file.files}
            except Exception as error:  # NumPy, zipfile and zlib have no common class for a file that is none
                raise SaladError(f"{path} holds no styles of Kokoro's voices: {error}") from error
        return styles

    def _read_vocabulary(self) -> dict[str, int]:
        try:
            config = json.loads(self._vocabulary_file.read_text(encoding="utf-8"))
            return {str(key): int(value) for key, value in config.get("vocab", config).items()}
        except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
            raise SaladError(f"{self._vocabulary_file} holds no ids of Kokoro's phonemes: {error}") from error

    @cached_property
    def _model(self) -> OnnxModel:
        model = OnnxModel(self._model_file)
        if not model.has_durations and self.recogniser is None:
            raise SaladError(f"{self._model_file.name} does not say how long its phonemes last: name a recogniser that aligns "
                             f"its words, as kokoro-onnx:{self.folder.name}::openai/whisper-tiny.en")  # fmt: skip
        return model

    @cached_property
    def _inputs(self) -> dict[str, str]:
        """The model's own names of what it takes, as exports differ."""
        candidates = {key: next((n for n in names if n in self._model.inputs), None) for key, names in _NAMES.items()}
        inputs = {key: name for key, name in candidates.items() if name is not None}
        if len(inputs) < len(candidates):
            raise SaladError(f"{self._model_file.name} takes {', '.join(self._model.inputs)}: it is no export of Kokoro")
        return inputs

    @cached_property
    def _aligner(self):
        from salad.speech.check import load_recogniser

        return load_recogniser(self.recogniser)

    def speak(self, spoken: str, voice: str | None = None, seed: int = 0) -> Utterance:
        """`spoken` in a voice of `voices`: float32 samples, words with their times. The same (spoken, voice, seed) gives the
        same utterance. Raises SaladError for a voice that the engine does not have."""
        from salad.speech.shar import to_rate

        voice = voice or self.voices[0]
        if voice not in self.voices:
            raise SaladError(f'Kokoro has no voice "{voice}" in {self.folder.name}; it has {", ".join(self.voices)}')
        speed = 1 + float(np.random.default_rng(seed).uniform(-self.jitter, self.jitter))
        language = "en-gb" if voice.startswith("b") else "en-us"
        sound: list[np.ndarray] = []
        flags: set[str] = set()
        timed: dict[int, tuple[float, float]] = {}
        length = first = 0
        for number, (start, end) in enumerate(pieces(spoken, PIECE)):
            phonemes = phonemised(spoken[start:end], language, misaki)
            tokens, spans = self._tokens(phonemes, flags)
            if spans:
                samples, frames = self._model.run(self._feed(tokens, voice, speed), seed * 1000 + number)
                if frames is not None:
                    edges = np.concatenate([[0], np.cumsum(frames)]) * (len(samples) / frames.sum()) + length
                    for run, begin, stop in spans:
                        start_s, end_s = (max(float(edges[at]) / NATIVE_RATE - LATE_S, 0.0) for at in (begin, stop))
                        timed[first + run] = start_s, end_s
                sound.append(samples)
                length += len(samples)
            first += len(runs(spoken[start:end]))
        if not length:
            return Utterance(np.zeros(0, np.float32), SAMPLE_RATE, [], ["empty"])
        samples = np.clip(to_rate(np.concatenate(sound), NATIVE_RATE), -1, 1)
        if timed:
            words = words_of(spoken, timed)
        else:
            from salad.speech.align import align

            words = align(samples, spoken, self._aligner).words
        return Utterance(samples, SAMPLE_RATE, words, sorted(flags))

    def _feed(self, tokens: list[int], voice: str, speed: float) -> dict[str, np.ndarray]:
        styles = self._styles[voice]
        values = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": styles[min(len(tokens), len(styles) - 1)][None],
            "speed": np.array([speed], np.float32),
        }
        return {self._inputs[key]: value for key, value in values.items()}

    def _tokens(self, words, flags: set) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The ids of a piece without its two ends, and of each word (run, its first frame count, the one after its last):
        the model counts the ends too."""
        tokens: list[int] = []
        spans = []
        for word in words:
            ids = [self._vocabulary[c] for c in word.phonemes if c in self._vocabulary]
            if not ids:
                flags.add("skipped words")
                continue
            blank = [self._vocabulary[" "]] if tokens and " " in self._vocabulary else []
            if len(tokens) + len(blank) + len(ids) + 1 > MOST_PHONEMES:
                flags.add("truncated")
                break
            tokens += blank
            spans.append((word.run, len(tokens) + 1, len(tokens) + 1 + len(ids)))
            tokens += ids
            if word.stop in self._vocabulary:
                tokens.append(self._vocabulary[word.stop])
        return tokens, spans
