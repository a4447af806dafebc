"""The languages that the workbench works in, one row of a table each: what differs from one to the next.

    find_language("de").espeak        # "de"
    find_language("sw")               # SaladError that lists the languages that work
    of_voice("espeak", "gmw/de+f2")   # "de": the language in which an engine's voice reads

A further language is a row here, a module of reading rules (`salad.speech.german` is the shortest example), and a test.
"""

import re
from dataclasses import dataclass

from salad.errors import SaladError

# Scripts that set no blanks between words: Thai, Lao, Myanmar, Khmer, kana, Han. A regular expression's class.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)


@dataclass(frozen=True)
class Language:
    """code: ISO 639-1. spacy: the blank pipeline whose sentencizer cuts sentences. letters: a regular expression's class
    of the letters that its texts are written in. characters_per_s: of the spoken form, blanks included, in fluent speech.
    spaced: whether words are separated by blanks. espeak: the default voice. kokoro: the first letters of Kokoro voices
    that speak it, "" where there is none. stop_words: spaCy's list by which a text in another language is known, "" where
    letters alone do."""

    code: str
    name: str
    spacy: str
    letters: str
    characters_per_s: float
    spaced: bool
    espeak: str
    kokoro: str
    stop_words: str


LANGUAGES = {
    row.code: row
    for row in (
        Language("en", "English", "en", r"A-Za-z\u00aa-\u024f", 15.0, True, "en-us", "ab", "en"),
        Language("de", "German", "de", r"A-Za-z\u00aa-\u024f", 15.0, True, "de", "", "de"),
        Language("zh", "Chinese", "zh", r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
                 4.5, False, "cmn", "", ""),
    )
}  # fmt: skip
_ESPEAK = {"cmn": "zh", "zh": "zh"}  # espeak's codes that are not ISO 639-1


def find_language(code: str) -> Language:
    """The row of a language by its code ("de"; "de-AT" and "en_US" too). Raises SaladError, naming those that work."""
    match = LANGUAGES.get(re.split("[-_]", code.strip().lower())[0])
    if match is None:
        there = ", ".join(f"{row.code} ({row.name})" for row in LANGUAGES.values())
        raise SaladError(f'the language "{code}" does not work here: there are no rules to read its numbers aloud; {there} do')
    return match


def of_voice(tts: str, voice: str) -> str:
    """The code of the language in which a voice reads, from an engine's name and the voice's: espeak "de+f2" and
    "gmw/de" → "de", piper "de_DE-thorsten-medium" → "de". What names none that works reads
    English: voices of one's own, recordings, Kokoro's other voices given English phonemes."""
    engine = tts.partition(":")[0].partition("@")[0]
    code = ""
    if engine == "espeak":
        base = voice.partition("@")[0].partition("+")[0].lower().rpartition("/")[2]
        code = _ESPEAK.get(base.partition("-")[0], base.partition("-")[0])
    elif engine == "piper":
        code = re.split("[^a-z]", voice)[0]
    elif engine in ("kokoro", "kokoro-onnx"):
        code = next((row.code for row in LANGUAGES.values() if voice[:1] and voice[0] in row.kokoro), "")
    return code if code in LANGUAGES else "en"
