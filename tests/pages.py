"""What the documentation holds: pages, command lines, blocks of code and links; read by test_docs.py and test_docs_run.py."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HISTORY = {"experiments/LOG.md", "CHANGELOG.md"}  # what was true when it was written
FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
PROGRAMS = ("salad", "python", "make", "marimo", "bash", "sh", "torchrun", "pip")  # ours, and what starts ours
BEGINS = re.compile(rf"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) ")


def pages() -> list[str]:
    """Every Markdown file of the documentation, relative to the repository."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in files]


class Block(NamedTuple):
    """A fenced block of code: its language ("" where none is given), its text, and the line on which it begins."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return [Block(match[2], match[3], text[: match.start()].count("\n") + 1) for match in FENCE.finditer(text)]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", (ROOT / page).read_text())


def concrete(line: str) -> str:
    """A command line or query with values for its placeholders (`l…` is a selection's id), without its [optional] parts."""
    line = re.sub(r"(?<= )\([^)]*\)$", "", line)  # a remark behind it
    line = re.sub(r"\s\[[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*\](?=\s|$)", "", line)
    line = re.sub(r"\b([a-z])(?:…|\.\.\.)(?=$|[\s\"'`,)\]-])", r"\g<1>0123456789ab", line)
    return re.sub(r"(?<==)(?:…|\.\.\.)", "1", line)


class Command(NamedTuple):
    """A command line as words without comments. `mention`: it stands in a sentence, where arguments may be left out."""

    words: list[str]
    mention: bool


def commands(page: str) -> list[Command]:
    """Every command line of a page, in its blocks and within its sentences; a line that joins several (`&&`, `|`) gives each."""
    found = []
    for block in blocks(page):
        if block.language in ("", "sh", "bash", "console"):
            lines = iter(block.text.replace("\\\n", " ").splitlines())
            for line in lines:
                if BEGINS.match(line.strip() + " "):
                    while (words := split(line)) is None:  # a quotation over several lines
                        line += " " + next(lines)
                    found += [Command(part, False) for part in joined(words)]
    for span in SPAN.findall(prose(page)):
        span = " ".join(span.split())
        if BEGINS.match(span) and len(span.split()) > 1:
            found += [Command(part, True) for part in joined(split(span) or span.split())]
    return found


def split(line: str) -> list[str] | None:
    """The words of a command line; None where a quotation does not end."""
    words = shlex.shlex(concrete(line.strip().removeprefix("$ ")), posix=True, punctuation_chars=";&|")
    words.whitespace_split, words.commenters = True, "#"
    try:
        return list(words)
    except ValueError:
        return None


def joined(words: list[str]) -> list[list[str]]:
    """The commands of a line that joins several, those of other programs aside."""
    found: list[list[str]] = [[]]
    for word in words:
        if re.fullmatch(r"[;&|]+", word):
            found.append([])
        elif word not in ("…", "...") and (found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word)):
            found[-1].append(word)
    return [command for command in found if command and command[0] in PROGRAMS]


def links(page: str) -> list[str]:
    """Where a page's links lead, those of the net aside."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts and the site make them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip() for heading in headings]
    return {re.sub(r"[\s-]+", "-", slug) for slug in slugs}
