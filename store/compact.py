"""`compact` joins what has become many small files: units into larger ones, finished event and log files into one each."""

import contextlib
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import atomic, connection, events, history, ids, jsonl, schema, units
from .errors import StoreError
from .jsonl import parse_lines
from .lab import lab_path
from .rows import fit
from .units import Unit
from .verification import MEMBER
from .verify import GRACE_S, leftovers

SMALL_BYTES, BATCH_BYTES = 16 << 20, 64 << 20


def _members(unit: Unit) -> list[dict]:
    """A merged unit's list of members; of a plain unit itself, as one."""
    members = unit.manifest.get("members") or [
        {
            "unit_id": unit.unit_id,
            "sha256": unit.manifest["sha256"],
            "rows": unit.rows,
            "made_from": unit.manifest["made_from"],
        }
    ]
    return [member for member in members if member["unit_id"] not in unit.without]


def rows_of(unit: Unit) -> pa.Table:
    """A unit's rows in today's schema, with the column that says which unit each came from."""
    rows = pq.read_table(unit.path)
    if MEMBER in rows.column_names:
        origin = rows[MEMBER]
        if unit.without:
            keep = pc.invert(pc.is_in(origin, pa.array(unit.without, origin.type)))
            rows = rows.filter(keep)
            origin = rows[MEMBER]
        rows = rows.drop_columns([MEMBER])
    else:
        origin = pa.array([unit.unit_id] * rows.num_rows, pa.string())
    return fit(unit.table, rows).append_column(MEMBER, origin)


def merge(lab: Path, batch: list[Unit]) -> Unit:
    """One unit of these units' rows, which readers take in their place."""
    members = sorted((member for unit in batch for member in _members(unit)), key=lambda member: member["unit_id"])
    rows = pa.concat_tables([rows_of(unit) for unit in batch])
    replaces = sorted(
        {unit.unit_id for unit in batch if unit.members} | {name for unit in batch for name in unit.manifest.get("replaces", [])}
    )
    return units.publish(
        lab,
        batch[0].table,
        rows,
        merge={"members": members, "replaces": replaces},
        made_from={"compact": [[member["unit_id"], member["sha256"]] for member in members]},
    )


def replaced(lab: Path, table: str) -> list[tuple[Path, Unit, float, str]]:
    """Units whose rows another unit tells, or another version of them, with their manifests, when the last of those others
    was published, and which it is."""
    whole_units = []
    for path, manifest in units.read_manifests(lab, table):
        if isinstance(manifest, dict) and manifest["table"] == table:
            unit = Unit(table, manifest["unit_id"], path.parent / manifest["file"], manifest)
            if units.check(lab, unit.path, manifest) is None:
                whole_units.append((path, unit))
    kept = {unit.path for unit in units.scan(lab)[0].get(table, [])}
    since: dict[str, tuple[float, str]] = {}  # unit -> when the unit that tells it was published, and its name
    for path, unit in whole_units:
        if unit.path in kept:
            successor = (path.stat().st_mtime, unit.path.stem)
            since.update(dict.fromkeys([unit.unit_id, *unit.members, *unit.manifest.get("replaces", [])], successor))
    return [
        (path, unit, *since[unit.unit_id])
        for path, unit in whole_units
        if unit.path not in kept and unit.unit_id in since  # one whose successor is missing stays
    ]


def _compact_events(lab: Path, grace_s: float) -> tuple[int, int]:
    """Join finished event files; remove those whose every line a joined file has held for a while."""
    folder = lab / "events"
    finished = {}
    least, _ = events.lengths(lab, os.listdir(folder) if folder.is_dir() else [])
    for path in sorted(folder.glob("*.jsonl")):
        try:
            if events.finished(path):
                data = path.read_bytes()
                rows, end, wrong = parse_lines(data)
                if not wrong and len(data) >= least.get(path.name, 0):  # damage stays where `verify` names it
                    finished[path] = [line + b"\n" for line in data[:end].split(b"\n")[:-1]]
        except FileNotFoundError:
            continue
    removed = 0
    merged = {path: set(lines) for path, lines in finished.items() if path.name.startswith("merged-")}
    for path, lines in list(finished.items()):
        holder = next(
            (
                m
                for m, held in merged.items()
                if m != path and held >= set(lines) and (len(held), m.name) > (len(set(lines)), path.name)
            ),
            None,
        )
        if holder is not None:
            finished.pop(path)
            if time.time() - holder.stat().st_mtime >= grace_s:
                path.with_suffix(".json").unlink(missing_ok=True)  # first, or the file would be missed
                path.unlink(missing_ok=True)
                merged.pop(path, None)
                removed += 1
    if len(finished) > 1:
        lines = sorted({line for held in finished.values() for line in held})
        events.write_whole(folder / f"merged-{ids.digest([line.decode() for line in lines])}.jsonl", lines)
    return (len(finished) if len(finished) > 1 else 0), removed


