"""Piper (VITS voices as ONNX, about 20 x real time on a core) behind the TTS interface.

    load_tts("piper:/models/piper-en_US-joe-medium").speak("The cat sat.", "en_US-joe-medium", seed=0)

A folder holds voices as Piper publishes them: NAME.onnx with NAME.onnx.json. A voice of several speakers is asked for as
NAME#SPEAKER. The durations of the phonemes are an output of the model (added when it is loaded), so word times are exact
to a frame (11.6 ms); where a model has none that can be found, words are aligned by a recogniser: piper:FOLDER::RECOGNISER.
"""

import json
import unicodedata
from functools import cached_property
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.speech.onnx_model import OnnxModel, content_hash, weights
from salad.speech.phonemes import phonemised
from salad.speech.utterance import SAMPLE_RATE, Utterance
from salad.speech.words import pieces, runs, words_of

PIECE = 250  # characters: about what Piper's voices were trained on at once
PAUSE_S = 0.15  # between pieces, which end with no pause of their own


class Piper:
    """`source`: a folder. The seed draws the model's noise, so that rhythm and voice differ a little from seed to seed.

    Flags of an utterance: "skipped words" (a word of which the voice has no phoneme), "empty". Output is resampled to
    16 kHz. `name` is "piper@" and a hash of the folder's voices: no path. Raises SaladError where the folder holds no
    voice, or durations are missing and no `recogniser` is named."""

    def __init__(self, source: str, recogniser: str | None = None):
        self.folder, self.recogniser = Path(source), recogniser
        if not self.folder.is_dir():
            raise SaladError(f"no folder {source!r} with Piper voices (NAME.onnx and NAME.onnx.json); name one as piper:FOLDER")
        self._configs, listed = {}, []
        for path in weights(self.folder):
            config = path.with_name(f"{path.name}.json")
            if not config.is_file():
                continue
            try:
                settings = json.loads(config.read_text(encoding="utf-8"))
                speakers = sorted(settings.get("speaker_id_map") or {}) if settings.get("num_speakers", 1) > 1 else []
                settings["phoneme_id_map"]["^"], settings["audio"]["sample_rate"], settings["espeak"]["voice"]
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError) as error:
                raise SaladError(f"{config} is no configuration of a Piper voice: {error!r}"[:300]) from error
            self._configs[path.stem] = settings
            listed += [f"{path.stem}#{speaker}" for speaker in speakers] or [path.stem]
        if not listed:
            raise SaladError(f"{self.folder} holds no Piper voice: NAME.onnx with NAME.onnx.json beside it")
        self.voices = tuple(listed)
        self._models: dict[str, OnnxModel] = {}

    @cached_property
    def name(self) -> str:
        files = [self.folder / f"{stem}.onnx{end}" for stem in self._configs for end in ("", ".json")]
        return f"piper@{content_hash(files)}"

    @cached_property
    def _aligner(self):
        from salad.speech.check import load_recogniser

        return load_recogniser(self.recogniser)

    def _model(self, stem: str) -> OnnxModel:
        if stem not in self._models:
            model = OnnxModel(self.folder / f"{stem}.onnx")
            if not model.has_durations and self.recogniser is None:
                raise SaladError(f"{stem}.onnx does not say how long its phonemes last: name a recogniser that aligns its "
                                 f"words, as piper:{self.folder.name}::openai/whisper-tiny.en")  # fmt: skip
            self._models[stem] = model
        return self._models[stem]

    def speak(self, spoken: str, voice: str | None = None, seed: int = 0) -> Utterance:
        """`spoken` in a voice of `voices`: float32 samples, words with their times. The same (spoken, voice, seed) gives the
        same utterance. Raises SaladError for a voice that the engine does not have."""
        from salad.speech.shar import to_rate

        voice = voice or self.voices[0]
        if voice not in self.voices:
            raise SaladError(f'Piper has no voice "{voice}" in {self.folder.name}; it has {", ".join(self.voices)}')
        stem, _, speaker = voice.partition("#")
        config, model = self._configs[stem], self._model(stem)
        rate, length = config["audio"]["sample_rate"], 0
        sound: list[np.ndarray] = []
        flags: set[str] = set()
        timed: dict[int, tuple[float, float]] = {}
        first = 0  # the number of the piece's first run
        for number, (start, end) in enumerate(pieces(spoken, PIECE)):
            phonemes = phonemised(spoken[start:end], config["espeak"]["voice"])
            ids, spans = _ids(phonemes, config["phoneme_id_map"])
            if any(begin == stop for _, begin, stop in spans):
                flags.add("skipped words")
            spans = [span for span in spans if span[1] < span[2]]
            if spans:
                if sound:
                    sound.append(np.zeros(int(PAUSE_S * rate), np.float32))
                    length += len(sound[-1])
                samples, frames = model.run(self._feed(config, ids, speaker, model), seed * 1000 + number)
                if frames is not None:
                    edges = np.concatenate([[0], np.cumsum(frames)]) * (len(samples) / frames.sum()) + length
                    for run, begin, stop in spans:
                        timed[first + run] = (float(edges[begin]) / rate, float(edges[stop]) / rate)
                sound.append(samples)
                length += len(samples)
            first += len(runs(spoken[start:end]))
        if not length:
            return Utterance(np.zeros(0, np.float32), SAMPLE_RATE, [], ["empty"])
        samples = np.clip(to_rate(np.concatenate(sound), rate), -1, 1)
        if timed:
            words = words_of(spoken, timed)
        else:
            from salad.speech.align import align
            from salad.speech.languages import of_voice

            words = align(samples, spoken, self._aligner, language=of_voice("piper", voice)).words
        return Utterance(samples, SAMPLE_RATE, words, sorted(flags))

    @staticmethod
    def _feed(config: dict, ids: list[int], speaker: str, model: OnnxModel) -> dict[str, np.ndarray]:
        how = config.get("inference", {})
        scales = [how.get("noise_scale", 0.667), how.get("length_scale", 1.0), how.get("noise_w", 0.8)]
        feed: dict[str, np.ndarray] = {
            "input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array(scales, np.float32),
        }  # fmt: skip
        if "sid" in model.inputs:
            feed["sid"] = np.array([(config.get("speaker_id_map") or {}).get(speaker, 0)], np.int64)
        return feed


def _ids(words, id_map: dict[str, list[int]]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The ids of a piece as Piper sets them ("^ _ p _ p _ … $"), and of each word (run, first id, id after its last pad)."""
    pad = id_map["_"]
    ids = [*id_map["^"], *pad]
    spans = []
    for number, word in enumerate(words):
        if number and " " in id_map:
            ids += [*id_map[" "], *pad]
        begin = len(ids)
        for phoneme in unicodedata.normalize("NFD", word.phonemes):
            if phoneme in id_map:
                ids += [*id_map[phoneme], *pad]
        spans.append((word.run, begin, len(ids)))
        if word.stop in id_map and word.stop:
            ids += [*id_map[word.stop], *pad]
    return [*ids, *id_map["$"]], spans
