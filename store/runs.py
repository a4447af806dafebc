"""What lab/runs tells: a row of `runs` from each config.json and status.json, `metrics` from the JSONL files."""

import datetime
import json
import math
import os
import re
import threading
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from . import schema
from .errors import Damage, StoreError
from .history import moment
from .jsonl import Lines, plain, read_new
from .lab import is_whole

_lock = threading.RLock()
_documents: dict[str, tuple] = {}  # path -> (size, mtime_ns, inode), document or reason
_metrics: dict[str, Lines] = {}  # path -> what has been read of it
_tables: dict[str, tuple] = {}  # run folder -> states, Arrow table


def read_document(path: Path) -> dict | str | None:
    """A JSON document, or why it cannot be read, or None where there is none."""
    try:
        stat = path.stat()
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if str(path) in _documents and _documents[str(path)][0] == key:
            return _documents[str(path)][1]
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or not is_whole(value):
            value = "its checksum does not agree with its content"
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = "is not JSON"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    _documents[str(path)] = (key, value)
    return value


def clear_cache() -> None:
    """Forget the documents and metrics that this process has read, as a new process would."""
    _documents.clear()
    _metrics.clear()
    _tables.clear()


def _time(value) -> datetime.datetime | None:
    if value is None:
        return None
    time = datetime.datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _cell(column: schema.Column, value):
    """A field of config.json or status.json as its column has it. Raises ValueError or TypeError."""
    if value is None:
        return None
    if column.json:
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, (dict, list)):
        raise ValueError(f"{str(value)!r:.40} is not a {schema.sql_type(column.type)}")
    if column.type == schema.TIME:
        time = _time(value)
        if time is not None:
            moment(time)
        return time
    if column.type == schema.NUMBER:
        value = float(value)
        return value if math.isfinite(value) else None
    if column.type in (schema.BIG, schema.INT):
        number, bits = int(value), 63 if column.type == schema.BIG else 31
        if not -(2**bits) <= number < 2**bits:
            raise ValueError(f"{number} has more than {bits + 1} bits")
        return number
    return plain(str(value))


def _cells(document: dict, renamed: dict[str, str]) -> dict:
    """The columns of `runs` that a document fills. Raises ValueError naming the field that is of the wrong kind."""
    row = {}
    for column in schema.TABLES["runs"].columns:
        name = renamed.get(column.name, column.name)
        if name in document:
            try:
                row[column.name] = _cell(column, document[name])
            except (ValueError, TypeError, OverflowError, RecursionError, StoreError) as error:
                raise ValueError(f"{name}: {error}") from None
    return row


def _of_config(folder: str, config: dict) -> dict:
    row = _cells({key: value for key, value in config.items() if key not in ("sum", "status")}, {})
    if row.get("run_id") != folder:
        raise ValueError(f"names the run {row.get('run_id')}")
    return row


def _of_status(status: dict) -> dict:
    document = {key: value for key, value in status.items() if key not in ("sum", "status", "run_id")}
    names = document.get("metrics_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("metrics_files: is not a list of names")
    return {"status": None, **_cells(document, {"status": "state"})}


def _values(line: dict) -> list[tuple]:
    """(step, tokens, name, value, at) of a metrics file's line. Raises ValueError where it is none."""
    step, tokens, values = line.get("step"), line.get("tokens"), line.get("values")
    for name, number in (("step", step), ("tokens", tokens)):
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if (number is not None or name == "step") and (
            not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**63
        ):
            raise ValueError(f"{name}: {number!r:.40} is not a number of {name}s")
    if not isinstance(values, dict):
        raise ValueError("it has no values")
    try:
        at = _time(line.get("at"))
        if at is not None:
            moment(at)
    except (ValueError, TypeError, OverflowError, StoreError):
        raise ValueError(f"at: {line.get('at')!r:.40} is not a time") from None
    rows = []
    for name, value in values.items():
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"{name}: {value!r:.40} is not a number")
        try:
            value = None if value is None or not math.isfinite(value) else float(value)
        except OverflowError:
            value = None
        rows.append((int(cast(float, step)), tokens if tokens is None else int(tokens), plain(name), value, at))
    return rows


def _named(status) -> set[str]:
    """The metrics files in which a run has logged something, as its status.json says."""
    names = status.get("metrics_files") if isinstance(status, dict) else None
    return {name for name in names if re.fullmatch(r"metrics-\d{1,18}\.jsonl", str(name))} if isinstance(names, list) else set()


