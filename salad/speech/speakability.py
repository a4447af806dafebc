"""What of a text cannot be spoken well as it stands, with the reason: it is marked before clustering.

    speakability("Read https://example.com now.")     # {"url": "https://example.com"}

Stop words are spaCy's. Every expression is bounded, so time is linear in the length of the text.
"""

import re
from functools import cache
from pathlib import Path

from salad.errors import SaladError
from salad.speech.languages import UNSPACED, find_language
from salad.speech.reading import EMAIL, URL

_MATHS = r"[∑∫√∞≤≥≈≠±∂∇∈∀∃⇒]"
_SIGNS = {
    "formula": [
        r"\\(?:frac|sum|int|sqrt|alpha|beta|theta|pi|cdot|times|left|right|begin|mathbb|mathrm)\b",
        r"\$[^$\n]{0,200}[\\^_{}=][^$\n]{0,200}\$",
        r"\b\w{1,3}\s?\^\s?[\w{(]",
        rf"{_MATHS}[^\n]{{0,400}}{_MATHS}",
        r"(?:\b\w{1,2}\b|\d|\))\s?[=<>]\s?[-(]?\w{1,4}\s?[-+*/^]\s?\w",
        r"\w\s?[-+*/^]\s?\w{1,4}\)?\s?=\s?[-(]?\w",
    ],
    "code": [
        r"```",
        r"\b(?:def|class|function|import|return|public|static|void|const|let|var)\b[^\n.]{0,200}[({;=:]\s{0,40}(?:\n|$|\w{0,40}[)}\]])",
        r"[{};][ \t]{0,40}\n",
        r"\w\(\w{0,40}(?:, ?\w{1,40}){0,20}\)\s{0,20}[;{:]",
        r"(?:==|!=|\+=|->|=>|&&|\|\||::)",
        r"#include|<\?php|\bSELECT\b.{1,400}\bFROM\b",
    ],
    "url": [URL, EMAIL, r"(?<![\w-])[\w-]{1,63}\.(?:com|org|net|edu|gov|io)\b(?:/\S{0,2000})?"],
    "table": [r"\|[^|\n]{0,400}\|[^|\n]{0,400}(?:\||\n)",
              r"(?:^|\n)[^\t\n]{1,400}\t[^\t\n]{1,400}\t[^\n]{0,400}\n[^\t\n]{1,400}\t[^\t\n]{1,400}\t"],
    "markup": [
        r"</?[A-Za-z][^<>\n]{0,2000}>",
        r"!?\[[^\[\]\n]{0,2000}\]\([^()\s]{0,2000}\)",
        r"\[\[[^\[\]\n]{0,500}\]\]|\{\{[^{}\n]{0,500}\}\}",
        r"\*\*[^*\n]{1,1000}\*\*|(?:^|\n)#{1,6} |(?<!\w)__[^_\n]{1,1000}__",
        r"&(?:[a-z]{1,40}|#\d{1,7});",
    ],
}  # fmt: skip
_COMPILED = {flag: [re.compile(pattern) for pattern in patterns] for flag, patterns in _SIGNS.items()}


LONGEST_WORD = 60  # characters; no word of any language is longer in running text
_LONG = re.compile(rf"[^\s{UNSPACED}]{{{LONGEST_WORD + 1},}}")


def without_long_words(text: str) -> str:
    """The text without its runs of over 60 characters that no blank divides: hashes, encoded files, bare data."""
    return _LONG.sub("", text)


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    import runpy
    from importlib.util import find_spec

    spec = find_spec("spacy")
    if spec is None or spec.origin is None:
        raise SaladError("spaCy is not installed, and its lists of common words are needed: pip install spacy")
    # the word lists alone: importing spacy.lang.fr compiles its tokenizer's expressions for seconds
    folder = Path(spec.origin).parent / "lang"
    tongues = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl")
    words = {tongue: runpy.run_path(str(folder / tongue / "stop_words.py"))["STOP_WORDS"] for tongue in tongues}
    return {tongue: frozenset(w for w in words[tongue] if len(w) > 1) for tongue in tongues}


def _other_language(text: str, code: str) -> str | None:
    row = find_language(code)
    letters = [c for c in text if c.isalpha()]
    foreign = re.findall(rf"[^{row.letters}]", "".join(letters))
    if row.spaced and len(foreign) > 2 and len(foreign) > 0.1 * len(letters):
        return f"letters such as {''.join(foreign[:3])}"
    if not row.spaced:  # Latin names stand in any text: only what has hardly a letter of the language's own is another
        if len(foreign) > 2 and len(foreign) > 0.7 * len(letters):
            return f"letters such as {''.join(foreign[:3])}"
        return None
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < 5:
        return None
    counts = {tongue: sum(word in stop for word in words) for tongue, stop in _stop_words().items()}
    own = counts.pop(row.stop_words)
    tongue = max(counts, key=lambda code: counts[code])
    if counts[tongue] >= 3 and counts[tongue] > 1.5 * own:
        return f"{counts[tongue]} common words of {tongue}, {own} of {row.name}"
    return None


def speakability(text: str, language: str = "en") -> dict[str, str]:
    """What cannot be spoken well as it stands: flag -> reason (the piece of text that shows it, or a count). Flags:
    formula, code, url, table, markup, long word, other language. Empty for plain text of the language. Raises SaladError
    for a language that does not work here (`salad.speech.languages`)."""
    flags = {}
    for flag, patterns in _COMPILED.items():
        match = next(filter(None, (pattern.search(text) for pattern in patterns)), None)
        if match:
            flags[flag] = " ".join(match[0].split())[:60]
    if "url" not in flags and (match := _LONG.search(text)):
        flags["long word"] = f"{match[0][:40]}…"
    if reason := _other_language(text, language):
        flags["other language"] = reason
    return flags
