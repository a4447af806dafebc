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
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import tyro
from tyro.extras import SubcommandApp

import salad

Lab = Annotated[str | None, tyro.conf.arg(metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)", help_behavior_hint="")]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
COMMANDS: dict[str, Callable] = {}


def command(function: Callable | None = None, *, name: str | None = None) -> Any:
    """Register a function as a command. Parsing only binds its arguments: `main` calls it, outside the parser's error handling.

    An optional argument (`str | None = None`) shows its own name in --help, and its docstring says what the default means."""
    if function is None:
        return functools.partial(command, name=name)
    for parameter in inspect.signature(function).parameters.values():
        function.__annotations__[parameter.name] = _readable(parameter)

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    COMMANDS[name or function.__name__.strip("_").replace("_", "-")] = bind
    return function


def _readable(parameter: inspect.Parameter) -> Any:
    """The parameter's annotation with a placeholder and a default that read well in --help."""
    annotation = parameter.annotation
    if typing.get_origin(annotation) is Annotated:
        marked = typing.get_args(annotation)
        if marked[0] is str and parameter.default is inspect.Parameter.empty:  # a positional argument
            return Annotated[annotation, tyro.conf.arg(metavar=parameter.name.upper())]
        return annotation
    if annotation is bool:
        return Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (kind,) = (part for part in typing.get_args(annotation) if part is not type(None))
        choices = "{" + ",".join(map(str, typing.get_args(kind))) + "}" if typing.get_origin(kind) is typing.Literal else None
        placeholder = choices or {int: "N", float: "NUMBER"}.get(kind, parameter.name.upper().replace("_", "-"))
        if parameter.default is not None:
            return Annotated[annotation, tyro.conf.arg(metavar=placeholder)]
        return Annotated[annotation, tyro.conf.arg(metavar=placeholder, help_behavior_hint="")]
    return annotation


Set = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    tyro.conf.arg(
        name="set", metavar="KEY=VALUE", help="set the configuration key a.b to VALUE; may be repeated", help_behavior_hint=""
    ),
]


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar with the estimated time left, on a terminal; yields the function (done, total) that moves it."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def in_words(result: object) -> str:
    """What a command returned, as text for a person: "key value" pairs of a dict, the items of a list one per line."""
    if isinstance(result, dict):
        return ", ".join(f"{key} {value}" for key, value in result.items())
    if isinstance(result, list | tuple):
        return "\n".join(map(str, result)) or "nothing to do"
    return "done" if result is None else str(result)


DESCRIPTION = """Adapt text LLMs to speech, and see, sample by sample, where speech understanding still falls behind
text. Start with `salad demo`; `salad COMMAND --help` explains a command. With any command, `--allow-parts
package.module:name` permits a lab to load that code of yours or others (so does the variable SALAD_ALLOW_PARTS)."""


def parse(args: list[str]) -> Callable[[], int | None]:
    """The command that `args` name, with its arguments bound. Raises SystemExit(2) after one line if `args` name no command."""
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
        line = f"no command {name!r}; {hint} See `salad --help`." if name else f"name a command: {', '.join(COMMANDS)}."
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
    """tyro's boxed error message as one line: the text between its title and its first rule."""
    lines = [line.strip("│╭╰─╮╯ ") for line in box.splitlines()]
    message = " ".join(itertools.takewhile(bool, lines[1:]))
    return f"{message.rstrip('.')}."


def main(args: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it succeeds, 1 when it reports a problem, 2 on a user error (one line), 130 on Ctrl-C."""
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
        print("\nsalad: interrupted; rerun the command to resume.", file=sys.stderr)
        exec("")  # CPython remembers a key that came within an import, and would leave by the signal instead of with 130
        code = 130
    except BrokenPipeError:  # `salad sql ... | head`
        sys.stderr.close()
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"salad: {error.strerror or error}{where}; free disk space or fix the permissions, then rerun the command.",
            file=sys.stderr,
        )
        code = 2
    raise SystemExit(code or 0)
