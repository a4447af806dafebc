"""What a study's lab says of itself: its steps that are done, their seconds and sizes, and whether a person has reviewed it."""

import json
from pathlib import Path
from typing import NamedTuple

from salad.errors import SaladError
from salad.runs import now, read_json
from salad.study.notes import recall, remember
from store import atomic

PAUSE = "review"  # the step that waits for a person


class StepRecord(NamedTuple):
    """A step that was done: when, in how many seconds, its size in units (see salad.study.costs), and the files that show it."""

    name: str
    seconds: float
    size: float
    unit: str
    message: str
    evidence: tuple[str, ...]
    at: str


def _path(lab: Path | str, name: str) -> Path:
    return Path(lab) / ".study" / "steps" / f"{name}.json"


def record(lab: Path | str, name: str, seconds: float, size: float, unit: str, message: str, evidence: list[str]) -> None:
    """Write down that a step is done. The seconds of the first time stay: a step that finds everything done costs nothing."""
    before = read_json(_path(lab, name)) or {}
    if before.get("evidence") == evidence:
        seconds = max(seconds, float(before.get("seconds") or 0))
    atomic.write_json(_path(lab, name), {"name": name, "seconds": round(seconds, 2), "size": size, "unit": unit,
                                         "message": message, "evidence": evidence, "at": now()})  # fmt: skip


def records(lab: Path | str) -> dict[str, StepRecord]:
    """The steps of a lab that are done, by name: those whose files are still there."""
    found = {}
    for path in sorted((Path(lab) / ".study" / "steps").glob("*.json")):
        data = read_json(path)
        try:
            one = StepRecord(**(data or {}) | {"evidence": tuple((data or {})["evidence"])})
        except (TypeError, KeyError):
            continue  # not whole: the step is done again, which costs little
        if all((Path(lab) / file).exists() for file in one.evidence):
            found[one.name] = one
    return found


def forget(lab: Path | str, name: str) -> None:
    """Take back that a step is done."""
    _path(lab, name).unlink(missing_ok=True)


def attempt(lab: Path | str, name: str) -> int:
    """How often a step was asked for again (`salad study NAME --again STEP`); 0 the first time."""
    path = Path(lab) / ".study" / "again.json"
    return int((read_json(path) or {}).get(name, 0))


def ask_again(lab: Path | str, name: str) -> None:
    """Have a step done again: its next attempt is a further run, and what it made before stays."""
    counts = read_json(Path(lab) / ".study" / "again.json") or {}
    remember(lab, again=counts | {name: int(counts.get(name, 0)) + 1})
    forget(lab, name)


# --- a study's own file, and its review ---


def study_of(lab: Path | str) -> dict | None:
    """lab/study.json, or None. SaladError where it cannot be read."""
    path = Path(lab) / "study.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, RecursionError, ValueError) as error:
        raise SaladError(f"{path} is not JSON ({error}); restore it, or take another --lab") from None
    if not isinstance(found, dict):
        raise SaladError(f"{path} does not hold a study; restore it, or take another --lab")
    return found


def update(lab: Path | str, **fields) -> None:
    """Set fields of lab/study.json, where there is one."""
    found = study_of(lab)
    if found is not None and any(found.get(key) != value for key, value in fields.items()):
        atomic.write_json(Path(lab) / "study.json", found | fields)


def waits_for_review(lab: Path | str) -> bool:
    """Whether this lab's study stops before Stage II until a person says that its selection is reviewed."""
    config = (study_of(lab) or {}).get("config") or {}
    return bool(config.get("review")) and not is_reviewed(lab)


def is_reviewed(lab: Path | str) -> bool:
    return (Path(lab) / ".study" / "reviewed.json").exists()


def mark_reviewed(lab: Path | str, reviewer: str | None = None) -> None:
    """Say that a person has reviewed the selections of this lab: Stage II may begin."""
    if not is_reviewed(lab):
        remember(lab, reviewed={"at": now(), "by": reviewer})


def noted(lab: Path | str, name: str):
    """The value that a step noted, or None."""
    try:
        return recall(lab, name)
    except SaladError:
        return None
