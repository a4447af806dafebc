"""Events (decisions, votes, notes): one append-only JSONL file per writing process.

Nothing is updated in place: undo is an event. Every line carries its own checksum, and a manifest beside the file,
written after its first line, says that there is one."""

import contextlib
import datetime
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from . import atomic, jsonl, schema
from .errors import Damage, StoreError
from .history import LATEST_CLOCK, author, moment, next_clock
from .lab import is_whole, lab_path, seal, seal_line
from .rows import fit
from .rules import check_rule
from .units import read_manifest

_lock = threading.RLock()
_writers: dict[tuple, jsonl.Appender] = {}
_named: set[Path] = set()  # event files whose manifest is written
_read: dict[str, dict[str, "_File"]] = {}  # lab -> file -> what has been read of it
_made: dict[tuple[str, str], tuple[list[dict], pa.Table]] = {}  # lab, table -> what was read last: events, as Arrow

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "decisions": {"target": ("sample", "cluster", "rule"), "verdict": ("keep", "drop", "reweight", "undo")},
    "votes": {"choice": ("left", "right", "tie", "both_bad")},
}
AUTHOR = {"decisions": "reviewer", "votes": "voter", "run_notes": "author"}
ID = {"decisions": "event_id", "votes": "vote_id", "run_notes": "event_id"}


def _manifest(path: Path) -> None:
    """Write beside an event file how long it is at least, so that one that is gone or cut is missed."""
    manifest = {"file": path.name, "bytes": path.stat().st_size}
    atomic.write_json(path.with_suffix(".json"), seal(manifest))


def write_whole(path: Path, lines: list[bytes]) -> None:
    """Write an event file that will not grow, and its manifest. Raises OSError."""
    atomic.write_bytes(path, b"".join(lines))
    _manifest(path)


def _checked(table: str, fields: dict) -> dict:
    """The event with id, time and author filled in, or StoreError that says what is wrong with it."""
    if table not in ID:
        raise StoreError(f"no events of {table!r}; there are {', '.join(ID)}")
    event = {
        ID[table]: ("v" if table == "votes" else "e") + secrets.token_hex(6),
        AUTHOR[table]: author(),
        **{name: value for name, value in fields.items() if value is not None},
    }
    event.setdefault("at", datetime.datetime.now(datetime.UTC))
    if isinstance(event["at"], str):
        try:
            event["at"] = datetime.datetime.fromisoformat(event["at"])
        except ValueError:
            raise StoreError(f"{table}: at: {event['at']!r} is not an ISO 8601 time") from None
    if event["at"].tzinfo is None:
        raise StoreError(f"{table}: at: give the time with its zone (UTC)")
    event["at"] = event["at"].astimezone(datetime.UTC)
    for column, allowed in CHOICES.get(table, {}).items():
        if column in event and event[column] not in allowed:
            raise StoreError(f"{table}: {column} {event[column]!r} is not one of {', '.join(allowed)}")
    if table == "decisions":
        undo = event.get("verdict") == "undo"
        needed = ["undoes"] if undo else ["selection_id", "target"]
        of_target = {"sample": ["sample_id"], "cluster": ["cluster_id"], "rule": ["rule"]}
        needed += [] if undo else of_target.get(event.get("target", ""), [])
        needed += ["weight"] if event.get("verdict") == "reweight" else []
        for column in needed:
            if column not in event:
                raise StoreError(
                    f"decisions: a {event.get('target') or 'decision'} with verdict {event.get('verdict')!r} needs {column}"
                )
        if event.get("target") == "rule" and event.get("verdict") != "undo":
            check_rule(event["rule"])
    event["clock"] = 0  # set where it is written
    fitted = fit(table, [event]).to_pylist()[0]
    fitted["at"] = fitted["at"].isoformat(timespec="microseconds")
    return {name: value for name, value in fitted.items() if value is not None}