def _compact_log(lab: Path, grace_s: float) -> tuple[int, int]:
    """Join the log files of processes that have ended; remove those whose every entry a joined file has held for a while.

    Entries keep their writers, numbers and clocks, so the log says the same. A file with a damaged or torn line stays where
    `verify` names it."""
    finished: dict[Path, set[bytes]] = {}
    for path in sorted((lab / "log").glob("*.jsonl")):
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith(("joined-", "carried-")) or jsonl.writer_ended(path):
                data = path.read_bytes()
                _, end, wrong = parse_lines(data)
                if not wrong and end == len(data):
                    finished[path] = {line + b"\n" for line in data.split(b"\n")[:-1]}
    removed = 0
    for path, lines in list(finished.items()):
        holders = (
            other
            for other, held in finished.items()
            if other.name.startswith("joined-") and held >= lines and (len(held), other.name) > (len(lines), path.name)
        )
        holder = next(holders, None)
        if holder is not None:
            if time.time() - holder.stat().st_mtime >= grace_s:
                path.unlink(missing_ok=True)
                removed += 1
            del finished[path]
    if len(finished) < 2:
        return 0, removed
    joined = sorted(set().union(*finished.values()))
    name = f"joined-{ids.digest([line.decode() for line in joined])}.jsonl"
    atomic.write_bytes(lab / "log" / name, b"".join(joined))
    return len(finished), removed


def compact(lab: Path | str | None = None, grace_s: float = GRACE_S) -> dict[str, int]:
    """Join small units and finished event files. No reader sees a row twice or misses one.

    A joined unit's manifest names its members, and from the moment it is there readers take it in their place. The
    members' files are removed by a later call, `grace_s` seconds after that, for the sake of open connections.
    Returns how many units and event files were joined and removed."""
    lab = lab_path(lab)
    joined = removed = 0
    if lab.exists() and not lab.is_dir():
        raise StoreError(f"could not compact {lab}: it is a file, not a lab's folder")
    try:
        units.adopt(lab)
        for table in schema.UNITS:
            gone = [item for item in replaced(lab, table.name) if time.time() - item[2] >= grace_s]
            history.append(lab, [
                {"op": "remove", "table": table.name, "unit_id": unit.unit_id, "sha256": unit.manifest["sha256"],
                 "why": f"compact: {by} has its rows, or newer ones"} for _, unit, _, by in gone])  # fmt: skip
            for path, unit, _, _ in gone:
                path.unlink(missing_ok=True)  # manifest first: without it the unit does not exist
                unit.path.unlink(missing_ok=True)
                removed += 1
        for item in leftovers(lab, max(grace_s, 60.0)):
            (lab / item.path).unlink(missing_ok=True)
            removed += 1
        units_by_table, _ = units.scan(lab)
        for name in units_by_table:
            batch: list[Unit] = []
            small = [unit for unit in units_by_table[name] if unit.manifest["bytes"] < SMALL_BYTES and name != "published"]
            following: list[Unit | None] = [*small, None]
            for next_unit in following:
                full = (
                    next_unit is None or sum(unit.manifest["bytes"] for unit in batch) + next_unit.manifest["bytes"] > BATCH_BYTES
                )
                if full and len(batch) > 1:
                    merge(lab, batch)
                    joined += len(batch)
                if full:
                    batch = []
                if next_unit is not None:
                    batch.append(next_unit)
        event_files, event_files_removed = _compact_events(lab, grace_s)
        log_files, log_files_removed = _compact_log(lab, grace_s)
    except OSError as error:
        raise StoreError(f"could not compact {lab}: {error}") from error
    if joined or removed:
        connection.renew(lab)  # its views name the files
    return {
        "units_joined": joined,
        "units_removed": removed,
        "event_files_joined": event_files,
        "event_files_removed": event_files_removed,
        "log_files_joined": log_files,
        "log_files_removed": log_files_removed,
    }
