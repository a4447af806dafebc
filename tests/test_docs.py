"""Commands in the documentation exist: each is parsed as the command line would, options included, and not run."""

import re
import shlex
from pathlib import Path

import pytest

from salad import recipes
from salad.config import apply_overrides, parse_set
from workbench.cli import parse

ROOT = Path(__file__).parent.parent
PAGES = ["first-real-run", "models", "training"]


def commands(page: str) -> list[list[str]]:
    """The command lines of a page's code blocks, as words without comments; a synopsis (RECIPE, [options]) is none."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(("salad ", "python launch_gpu.py "))]
    return [words for words in found if "RECIPE" not in words]


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / "docs" / f"{page}.md").is_file()])
def test_commands_of_the_page_parse(page, capsys):
    found = commands(page)
    assert found
    for words in found:
        if words[0] == "salad":
            try:
                parse(words[1:])
            except SystemExit:
                pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / "docs" / f"{page}.md").is_file()])
def test_recipes_and_overrides_of_the_page_exist(page):
    named = [w for w in commands(page) if w[:2] == ["salad", "train"] or w[0] == "python"]
    for words in named:
        recipe = words[2]
        if recipe not in recipes.names():
            assert recipe in ("list", "check", "logs", "stop", "resume", "fetch"), " ".join(words)
            continue
        pairs = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--set"]
        apply_overrides(recipes.get(recipe), parse_set(pairs))
