"""The files of a lab that are neither units nor events: corpora, tasks, models and lists of cuts, which the log describes,
and checkpoints and encoder frames, which the manifests beside them describe.

Whoever writes a corpus, a task, a model or a list of cuts calls `record`, which logs each file's sha256. Whoever reads one
calls `check`, which refuses a file whose bytes differ from that record. A file that no record describes is read as it is:
users bring tasks and models of their own, and older labs have no records. `salad verify` reads every file again; the first
time that it sees a file without a record it logs the file's sha256 and time, and from then on a file whose bytes changed
while its time did not is damaged. `accept` records a file that a user changed on purpose."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import history, units
from .errors import Damage, StoreError
from .lab import lab_path
from .verification import forget, relative, remembered, sha256

ROOMS = {
    "corpora": "corpora/**/*.parquet",
    "tasks": "tasks/**/*.jsonl",
    "models": "models/**/*",
    "cuts": "speech/**/*.jsonl",
}  # table name in `damaged` -> the files that it stands for
_FOLDERS = {pattern.partition("/")[0]: table for table, pattern in ROOMS.items()}


def _files_in(lab: Path, table: str, folder: Path | None = None) -> Iterator[Path]:
    """The files of a room, or those of it under one folder: plain files, neither hidden nor in a hidden folder."""
    for path in sorted(lab.glob(ROOMS[table])):
        parts = path.relative_to(lab).parts
        if folder is not None and folder not in path.parents:
            continue
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in parts):
            yield path


def _place(path: Path | str) -> tuple[Path, str] | None:
    """(lab, name relative to it) of a path in one of the rooms of a lab that has a log, else None."""
    path = Path(os.path.abspath(path))
    for parent in path.parents:
        name = path.relative_to(parent)
        if name.parts[0] in _FOLDERS and (parent / "log").is_dir():
            return lab_path(parent), name.as_posix()
    return None


def _is_removed(entry: dict[str, Any]) -> bool:
    return entry.get("removed") is True


def _difference(lab: Path, name: str, entry: dict[str, Any], again: bool = False) -> str | None:
    """Why a file is not what its record says, or None. `again` reads its bytes even where they were checked before."""
    path, at = lab / name, str(entry.get("at", ""))[:19]
    written = entry.get("made_by")

    def changed() -> str | None:
        if sha256(path) == entry["sha256"]:
            return None
        if written is None:
            return f"its bytes changed since {at} while its time did not; prepare it again, or copy it back"
        return (
            f"its bytes changed since {written} wrote it at {at}; copy it back, make it again, or keep it as it is: "
            f"`salad verify --accept {name}`"
        )

    try:
        if written is None and path.stat().st_mtime_ns != entry.get("mtime_ns"):
            return None  # a user's own file, which was written anew
        return changed() if again else remembered(lab, path, entry["sha256"], changed)
    except FileNotFoundError:
        if written is None:
            return None
        return (
            f"is missing; {written} wrote it at {at}: copy it back, make it again, or do without it: "
            f"`salad verify --accept {name}`"
        )
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _records_under(past: history.History, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The records of a file, or of the files under a folder, that say that it is there."""
    if name in past.files:
        records = [(name, past.files[name][1])]
    else:
        records = [(other, entry) for other, (_, entry) in past.files.items() if other.startswith(f"{name}/")]
    return sorted((other, entry) for other, entry in records if not _is_removed(entry))


def fault(path: Path | str) -> str | None:
    """What is wrong with a file of a lab by its record in the lab's log, in one line that names the file, or None.

    `path`: a corpus, task, model or list of cuts, or a folder of them, every recorded file under which must be there and
    unchanged. Files without a record and files outside labs pass. A file's bytes are read once and remembered while its
    size and times stay."""
    place = _place(path)
    if place is None:
        return None
    lab, name = place
    for other, entry in _records_under(history.read(lab), name):
        if reason := _difference(lab, other, entry):
            return f"{lab / other} {reason}" if reason.startswith(("is ", "cannot")) else f"{lab / other}: {reason}"
    return None


def check(path: Path | str) -> None:
    """Raise StoreError where `fault` finds something wrong with a file of a lab, or with a file in one of its folders."""
    if reason := fault(path):
        raise StoreError(reason)


def record(lab: Path | str | None, paths: Iterable[Path | str], made_by: str) -> None:
    """Log what a program has just written, so that readers notice when it changes.

    `paths`: files of the lab's rooms, or folders, all files of which are recorded while those that were recorded there and
    are gone are written off. `made_by`: the program, as messages name it, for example `salad prepare text`. Raises
    StoreError where a path is in no room of the lab, or the log cannot be written."""
    lab = lab_path(lab)
    entries: list[dict[str, Any]] = []
    try:
        if not history.read(lab).exists:
            units.adopt(lab)
        past = history.read(lab)
        for path in paths:
            name = os.path.relpath(os.path.abspath(path), os.path.abspath(lab))
            if name.startswith(".."):  # the lab was given by another name, a link
                name = os.path.relpath(Path(path).resolve(), lab)
            table = _FOLDERS.get(Path(name).parts[0])
            if table is None:
                raise StoreError(f"{path} is in none of the folders {', '.join(_FOLDERS)} of {lab}, so it is not recorded")
            there = lab / name
            files = list(_files_in(lab, table, there)) if there.is_dir() else [there] * there.exists()
            names = {relative(lab, file): file for file in files}
            for other, file in names.items():
                before = past.files.get(other, (None, {}))[1]
                entry = _entry(other, file) | {"made_by": made_by}
                remembered(lab, file, entry["sha256"], lambda: None)  # its bytes need not be read again
                if any(before.get(key) != entry[key] for key in ("sha256", "made_by")) or _is_removed(before):
                    entries.append(entry)
            for other, before in _records_under(past, Path(name).as_posix()):
                if other not in names and before.get("made_by"):
                    entries.append({"op": "file", "path": other, "sha256": before["sha256"], "bytes": 0, "removed": True,
                                    "made_by": made_by})  # fmt: skip
        history.append(lab, entries)
    except OSError as error:
        raise StoreError(f"could not record in {lab / 'log'} what {made_by} wrote: {error.strerror or error}") from error


