"""What a voice says for a text: numbers, abbreviations, symbols and markup spelled out, with a map of characters.

    spoken = spoken_form("It cost $1,000 in 1998.")     # "It cost one thousand dollars in nineteen ninety-eight."
    utterance = tts.speak(spoken.spoken, voice, seed)
    words = text_words(utterance.words, spoken, text)   # word times that refer to `text`

First the characters are made plain (`salad.speech.characters`), then the language's rules read what is no word
(`salad.speech.english`, `german`, `chinese`). Time is linear in the length of the text.
"""

import re
from bisect import bisect_right
from functools import cache
from importlib import import_module
from typing import NamedTuple

from salad.speech.characters import Dropped, plain_text
from salad.speech.languages import find_language
from salad.speech.reading import DIGITS, LAYOUT, LEFT_OVER, MARKUP, TAKEN, Rule
from salad.speech.utterance import Word
from salad.speech.words import is_unspaced, runs, words_of


class Spoken(NamedTuple):
    """char_map: (spoken_start, spoken_end, text_start, text_end) of consecutive pieces that tile both sides; where
    both spans are equally long and their characters equal, the piece is the text itself, character by character.
    dropped: what of the text is not spoken at all, with the reason; every other character lies in a piece that is."""

    spoken: str
    char_map: list[tuple[int, int, int, int]]
    dropped: list[Dropped] = []


@cache
def _rules(code: str) -> tuple[Rule, ...]:
    """Markup, the language's own rules, and what is left over, in order."""
    own = import_module(f"salad.speech.{find_language(code).name.lower()}")
    return (*MARKUP, *own.BEFORE_LAYOUT, *LAYOUT, *own.RULES, *LEFT_OVER)


def spoken_form(text: str, language: str = "en") -> Spoken:
    """What is said for `text` in a language (`salad.speech.languages`). Everything that is not spelled out is left as it
    is, so plain text maps to itself. Raises SaladError for a language that has no rules."""
    plain = plain_text(text, chinese=language == "zh")
    taken = _read(plain.text, _rules(language))
    if plain.origin is None and not taken:
        return Spoken(text, [(0, len(text), 0, len(text))] if text else [])
    pieces: list[str] = []
    char_map: list[tuple[int, int, int, int]] = []
    dropped = list(plain.dropped)
    length = reached = 0

    def add(piece: str, start: int, end: int) -> None:
        """`text[start:end]` is spoken as `piece`; what of the text lies before it has no sound."""
        nonlocal length, reached
        start = max(start, reached)
        for reading, t0, t1 in (("", reached, start), (piece, start, max(end, start))):
            if reading or t1 > t0:
                pieces.append(reading)
                char_map.append((length, length + len(reading), t0, t1))
                length += len(reading)
        reached = max(end, start)

    def leave(start: int, end: int) -> None:
        """Characters of the plain text that no rule has read: runs that are the text's own in one piece, any other one by
        one, a run of digits never in two."""
        if plain.origin is None:
            add(plain.text[start:end], start, end)
            return
        origin, begin, i = plain.origin, start, start
        while i < end:
            stop = i + 1
            while plain.text[i] in DIGITS and stop < end and plain.text[stop] in DIGITS:
                stop += 1
            own = all(origin[k][1] - origin[k][0] == 1 and text[origin[k][0]] == plain.text[k] for k in range(i, stop))
            own = own and all(origin[k][0] == origin[k - 1][1] for k in range(i + 1, stop))
            if not (own and (i == begin or origin[i][0] == origin[i - 1][1])):
                if i > begin:
                    add(plain.text[begin:i], origin[begin][0], origin[i - 1][1])
                begin = i
                if not own:
                    while stop < end and origin[stop] == origin[stop - 1]:  # several characters from one
                        stop += 1
                    add(plain.text[i:stop], origin[i][0], origin[stop - 1][1])
                    begin = stop
            i = stop
        if i > begin:
            add(plain.text[begin:i], origin[begin][0], origin[i - 1][1])

    position = 0
    for start, end, reading in taken:
        leave(position, start)
        t0, t1 = (start, end) if plain.origin is None else (plain.origin[start][0], plain.origin[end - 1][1])
        before, after = plain.text[start - 1 : start], plain.text[end : end + 1]
        left = " " if _blank_between(before, reading[:1]) and not (pieces and pieces[-1].endswith(" ")) else ""
        right = " " if _blank_between(reading[-1:], after) else ""
        add(left + reading + right, t0, t1)
        if not reading:
            dropped.append(Dropped(t0, t1, "markup"))
        position = end
    leave(position, len(plain.text))
    add("", len(text), len(text))
    return Spoken("".join(pieces), char_map, sorted(dropped))