def append(lab: Path | str | None, table: str, **fields: Any) -> dict[str, Any]:
    """Append an event of `decisions`, `votes` or `run_notes`; it is on the disk when this returns.

    Id, time (UTC), author and clock are filled in (the first three where they are not given). `clock` is later than that of
    every event in the lab, whatever the machine's time is: the last event stands. Returns the event as written. Raises
    StoreError where a field is unknown, missing or of the wrong kind, and where the disk refuses."""
    lab, event = lab_path(lab), _checked(table, fields)
    with _lock:
        key = (os.getpid(), str(lab))
        try:
            writer = _writers.get(key)
            if writer is None or not writer.is_there():
                writer = _writers[key] = jsonl.Appender(lab / "events")
            event["clock"] = next_clock(_latest_clock(lab))
            writer.write(seal_line({"table": table, **event}))
            if writer.path not in _named:
                with contextlib.suppress(OSError):  # the event is on the disk; the next one tries again
                    _manifest(writer.path)
                    _named.add(writer.path)
        except OSError as error:
            result = "the event was not recorded"
            if isinstance(error, jsonl.NotTakenBack):
                result = "nor could what was written be removed, so look whether the event was recorded before you repeat it"
            raise StoreError(f"could not write to {lab / 'events'}: {error.strerror or error}; {result}") from error
    return event


def finished(path: Path) -> bool:
    """Whether no process writes to an event file any more. An Appender never goes on with
    a file that is gone."""
    if path.name.startswith(("merged-", "imported-")) or not path.with_suffix(".jsonl").exists():
        return True
    return jsonl.writer_ended(path)


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
            writer.close()
        _writers.clear()


def _manifest_fault(manifest) -> str | None:
    if not isinstance(manifest, dict) or "sum" not in manifest or not is_whole(manifest):
        return "its manifest's checksum does not agree"
    file, size = manifest.get("file"), manifest.get("bytes")
    if not isinstance(file, str) or not re.fullmatch(r"[^/\0]+\.jsonl", file):
        return "its manifest names no file of events: a name without a folder, such as host-1-1.jsonl"
    return None if isinstance(size, int) and not isinstance(size, bool) else "its manifest has no number of bytes"


def lengths(lab: Path, entries: list[str]) -> tuple[dict[str, int], list[Damage]]:
    """How long each event file is at least, by its manifest among `entries`, and the manifests that are damaged."""
    least, damaged = {}, []
    for name in entries:
        if name.endswith(".json") and not name.startswith("."):
            manifest = read_manifest(lab / "events" / name, _manifest_fault)
            if isinstance(manifest, dict) and Path(manifest["file"]).stem != Path(name).stem:
                manifest = "it is not where its manifest says"
            if isinstance(manifest, str):
                damaged.append(Damage("events", f"events/{name}", manifest))
            elif manifest is not None:
                least[manifest["file"]] = manifest["bytes"]
    return least, damaged


def _fault(event: dict) -> str | None:
    """What is wrong with an event that somebody wrote, or None; `at` and `clock` are put in order."""
    table = event.get("table")
    if not isinstance(table, str) or table not in ID or not isinstance(event.get(ID[table]), str):
        return "an event of an unknown table"
    for column in schema.TABLES[table].columns:
        value, type = event.get(column.name), column.type
        if value is None:
            if column.required and column.name != "clock":
                return f"{column.name} is missing"
        elif column.json:
            if not isinstance(value, str):
                continue
            try:
                jsonl.plain(json.loads(value))
            except (ValueError, RecursionError):
                return f"{column.name}: {value!r:.40} is not JSON"
        elif type == schema.TIME:
            try:
                event[column.name] = value = datetime.datetime.fromisoformat(value)
                moment(value)
            except (TypeError, ValueError, OverflowError, StoreError):
                return f"{column.name}: {value!r:.40} is not a time"
        else:
            fits = {
                schema.TEXT: isinstance(value, str),
                schema.FLAG: isinstance(value, bool),
                schema.NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300,
                schema.INT: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31,
                schema.BIG: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
            }
            if not fits[type]:
                return f"{column.name}: {value!r:.40} is not a {schema.sql_type(type)}"
    if event.get("clock") is None:  # written before there was one
        event["clock"] = max(0, moment(event["at"]))
    elif not 0 <= event["clock"] <= LATEST_CLOCK:
        return f"clock: {event['clock']} is out of range"
    try:
        jsonl.plain({name: value for name, value in event.items() if name != "at"})
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def is_event(line: bytes) -> bool:
    """Whether a line, its newline included, is a whole event that a reader takes."""
    lines, _, damage = jsonl.parse_lines(line)
    return bool(lines) and not damage and _fault(dict(lines[0])) is None