def _entry(name: str, path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"op": "file", "path": name, "sha256": sha256(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def is_as_recorded(lab: Path, entry: dict[str, Any]) -> bool:
    """Whether the lab has a file with the bytes that a log entry (`op` is "file") describes. Raises OSError."""
    path = lab / entry["path"]
    return path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def accept(lab: Path | str | None, name: str) -> None:
    """Record a file, by its name relative to the lab, as it is now: changed on purpose, or removed.

    Raises StoreError where the log has no record of it, or cannot be written."""
    lab = lab_path(lab)
    try:
        before = history.read(lab).files.get(name, (None, None))[1]
        if before is None:
            raise StoreError(
                f"the log of {lab} has no record of {name!r}; give a path relative to the lab, as `salad verify` does"
            )
        if (lab / name).is_file():
            history.append(lab, [_entry(name, lab / name) | {"made_by": "salad verify --accept"}])
        else:
            history.append(lab, [{"op": "file", "path": name, "sha256": before["sha256"], "bytes": 0, "removed": True,
                                  "made_by": "salad verify --accept"}])  # fmt: skip
    except OSError as error:
        raise StoreError(f"could not write to {lab / 'log'}: {error.strerror or error}; nothing was accepted") from error


def _manifest(path: Path) -> dict | str:
    try:
        manifest = json.loads(path.read_bytes())
        return manifest if isinstance(manifest, dict) else "is not a manifest"
    except (ValueError, RecursionError):
        return "is not JSON"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _compare(lab: Path, table: str, path: Path, expected: str) -> list[Damage]:
    try:
        if sha256(path) == expected:
            return []
        reason = "its bytes changed: sha256 does not agree with its manifest"
    except FileNotFoundError:
        reason = "is missing"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    return [Damage(table, relative(lab, path), reason)]


def checkpoints(lab: Path) -> list[Damage]:
    """Files of checkpoints that are not what `manifest.json`, written last, says."""
    damage = []
    for path in sorted(lab.glob("runs/*/checkpoints/*/manifest.json")):
        manifest = _manifest(path)
        listed = manifest.get("sha256") if isinstance(manifest, dict) else None
        if not isinstance(listed, dict):
            damage.append(Damage("checkpoints", relative(lab, path), manifest if isinstance(manifest, str) else "lists no files"))
            continue
        for name, expected in sorted(listed.items()):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                damage.append(Damage("checkpoints", relative(lab, path), f"names {name!r:.80}, which is outside its folder"))
            else:
                damage += _compare(lab, "checkpoints", path.parent / name, str(expected))
    return damage


def frames(lab: Path) -> list[Damage]:
    """Encoder frames that are not what the manifest beside them says."""
    damage = []
    for path in sorted(lab.glob("frames/*/*/*.json")):
        manifest = _manifest(path)
        expected = manifest.get("sha256") if isinstance(manifest, dict) else None
        if isinstance(expected, str) and re.fullmatch("[0-9a-f]{64}", expected):
            damage += _compare(lab, "frames", path.with_suffix(".safetensors"), expected)
        else:
            why = manifest if isinstance(manifest, str) else "has no sha256"
            damage.append(Damage("frames", relative(lab, path), why))
    return damage


def rooms(lab: Path, past: history.History) -> tuple[list[Damage], list[dict[str, Any]]]:
    """The corpora, tasks, models and lists of cuts that differ from their records or are missing, and log entries for those
    that have no record yet. Every byte is read.

    A missing file counts where its folder is still there: whoever removes a whole corpus or model wants it gone."""
    damaged: list[Damage] = []
    entries: list[dict[str, Any]] = []
    for table in ROOMS:
        names = {relative(lab, path): path for path in _files_in(lab, table)}
        recorded = dict(_records_under(past, ROOMS[table].partition("/")[0]))
        for name in sorted(names.keys() | recorded.keys()):
            entry = recorded.get(name)
            if name not in names and not (lab / name).parent.is_dir():
                continue
            reason = None if entry is None else _difference(lab, name, entry, again=True)
            if reason is not None:
                forget(lab, name)  # so that readers look at its bytes again, whatever its times say
                damaged.append(Damage(table, name, reason))
            elif name in names and (entry is None or not entry.get("made_by")):
                try:
                    if entry is None or names[name].stat().st_mtime_ns != entry.get("mtime_ns"):
                        entries.append(_entry(name, names[name]))
                except OSError as error:
                    damaged.append(Damage(table, name, f"cannot be read ({error.strerror})"))
    return damaged, entries
