"""What a voice gives: an utterance with its words and phones, each with its time; and what an engine offers."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SAMPLE_RATE = 16_000  # of all speech that is written; Hz


class Word(NamedTuple):
    """A spoken word: `text[char_start:char_end] == word`, characters of the text handed to `speak`."""

    word: str
    char_start: int
    char_end: int
    start_s: float
    end_s: float


class TimedPhone(NamedTuple):
    """A phoneme in the voice's own notation (espeak: Kirshenbaum-like mnemonics without stress marks)."""

    symbol: str
    start_s: float
    end_s: float


@dataclass
class Utterance:
    """samples: float32 [T] in [-1, 1]. words: in order, disjoint in characters and in time. Times in seconds."""

    samples: np.ndarray
    sample_rate: int
    words: list[Word]
    flags: list[str] = field(default_factory=list)
    phones: list[TimedPhone] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """How long the sound lasts, in seconds."""
        return len(self.samples) / self.sample_rate


@runtime_checkable
class TTS(Protocol):
    """A text-to-speech engine. The same (spoken, voice, seed) gives the same utterance, whatever came before.

    It may have a method `columns(spoken, voice, seed)` besides: further columns of `syntheses`, as a dict."""

    @property
    def name(self) -> str:
        """What is stored as `syntheses.tts`."""
        ...

    @property
    def voices(self) -> tuple[str, ...]:
        """The names of its voices."""
        ...

    def speak(self, spoken: str, voice: str, seed: int) -> Utterance:
        """Raises SaladError for a voice that the engine does not have."""
        ...
