"""The documentation agrees with the code: commands parse with their options, recipes and settings exist, links lead somewhere.

Nothing is run here; tests/test_docs_run.py runs the blocks of Python and the SQL."""

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import sys
import tomllib

import pytest
from pages import HISTORY, ROOT, anchors, commands, links, pages, prose

import launch_gpu
from salad import recipes
from salad.config import apply_overrides, parse_set
from workbench.cli import COMMANDS, parse

BY_FOLDER = ("docs/how-to/",)  # the site lists these pages by itself: mkdocs.yml
GENERATED = {"reference/command-line.md", "reference/recipes.md"}


class Parsed(Exception):
    """A command line was parsed: its options are known, and nothing is done with them."""


def parse_and_stop(program, arguments: list[str], monkeypatch) -> None:
    """Let a program (a function that runs it) parse its arguments and go no further."""
    real = argparse.ArgumentParser.parse_args

    def parsed(parser, args=None, namespace=None):
        real(parser, args, namespace)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", ["program", *arguments])
        with contextlib.suppress(Parsed):
            program()
            pytest.fail("it parsed nothing")


def module(name: str):
    """Runs `python -m NAME`."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"no module {name}"
    return lambda: importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name).main()


def file(path: str):
    """Runs `python PATH`; None where the file parses no arguments."""
    assert (ROOT / path).is_file(), f"no file {path}"
    if "argparse" not in (ROOT / path).read_text():
        return None
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.main


def check(words: list[str], monkeypatch) -> None:
    """Fail, by an assertion or SystemExit, where a command line would be refused for how it is written."""
    program, *rest = words
    while "--allow-parts" in rest:
        at = rest.index("--allow-parts")
        del rest[at : at + 2]
    if program == "salad":
        if rest != ["--version"]:
            parse(rest)
    elif program == "python":
        if rest[0] == "-m" and not rest[1].startswith(("venv", "pip", "pytest", "package.")):
            parse_and_stop(module(rest[1]), rest[2:], monkeypatch)
        elif rest[0] == "launch_gpu.py":
            parse_and_stop(lambda: launch_gpu.main(rest[1:]), [], monkeypatch)
        elif rest[0].endswith(".py") and (program_of := file(rest[0])):
            parse_and_stop(program_of, rest[1:], monkeypatch)
    elif program == "torchrun":
        parse_and_stop(module(rest[rest.index("-m") + 1]), rest[rest.index("-m") + 2 :], monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert not [word for word in rest if "=" not in word and word not in targets], "no such target in the Makefile"
    elif program == "marimo":
        assert rest[0] in ("edit", "run", "check")
        assert all((ROOT / word).exists() for word in rest[1:] if word.startswith("notebooks")), "no such notebook"
    elif program in ("bash", "sh"):
        assert (ROOT / rest[0]).is_file(), f"no file {rest[0]}"
    elif program == "pip" and rest[0] == "install":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [name for word in rest for name in re.findall(r"(?:^\.|salad-workbench)\[([\w,]+)\]", word)]
        assert set(",".join(named).split(",")) - {""} <= set(extras), "no such extra in pyproject.toml"


def check_mention(words: list[str], monkeypatch) -> None:
    """Fail where a command that a sentence names does not exist, or has no such option."""
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    program, *rest = words
    if program == "salad" and (rest[0] == "--version" or rest[0].isupper()):  # salad COMMAND --help
        return
    if program == "salad":
        assert rest[0] in COMMANDS, f"no command {rest[0]}"
        known = help_of(parse, rest[0])
    elif program == "python" and rest[0] == "launch_gpu.py":
        known = help_of(launch_gpu.main, *(rest[1:2] if rest[1] in launch_gpu.RESERVED else []))
    elif program == "python" and rest[0] == "-m":
        if not rest[1].startswith("package."):
            module(rest[1])
        return
    else:
        check(words, monkeypatch)
        return
    assert not [option for option in options if option not in known and option != "--allow-parts"]


def help_of(main, *arguments: str) -> str:
    """What a program prints for --help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("page", pages())
def test_every_command_of_the_page_parses(page, monkeypatch):
    wrong = []
    for words, mention in commands(page):
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
                (check_mention if mention else check)(words, monkeypatch)
        except (AssertionError, SystemExit, ValueError, IndexError) as error:
            if not (isinstance(error, SystemExit) and error.code == 0):  # --help
                wrong.append(f"{' '.join(words)}: {complaint.getvalue().strip() or error}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found_in_blocks_and_sentences():
    found = {page: commands(page) for page in pages()}
    assert sum(map(len, found.values())) > 200 and found["README.md"] and found["docs/launch.md"]
    assert (["salad", "sql", "from misalignment limit 9"], True) in found["README.md"]


@pytest.mark.parametrize("page", pages())
def test_recipes_and_settings_of_the_page_exist(page):
    for words, _ in commands(page):
        named = words[:2] == ["salad", "train"] or words[:2] == ["python", "launch_gpu.py"]
        pairs = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--set"]
        if words[:2] == ["salad", "demo"]:
            apply_overrides(recipes.miniature(), parse_set(pairs))
        if not named or len(words) < 3 or words[2].endswith("config.json") or not re.fullmatch(r"[a-z0-9_]+", words[2]):
            continue
        if words[2] not in launch_gpu.RESERVED:
            apply_overrides(recipes.get(words[2]), parse_set(pairs))


@pytest.mark.parametrize("page", [*pages(), *sorted(HISTORY)])
def test_every_link_of_the_page_leads_to_a_file_and_a_heading(page):
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            wrong.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(link)
    assert not wrong


def test_the_site_lists_every_page():
    listed = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/") and not page.startswith(BY_FOLDER)}
    root = {"index.md", "contributing.md", "changelog.md", "log.md"}  # of the repository's root: docs/site_pages.py
    assert listed == there | root | GENERATED


@pytest.mark.parametrize("page", pages())
def test_files_that_the_page_names_exist(page):
    """Paths of this repository in `code`: a file that moved takes its mentions with it."""
    named = re.findall(r"`((?:salad|store|workbench|notebooks|tests|benchmarks|docs|experiments)/[\w/.-]+\.\w+)`", prose(page))
    assert not [path for path in named if not (ROOT / path).exists()]