class _File(NamedTuple):
    """What has been read of an event file: its lines, the events in them, what is wrong with which, the latest clock."""

    mark: tuple
    lines: jsonl.Lines
    events: list[dict]
    damage: list[str]
    clock: int


def _read_file(path: Path, earlier: _File | None, stat: os.stat_result) -> _File:
    """An event file, taking up where `known` ended. Raises OSError."""
    mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if earlier and earlier.mark == mark:
        return earlier
    lines = jsonl.read_new(path, earlier.lines if earlier else None)
    events: list[dict] = []
    damage: list[str] = []
    clock, read_before = 0, 0
    if earlier and lines.lines[: len(earlier.lines.lines)] == earlier.lines.lines:  # it has merely grown
        events, damage, clock, read_before = list(earlier.events), list(earlier.damage), earlier.clock, len(earlier.lines.lines)
    for line in lines.lines[read_before:]:
        event = dict(line)
        fault = _fault(event)
        if fault:
            damage.append(f"line {line.number}: {fault}; it is left out")
        else:
            events.append(event)
            clock = max(clock, event["clock"])
    return _File(mark, lines, events, damage, clock)


def _latest_clock(lab: Path) -> int:
    """The latest clock among the lab's events."""
    cache = _read.setdefault(str(lab), {})
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(lab / "events"):
            if name.endswith(".jsonl"):
                with contextlib.suppress(OSError):
                    path = lab / "events" / name
                    cache[name] = _read_file(path, cache.get(name), path.stat())
    return max((file.clock for file in cache.values()), default=0)


def read(lab: Path, as_of: int | None = None) -> tuple[dict[str, pa.Table], list[Damage]]:
    """Every event by table, each once, in the order of their clocks, and the lines that had to be left out.

    `as_of`: a reading of the clock; only events up to then."""
    by_id: dict[str, dict[str, dict]] = {name: {} for name in ID}
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
                stat = path.stat()
                state = cache[name] = _read_file(path, cache.get(name), stat)
            except FileNotFoundError:
                if path.with_suffix(".json").exists():  # what compact joins, it removes manifest first
                    damaged.append(Damage("events", f"events/{name}", "is missing"))
                continue
            except OSError as error:
                damaged.append(Damage("events", f"events/{name}", f"cannot be read ({error.strerror})"))
                continue
            damaged += [Damage("events", f"events/{name}", reason) for reason in [*state.lines.damage, *state.damage]]
            if stat.st_size < least.get(name, 0):
                reason = f"truncated: {stat.st_size} bytes, there were {least[name]} or more"
                damaged.append(Damage("events", f"events/{name}", reason))
            elif stat.st_size > state.lines.size:
                damaged.append(Damage("events", f"events/{name}", "its last line is torn and left out"))
            for event in state.events:
                by_id[event["table"]][event[ID[event["table"]]]] = event
    tables = {}
    for name, events in by_id.items():
        declared = schema.TABLES[name]
        rows = sorted(events.values(), key=lambda event: (event["clock"], event[ID[name]]))
        if as_of is not None:
            tables[name] = _arrow(declared, [event for event in rows if event["clock"] <= as_of])
            continue
        earlier_rows, table = _made.get((str(lab), name), ([], None))
        if table is None or rows[: len(earlier_rows)] != earlier_rows:
            table = _arrow(declared, rows)
        elif len(rows) > len(earlier_rows):  # a click adds one event, and should not cost rereading all earlier ones
            table = pa.concat_tables([table, _arrow(declared, rows[len(earlier_rows) :])]).combine_chunks()
        _made[str(lab), name] = rows, table
        tables[name] = table
    return tables, damaged


def _arrow(declared: schema.Table, rows: list[dict]) -> pa.Table:
    if not rows:  # Arrow imports pandas for a list of Python objects, which takes longer than all else here
        return declared.arrow().empty_table()

    def value(column, row):
        value = row.get(column.name)
        return json.dumps(value) if column.json and value is not None and not isinstance(value, str) else value

    return pa.table([pa.array([value(c, row) for row in rows], c.type) for c in declared.columns], schema=declared.arrow())
