"""Phonemes word by word: what a voice that reads phonemes is given, with the run of the text that each comes from.

phonemised("The cat, of the house.", "en-us")
# run, phonemes, stop: (0, "ðə", ""), (1, "kˈæt", ","), (2, "ʌv", ""), (3, "ðə", ""), (4, "hˈaʊs", ".")
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from salad.speech.espeak import ipa
from salad.speech.words import is_unspaced, runs

CLAUSE_ENDS = ".,;:!?…。，；：！？、"
_PLAIN_SIGN = str.maketrans("。，；：！？、", ".,;:!?,")
_STRESS = re.compile("[ˈˌ]")


class PhonemisedWord(NamedTuple):
    """run: of `salad.speech.words.runs`. phonemes: without blanks, "" where espeak has none. stop: the sign after it."""

    run: int
    phonemes: str
    stop: str


def phonemised(text: str, voice: str, of: Callable[[str, str], str] = ipa) -> list[PhonemisedWord]:
    """The runs of `text` that have a letter or a digit, each with its phonemes by `of(clause, voice)`. A clause is
    phonemised as a whole, so that "the" and stress come out as they do in a sentence; what is said as one word ("of the")
    is cut in two by what each is alone."""
    pieces: list[PhonemisedWord] = []
    clause: list[tuple[int, str]] = []
    for number, (start, end) in enumerate(runs(text)):
        run = text[start:end]
        core = re.sub(r"^[\W_]+|[\W_]+$", "", run)
        tail = run[run.rindex(core) + len(core) :] if core else run
        stop = next((c for c in tail if c in CLAUSE_ENDS), "").translate(_PLAIN_SIGN)
        if core:
            clause.append((number, core))
        if stop:
            pieces += _clause(clause, voice, of)
            if pieces:
                pieces[-1] = pieces[-1]._replace(stop=pieces[-1].stop or stop)
            clause = []
    return pieces + _clause(clause, voice, of)


def _clause(words: list[tuple[int, str]], voice: str, of) -> list[PhonemisedWord]:
    if not words:
        return []
    joined = words[0][1]
    for (_, before), (_, word) in zip(words, words[1:], strict=False):
        joined += word if is_unspaced(before[-1]) and is_unspaced(word[0]) else f" {word}"
    chunks = of(joined, voice).split()
    if len(chunks) != len(words):
        alone = [of(word, voice).replace(" ", "") for _, word in words]
        chunks = _parted(chunks, alone) or alone
    return [PhonemisedWord(number, chunk, "") for (number, _), chunk in zip(words, chunks, strict=True)]


def _parted(chunks: list[str], alone: list[str]) -> list[str] | None:
    """The chunks cut so that there is one for each word; None where they cannot be."""
    parts: list[str] = []
    for chunk in chunks:
        while chunk:
            if len(parts) == len(alone):
                return None
            length = _begins(chunk, alone[len(parts)])
            parts.append(chunk[:length])
            chunk = chunk[length:]
    return parts if len(parts) == len(alone) and all(parts) else None


def _begins(chunk: str, word: str) -> int:
    """How many characters of `chunk` are `word` but for stress; all of them where it does not begin so."""
    bare = _STRESS.sub("", word)
    for length in range(1, len(chunk) + 1):
        if bare and _STRESS.sub("", chunk[:length]) == bare:
            return length
    return len(chunk)
