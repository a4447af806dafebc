"""What a voice says for a text: numbers, abbreviations, symbols and markup spelled out, with a map of characters.

    spoken = spoken_form("It cost $1,000 in 1998.")     # "It cost one thousand dollars in nineteen ninety-eight."
    utterance = tts.speak(spoken.spoken, voice, seed)
    words = text_words(utterance.words, spoken, text)   # word times that refer to `text`

`speakability(text)` tells, with its reason, what cannot be spoken well as it stands: it is marked before clustering.
Numbers are num2words', stop words spaCy's.
"""

import html
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from salad.speech import Word
from salad.speech.words import runs, words_of


class Spoken(NamedTuple):
    """char_map: (spoken_start, spoken_end, text_start, text_end) of consecutive pieces that tile both sides; where
    both spans are equally long and their characters equal, the piece is the text itself, character by character."""

    spoken: str
    char_map: list[tuple[int, int, int, int]]


UNITS = {
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "m": "meter", "kg": "kilogram", "g": "gram",
    "mg": "milligram", "ml": "milliliter", "l": "liter", "lb": "pound", "lbs": "pound", "oz": "ounce", "ft": "foot",
    "mph": "mile per hour", "km/h": "kilometer per hour", "Hz": "hertz", "kHz": "kilohertz", "°C": "degree Celsius",
    "°F": "degree Fahrenheit", "°": "degree", "%": "percent", "min": "minute", "h": "hour", "s": "second",
}  # fmt: skip
ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "cf.": "compare", "Dr.": "Doctor",
    "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor", "St.": "Saint", "approx.": "approximately",
    "Fig.": "figure", "No.": "number", "a.m.": "A M", "p.m.": "P M", "U.S.": "U S", "U.K.": "U K",
}  # fmt: skip
SYMBOLS = {
    "&": "and", "=": "equals", "+": "plus", "×": "times", "÷": "divided by", "≈": "about", "≤": "at most",
    "≥": "at least", "<": "less than", ">": "greater than", "@": "at", "√": "square root of", "π": "pi", "→": "to",
}  # fmt: skip
CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
ELEMENTS = frozenset(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Ti Cr Mn Fe Co Ni Cu Zn As Br Kr Ag Sn I Xe Ba Pt Au "
    "Hg Pb U".split()
)
_PLURALS = {"foot": "feet", "hertz": "hertz", "kilohertz": "kilohertz", "percent": "percent", "penny": "pence"}
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_URL = r"(?:https?://|www\.)[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]"
_EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"


def _say(number: str, to: str = "cardinal") -> str:
    from num2words import num2words

    plain = number.replace(",", "")
    if "." in plain:
        whole, _, digits = plain.partition(".")
        return f"{num2words(int(whole))} point {' '.join(num2words(int(d)) for d in digits)}"
    if len(plain) > 15 or (len(plain) > 1 and plain.startswith("0")):
        return " ".join(num2words(int(d)) for d in plain)
    return num2words(int(plain), to=to).replace(",", "")


def _plural(noun: str, number: str) -> str:
    if number.replace(",", "") == "1":
        return noun
    head, _, rest = noun.partition(" ")
    return " ".join(filter(None, [_PLURALS.get(head, head + "s"), rest]))


def _money(match: re.Match) -> str:
    unit, part = CURRENCIES[match["sign"]]
    number, scale = match["amount"], match["scale"]
    if scale:
        return f"{_say(number)} {scale} {unit}s"
    whole, _, cents = number.partition(".")
    said = f"{_say(whole)} {_plural(unit, whole)}"
    if len(cents) == 2:
        return said + (f" and {_say(str(int(cents)))} {_plural(part, str(int(cents)))}" if int(cents) else "")
    return f"{_say(number)} {unit}s" if cents else said


