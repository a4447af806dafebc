"""Checksums of files: read once, remembered beside the lab (in memory where it cannot be written), asked again when
a file's size or times change."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import atomic, schema
from .lab import lab_path

MEMBER = "_unit"  # column of a merged unit: which unit a row came from; no view shows it
SAVE_S = 5.0  # seconds between two writings of what was checked, where files are checked one by one
_verified: dict[str, dict[str, list]] = {}  # lab -> relative path -> [size, mtime_ns, ctime_ns, sha256]
_saved: dict[str, float] = {}  # lab -> when what `remembered` knows was last put beside it
_writes = True
_lock = threading.RLock()


def keep_in_memory() -> None:
    """Write nothing beside labs from now on: for a process that must not."""
    global _writes
    _writes = False


def write_beside(lab: Path, name: str, value: Any) -> None:
    """Put what was found out beside the lab, as JSON; not where it cannot be written, or this process must not."""
    if _writes:
        with contextlib.suppress(OSError):
            atomic.write_bytes(lab / ".store-cache" / name, json.dumps(value, indent=0).encode())


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_file(lab: Path) -> Path:
    return lab / ".store-cache" / "verified.json"


def _load_verified(lab: Path) -> dict[str, list]:
    try:
        checked = json.loads(_cache_file(lab).read_bytes())
        return checked if isinstance(checked, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def checked_files(lab: Path) -> dict[str, list]:
    """What is known of this lab's files: path relative to it -> [size, mtime_ns, ctime_ns, what was found]."""
    with _lock:
        if str(lab) not in _verified:
            _verified[str(lab)] = _load_verified(lab)
        return _verified[str(lab)]


def clear_cache() -> None:
    """Forget what this process knows of files, as a new process would."""
    with _lock:
        _verified.clear()


def _fingerprint(stat: os.stat_result) -> list:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def relative(lab: Path, path: Path) -> str:
    """`path` under the lab; Path.relative_to costs more than the rest of a check."""
    return str(path)[len(str(lab)) + 1 :]


def remember(lab: Path, path: Path, manifest: dict) -> None:
    """Note that this Parquet file is what its manifest says, as it stands now."""
    with contextlib.suppress(OSError), _lock:
        checked_files(lab)[relative(lab, path)] = [*_fingerprint(path.stat()), _seen(manifest)]


def _seen(manifest: dict) -> str:
    """What a Parquet file was compared with."""
    return f"{manifest['sha256']} {manifest['rows']} {manifest['schema']}"


def save_checked(lab: Path) -> None:
    """Remember beside the lab what was checked; in memory only where the lab cannot be written."""
    checked = checked_files(lab)
    merged = {path: value for path, value in {**_load_verified(lab), **checked}.items() if (lab / path).exists()}
    write_beside(lab, "verified.json", merged)


def remembered(lab: Path | str, path: Path, key: str, check: Callable[[], str | None]) -> str | None:
    """`check()`: why the file cannot be trusted, or None; not asked again while the file (size, times) and `key`, which
    names what it is checked against, stay as they were when it was found whole. Remembered as a unit's check is."""
    name, mark = os.path.relpath(path, lab), [*_fingerprint(path.stat()), key]
    lab = lab_path(lab)
    checked = checked_files(lab)
    if checked.get(name) == mark:
        return None
    reason = check()
    if reason is None:
        with _lock:
            checked[name] = mark
            if time.monotonic() - _saved.get(str(lab), -SAVE_S) >= SAVE_S:
                save_checked(lab)
                _saved[str(lab)] = time.monotonic()
    return reason


def forget(lab: Path, name: str) -> None:
    """The file `name`, relative to the lab, has to be checked again: it was found damaged."""
    with _lock:
        checked = checked_files(lab)
        if checked.pop(name, None) is not None:
            write_beside(lab, "verified.json", checked)


def _unlike(path: Path, manifest: dict) -> str | None:
    """Why a Parquet file whose bytes are as its manifest says does not fit its table, or None."""
    table = schema.TABLES[manifest["table"]]
    try:
        with pq.ParquetFile(path) as file:
            columns, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        return f"it is not a Parquet file ({str(error).splitlines()[0]:.80})"
    if rows != manifest["rows"]:
        return f"its manifest says {manifest['rows']} rows, it has {rows}"
    for field in table.arrow(min(manifest["schema"], table.version)):
        if field.name not in columns.names or columns.field(field.name).type != field.type:
            return f"it has no column {field.name!r} of the type that {table.name} of version {manifest['schema']} has"
    return None if "members" not in manifest or MEMBER in columns.names else f"it has no column {MEMBER!r}"


def check(lab: Path, path: Path, manifest: dict, remembered: bool = True) -> str | None:
    """Why a unit's Parquet file cannot be trusted, or None. `remembered=False` reads every byte again."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "its Parquet file is missing"
    except OSError as error:
        return f"its Parquet file cannot be read ({error.strerror})"
    if stat.st_size != manifest["bytes"]:
        return f"truncated or changed: {stat.st_size} bytes instead of {manifest['bytes']}"
    checked = checked_files(lab).get(relative(lab, path))
    if remembered and checked == [*_fingerprint(stat), _seen(manifest)]:
        return None
    try:
        sha = sha256(path)
    except OSError as error:
        return f"its Parquet file cannot be read ({error.strerror})"
    if sha != manifest["sha256"]:
        forget(lab, relative(lab, path))
        return "its bytes changed: sha256 does not agree with the manifest"
    reason = _unlike(path, manifest)
    if reason is None:
        with _lock:
            checked_files(lab)[relative(lab, path)] = [*_fingerprint(stat), _seen(manifest)]
    return reason
