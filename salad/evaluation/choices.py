"""Which choice an answer in words names. Nothing is guessed: what can be read in two ways is not read."""

import re
import string
import unicodedata

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LATEX = re.compile(r"\\(?:boxed|text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"(?<![\w'’\-])[A-Za-z](?![\w'’]|-\w|\.[A-Za-z])")  # a letter by itself, no "I'm", "T-shirt", "U.S."
_BOTH = re.compile(r"(?<![\w'’\-])([A-Z])\)?\s*(?:,?\s*(?:or|and|nor|and/or)\s+(?:option\s+)?|/|&|,\s*)\(?([A-Z])(?![\w'’\-])")
# a letter after one of these stands as a letter, where no noun follows it
_CUES = frozenset(
    "is be are was answer answers option choice letter alternative choose chose pick select say guess with it's its so thus "
    "therefore hence final definitely probably likely certainly clearly maybe perhaps namely correct best solution "
    "response conclusion believe think no wait actually rather".split()
)
_NOUNS = frozenset("option choice letter alternative".split())  # a letter after these does whatever follows
_AFTER = frozenset("because is since as seems would due for looks fits makes was, that's it and".split())
_NEGATED = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|without|cannot|unlike|eliminate|exclude|reject)|n['’]t|\brule out|\brather than"
    r"|\binstead of|\bother than)\W+(?:\w+\W+){0,3}\W*$", re.IGNORECASE
)  # fmt: skip
_REFUSED = re.compile(
    r"^\W*(?:is|are|was|were|would be|can be|seems|looks)?\s*(?:clearly|definitely|certainly|also|probably)?\s*"
    r"(?:not\b|n['’]t|isn['’]t|wasn['’]t|aren['’]t|wrong|incorrect|false|ruled out|excluded|cannot|can['’]t|doesn['’]t)",
    re.IGNORECASE,
)  # fmt: skip


def parse_choice(answer: str, choices: list[str]) -> int | None:
    """Which choice an answer in words names, by its letter ("B", "(b)", "The answer is B.") or by its own words, or by
    both ("B. A book"); None where it names none, more than one, or refuses the one that it names.

    A letter counts only where it stands as one: alone, in brackets, before a mark at the beginning, or after a word such
    as "answer", "option", "is", and never within a choice's own words ("It is vitamin D.", "We go with plan C")."""
    text = _plain(answer)
    if not text or len(choices) > len(string.ascii_uppercase):
        return None
    spans = _spans(text, choices)
    letters = _letters(text, spans)
    if letters is None:
        return None
    if any(_denied(text, start, end) for held in spans.values() for start, end in held):
        return None
    named, held = {string.ascii_uppercase.index(letter) for letter in letters}, set(spans)
    if len(named) > 1 or len(held) > 1 or any(place >= len(choices) for place in named):
        return None
    if named and held and named != held:
        return None
    choice = named or held
    return choice.pop() if choice else None


def _plain(answer: str) -> str:
    """The text of an answer without markup, and without what a reasoning model thought before it."""
    text = unicodedata.normalize("NFKC", answer).replace("’", "'")
    if "<think>" in text or "</think>" in text:
        text = text.rpartition("</think>")[2] if "</think>" in text else ""
    text = _LATEX.sub(r" (\1) ", _TAG.sub(" ", text))
    return re.sub(r"[*_`#]+", "", text).replace("$", " ").strip()


