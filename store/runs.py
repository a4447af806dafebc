"""What lab/runs tells: a row of `runs` from each config.json and status.json, `metrics` from the JSONL files."""

import datetime
import json
import math
import os
import re
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from . import schema
from .errors import Damage
from .jsonl import read_new
from .lab import is_whole

_lock = threading.RLock()
_documents: dict[str, tuple] = {}  # path -> (size, mtime_ns, inode), document or reason
_metrics: dict[str, tuple] = {}  # path -> state of read_new
_tables: dict[str, tuple] = {}  # run folder -> states, Arrow table


def _document(path: Path) -> dict | str | None:
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
    """Forget the documents that this process has read, as a new process would."""
    _documents.clear()


def _time(value) -> datetime.datetime | None:
    if value is None:
        return None
    time = datetime.datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _row(folder: str, config: dict, status: dict) -> dict:
    """A row of `runs`. Raises ValueError where a field is of the wrong kind."""
    both = {**{k: v for k, v in status.items() if k not in ("sum", "state")}, **config, "status": status.get("state")}
    row = {}
    for column in schema.TABLES["runs"].columns:
        value = both.get(column.name)
        if column.type == schema.TIME:
            value = _time(value)
        elif column.json and value is not None:
            value = json.dumps(value, ensure_ascii=False)
        elif column.type in (schema.BIG, schema.INT, schema.NUMBER) and value is not None:
            value = float(value) if column.type == schema.NUMBER else int(value)
        elif column.type == schema.TEXT and value is not None:
            value = str(value)
        row[column.name] = value
    if row["run_id"] != folder:
        raise ValueError(f"names the run {row['run_id']}")
    return row


def _values(lines: list[dict]) -> list[tuple]:
    """(step, tokens, name, value, at) of a file's lines; of a value logged twice at a step, the later."""
    latest = {}
    for line in lines:
        step, at = int(line["step"]), _time(line.get("at"))
        for name, value in line["values"].items():
            value = None if value is None or not math.isfinite(value) else float(value)
            latest[step, name] = (step, line.get("tokens"), name, value, at)
    return list(latest.values())


def _named(status) -> set[str]:
    """The metrics files in which a run has logged something, as its status.json says."""
    names = status.get("metrics_files") if isinstance(status, dict) else None
    return {name for name in names or () if re.fullmatch(r"metrics-\d+\.jsonl", str(name))}


def _metrics_of(folder: Path, files: list[str], status: dict) -> tuple[pa.Table, list[Damage]]:
    states, damaged = {}, []
    growing = status.get("state") in ("starting", "running")
    for name in sorted({*files, *_named(status)}):
        path = folder / name
        where = f"runs/{folder.name}/{name}"
        try:
            _metrics[str(path)] = states[name] = read_new(path, _metrics.get(str(path)))
        except FileNotFoundError:
            if name in _named(_document(folder / "status.json")):  # as it is now: a resumed run takes names back
                damaged.append(Damage("metrics", where, "is missing"))
            continue
        except OSError as error:
            damaged.append(Damage("metrics", where, f"cannot be read ({error.strerror})"))
            continue
        damaged += [Damage("metrics", where, reason) for reason in states[name][4]]
        size = path.stat().st_size
        if size == 0 and name in _named(_document(folder / "status.json")):
            damaged.append(Damage("metrics", where, "is empty"))
        if not growing and size > states[name][1]:
            damaged.append(Damage("metrics", where, "its last line is torn and left out"))
    known = _tables.get(str(folder))
    if known and known[0].keys() == states.keys() and all(known[0][k] is states[k] for k in states):
        return known[1], damaged + known[2]
    rows, wrong = [], []
    starts = {name: int(re.fullmatch(r"metrics-(\d+)\.jsonl", name)[1]) for name in states}
    for name, start in starts.items():
        until = min((other for other in starts.values() if other > start), default=math.inf)
        try:
            rows += [row for row in _values(states[name][3]) if row[0] < until]
        except (KeyError, TypeError, ValueError, AttributeError):
            wrong.append(Damage("metrics", f"runs/{folder.name}/{name}", "a line is no metric"))
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
    _tables[str(folder)] = (states, table, wrong)
    return table, damaged + wrong


def read(lab: Path, notes: pa.Table) -> tuple[dict[str, pa.Table], list[Damage]]:
    """The tables `runs` (with the latest of `notes`, the run_notes) and `metrics`, and what was left out."""
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
            config = _document(folder / "config.json")
            status = _document(folder / "status.json")
            if isinstance(status, str):
                damaged.append(Damage("runs", f"runs/{name}/status.json", status))
                status = None
            if config is None and any(re.fullmatch(r"metrics-\d+\.jsonl|status\.json", file) for file in files):
                config = "is missing"
            if isinstance(config, str):
                damaged.append(Damage("runs", f"runs/{name}/config.json", config))
            elif config is not None:
                try:
                    rows.append(_row(name, {k: v for k, v in config.items() if k != "sum"}, status or {}))
                except (ValueError, TypeError) as error:
                    damaged.append(Damage("runs", f"runs/{name}", f"config.json or status.json: {error}"))
            logged = [file for file in files if re.fullmatch(r"metrics-\d+\.jsonl", file)]
            table, wrong = _metrics_of(folder, logged, status or {})
            metrics.append(table)
            damaged += wrong
    latest = {}
    for note in notes.to_pylist():
        kept = latest.setdefault(note["run_id"], {})
        kept.update({key: note[key] for key in ("tags", "note") if note[key] is not None})
    for row in rows:
        row.update(latest.get(row["run_id"], {}))
    declared = {name: schema.TABLES[name].arrow() for name in ("runs", "metrics")}
    runs = pa.Table.from_pylist(rows, schema=declared["runs"]) if rows else declared["runs"].empty_table()
    metric = pa.concat_tables(metrics) if metrics else declared["metrics"].empty_table()
    if metric.num_rows:
        metric = metric.take(
            pc.sort_indices(metric, [("run_id", "ascending"), ("step", "ascending"), ("name", "ascending")])
        )
    return {"runs": runs, "metrics": metric}, damaged
