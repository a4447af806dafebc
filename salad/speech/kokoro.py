"""Kokoro (hexgrad/Kokoro-82M, 24 kHz) behind the TTS interface: the voice of every recipe but the miniature's.

    load_tts("kokoro").speak("The cat sat.", "af_heart", seed=0)      # downloads the weights once
    load_tts("kokoro:/models/kokoro")      # a folder with config.json, kokoro-v1_0.pth and voices/*.pt

Kokoro cannot batch: scale by processes. English needs spaCy's en_core_web_sm, which Kokoro downloads at first use
(without a network: install its wheel beforehand).
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.speech.languages import find_language
from salad.speech.shar import to_rate
from salad.speech.utterance import SAMPLE_RATE, Utterance, Word
from salad.speech.words import pieces, runs, words_of

NATIVE_RATE = 24_000
VOICES = tuple(
    "af_heart af_alloy af_aoede af_bella af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo "
    "am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily bm_daniel "
    "bm_fable bm_george bm_lewis".split()
)
WEIGHTS = "kokoro-v1_0.pth"
PIECE = 350  # characters; Kokoro takes at most 510 phonemes at once, and speaks long pieces worse
_BRACKETS = str.maketrans("[]", "()")  # Kokoro reads [x](…) as an override of x's phonemes: same length, no meaning


class Kokoro:
    """`source`: a repository or a local folder. A speed is drawn for each utterance from 1 ± `jitter` by its seed.

    Flags of an utterance: "truncated" (a piece had over 510 phonemes: its end was not spoken), "skipped words" (a word
    of which Kokoro has no phoneme; one phoneme that is unknown, as espeak's data differ, is no word), "empty". Output is
    resampled to 16 kHz. Word times are those of Kokoro's tokens plus the offset of their piece. Raises SaladError, in one line,
    where weights or spaCy's model are missing."""

    name = "kokoro"

    def __init__(self, source: str = "hexgrad/Kokoro-82M", jitter: float = 0.1, device: str | None = None):
        self.source, self.jitter, self.device = source, jitter, device
        self.folder = Path(source) if Path(source).is_dir() else None
        self.voices = VOICES
        if self.folder:
            self.voices = tuple(sorted(path.stem for path in self.folder.glob("voices/*.pt")))
        self._pipelines: dict = {}
        self._styles: dict = {}

    def _file(self, name: str) -> str:
        how = (
            f"`hf download {'hexgrad/Kokoro-82M' if self.folder else self.source}` gets it where there is a network; "
            f"then name its folder (config.json, {WEIGHTS}, voices/) as kokoro:<folder>, or speak with espeak"
        )
        if self.folder:
            if not (self.folder / name).is_file():
                raise SaladError(f"Kokoro's {name} is not in {self.folder}: {how}")
            return str(self.folder / name)
        from huggingface_hub import hf_hub_download

        try:
            return hf_hub_download(self.source, name)
        except Exception as error:  # offline, no such repository, no such file: each has a class of its own
            raise SaladError(f"Kokoro's {name} cannot be had from {self.source}: {how}") from error

    @cached_property
    def _model(self):
        config, weights = self._file("config.json"), self._file(WEIGHTS)
        import torch
        from kokoro import KModel

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return KModel(repo_id="hexgrad/Kokoro-82M", config=config, model=weights).to(device).eval()
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise SaladError(f"{weights} with {config} is no Kokoro model: {str(error).splitlines()[0]}") from error

    def _pipeline(self, voice: str):
        """Kokoro's pipeline for the voice's English: a… American, b… British."""
        accent = "b" if voice.startswith("b") else "a"
        if accent not in self._pipelines:
            model = self._model
            from kokoro import KPipeline

            try:
                pipeline = KPipeline(accent, repo_id="hexgrad/Kokoro-82M", model=model)
            except (SystemExit, OSError, ImportError) as error:  # spaCy's download ends the process when it fails
                raise SaladError(
                    "Kokoro's English needs spaCy's model, which cannot be downloaded now: "
                    "`python -m spacy download en_core_web_sm` where there is a network"
                ) from error
            if getattr(pipeline.g2p, "fallback", None) is None:  # Kokoro only logs it, and then leaves out what it has not
                raise SaladError(
                    "Kokoro needs espeak for the words that it does not know, and cannot load it: reinstall espeakng-loader "
                    "and phonemizer-fork (beside another phonemizer it does not work)"
                )
            self._pipelines[accent] = pipeline
        return self._pipelines[accent]

    def _style(self, voice: str):
        if voice not in self._styles:
            if voice not in self.voices:
                raise SaladError(f'Kokoro has no voice "{voice}" in {self.source}; it has {", ".join(self.voices)}')
            if voice[:1] not in find_language("en").kokoro:
                raise SaladError(
                    f'Kokoro\'s voice "{voice}" reads another language than English, for which word times are not '
                    f"told: English voices begin with a or b; speak other languages with espeak or piper:<folder>"
                )
            import torch

            self._styles[voice] = torch.load(self._file(f"voices/{voice}.pt"), weights_only=True)
        return self._styles[voice]

    def speak(self, spoken: str, voice: str = "af_heart", seed: int = 0) -> Utterance:
        """`spoken` in a voice of `voices`: float32 samples, words with their times. The same (spoken, voice, seed) gives the
        same utterance. Raises SaladError for a voice that the engine does not have."""
        import torch

        style, pipeline = self._style(voice), self._pipeline(voice)
        speed = 1 + float(np.random.default_rng(seed).uniform(-self.jitter, self.jitter))
        text = spoken.translate(_BRACKETS)
        sound: list[np.ndarray] = []
        flags: set[str] = set()
        tokens: list = []
        length = 0
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)  # the vocoder draws its noise
            for start, end in pieces(text, PIECE):
                cursor = start
                for result in pipeline(text[start:end], voice=style, speed=speed, split_pattern=None):
                    cursor = self._take(result, text, cursor, end, length / NATIVE_RATE, tokens, flags)
                    samples = result.audio.float().cpu().numpy().reshape(-1)
                    sound.append(samples)
                    length += len(samples)
        if not length:
            return Utterance(np.zeros(0, np.float32), SAMPLE_RATE, [], ["empty"])
        words = _words(spoken, tokens, length / NATIVE_RATE)
        return Utterance(to_rate(np.concatenate(sound), NATIVE_RATE), SAMPLE_RATE, words, sorted(flags))

    def _take(self, result, text: str, cursor: int, end: int, offset_s: float, tokens: list, flags: set) -> int:
        """Adds a piece's tokens as (character, start_s, end_s); returns where the next one begins."""
        from kokoro import KPipeline

        wanted = KPipeline.tokens_to_ps(result.tokens)
        if len(result.phonemes) < len(wanted):
            flags.add("truncated")
        # a phoneme that Kokoro does not know has no duration, so times run out before the last token, though it is spoken
        unknown = any(phoneme not in self._model.vocab for phoneme in result.phonemes)
        for token in result.tokens:
            position = text.find(token.text, cursor, end)
            if position < 0:
                continue
            cursor = position + len(token.text)
            spoken = any(c.isalnum() for c in token.text)
            if spoken and not any(phoneme in self._model.vocab for phoneme in token.phonemes or ""):
                flags.add("skipped words")
            elif spoken and token.start_ts is not None and token.end_ts is not None:
                tokens.append((position, offset_s + token.start_ts, offset_s + token.end_ts))
            elif spoken and not unknown:
                flags.add("truncated")
        return cursor


def _words(text: str, tokens: list, total_s: float) -> list[Word]:
    timed: dict[int, tuple[float, float]] = {}
    spans, run = runs(text), 0
    for character, start_s, end_s in tokens:
        while spans[run][1] <= character:
            run += 1
        first = timed.get(run, (start_s, end_s))[0]
        timed[run] = (first, min(max(end_s, first), total_s))
    return words_of(text, timed)
