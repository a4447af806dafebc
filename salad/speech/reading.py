"""What the reading rules of every language are made of: a rule, tables of words, numbers by num2words, markup."""

import html
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

DIGITS = "0123456789"
TAKEN = "\ufffc"  # stands where an earlier rule has read something: no blank, no letter, no digit
_NO_ADDRESS = r"\s<>\"')\]\u3000-\u303f\u4e00-\u9fff\uff00-\uffef\u2018-\u201f"  # what ends an address
URL = rf"(?:https?://|www\.)[^{_NO_ADDRESS}]{{0,2000}}[^{_NO_ADDRESS}.,;:!?]"
EMAIL = r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
DOMAIN = (
    r"(?<![\w@.-])(?=[\w-]*[A-Za-z])[\w-]{1,63}(?:\.[\w-]{1,63}){0,3}\.(?:com|org|net|edu|gov|io|ai|dev|app|info|tv|"
    rf"co\.uk|ac\.uk|de|fr|eu|ch|at|cn)(?:/[^{_NO_ADDRESS}]{{0,2000}}[^{_NO_ADDRESS}.,;:!?])?(?![A-Za-z0-9_-]|\.\w)"
)


class Rule(NamedTuple):
    """Where `pattern` matches, `say(match)` is spoken instead; None leaves the text as it stands. The group `take`, where
    the pattern has one, is what is replaced. needs: a text without any of these characters is not searched."""

    pattern: re.Pattern
    say: Callable[[re.Match], str | None]
    needs: str = ""


def rule(pattern: str, say: Callable[[re.Match], str | None] | str, needs: str = "", flags: int = 0) -> Rule:
    """A `Rule`; a string is said as it is."""
    return Rule(re.compile(pattern, flags), (lambda match: say) if isinstance(say, str) else say, needs)


def either(words: Iterable[str]) -> str:
    """An expression's alternatives, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


@lru_cache(50_000)
def _num2words(number: int, language: str, to: str) -> str:
    from num2words import num2words

    return num2words(number, lang=language, to=to).replace(",", "")


def cardinal(digits: str, language: str = "en") -> str:
    """ "1000" → "one thousand". More than 15 digits, or a leading zero: digit by digit."""
    if len(digits) > 15 or (len(digits) > 1 and digits[0] == "0"):
        return one_by_one(digits, language)
    return _num2words(int(digits), language, "cardinal")


def ordinal(digits: str, language: str = "en") -> str:
    """ "21" → "twenty-first"."""
    return _num2words(int(digits[-15:]), language, "ordinal")


def year(digits: str, language: str = "en") -> str:
    """ "1998" → "nineteen ninety-eight"."""
    return _num2words(int(digits), language, "year")


def one_by_one(digits: str, language: str = "en") -> str:
    """ "007" → "zero zero seven"; what is no digit is left out."""
    return " ".join(_num2words(int(d), language, "cardinal") for d in digits if d in DIGITS)


def parted(word: str) -> str:
    """A compound of an address or a tag as words: "MeToo2_x" → "Me Too 2 x"."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|_+|(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", word).split())


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral in its standard form, else None."""
    if not re.fullmatch(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})", numeral) or not numeral:
        return None
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def addresses(site: Callable[[str], str]) -> list[Rule]:
    """Rules for web and mail addresses; `site` reads "example.com" aloud (what follows the site is not said)."""

    def say(match: re.Match) -> str:
        return site(re.sub(r"^(https?://)?(www\.)?", "", match[0]).split("/")[0].split("?")[0])

    return [rule(URL, say, "/w"), rule(EMAIL, say, "@"), rule(DOMAIN, say, ".")]


MARKUP = [
    rule(r"!?\[(?=[^\[\]\n]{0,2000}\]\([^()\s]{0,2000}\))", "", "["),
    rule(r"\]\([^()\s]{0,2000}\)", "", "]"),
    rule(r"\[\[(?:[^\[\]|\n]{0,500}\|)?(?=[^\[\]\n]{0,500}\]\])", "", "["),
    rule(r"\]\]", "", "]"),
    rule(r"</?[A-Za-z][^<>\n]{0,2000}>", "", "<"),
    rule(r"&(?!amp;)(?:[A-Za-z]{1,40}|#\d{1,7});", lambda m: html.unescape(m[0]), "&"),
]
LAYOUT = [
    rule(r"^#{1,6} ", "", "#", re.M),
    rule(r"^[-*•·‣◦] ", "", "-*•·‣◦", re.M),
    rule(r"\*{1,3}|`{1,3}|(?<!\w)_+|_+(?!\w)", "", "*`_"),
]
LEFT_OVER = [rule(r"[\[{|\]}~^\\]", " ", "[{|]}~^\\")]  # what a TTS takes for markup of its own, or reads out by name
