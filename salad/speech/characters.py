"""Unicode before it is read aloud: one form of each letter, quote, digit and blank, and nothing that cannot be seen.

    plain = plain_text("cafe\\u0301 \\u201c１２\\u201d\\u00ad")     # plain.text == 'café "12"'
    plain.origin[i]                                               # the span of the text that character i comes from

Canonical composition (NFC); curly quotes straight; every blank a blank; digits of all scripts 0-9; ligatures, full-width
and mathematical letters as plain letters; invisible, control and unassigned characters, emoji and ornaments dropped.
"""

import re
import unicodedata
from functools import cache
from typing import NamedTuple


class Dropped(NamedTuple):
    """`text[start:end]` is not spoken. reason: "invisible", "control", "unassigned", "emoji", "symbol" or "markup"."""

    start: int
    end: int
    reason: str


class Plain(NamedTuple):
    """origin: of each character of `text`, the span of the source it comes from, ascending; None where `text` is the
    source. dropped: what of the source has no character."""

    text: str
    origin: list[tuple[int, int]] | None
    dropped: list[Dropped]


_SAME = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u02bc": "'", "\u02b9": "'", "\uff07": "'", "\u2039": "'",
    "\u203a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u201f": '"', "\u00ab": '"', "\u00bb": '"', "\uff02": '"',
    "\u2010": "-", "\u2011": "-", "\u00ad": "", "\ufe63": "-", "\u2212": "−", "\u2044": "/", "\u2215": "/", "\u2116": "No.",
    "\u2103": "°C", "\u2109": "°F", "\u00b5": "μ", "\u2126": "Ω", "\u212a": "K", "\u212b": "Å", "\u2236": ":", "\u223c": "~",
    "\u00ba": "°", "\u02da": "°", "\u2032": "′", "\u2033": "″", "\u3003": '"', "\u00a6": "|", "㎡": "m²",
    "㎢": "km²", "㎠": "cm²", "㎟": "mm²", "㎥": "m³", "㎤": "cm³", "\u2022": "•", "\u00b7": "·",
}  # fmt: skip
_KEPT_SIGNS = frozenset("°©♯♭")  # of category So, and read aloud
_NOT_LETTERS = frozenset("™℠®℗")  # not spoken, though they decompose into letters
_SUPERSCRIPTS = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")  # "m²" has a reading of its own
_WIDE_PUNCTUATION = frozenset("，！？：；（）")  # Chinese punctuation where the text is Chinese
_PLAIN = re.compile(r"[\t\n\r\x20-\x7e]*")
_PARTS = re.compile(r"([\t\n\r\x20-\x7e]+(?=[\t\n\r\x20-\x7e]|\Z))|[\t\n\r\x20-\x7e]?[^\t\n\r\x20-\x7e]+")
_CIRCLED = re.compile("[\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3220-\u3229\u3251-\u325f\u3280-\u3289\u32b1-\u32bf]")  # numbers
_OVERLAYS = re.compile("[\u0300-\u036f]")  # accents that no letter takes: struck through, heaped up
_ENDS_LINE = "\x85\u2028\u2029"


@cache
def _joins_back() -> frozenset[str]:
    """Characters that canonical composition may join to the one before though they are no combining marks (jamo …)."""
    joining = set()
    for code in (*range(0x80, 0xD800), *range(0xF900, 0x10000), *range(0x11000, 0x11A00)):
        parts = unicodedata.decomposition(chr(code))
        if parts and parts[0] != "<" and len(split := parts.split()) == 2:
            joining.add(chr(int(split[1], 16)))
    return frozenset(joining | {chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))})


def _clusters(text: str, begin: int, end: int):
    """Spans of `text[begin:end]` that composition never reaches across."""
    joins, start = _joins_back(), begin
    for i in range(begin + 1, end):
        c = text[i]
        if c < "\x80" or not (unicodedata.combining(c) or c in joins):
            yield start, i
            start = i
    yield start, end


def plain_text(text: str, chinese: bool = False) -> Plain:
    """See the module. `chinese`: full-width punctuation stays as it is."""
    if _PLAIN.fullmatch(text):
        return Plain(text, None, [])
    characters: list[str] = []
    origin: list[tuple[int, int]] = []
    dropped: list[Dropped] = []
    for part in _PARTS.finditer(text):
        begin, end = part.span()
        if part[1] is not None:  # what has no accent to come
            characters.append(part[1])
            origin += zip(range(begin, end), range(begin + 1, end + 1), strict=True)
            continue
        for start, stop in _clusters(text, begin, end):
            made, reason = "", "invisible"
            for c in unicodedata.normalize("NFC", text[start:stop]):
                mapped, why = _character(c, chinese)
                made += mapped
                reason = why or reason
            if made:
                if _CIRCLED.match(text, start):  # "①②" is one, two: no digits of one number
                    made = f"{' ' * text[start - 1 : start].isalnum()}{made}{' ' * text[stop : stop + 1].isalnum()}"
                characters.append(made)
                origin += [(start, stop)] * len(made)
                continue
            if reason in ("emoji", "symbol") and text[start - 1 : start].isalnum() and text[stop : stop + 1].isalnum():
                characters.append(" ")  # "hot🔥stuff" is two words
                origin.append((start, stop))
            if dropped and dropped[-1].end == start and dropped[-1].reason == reason:
                dropped[-1] = dropped[-1]._replace(end=stop)
            else:
                dropped.append(Dropped(start, stop, reason))
    return Plain("".join(characters), origin, dropped)


@cache
def _character(c: str, chinese: bool) -> tuple[str, str]:
    """What stands for one composed character: (characters, "") or ("", the reason why nothing does)."""
    if c in _SAME:
        return _SAME[c], "" if _SAME[c] else "invisible"
    if "\x20" <= c <= "\x7e" or c in "\t\n\r" or c in _KEPT_SIGNS or c in _SUPERSCRIPTS:
        return c, ""
    if c in _ENDS_LINE:
        return "\n", ""
    if c.isspace():
        return " ", ""
    category = unicodedata.category(c)
    if category == "Cc":
        return "", "control"
    if category in ("Cs", "Co", "Cn") or c in "\ufffc\ufffd":
        return "", "unassigned"
    if category in ("Cf", "Me") or "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef" or c == "\u034f":
        return "", "invisible"
    if _OVERLAYS.match(c):
        return "", "invisible"
    if category == "Nd":
        return str(unicodedata.digit(c)), ""
    if c in _NOT_LETTERS:
        return "", "symbol"
    if "\uff01" <= c <= "\uff5e":  # full width
        return (c if chinese and c in _WIDE_PUNCTUATION else chr(ord(c) - 0xFEE0)), ""
    if category[0] in "LN" or category == "So":
        tag = unicodedata.decomposition(c).partition(" ")[0]
        if tag[:1] == "<" and tag != "<fraction>":
            made = "".join(_character(part, chinese)[0] for part in unicodedata.normalize("NFKC", c) if part != c)
            if made:
                return made, ""
    if category == "So" or "\U0001f3fb" <= c <= "\U0001f3ff":
        return "", "emoji" if c >= "\U0001f000" or "\u2600" <= c <= "\u27bf" or "\u2b00" <= c <= "\u2bff" else "symbol"
    return c, ""
