"""Other people's parts, `package.module:name`: how they are imported, and who may name them.

A name that a user writes down (a recipe, a command's option, targets.toml, a call in Python) is imported. A name that
comes with data (a lab's tables, a run's config.json or launch.json, a checkpoint) is imported only if it is salad's own or
the user has allowed it: `--allow-parts NAME` on the command line, or SALAD_ALLOW_PARTS, names separated by commas. NAME is
`package.module:name`, or `package.module` for all of a module. Whoever reads a name from data asks `check` first.
"""

import importlib
import os
import re
from typing import Any

from salad import moved
from salad.errors import SaladError

VARIABLE = "SALAD_ALLOW_PARTS"
FLAG = "--allow-parts"
OWN = frozenset({  # what may stand in any lab
    "salad.speech.espeak:Espeak", "salad.speech.kokoro:Kokoro", "salad.models.encoders:LogMel",
    "salad.studies:active_filtered", "salad.studies:uniform_filtered",
    "salad.study.cells:active_filtered", "salad.study.cells:uniform_filtered",
    "salad.training", "salad.passes",
})  # fmt: skip
_MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def is_part(name: object) -> bool:
    """Whether a name is of the form `package.module:name`, and not an address or a folder."""
    return isinstance(name, str) and re.fullmatch(rf"{_MODULE}:[^\W\d]\w*", name) is not None


def trust(*names: object) -> None:
    """`allow` those of these names that are parts, or addresses that texts go to: what a user's own recipe or option says."""
    allow(*(str(name) for name in names if is_part(name) or is_address(name)))


def is_address(name: object) -> bool:
    """Whether a name is that of an endpoint which texts would be sent to (`openai:http://…`)."""
    return isinstance(name, str) and name.startswith("openai:")


def allow(*names: str | None) -> None:
    """Let data name these parts, in this process and in those that it starts."""
    wanted = [name.strip() for name in names if name and name.strip()]
    allowed = dict.fromkeys([*_allowed(), *wanted])
    if wanted:
        os.environ[VARIABLE] = ",".join(allowed)


def _allowed() -> list[str]:
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def check(name: object, where: str) -> None:
    """SaladError where the data `where` names code that is neither salad's own nor allowed.

    `name` is whatever stands there: a name without a colon (espeak, a model's folder) passes, for it is looked up in a
    list or read as weights, and so does an engine of ours with its folder (`kokoro:FOLDER`, `piper:FOLDER` …)."""
    if not isinstance(name, str) or ":" not in name or re.match(r"(kokoro|kokoro-onnx|piper)[:@]", name):
        return
    if name in OWN or name in _allowed() or name.partition(":")[0] in _allowed():
        return
    if is_address(name):
        raise SaladError(
            f"{where} names {name}, which texts would be sent to, and what a lab or a checkpoint brings with it is not asked. If "
            f"you know and want it: {FLAG} {name}, or {VARIABLE}={name} in the environment"
        )
    raise SaladError(
        f"{where} names {name}, which is code that is not salad's own, and what a lab or a checkpoint brings with it is not "
        f"run. If you know and want it: {FLAG} {name}, or {VARIABLE}={name} in the environment"
    )


_launched: set[str] = set()  # modules that the user has asked this process to run


def allow_module(name: str) -> None:
    """Allow this process to resume runs of a module that the user has asked it to run."""
    _launched.add(name)


def check_module(name: str, where: str) -> None:
    """`check` for a module that would be run with `python -m`."""
    if name not in OWN and name not in _launched and name not in _allowed():
        raise SaladError(
            f"{where} would run the module {name}, which is not salad's own. If you know and want it: {FLAG} {name}, or "
            f"{VARIABLE}={name} in the environment"
        )


def load(spec: str) -> Any:
    """The object that `package.module:name` names, imported; a SaladError says which half is wrong.

    Only for a name that the user wrote, or that `check` has passed."""
    module, _, name = spec.partition(":")
    try:
        return getattr(importlib.import_module(moved.current(module)), name)
    except ModuleNotFoundError as error:
        raise SaladError(f"{spec}: no module {error.name!r} to import") from None
    except AttributeError:
        raise SaladError(f"{spec}: module {module!r} has no {name!r}") from None
    except (ImportError, ValueError, TypeError) as error:
        raise SaladError(f"{spec} cannot be imported: {str(error) or type(error).__name__}") from None


def take_flags(arguments: list[str]) -> list[str]:
    """The arguments of a command line without `--allow-parts NAME` (repeatable), which are allowed."""
    left, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != FLAG:
            left.append(argument)
            if argument == "--":
                left += rest
            continue
        name = value if equals else next(rest, "")
        if not name or name.startswith("-"):
            raise SaladError(f"{FLAG}: name what is allowed, package.module:name or package.module")
        allow(name)
    return left
