"""Synthesis faults of known kind and rate, planted so that what finds them can be measured."""

import numpy as np

from salad.speech import TTS, Utterance
from store.ids import digest

KINDS = ("truncated", "wrong voice")
WRONG_VOICE = "en-us+whisper@rate=330,pitch=95"


def fault_of(text: str, voice: str, seed: int, rate: float) -> str | None:
    """The fault that is planted in the synthesis of `text`, or None; `rate` is the share of each kind."""
    draw = int(digest(["fault", text, voice, seed]), 16) / 16**12
    kind = int(draw / rate) if rate > 0 else len(KINDS)
    return KINDS[kind] if kind < len(KINDS) else None


class Faulty:
    """A TTS that now and then stops in the middle, or speaks in a voice that nobody asked for."""

    def __init__(self, tts: TTS, rate: float):
        self.tts, self.rate = tts, rate
        self.name, self.voices = tts.name, tts.voices

    def planted(self, spoken: str, voice: str, seed: int) -> str | None:
        """The fault planted in the synthesis of a text by a voice and seed; None if there is none."""
        return fault_of(spoken, voice, seed, self.rate)

    def columns(self, spoken: str, voice: str, seed: int) -> dict[str, str | None]:
        """The truth about a planted fault, in the table `syntheses`."""
        return {"planted": self.planted(spoken, voice, seed)}

    def speak(self, spoken: str, voice: str, seed: int) -> Utterance:
        """The utterance, with its fault planted if it has one."""
        fault = self.planted(spoken, voice, seed)
        utterance = self.tts.speak(spoken, WRONG_VOICE if fault == "wrong voice" else voice, seed)
        if fault == "truncated":
            keep = len(utterance.samples) * 6 // 10
            end_s = keep / utterance.sample_rate
            utterance.samples = np.ascontiguousarray(utterance.samples[:keep])
            utterance.words = [w._replace(end_s=min(w.end_s, end_s)) for w in utterance.words if w.start_s < end_s]
        return utterance
