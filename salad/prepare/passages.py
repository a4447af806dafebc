"""Passages of a document: whole sentences, together as long as speech should be.

Sentences are spaCy's (rules only: no model). Expected seconds are the characters of the spoken form over a rate."""

import re
from collections import Counter
from functools import cache
from typing import NamedTuple

from salad.speech.languages import find_language
from salad.speech.speakability import without_long_words
from salad.speech.spoken import spoken_form

CHARACTERS_PER_S = 15.0  # of the spoken form, spaces included: fluent English
_PLAIN = re.compile(r"[A-Za-z\s.,;:!?'\"’“”()-]*")
_OPENING = re.compile(r"(?:\s+[\"'“‘„‚«»(\[]+|[“‘（《「『【〈]+)$")
_ENDINGS = {"zh": ["。", "！", "？", "!", "?", "｡", "…"]}  # what ends a sentence where spaCy's default, "." too, does not
_BEFORE_A_NUMBER = {"de": re.compile(r"(?:[Ss]tr|\bNr|\bAbs|\bArt|\bKap|\bBd|\bAbb|\bTab|\bS|\bZiff)\.$")}  # no end


class Passage(NamedTuple):
    """`text[start:end]` of a document, expected to take `seconds`."""

    start: int
    end: int
    seconds: float


@cache
def _sentencizer(language: str):
    import spacy

    row = find_language(language)
    nlp = spacy.blank(row.spacy)
    nlp.add_pipe("sentencizer", config={"punct_chars": _ENDINGS[row.code]} if row.code in _ENDINGS else {})
    return nlp


def sentences(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Spans of the sentences, without the whitespace around them. A line's end ends a sentence; abbreviations that
    spaCy knows (e.g., Dr., U.S., p.m.) do not, nor does a full stop before a small letter."""
    spans: list[list[int]] = []
    for line in re.finditer(r"[^\n\x85\u2028\u2029]+", text):
        nlp = _sentencizer(language)
        first = len(spans)
        for start in range(line.start(), line.end(), nlp.max_length):
            piece = text[start : min(start + nlp.max_length, line.end())]
            for sent in nlp(piece).sents:
                span = [start + sent.start_char, start + sent.end_char]
                if len(spans) > first and _goes_on(text, spans[-1], span, language):
                    spans[-1][1] = span[1]
                else:
                    spans.append(span)
    trimmed_spans = []
    for start, end in spans:
        trimmed = text[start:end].strip()
        if trimmed:
            start += len(text[start:end]) - len(text[start:end].lstrip())
            trimmed_spans.append((start, start + len(trimmed)))
    return trimmed_spans


def _goes_on(text: str, last: list[int], span: list[int], language: str) -> bool:
    """Whether the sentence before `span` goes on in it. An opening quote or bracket moves to where it belongs."""
    if opening := _OPENING.search(text[last[0] : last[1]]):
        last[1] = span[0] = last[0] + opening.start()
    follows = text[span[0] : span[1]].lstrip()
    if follows[:1].isdigit() and language in _BEFORE_A_NUMBER:
        return _BEFORE_A_NUMBER[language].search(text[last[0] : last[1]].rstrip()) is not None
    return bool(follows) and (follows[0].islower() or not any(c.isalnum() for c in follows))


def expected_s(text: str, rate: float = CHARACTERS_PER_S, language: str = "en") -> float:
    """Seconds that a voice takes for `text`: characters of its spoken form / `rate`."""
    plain = _PLAIN.fullmatch(text)
    return (len(text) if plain else len(spoken_form(text, language).spoken)) / rate


def passages(
    text: str, min_s: float = 5.0, max_s: float = 30.0, rate: float = CHARACTERS_PER_S, language: str = "en"
) -> tuple[list[Passage], Counter]:
    """The passages, in order and disjoint, and how many pieces were left over: "long sentence" (longer than `max_s`
    by itself), "long word" (longer by an unbroken run of characters alone) and "short" (the rest of a run of sentences,
    shorter than `min_s`)."""
    timed = [(start, end, expected_s(text[start:end], rate, language)) for start, end in sentences(text, language)]
    kept: list[Passage] = []
    left: Counter[str] = Counter()
    run: list[tuple[int, int, float]] = []
    for sentence in [*timed, None]:
        if sentence is not None and sentence[2] <= max_s:
            run.append(sentence)
            continue
        if sentence is not None:
            left[_why_too_long(text[sentence[0] : sentence[1]], "long sentence", max_s, rate, language)] += 1
        for start, end, seconds in _pack(run, max_s, 1 / rate):
            if seconds < min_s:
                left["short"] += 1
            else:
                kept.append(Passage(start, end, seconds))
        run = []
    return kept, left


def whole(text: str, max_s: float = 30.0, rate: float = CHARACTERS_PER_S, language: str = "en") -> tuple[list[Passage], Counter]:
    """The one passage of a text that must not be cut, because its answer answers all of it; what is left over is a "long
    text" or a "long word", counted as in `passages`."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    seconds = expected_s(text[start:end], rate, language)
    if seconds <= max_s:
        return [Passage(start, end, seconds)], Counter()
    return [], Counter({_why_too_long(text[start:end], "long text", max_s, rate, language): 1})


def _why_too_long(text: str, reason: str, max_s: float, rate: float, language: str) -> str:
    """`reason`, or "long word" where the text is short enough without its runs of characters that no blank divides."""
    rest = without_long_words(text)
    return "long word" if len(rest) < len(text) and expected_s(rest, rate, language) <= max_s else reason


def _pack(run: list, max_s: float, gap_s: float):
    """Consecutive sentences together: as few passages as `max_s` allows, of about the same length."""
    left_s = sum(seconds + gap_s for *_, seconds in run)
    now: list | None = None
    for start, end, seconds in run:
        if now is not None:
            aim = left_s / max(-(-left_s // max_s), 1)
            if now[2] + gap_s + seconds > max_s or now[2] >= aim:
                yield tuple(now)
                left_s -= now[2] + gap_s
                now = None
        now = [start, end, seconds] if now is None else [now[0], end, now[2] + gap_s + seconds]
    if now is not None:
        yield tuple(now)
