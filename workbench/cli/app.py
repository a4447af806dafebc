"""How `salad` finds, explains and runs its commands. A command is one small function in a module of this room: its
docstring is its --help, and it imports what it runs when it runs, so that `salad --help` answers at once.

To add a command: write a function with keyword-only options in the module of its group, and decorate it with @command.
"""

import contextlib
import difflib
import functools
import inspect
import io
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

import salad

Lab = Annotated[str | None, tyro.conf.arg(metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)", help_behavior_hint="")]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
COMMANDS: dict[str, Callable] = {}


def command(function: Callable | None = None, *, name: str | None = None):
    """Register a command. Parsing only binds the arguments: `main` calls it, outside the parser's error handling."""
    if function is None:
        return functools.partial(command, name=name)

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    COMMANDS[name or function.__name__.strip("_").replace("_", "-")] = bind
    return function


Set = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="override a.b=VALUE; repeatable", help_behavior_hint=""),
]


@contextlib.contextmanager
def progress_bar(title: str):
    """A progress bar with the time left, on a terminal."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def in_words(result) -> str:
    if isinstance(result, dict):
        return ", ".join(f"{key} {value}" for key, value in result.items())
    if isinstance(result, list | tuple):
        return "\n".join(map(str, result)) or "nothing to do"
    return "done" if result is None else str(result)


DESCRIPTION = """Adapt text LLMs to speech, and see, sample by sample, where speech understanding still falls behind
text. Begin with `salad demo`; each command explains itself with --help. `--allow-parts package.module:name`, with any
command, lets a lab's data name code that is not salad's own (also SALAD_ALLOW_PARTS)."""


def parse(args: list[str]) -> Callable[[], int | None]:
    """The command that `args` name, bound; raises SystemExit(2) after one line where they name none."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    name, *rest = args or [""]
    if name == "--version":
        print(f"salad {salad.__version__}")
        raise SystemExit(0)
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            if name in COMMANDS:
                return tyro.cli(COMMANDS[name], prog=f"salad {name}", args=rest, config=config)
            if name in ("-h", "--help", "--tyro-print-completion"):
                return _listing().cli(prog="salad", args=args, description=DESCRIPTION, config=config)
        except SystemExit as stop:
            if not stop.code:
                raise
    if name in COMMANDS:
        line = _unknown_option(name, rest) or f"{_one_line(complaint.getvalue())} See `salad {name} --help`."
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        line = f"no command {name!r}; {hint} See `salad --help`." if name else f"say what to do: {', '.join(COMMANDS)}."
    print(f"salad: {line}", file=sys.stderr)
    raise SystemExit(2)


def _listing() -> SubcommandApp:
    app = SubcommandApp()
    for name, bind in COMMANDS.items():
        app.command(name=name, help=bind.__doc__.strip().splitlines()[0])(bind)
    return app


def _unknown_option(name: str, args: list[str]) -> str | None:
    known = ["--help", *("--" + p.replace("_", "-") for p in inspect.signature(COMMANDS[name]).parameters)]
    given = [a.split("=")[0] for a in itertools.takewhile(lambda a: a != "--", args) if a.startswith("--")]
    for option in given:
        if option.replace("_", "-") not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            return f"{name} has no option {option}; {hint} See `salad {name} --help`."
    return None


def _one_line(box: str) -> str:
    """tyro's boxed complaint as one line: what stands between its title and its first rule."""
    lines = [line.strip("│╭╰─╮╯ ") for line in box.splitlines()]
    message = " ".join(itertools.takewhile(bool, lines[1:]))
    return f"{message.rstrip('.')}."


def main(args: list[str] | None = None) -> None:
    """Run a command and leave: 0 done, 1 it found something, 2 a user's error in one line, 130 interrupted."""
    from salad import parts
    from store.errors import UserError

    warnings.formatwarning = lambda message, *_, **__: f"salad: {' '.join(str(message).split())}\n"
    try:
        code = parse(parts.take_flags(sys.argv[1:] if args is None else list(args)))()
        sys.stdout.flush()
    except UserError as error:
        print(f"salad: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, RuntimeError) as error:
        if not isinstance(error, KeyboardInterrupt) and str(error) != "Query interrupted":  # DuckDB's word for Ctrl-C
            raise
        print("\nsalad: interrupted; the same command goes on where it was.", file=sys.stderr)
        exec("")  # CPython remembers a key that came within an import, and would leave by the signal instead of with 130
        code = 130
    except BrokenPipeError:  # `salad sql ... | head`
        sys.stderr.close()
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"salad: {error.strerror or error}{where}; make room or give permission, then run it again.",
            file=sys.stderr,
        )
        code = 2
    raise SystemExit(code or 0)