def _blank_between(left: str, right: str) -> bool:
    """Whether what is said for a sign and the letter or digit beside it are two words ("5km": "five kilometers")."""
    if not left or not right or left.isspace() or right.isspace() or is_unspaced(left) or is_unspaced(right):
        return False
    return left.isalnum() and right.isalnum()


_ENDS = re.compile(r"[\"')\]]{0,3} {0,3}(?:\n|\Z)")


def _read(text: str, rules: tuple[Rule, ...]) -> list[tuple[int, int, str]]:
    """What the rules read in `text`, as (start, end, what is said), in order. What an earlier rule has read, a later one
    does not see: there stand signs that are neither blank nor letter nor digit."""
    there = set(text)
    taken: list[tuple[int, int, str]] = []
    free: list[str] = []  # the characters that no rule has read, once one has
    gone, current = bytearray(len(text)), text
    for pattern, say, needs in rules:
        if needs and there.isdisjoint(needs):
            continue
        changed = False
        for match in pattern.finditer(current):
            reading = say(match) if match[0] else None
            start, end = match.span(match.lastgroup if match.lastgroup in ("take", "then") else 0)
            if reading is None or start == end or reading == match[0] or any(gone[start:end]):
                continue
            if reading and reading[-1] != "." and text[end - 1] == "." and _ENDS.match(text, end):
                reading += "."  # the full stop of an abbreviation that ends the sentence, too
            taken.append((start, end, reading))
            free = free or list(text)
            free[start:end] = TAKEN * (end - start)
            gone[start:end] = b"\1" * (end - start)
            changed = True
        if changed:
            current = "".join(free)
    return sorted(taken)


def text_words(words: list[Word], spoken: Spoken, text: str) -> list[Word]:
    """Words of `spoken.spoken` as words of `text`: what is spelled out ("one thousand dollars") becomes the one word
    that stands in the text ("$1,000"). Words are the text's `runs`, ordered and disjoint; a run that is not spoken
    joins the word before it (the first: the word after)."""
    run_spans, pieces = runs(text), spoken.char_map
    run_ends, piece_starts = [end for _, end in run_spans], [piece[0] for piece in pieces]
    timed: dict[int, tuple[float, float]] = {}
    latest = reached = -1  # the last run that has a time; the last that has one, or lies in a spelled-out piece that has
    for word in words:
        touched = []
        k = max(bisect_right(piece_starts, word.char_start) - 1, 0)
        while k > 0 and pieces[k][0] == word.char_start and pieces[k][1] == pieces[k][0]:
            k -= 1
        while k < len(pieces) and pieces[k][0] < word.char_end:
            s0, s1, t0, t1 = pieces[k]
            k += 1
            if s1 <= word.char_start or s1 == s0:
                continue
            start, end = _stands(word, s0, s1, t0, t1, text[t0:t1] == spoken.spoken[s0:s1])
            i = bisect_right(run_ends, start)
            while i < len(run_spans) and run_spans[i][0] < end:
                touched.append(i)
                i += 1
        if not touched:
            continue
        if touched[0] <= reached:
            timed[latest] = (timed[latest][0], word.end_s)
        else:
            latest = touched[0]
            timed[latest] = (word.start_s, word.end_s)
        reached = max(reached, touched[-1])
    return words_of(text, timed)


def _stands(word: Word, s0: int, s1: int, t0: int, t1: int, exact: bool) -> tuple[int, int]:
    """Where the part of `word` that lies in a piece stands in the text: the whole of what is spelled out."""
    if not exact:
        return t0, t1
    return t0 + max(word.char_start - s0, 0), t0 + min(word.char_end, s1) - s0