def _time(match: re.Match) -> str:
    hour, minute = match["hour"], match["minute"]
    if minute == "00":
        return f"{_say(str(int(hour)))} o'clock"
    return f"{_say(str(int(hour)))} {'oh ' if minute[0] == '0' else ''}{_say(str(int(minute)))}"


def _unit(match: re.Match) -> str:
    return f"{_say(match['amount'])} {_plural(UNITS[match['unit']], match['amount'])}"


def _fraction(match: re.Match) -> str:
    above, below = int(match[1]), int(match[2])
    if not 0 < above < below <= 20:
        return f"{_say(match[1])} over {_say(match[2])}"
    part = {2: "half", 4: "quarter"}.get(below) or _say(str(below), "ordinal")
    return f"{_say(match[1])} {part}{'s' if above > 1 else ''}"


def _number(match: re.Match) -> str:
    plain = match[0]
    return _say(plain, "year" if re.fullmatch(r"1[1-9]\d\d|20\d\d", plain) else "cardinal")


def _formula(match: re.Match) -> str | None:
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", match[0])
    if len(parts) < 2 and not (parts and parts[0][1] == "2") or not all(symbol in ELEMENTS for symbol, _ in parts):
        return None
    return " ".join(" ".join(symbol.upper()) + (f" {_say(count)}" if count else "") for symbol, count in parts)


def _address(match: re.Match) -> str:
    """Only the site is said: "example dot com"."""
    site = re.sub(r"^(https?://)?(www\.)?", "", match[0]).split("/")[0].split("?")[0]
    return site.replace("@", " at ").replace(".", " dot ").replace("-", " dash ").replace("_", " underscore ")


def _fixed(table: dict[str, str]) -> Callable[[re.Match], str]:
    return lambda match: table[match[0]]


def _either(keys) -> str:
    return "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))


# In order; what an earlier rule has taken, a later one does not see. None leaves the text as it stands. The group
# `take`, where there is one, is what is replaced.
_RULES: list[tuple[re.Pattern, Callable[[re.Match], str | None]]] = [
    (re.compile(r"!?\[(?=[^\[\]\n]*\]\([^()\s]*\))"), lambda m: ""),
    (re.compile(r"\]\([^()\s]*\)"), lambda m: ""),
    (re.compile(r"\[\[(?:[^\[\]|\n]*\|)?(?=[^\[\]\n]*\]\])"), lambda m: ""),
    (re.compile(r"\]\]"), lambda m: ""),
    (re.compile(r"</?[A-Za-z][^<>\n]*>"), lambda m: ""),
    (re.compile(r"&(?:[A-Za-z]+|#\d+);"), lambda m: html.unescape(m[0])),
    (re.compile(_URL), _address),
    (re.compile(_EMAIL), _address),
    (re.compile(r"^#{1,6} ", re.M), lambda m: ""),
    (re.compile(r"^[-*•] ", re.M), lambda m: ""),
    (re.compile(r"\*{1,3}|`{1,3}|(?<!\w)_+|_+(?!\w)"), lambda m: ""),
    (re.compile(rf"(?<![\w.])(?:{_either(ABBREVIATIONS)})(?!\w)"), _fixed(ABBREVIATIONS)),
    (re.compile(r"(?<![\w/-])\d+(?P<take>[-–])\d+(?![\w/-])"), lambda m: " to "),
    (re.compile(r"(?<=\d)-(?=\d)"), lambda m: " "),
    (re.compile(r"(?<![\w/-])(\d+)/(\d+)(?![\w/-])"), _fraction),
    (re.compile(r"(?<![\w.)\ufffc])[-−](?=[$£€]?\d)"), lambda m: "minus "),
    (
        re.compile(rf"(?P<sign>[$£€])(?P<amount>{_NUMBER})(?: ?(?P<scale>thousand|million|billion|trillion)\b)?"),
        _money,
    ),
    (re.compile(r"(?<![\w:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?![\w:])"), _time),
    (
        re.compile(rf"(?<![\w.,])(?P<amount>{_NUMBER}) ?(?P<unit>{_either(UNITS)})(?!\w)(?:\.(?= [a-z]))?"),
        _unit,
    ),
    (re.compile(r"\b(?:[A-Z][a-z]?\d*)*[A-Z][a-z]?\d+(?:[A-Z][a-z]?\d*)*\b"), _formula),
    (re.compile(r"\b(\d+)(?:st|nd|rd|th)\b"), lambda m: _say(m[1], "ordinal")),
    (re.compile(rf"(?<![A-Za-z])(?:{_NUMBER})(?![A-Za-z])"), _number),
    (re.compile(rf"(?<!\S)[{re.escape(''.join(SYMBOLS))}](?!\S)"), _fixed(SYMBOLS)),
    (re.compile(r"&"), lambda m: " and "),
    (re.compile(r"[\[{|\]}~^\\]"), lambda m: " "),  # what a TTS may take for its own markup, or reads out by name
]


