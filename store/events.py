"""Events: what people and processes say, one append-only JSONL file per writing process.

Nothing is updated in place: undo is an event. Every line carries its own checksum, and a manifest beside the file,
written after its first line, says that there is one."""

import contextlib
import datetime
import getpass
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path

import pyarrow as pa

from . import atomic, schema
from .errors import Damage, StoreError
from .jsonl import read_new
from .lab import lab_path, seal, seal_line
from .rows import fit
from .rules import check_rule
from .units import read_manifest

IDLE_DAYS = 7  # an event file of another machine counts as finished when untouched this long
_lock = threading.RLock()
_writers: dict[tuple, "_Writer"] = {}
_read: dict[str, dict[str, tuple]] = {}  # lab -> file -> (inode, bytes read, events, damage)
_made: dict[tuple[str, str], tuple[list[dict], pa.Table]] = {}  # lab, table -> what was read last: events, as Arrow

CHOICES = {
    "decisions": {"target": ("sample", "cluster", "rule"), "verdict": ("keep", "drop", "reweight", "undo")},
    "votes": {"choice": ("left", "right", "tie", "both_bad")},
}
AUTHOR = {"decisions": "reviewer", "votes": "voter", "run_notes": "author"}
ID = {"decisions": "event_id", "votes": "vote_id", "run_notes": "event_id"}


def host() -> str:
    """This machine's name, as file names have it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:60]


def _manifest(path: Path) -> None:
    """Write beside an event file how long it is at least, so that one that is gone or cut is missed."""
    told = {"file": path.name, "bytes": path.stat().st_size}
    atomic.write_json(path.with_suffix(".json"), seal(told))


def write_whole(path: Path, lines: list[bytes]) -> None:
    """Write an event file that will not grow, and its manifest. Raises OSError."""
    atomic.write_bytes(path, b"".join(lines))
    _manifest(path)


class _Writer:
    """This process's file in lab/events; one line is one write, flushed to the disk."""

    def __init__(self, lab: Path):
        self.path = lab / "events" / f"{host()}-{os.getpid()}-{time.time_ns()}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self.size = 0
        self.named = False

    def write(self, line: bytes) -> None:
        try:
            done = 0
            while done < len(line):
                done += os.write(self.handle, line[done:])
            os.fsync(self.handle)
        except OSError:
            os.ftruncate(self.handle, self.size)  # half a line must not spoil the next one
            raise
        self.size += len(line)
        if not self.named:
            with contextlib.suppress(OSError):  # the event is on the disk; the next one tries again
                _manifest(self.path)
                self.named = True

    def is_there(self) -> bool:
        """False where someone moved, removed or cut the file: writing on would lose events, or hide a loss."""
        try:
            found = os.stat(self.path)
            return found.st_ino == os.fstat(self.handle).st_ino and found.st_size == self.size
        except OSError:
            return False


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _checked(table: str, fields: dict) -> dict:
    """The event with id, time and author filled in, or StoreError that says what is wrong with it."""
    if table not in ID:
        raise StoreError(f"no events of {table!r}; there are {', '.join(ID)}")
    event = {
        ID[table]: ("v" if table == "votes" else "e") + secrets.token_hex(6),
        AUTHOR[table]: _author(),
        **{name: value for name, value in fields.items() if value is not None},
    }
    event.setdefault("at", datetime.datetime.now(datetime.UTC))
    if isinstance(event["at"], str):
        try:
            event["at"] = datetime.datetime.fromisoformat(event["at"])
        except ValueError:
            raise StoreError(f"{table}: at: {event['at']!r} is no ISO time") from None
    if event["at"].tzinfo is None:
        raise StoreError(f"{table}: at: give the time with its zone (UTC)")
    event["at"] = event["at"].astimezone(datetime.UTC)
    for column, allowed in CHOICES.get(table, {}).items():
        if column in event and event[column] not in allowed:
            raise StoreError(f"{table}: {column} {event[column]!r} is none of {', '.join(allowed)}")
    if table == "decisions":
        needed = {"undo": ["undoes"]}.get(event.get("verdict"), ["selection_id", "target"])
        needed += {"sample": ["sample_id"], "cluster": ["cluster_id"], "rule": ["rule"]}.get(
            event.get("target") if event.get("verdict") != "undo" else None, []
        )
        needed += ["weight"] if event.get("verdict") == "reweight" else []
        for column in needed:
            if column not in event:
                raise StoreError(
                    f"decisions: a {event.get('target') or 'decision'} with verdict "
                    f"{event.get('verdict')!r} needs {column}"
                )
        if event.get("target") == "rule" and event.get("verdict") != "undo":
            check_rule(event["rule"])
    fitted = fit(table, [event]).to_pylist()[0]
    fitted["at"] = fitted["at"].isoformat(timespec="microseconds")
    return {name: value for name, value in fitted.items() if value is not None}