def _spans(text: str, choices: list[str]) -> dict[int, list[tuple[int, int]]]:
    """{choice: where its words stand in a text}; a choice within the words of a longer one does not stand there."""
    wanted = [_plain(choice) for choice in choices]
    keys = [tuple(re.findall(r"\w+", choice.casefold())) for choice in wanted]
    whole = text.casefold().strip(" .!?\"'")
    spans_of_choice: dict[int, list[tuple[int, int]]] = {}
    for place, (choice, words) in enumerate(zip(wanted, keys, strict=True)):
        if not words or keys.count(words) > 1:  # only its marks tell it from another: "5", "-5"
            if choice.casefold().strip(" .!?\"'") == whole:
                spans_of_choice[place] = [(0, len(text))]
            continue
        inside = r"[\W_]+".join(map(re.escape, words))
        pattern = f"{_border(words[0][0], before=True)}{inside}{_border(words[-1][-1], before=False)}"
        if some := [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]:
            spans_of_choice[place] = some
    longest = {
        place: [(a, b) for a, b in some
                if not any(c <= a and b <= d and d - c > b - a for other in spans_of_choice.values() for c, d in other)]
        for place, some in spans_of_choice.items()
    }  # fmt: skip
    return {place: some for place, some in longest.items() if some}


def _border(letter: str, before: bool) -> str:
    """What must not stand beside a word's first or last letter; scripts without blanks have no border."""
    if ord(letter) >= 0x0E00 and unicodedata.category(letter) == "Lo":
        return ""
    if letter.isdigit():  # "5" is not in "-5", "5.5" or "1,500"
        return r"(?<![\w\-−+])(?<!\d[.,:/])" if before else r"(?!\w)(?![.,:/]\d)"
    return r"(?<!\w)" if before else r"(?!\w)"


def _letters(text: str, spans: dict[int, list[tuple[int, int]]]) -> set[str] | None:
    """The letters that stand as letters, outside of what choices say; None where one is refused."""
    alone = text.strip(" .,:;!?()[]{}\"'")
    if len(alone) == 1 and alone.isascii() and alone.isalpha():
        return {alone.upper()}
    masked = [(a, b) for some in spans.values() for a, b in some if b - a > 1]
    outside = lambda at: not any(a <= at < b for a, b in masked)  # noqa: E731
    letters: set[str] = set()
    for match in _BOTH.finditer(text):
        if outside(match.start(1)) and outside(match.start(2)):
            letters |= {match[1], match[2]}
    for match in _LETTER.finditer(text):
        if outside(match.start()) and _stands(text, match.start(), spans):
            if _denied(text, match.start(), match.end()):
                return None
            letters.add(match[0].upper())
    return letters


def _stands(text: str, at: int, spans: dict[int, list[tuple[int, int]]]) -> bool:
    """Whether the letter at this place of a text stands as a letter."""
    letter, before, after = text[at], text[:at], text[at + 1 :]
    if re.search(r"(?:^|[^\w])[(\[{]\s*$", before) and re.match(r"\s*[.:]?\s*[)\]}]", after):
        return True
    lead = before.rstrip(" \t\"'([{")
    starts = not lead or lead[-1] in ".!?\n:;"
    words = re.findall(r"[\w']+", lead[-40:])
    last = words[-1].lower() if words and lead[-1:] not in ".!?\n;" else ""
    following = re.match(r"[\"')\]}]*\s*(?:([.):;,!?=–—\-\n])|$)", after)
    mark = following[1] if following else None
    ends = following is not None and not re.match(r"\.\w", after)
    cue = last in _CUES or last.endswith("'s") and last != "'s"
    following_word = re.match(r"[\"')\]}]*\s+([\w']+)", after)
    after_word = following_word[1].lower() if following_word else ""
    says = any(a == at + 1 + len(after) - len(after.lstrip()) for some in spans.values() for a, _ in some)
    if letter.upper() == "I" and not (last in _NOUNS or ends and mark != ","):
        return False
    if cue and ends or last in _NOUNS and letter.isupper():
        return True
    if letter.isupper() and (cue or starts) and (after_word in _AFTER or says and letter != "A" or cue and letter != "A"):
        return True
    return starts and ends and (letter.isupper() or mark in (".", ")", ":", None))


def _denied(text: str, start: int, end: int) -> bool:
    """Whether what stands here is named to be refused: "not B", "B is wrong"."""
    sentence = re.split(r"[.!?;\n]\s", text[:start])[-1]
    return bool(_NEGATED.search(sentence + " ") or _REFUSED.match(text[end:]))