def spoken_form(text: str) -> Spoken:
    """Everything that is not spelled out is left as it is, so plain text maps to itself."""
    taken: list[tuple[int, int, str]] = []
    free, gone = list(text), bytearray(len(text))
    for pattern, say in _RULES:
        for match in pattern.finditer("".join(free)):
            said = say(match) if match[0] else None
            start, end = match.span("take" if "take" in pattern.groupindex else 0)
            if said is None or said == match[0] or any(gone[start:end]):
                continue
            taken.append((start, end, said))
            # a sign that no rule matches: neighbours still see a non-space, non-word character
            free[start:end] = "\ufffc" * (end - start)
            gone[start:end] = b"\1" * (end - start)
    pieces, char_map, position, length = [], [], 0, 0

    def add(piece: str, start: int, end: int) -> None:
        nonlocal length
        if piece or end > start:
            pieces.append(piece)
            char_map.append((length, length + len(piece), start, end))
            length += len(piece)

    for start, end, said in sorted(taken):
        add(text[position:start], position, start)
        left = "" if start == 0 or not said or not text[start - 1].isalnum() or said[0] == " " else " "
        right = "" if end == len(text) or not said or not text[end].isalnum() or said[-1] == " " else " "
        add(left + said + right, start, end)
        position = end
    add(text[position:], position, len(text))
    return Spoken("".join(pieces), char_map)


def text_words(words: list[Word], spoken: Spoken, text: str) -> list[Word]:
    """Words of `spoken.spoken` as words of `text`: what is spelled out ("one thousand dollars") becomes the one word
    that stands in the text ("$1,000"). Words are whole runs without whitespace, ordered and disjoint; a run that is
    not spoken joins the word before it (the first: the word after)."""
    run_spans = runs(text)
    timed: dict[int, tuple[float, float]] = {}
    reached = -1  # the last run that has a time, or lies in a spelled-out piece that has
    for word in words:
        touched = [
            i
            for s0, s1, t0, t1 in spoken.char_map
            if s0 < word.char_end and word.char_start < s1
            for start, end in [_stands(word, s0, s1, t0, t1, text[t0:t1] == spoken.spoken[s0:s1])]
            for i, (a, b) in enumerate(run_spans)
            if a < end and start < b
        ]
        if not touched:
            continue
        if touched[0] <= reached:
            last = max(timed)
            timed[last] = (timed[last][0], word.end_s)
        else:
            timed[touched[0]] = (word.start_s, word.end_s)
        reached = max(reached, touched[-1])
    return words_of(text, timed)


def _stands(word: Word, s0: int, s1: int, t0: int, t1: int, exact: bool) -> tuple[int, int]:
    """Where the part of `word` that lies in a piece stands in the text: the whole of what is spelled out."""
    if not exact:
        return t0, t1
    return t0 + max(word.char_start - s0, 0), t0 + min(word.char_end, s1) - s0