def append(lab, table: str, **fields) -> dict:
    """Say something: an event of `decisions`, `votes` or `run_notes`, on the disk when this returns.

    Id, time (UTC) and author are filled in where they are not given. Returns the event as written. Raises
    StoreError where a field is unknown, missing or of the wrong kind, and where the disk refuses."""
    lab, event = lab_path(lab), _checked(table, fields)
    line = seal_line({"table": table, **event})
    with _lock:
        key = (os.getpid(), str(lab))
        try:
            writer = _writers.get(key)
            if writer is None or not writer.is_there():
                writer = _writers[key] = _Writer(lab)
            writer.write(line)
        except OSError as error:
            raise StoreError(
                f"could not write to {lab / 'events'}: {error.strerror or error}; the event was not recorded"
            ) from error
    return event


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def finished(path: Path) -> bool:
    """Whether no process writes to an event file any more. One that is gone nobody writes to: see `_Writer`."""
    if path.name.startswith(("merged-", "imported-")) or not path.with_suffix(".jsonl").exists():
        return True
    told = re.fullmatch(r"(.+)-(\d+)-(\d+)\.jsonl?", path.name)
    if told and told[1] == host():
        return not _alive(int(told[2]))
    return time.time() - path.stat().st_mtime > IDLE_DAYS * 86400


# -------------------------------------------------------------------------------------------- reading


def clear_cache(lab: Path) -> None:
    """Forget what this process has read of a lab's events, as a new process would."""
    with _lock:
        _read.pop(str(lab), None)
        for name in ID:
            _made.pop((str(lab), name), None)


def close_writers() -> None:
    """Write to a new file from the next event on, as another process would."""
    with _lock:
        for writer in _writers.values():
            os.close(writer.handle)
        _writers.clear()


def lengths(lab: Path, entries: list[str]) -> tuple[dict[str, int], list[Damage]]:
    """How long each event file is at least, by its manifest among `entries`, and the manifests that are damaged."""
    least, damaged = {}, []
    for name in entries:
        if name.endswith(".json") and not name.startswith("."):
            manifest = read_manifest(lab / "events" / name)
            if isinstance(manifest, str):
                damaged.append(Damage("events", f"events/{name}", manifest))
            elif manifest is not None:
                least[manifest["file"]] = manifest["bytes"]
    return least, damaged


def read(lab: Path) -> tuple[dict[str, pa.Table], list[Damage]]:
    """Every event by table, each once, in time order, and the lines that had to be left out."""
    by_id = {name: {} for name in ID}
    with _lock:
        cache = _read.setdefault(str(lab), {})
        try:
            entries = sorted(os.listdir(lab / "events"))
        except (FileNotFoundError, NotADirectoryError):
            entries = []
        least, damaged = lengths(lab, entries)
        for name in sorted({*least, *(name for name in entries if name.endswith(".jsonl"))}):
            path = lab / "events" / name
            try:
                state = cache[name] = read_new(path, cache.get(name))
                size = path.stat().st_size
            except FileNotFoundError:
                if path.with_suffix(".json").exists():  # what compact joins, it removes manifest first
                    damaged.append(Damage("events", f"events/{name}", "is missing"))
                continue
            except OSError as error:
                damaged.append(Damage("events", f"events/{name}", f"cannot be read ({error.strerror})"))
                continue
            damaged += [Damage("events", f"events/{name}", reason) for reason in state[4]]
            if size < least.get(name, 0):
                reason = f"truncated: {size} bytes, there were {least[name]} or more"
                damaged.append(Damage("events", f"events/{name}", reason))
            elif size > state[1]:
                damaged.append(Damage("events", f"events/{name}", "its last line is torn and left out"))
            for event in state[3]:
                table = event.get("table")
                if table in by_id and ID[table] in event:
                    by_id[table][event[ID[table]]] = event
                else:
                    damaged.append(Damage("events", f"events/{name}", "an event of an unknown table"))
    tables = {}
    for name, events in by_id.items():
        declared = schema.TABLES[name]
        rows = sorted(events.values(), key=lambda event: (event.get("at", ""), event[ID[name]]))
        known, table = _made.get((str(lab), name), ([], None))
        if table is None or rows[: len(known)] != known:
            table = _arrow(declared, rows)
        elif len(rows) > len(known):  # a click adds one event, and should not cost all that were said before
            table = pa.concat_tables([table, _arrow(declared, rows[len(known) :])]).combine_chunks()
        _made[str(lab), name] = rows, table
        tables[name] = table
    return tables, damaged


def _arrow(declared: schema.Table, rows: list[dict]) -> pa.Table:
    if not rows:  # Arrow imports pandas for a list of Python objects, which takes longer than all else here
        return declared.arrow().empty_table()

    def value(column, row):
        value = row.get(column.name)
        if value is not None and column.type == schema.TIME:
            return datetime.datetime.fromisoformat(value)
        if column.json and value is not None and not isinstance(value, str):
            return json.dumps(value)
        return value

    return pa.table(
        [pa.array([value(c, row) for row in rows], c.type) for c in declared.columns], schema=declared.arrow()
    )
