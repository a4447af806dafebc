"""From timed pieces of a text to its words, in order and disjoint: runs of characters without whitespace, and in scripts
that set no blanks between words (Chinese) each character with the punctuation after it."""

import re
import unicodedata

from salad.speech.languages import UNSPACED
from salad.speech.utterance import Word

_OPENING = frozenset("\"'([{“‘«「『《〈（【〔")
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)]*(?=\s)|[。！？]+[”’）]*|$)\s*", re.S)
_UNSPACED = re.compile(f"[{UNSPACED}]")


def runs(text: str) -> list[tuple[int, int]]:
    """Spans of the words: runs without whitespace, cut around each character of an unspaced script. Punctuation
    belongs to the word before it, opening brackets and quotes to the one after."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if _UNSPACED.search(text):
        return [piece for start, end in spans for piece in _cut(text, start, end)]
    return spans


def pieces(text: str, longest: int) -> list[tuple[int, int]]:
    """Spans of whole sentences of up to `longest` characters together; a longer sentence stays whole."""
    spans: list[list[int]] = []
    for match in _SENTENCE.finditer(text):
        if spans and match.end() - spans[-1][0] <= longest:
            spans[-1][1] = match.end()
        else:
            spans.append([match.start(), match.end()])
    return [(start, end) for start, end in spans if text[start:end].strip()]


def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script that sets no blanks between words."""
    return bool(_UNSPACED.match(character))


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    pieces, begin, last = [], start, ""  # last: the piece's last letter or digit
    for i in range(start, end):
        c = text[i]
        if not c.isalnum() or unicodedata.category(c)[0] == "M":
            continue
        if last and (is_unspaced(c) or is_unspaced(last)):
            cut = i
            while cut - 1 > begin and text[cut - 1] in _OPENING:
                cut -= 1
            pieces.append((begin, cut))
            begin = cut
        last = c
    return [*pieces, (begin, end)]


def words_of(text: str, timed: dict[int, tuple[float, float]]) -> list[Word]:
    """`timed`: index of a run -> (start_s, end_s). A run without a time joins the word before it, at the start of the
    text the word after. Times are made to ascend: a word ends at the latest where the next one starts."""
    spans, order = runs(text), sorted(timed)
    words, start = [], 0.0
    for i, run in enumerate(order):
        following = order[i + 1] if i + 1 < len(order) else len(spans)
        char_start, char_end = spans[run if i else 0][0], spans[following - 1][1]
        start = max(start, timed[run][0])
        end = timed[run][1] if i + 1 == len(order) else min(timed[run][1], timed[following][0])
        if end > start:
            words.append(Word(text[char_start:char_end], char_start, char_end, start, end))
            start = end
        elif words:
            words[-1] = words[-1]._replace(word=text[words[-1].char_start : char_end], char_end=char_end)
    if words and words[0].char_start > (first := spans[0][0]):
        words[0] = words[0]._replace(word=text[first : words[0].char_end], char_start=first)
    return words