_MATHS = r"[∑∫√∞≤≥≈≠±∂∇∈∀∃⇒]"
_SIGNS = {
    "formula": [
        r"\\(?:frac|sum|int|sqrt|alpha|beta|theta|pi|cdot|times|left|right|begin|mathbb|mathrm)\b",
        r"\$[^$\n]*[\\^_{}=][^$\n]*\$",
        r"\b\w{1,3}\s?\^\s?[\w{(]",
        rf"{_MATHS}[^\n]*{_MATHS}",
        r"(?:\b\w{1,2}\b|\d|\))\s?[=<>]\s?[-(]?\w{1,4}\s?[-+*/^]\s?\w",
        r"\w\s?[-+*/^]\s?\w{1,4}\)?\s?=\s?[-(]?\w",
    ],
    "code": [
        r"```",
        r"\b(?:def|class|function|import|return|public|static|void|const|let|var)\b[^\n.]*[({;=:]\s*(?:\n|$|\w*[)}\]])",
        r"[{};]\s*\n",
        r"\w\(\w*(?:, ?\w+)*\)\s*[;{:]",
        r"(?:==|!=|\+=|->|=>|&&|\|\||::)",
        r"#include|<\?php|\bSELECT\b.+\bFROM\b",
    ],
    "url": [_URL, _EMAIL, r"\b[\w-]+\.(?:com|org|net|edu|gov|io)\b(?:/\S*)?"],
    "table": [r"\|[^|\n]*\|[^|\n]*(?:\||\n)", r"(?:^|\n)[^\t\n]+\t[^\t\n]+\t[^\n]*\n[^\t\n]+\t[^\t\n]+\t"],
    "markup": [
        r"</?[A-Za-z][^<>\n]*>",
        r"!?\[[^\[\]\n]*\]\([^()\s]*\)",
        r"\[\[[^\]\n]*\]\]|\{\{[^}\n]*\}\}",
        r"\*\*[^*\n]+\*\*|(?:^|\n)#{1,6} |(?<!\w)__[^_\n]+__",
        r"&(?:[a-z]+|#\d+);",
    ],
}  # fmt: skip
_COMPILED = {flag: [re.compile(pattern) for pattern in patterns] for flag, patterns in _SIGNS.items()}


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    import runpy
    from importlib.util import find_spec

    # the word lists alone: importing spacy.lang.fr compiles its tokenizer's expressions for seconds
    folder = Path(find_spec("spacy").origin).parent / "lang"
    tongues = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl")
    words = {tongue: runpy.run_path(str(folder / tongue / "stop_words.py"))["STOP_WORDS"] for tongue in tongues}
    return {tongue: frozenset(w for w in words[tongue] if len(w) > 1) for tongue in tongues}


def _other_language(text: str) -> str | None:
    letters = [c for c in text if c.isalpha()]
    foreign = [c for c in letters if ord(c) > 0x24F]
    if len(foreign) > 2 and len(foreign) > 0.1 * len(letters):
        return f"letters such as {''.join(foreign[:3])}"
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < 5:
        return None
    counts = {tongue: sum(word in stop for word in words) for tongue, stop in _stop_words().items()}
    english = counts.pop("en")
    tongue = max(counts, key=counts.get)
    if counts[tongue] >= 3 and counts[tongue] > 1.5 * english:
        return f"{counts[tongue]} common words of {tongue}, {english} of English"
    return None


def speakability(text: str) -> dict[str, str]:
    """What cannot be spoken well as it stands: flag -> reason (the piece of text that shows it, or a count). Flags:
    formula, code, url, table, markup, other language. Empty for plain English."""
    found = {}
    for flag, patterns in _COMPILED.items():
        match = next(filter(None, (pattern.search(text) for pattern in patterns)), None)
        if match:
            found[flag] = " ".join(match[0].split())[:60]
    if reason := _other_language(text):
        found["other language"] = reason
    return found