def _metrics_of(folder: Path, files: list[str], status: dict) -> tuple[pa.Table, list[Damage]]:
    states, damaged = {}, []
    growing = status.get("state") in ("starting", "running")
    for name in sorted({*files, *_named(status)}):
        path = folder / name
        where = f"runs/{folder.name}/{name}"
        try:
            _metrics[str(path)] = states[name] = read_new(path, _metrics.get(str(path)))
            size = path.stat().st_size
        except FileNotFoundError:
            states.pop(name, None)
            if name in _named(read_document(folder / "status.json")):  # as it is now: a resumed run takes names back
                damaged.append(Damage("metrics", where, "is missing"))
            continue
        except OSError as error:
            damaged.append(Damage("metrics", where, f"cannot be read ({error.strerror})"))
            continue
        damaged += [Damage("metrics", where, reason) for reason in states[name].damage]
        if size == 0 and name in _named(read_document(folder / "status.json")):
            damaged.append(Damage("metrics", where, "is empty"))
        if not growing and size > states[name].size:
            damaged.append(Damage("metrics", where, "its last line is torn and left out"))
    earlier = _tables.get(str(folder))
    if earlier and earlier[0].keys() == states.keys() and all(earlier[0][k] is states[k] for k in states):
        return earlier[1], damaged + earlier[2]
    rows: list[tuple] = []
    line_damage: list[Damage] = []
    starts = {name: int(name.removeprefix("metrics-").removesuffix(".jsonl")) for name in states}
    for name, start in starts.items():
        until = min((other for other in starts.values() if other > start), default=math.inf)
        latest = {}  # of a value logged twice at a step, the later
        for line in states[name].lines:
            try:
                latest.update({(value[0], value[2]): value for value in _values(line) if value[0] < until})
            except (ValueError, RecursionError) as error:
                reason = f"line {line.number}: {error}; it is left out"
                line_damage.append(Damage("metrics", f"runs/{folder.name}/{name}", reason))
        rows += latest.values()
    columns = list(zip(*rows, strict=True)) or [()] * 5
    names = ["step", "tokens", "name", "value", "at"]
    declared = schema.TABLES["metrics"].arrow()
    table = pa.table(
        [
            pa.array([folder.name] * len(rows), schema.TEXT),
            *(pa.array(values, declared.field(n).type) for n, values in zip(names, columns, strict=True)),
        ],
        schema=declared,
    )
    _tables[str(folder)] = (states, table, line_damage)
    return table, damaged + line_damage


def read(lab: Path, notes: pa.Table, as_of: int | None = None) -> tuple[dict[str, pa.Table], list[Damage]]:
    """The tables `runs` (with the latest of `notes`, the run_notes) and `metrics`, and what was left out.

    `as_of`: a reading of the clock. Runs that had started by then, and what they had logged; a status is the last one
    known, for it is written over."""
    rows, metrics, damaged = [], [], []
    with _lock:
        try:
            folders = sorted(entry.name for entry in os.scandir(lab / "runs") if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            folders = []
        for name in folders:
            folder = lab / "runs" / name
            try:
                files = sorted(entry.name for entry in os.scandir(folder))
            except FileNotFoundError:
                continue
            config = read_document(folder / "config.json")
            status = read_document(folder / "status.json")
            if isinstance(status, str):
                damaged.append(Damage("runs", f"runs/{name}/status.json", status))
                status = None
            if config is None and any(re.fullmatch(r"metrics-\d{1,18}\.jsonl|status\.json", file) for file in files):
                config = "is missing"
            row, status_row = None, {}
            try:
                status_row = _of_status(status) if status else {}
            except ValueError as error:
                damaged.append(Damage("runs", f"runs/{name}/status.json", f"{error}; it is left out"))
                status = None
            if isinstance(config, str):
                damaged.append(Damage("runs", f"runs/{name}/config.json", config))
            elif config is not None:
                try:
                    row = status_row | _of_config(name, config)
                    rows.append(row)
                except ValueError as error:
                    damaged.append(Damage("runs", f"runs/{name}/config.json", f"{error}; the run is left out"))
            logged = [file for file in files if re.fullmatch(r"metrics-\d{1,18}\.jsonl", file)]
            table, metric_damage = _metrics_of(folder, logged, status or {})
            metrics.append(table)
            damaged += metric_damage
    latest: dict[str, dict] = {}
    for note in notes.to_pylist():
        latest_note = latest.setdefault(note["run_id"], {})
        latest_note.update({key: note[key] for key in ("tags", "note") if note[key] is not None})
    for row in rows:
        row.update(latest.get(row["run_id"], {}))
    declared = {name: schema.TABLES[name].arrow() for name in ("runs", "metrics")}
    runs = pa.Table.from_pylist(rows, schema=declared["runs"]) if rows else declared["runs"].empty_table()
    metric = pa.concat_tables(metrics) if metrics else declared["metrics"].empty_table()
    if as_of is not None:
        then = pa.scalar(as_of, pa.int64()).cast(pa.timestamp("us")).cast(schema.TIME)
        metric = metric.filter(pc.less_equal(metric["at"], then))
        runs = runs.filter(pc.less_equal(runs["started_at"], then))
    if metric.num_rows:
        metric = metric.take(pc.sort_indices(metric, [("run_id", "ascending"), ("step", "ascending"), ("name", "ascending")]))
    return {"runs": runs, "metrics": metric}, damaged
