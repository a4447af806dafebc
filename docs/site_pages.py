"""The generated pages of the documentation site, and the links of those that lie outside docs/ (a hook of mkdocs.yml).

`make docs` calls it through mkdocs. It adds the command line from the parsers and the recipes from their functions, and shows
README, CONTRIBUTING, CHANGELOG and the experiment log as pages of the site. Nothing that it makes is committed, so no such
page can be older than the code."""

import io
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# files of the repository that are pages of the site, and plain files that it carries
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/LOG.md": "log.md",
}
FILES = {"LICENSE": "LICENSE.txt", "CITATION.cff": "CITATION.cff"}
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s]+)(?=\))")


def on_config(config):
    """Replace an entry of the navigation that names a folder (`how-to/`) by that folder's pages, in the order of their titles."""
    config["nav"] = _expanded(config["nav"])
    return config


def _expanded(entries: list) -> list:
    expanded = []
    for entry in entries:
        if isinstance(entry, dict):
            expanded.append({title: _expanded(part) if isinstance(part, list) else part for title, part in entry.items()})
        elif entry.endswith("/"):
            pages = (ROOT / "docs" / entry).glob("*.md")
            expanded += [{title: f"{entry}{name}"} for title, name in sorted((_title(page), page.name) for page in pages)]
        else:
            expanded.append(entry)
    return expanded


def _title(page: Path) -> str:
    return re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)[1]


def on_files(files, config):
    """Add the generated pages, those of the repository's root, and the plain files that they link to."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=_site_links((ROOT / source).read_text(), source)))
    for source, target in FILES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for name, content in generated().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links that leave docs/ (`../README.md`) to the page that shows that file."""
    if page.file.generated_by is None:
        return _site_links(markdown, f"docs/{page.file.src_uri}")
    return markdown


def _site_links(markdown: str, source: str) -> str:
    """The text of the repository's file `source` with its links as they are within the site; code stays as it is."""
    here = PAGES.get(source, source.removeprefix("docs/"))

    def moved(match: re.Match) -> str:
        target, anchor = (match[1].split("#", 1) + [""])[:2]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        place = PAGES.get(path) or FILES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is None:  # mkdocs tells it as a broken link
            return match[1]
        return os.path.relpath(place, os.path.dirname(here) or ".") + (f"#{anchor}" if anchor else "")

    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(moved, markdown[end:])])


def generated() -> dict[str, str]:
    """The generated pages of the reference: name -> Markdown."""
    return {"command-line": command_line(), "recipes": recipes()}


def _help(main, *args: str) -> str:
    """What a command line prints for --help."""
    out, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            main([*args, "--help"])
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{' '.join(args)} --help failed") from stop
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.__setitem__("COLUMNS", before)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).strip()


def command_line() -> str:
    """Every command with its help, as the parser prints it."""
    import launch_gpu
    from workbench.arena import __main__ as arena
    from workbench.cli import COMMANDS, parse

    lines = [
        "# Command line",
        "",
        "Written from the parsers when this site was built. Each command prints the same with `--help`. "
        "Every command exits with 0 when it is done, 1 when it has found something (a damaged file, a failed cell), "
        "2 with one line where something that you gave is wrong, and 130 when it was interrupted.",
        "",
        "| command | what it does |",
        "| --- | --- |",
    ]
    for name, function in COMMANDS.items():
        lines.append(f"| [`salad {name}`](#salad-{name}) | {function.__doc__.strip().splitlines()[0]} |")
    for name, purpose in (("launch_gpu.py", "Start, watch, stop and resume a run anywhere"), ("workbench.arena", "The A/B app")):
        lines.append(f"| [`python {'-m ' * (name == 'workbench.arena')}{name}`](#{name.replace('.', '').lower()}) | {purpose} |")
    for name in COMMANDS:
        lines += ["", f"## salad {name}", "", "```text", _help(parse, name), "```"]
    lines += ["", "## launch_gpu.py", "", "```text", _help(launch_gpu.main), "```"]
    for name in launch_gpu.RESERVED:
        lines += ["", f"### launch_gpu.py {name}", "", "```text", _help(launch_gpu.main, name), "```"]
    lines += ["", "## workbench.arena", "", "```text", _help(arena.main), "```", ""]
    return "\n".join(lines)


def recipes() -> str:
    """Every recipe: what its function says, and its whole configuration."""
    from salad import recipes as functions

    lines = [
        "# Recipes",
        "",
        "Written from `salad/recipes.py` when this site was built. `--set a.b=VALUE` overrides a value everywhere; "
        "[Models](../models.md) tells what each recipe costs.",
    ]
    for name in functions.names():
        config = functions.get(name)
        text = " ".join((getattr(functions, name).__doc__ or "").split())
        lines += [
            "",
            f"## {name}",
            "",
            text,
            "",
            f"Stage: `{config.kind}` · LLM: `{config.llm.name}`, {config.llm.finetune} · encoder: `{config.encoder.name}` · "
            f"steps: {config.optim.steps:,}",
            "",
            '??? note "The whole configuration"',
            "    ```json",
            *(f"    {line}" for line in config.model_dump_json(indent=2).splitlines()),
            "    ```",
        ]
    return "\n".join([*lines, ""])
