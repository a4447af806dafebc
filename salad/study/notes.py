"""What one step of a study notes for the steps after it: ids of runs, clusterings and selections, one JSON file a name."""

import json
from pathlib import Path

from salad.errors import SaladError
from store import atomic


def remember(lab: Path | str, **values) -> None:
    """Write each value to `lab/.study/<name>.json`, replacing what stood there."""
    for name, value in values.items():
        atomic.write_json(Path(lab) / ".study" / f"{name}.json", value)


def recall(lab: Path | str, name: str):
    """The value that `remember` wrote under `name`. SaladError where the step that writes it has not run."""
    path = Path(lab) / ".study" / f"{name}.json"
    if not path.exists():
        raise SaladError(f"{path} is missing; run `salad demo` with this lab again")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SaladError(f"{path} cannot be read ({error}); remove it and run `salad demo` with this lab again") from None


def mark_done(lab: Path | str, name: str) -> None:
    """Mark a cell, or the teacher, as done: what `measured` looks for."""
    atomic.write_bytes(Path(lab) / ".study" / f"{name}.done", b"")
    (Path(lab) / ".study" / f"{name}.failed.json").unlink(missing_ok=True)


def measured(lab: Path | str, name: str) -> bool:
    """Whether a cell, or the teacher, is done: trained, and its evaluation too."""
    return (Path(lab) / ".study" / f"{name}.done").exists()


def failures(lab: Path | str) -> dict[str, str]:
    """The cells of a seed's lab whose last attempt failed, each with the error's last line."""
    paths = sorted((Path(lab) / ".study").glob("*.failed.json"))
    return {path.name.removesuffix(".failed.json"): str(atomic.load_json(path).get("error")) for path in paths}
