"""A study by name, or from a file of one's own: TOML, JSON, Python, or what `salad study --pack` wrote."""

import importlib.util
import json
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from salad import parts, recipes
from salad.config import apply_overrides, validate
from salad.errors import SaladError
from salad.study.config import BaseStudy, MiniatureStudy, Study

PACKED = "study.json"  # the configuration in a pack


def load(spec: str) -> BaseStudy:
    """The study that `spec` names: a recipe (`first_cpu`), a .toml or .json file, FILE.py:FUNCTION or package.module:FUNCTION (a
    function without arguments that returns a study), or a pack (.zip).

    A TOML or JSON file may begin from a recipe: `base = "first_cpu"`, with the keys that differ below it. SaladError in one line
    where there is no such study, or what it says cannot be."""
    path, _, function = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    suffix = Path(path).suffix
    if suffix in (".toml", ".json", ".py", ".zip"):
        if not Path(path).is_file():
            raise SaladError(f"there is no file {path}")
        if suffix == ".py":
            return _of_python(Path(path), function or "study")
        return _of_data(_read(Path(path), suffix), path)
    if ":" in spec:
        parts.trust(spec)
        return _checked(parts.load(spec)(), spec)
    return recipes.study(spec)


def _read(path: Path, suffix: str) -> dict:
    try:
        if suffix == ".toml":
            return tomllib.loads(path.read_text(encoding="utf-8"))
        if suffix == ".zip":
            with zipfile.ZipFile(path) as file:
                return json.loads(file.read(PACKED))
        return json.loads(path.read_text(encoding="utf-8"))
    except KeyError:
        raise SaladError(f"{path} holds no {PACKED}: it was not written by `salad study --pack`") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise SaladError(f"{path} cannot be read: {error}") from None


def _of_data(data: Any, where: str) -> BaseStudy:
    if not isinstance(data, dict):
        raise SaladError(f"{where} does not hold a study")
    if "config" in data and "kind" in data:  # as a pack has it
        kinds: dict[str, type[BaseStudy]] = {"MiniatureStudy": MiniatureStudy, "Study": Study}
        kind = kinds.get(data["kind"])
        if kind is None:
            raise SaladError(f"{where}: kind {data['kind']!r} is neither Study nor MiniatureStudy")
        return validate(kind, data["config"])
    base = data.pop("base", None)
    if base is None:
        return validate(Study, data)
    study = recipes.study(str(base))
    for source in data.values():  # another path is got in another way than the recipe's
        if isinstance(source, dict) and "path" in source:
            source.setdefault("get", "")
            source.setdefault("gb", 0.0)
    return apply_overrides(study, dict(_flat(data, study.model_dump())))


def _flat(data: dict, known: dict, prefix: str = ""):
    """Dotted keys of what a file says, as far down as the study itself has tables; a table that it has as a free one, or not at
    all, is a value."""
    for key, value in data.items():
        below = known.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and below:
            yield from _flat(value, below, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_python(path: Path, function: str) -> BaseStudy:
    spec = importlib.util.spec_from_file_location("salad_study_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise SaladError(f"{path} has no function {function}; name one as {path}:FUNCTION")
        made = getattr(module, function)()
    except SaladError:
        raise
    except Exception as error:
        raise SaladError(f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return _checked(made, str(path))


def _checked(made: object, where: str) -> BaseStudy:
    if not isinstance(made, BaseStudy):
        raise SaladError(f"{where} gave {type(made).__name__}, not a Study; see salad.study.config.Study")
    return made
