"""Keeping a lab in order: `verify` reads every byte again, `compact` joins what has become many small files."""

import os
import re
import shutil
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import events, ids, runs, schema, units, views
from .errors import StoreError
from .lab import lab_path
from .units import Damage, Unit

GRACE_S = 3600.0  # what a merge or a new version replaced stays this long, for connections that still read it
SMALL_BYTES, BATCH_BYTES = 16 << 20, 64 << 20
IDLE_DAYS = 7  # an event file of another machine counts as finished when untouched this long


# --------------------------------------------------------------------------------------------- verify


def _leftovers(lab: Path, grace_s: float) -> list[Damage]:
    """Files under lab/tables that no manifest names, and halves of store.duckdb: what a killed process or a
    replacement left behind."""
    named = set()
    for table in schema.TABLES:
        for path, manifest in units._read_manifests(lab, table):
            named.add(path)
            named.add(path.parent / manifest["file"] if isinstance(manifest, dict) else path.with_suffix(".parquet"))
    found = []
    for path in sorted((lab / "tables").glob("*/*/*")) + sorted((lab / "tables").glob("*/*/.*")):
        try:
            old = time.time() - path.stat().st_mtime > grace_s
        except FileNotFoundError:
            continue
        if old and path.is_file() and path not in named:
            found.append(Damage(path.parent.parent.name, str(path.relative_to(lab)), "orphaned: no manifest names it"))
    for path in sorted(lab.glob(".store.*.tmp*")):
        try:
            if time.time() - path.stat().st_mtime > grace_s:
                found.append(Damage("store.duckdb", path.name, "orphaned: a half that a killed process left"))
        except FileNotFoundError:
            continue
    return found


def _audio(lab: Path, found: dict[str, list[Unit]]) -> list[Damage]:
    """Shar files that `syntheses` points into and that are missing, too short, or whose FLACs have changed."""
    pointed: dict[str, dict[tuple[int, int], tuple[int | None, str]]] = {}
    for unit in found.get("syntheses", []):
        known = pq.read_schema(unit.path).names
        columns = ["synthesis_id", "audio_path", "audio_offset", "audio_bytes", "audio_crc32"]
        for row in pq.read_table(unit.path, columns=[name for name in columns if name in known]).to_pylist():
            if row["audio_path"] is not None:
                place = (row["audio_offset"] or 0, row["audio_bytes"] or 0)
                pointed.setdefault(row["audio_path"], {})[place] = (row.get("audio_crc32"), row["synthesis_id"])
    wrong = []
    for name, places in sorted(pointed.items()):
        end = max(offset + size for offset, size in places)
        try:
            with open(lab / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                changed = [
                    synthesis
                    for (offset, length), (crc, synthesis) in sorted(places.items())
                    if crc is not None and size >= end and zlib.crc32(os.pread(file.fileno(), length, offset)) != crc
                ]
        except FileNotFoundError:
            wrong.append(Damage("syntheses", name, "its audio file is missing"))
            continue
        except OSError as error:
            wrong.append(Damage("syntheses", name, f"its audio file cannot be read ({error.strerror})"))
            continue
        if size < end:
            wrong.append(Damage("syntheses", name, f"its audio file is truncated: {size} bytes, {end} are pointed at"))
        elif changed:
            units.forget(lab, name)  # so that the pass that made it looks at it again, whatever its times say
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            told = f"the bytes of {', '.join(changed[:3])}{more} changed: CRC-32 does not agree"
            wrong.append(Damage("syntheses", name, f"{told}; what made it makes it again"))
    return wrong


def _away(lab: Path, path: Path) -> None:
    """Move a file to lab/damaged/, under the path that it had."""
    place = lab / "damaged" / path.relative_to(lab)
    place.parent.mkdir(parents=True, exist_ok=True)
    while place.exists():
        place = place.with_name(place.name + "~")
    os.replace(path, place)


def _mend_events(lab: Path, name: str) -> None:
    """Keep a finished event file's whole lines; the file as it was goes to lab/damaged/, its manifest too."""
    path = (lab / "events" / name).with_suffix(".jsonl")
    lines = []
    if path.exists():
        data = path.read_bytes()
        lines = [
            line for line in data.splitlines(keepends=True) if line.endswith(b"\n") and not events.parse_lines(line)[2]
        ]
        place = lab / "damaged" / "events" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    if path.with_suffix(".json").exists():
        _away(lab, path.with_suffix(".json"))
    if lines:
        events.write_whole(path, lines)
    else:
        path.unlink(missing_ok=True)


def verify(lab=None, repair: bool = False, grace_s: float = GRACE_S) -> list[Damage]:
    """Read every unit, event and run again and return what is damaged, missing or orphaned (table, path, reason).

    `repair=True` moves damaged and orphaned files to lab/damaged/, so that the work that made them can be done
    again; nothing is deleted. Audio and run folders are reported only: the pass or preparation that made a damaged
    Shar finds it and makes it again."""
    lab = lab_path(lab)
    with units._lock:
        units._manifests.clear()
        runs._documents.clear()
        events._read.pop(str(lab), None)
    found, damaged = units.scan(lab, remembered=False)
    said, torn = events.read(lab)
    _, lost = runs.read(lab, said["run_notes"])
    _, unasked = views._rule_matches(said["decisions"])
    orphans = _leftovers(lab, grace_s)
    result = damaged + torn + lost + unasked + _audio(lab, found) + orphans
    if repair:
        try:
            for item in damaged:
                path = lab / item.path
                manifest = next(
                    (
                        p
                        for p, m in units._read_manifests(lab, item.table)
                        if p == path or (isinstance(m, dict) and p.parent / m["file"] == path)
                    ),
                    None,
                )
                for file in {manifest, path if path.suffix == ".parquet" else path.with_suffix(".parquet")}:
                    if file is not None and file.exists():
                        _away(lab, file)
            for name in {Path(item.path).name for item in torn}:
                if _finished(lab / "events" / name):
                    _mend_events(lab, name)
            for item in orphans:
                if (lab / item.path).exists():
                    _away(lab, lab / item.path)
        except OSError as error:
            raise StoreError(f"could not repair {lab}: {error}") from error
        if result:
            views.renew(lab)
    return result


# -------------------------------------------------------------------------------------------- compact


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _finished(path: Path) -> bool:
    """Whether no process writes to an event file any more. One that is gone nobody writes to: see `_Writer`."""
    if path.name.startswith(("merged-", "imported-")) or not path.with_suffix(".jsonl").exists():
        return True
    told = re.fullmatch(r"(.+)-(\d+)-(\d+)\.jsonl?", path.name)
    if told and told[1] == events.host():
        return not _alive(int(told[2]))
    return time.time() - path.stat().st_mtime > IDLE_DAYS * 86400


def _members(unit: Unit) -> list[dict]:
    """A merged unit's list of members; of a plain unit itself, as one."""
    told = unit.manifest.get("members") or [
        {
            "unit_id": unit.unit_id,
            "sha256": unit.manifest["sha256"],
            "rows": unit.rows,
            "made_from": unit.manifest["made_from"],
        }
    ]
    return [member for member in told if member["unit_id"] not in unit.without]


def _rows(unit: Unit) -> pa.Table:
    """A unit's rows in today's schema, with the column that says which unit each came from."""
    rows = pq.read_table(unit.path)
    if units.MEMBER in rows.column_names:
        origin = rows[units.MEMBER]
        if unit.without:
            keep = pc.invert(pc.is_in(origin, pa.array(unit.without, origin.type)))
            rows = rows.filter(keep)
            origin = rows[units.MEMBER]
        rows = rows.drop_columns([units.MEMBER])
    else:
        origin = pa.array([unit.unit_id] * rows.num_rows, pa.string())
    return units.fit(unit.table, rows).append_column(units.MEMBER, origin)


def _merge(lab: Path, batch: list[Unit]) -> Unit:
    members = sorted((member for unit in batch for member in _members(unit)), key=lambda member: member["unit_id"])
    rows = pa.concat_tables([_rows(unit) for unit in batch])
    replaces = sorted(
        {unit.unit_id for unit in batch if unit.members}
        | {name for unit in batch for name in unit.manifest.get("replaces", [])}
    )
    return units.publish(
        lab,
        batch[0].table,
        rows,
        merge={"members": members, "replaces": replaces},
        made_from={"compact": [[member["unit_id"], member["sha256"]] for member in members]},
    )


def _replaced(lab: Path, table: str) -> list[tuple[Path, Unit, float]]:
    """Units whose rows another unit tells, with their manifests, and when the last of those others was published."""
    found = []
    for path, manifest in units._read_manifests(lab, table):
        if isinstance(manifest, dict):
            unit = Unit(table, manifest["unit_id"], path.parent / manifest["file"], manifest)
            if units.check(lab, unit.path, manifest) is None:
                found.append((path, unit))
    kept = {unit.path for unit in units.resolve([unit for _, unit in found])}
    since: dict[str, float] = {}  # unit -> when the merged unit that tells it was published
    for path, unit in found:
        if unit.path in kept:
            since.update(dict.fromkeys([*unit.members, *unit.manifest.get("replaces", [])], path.stat().st_mtime))
    return [(path, unit, since.get(unit.unit_id, 0.0)) for path, unit in found if unit.path not in kept]


def _compact_events(lab: Path, grace_s: float) -> tuple[int, int]:
    """Join finished event files; remove those whose every line a joined file has held for a while."""
    folder = lab / "events"
    finished = {}
    least, _ = events.lengths(lab, os.listdir(folder) if folder.is_dir() else [])
    for path in sorted(folder.glob("*.jsonl")):
        try:
            if _finished(path):
                data = path.read_bytes()
                rows, end, wrong = events.parse_lines(data)
                if not wrong and len(data) >= least.get(path.name, 0):  # damage stays where `verify` names it
                    finished[path] = data[:end].splitlines(keepends=True)
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


def compact(lab=None, grace_s: float = GRACE_S) -> dict:
    """Join small units and finished event files. No reader sees a row twice or misses one.

    A joined unit's manifest names its members, and from the moment it is there readers take it in their place. The
    members' files are removed by a later call, `grace_s` seconds after that, for the sake of open connections.
    Returns how many units and event files were joined and removed."""
    lab = lab_path(lab)
    joined = removed = 0
    try:
        for table in schema.UNITS:
            for path, unit, since in _replaced(lab, table.name):
                if time.time() - since >= grace_s:
                    path.unlink(missing_ok=True)  # manifest first: without it the unit does not exist
                    unit.path.unlink(missing_ok=True)
                    removed += 1
        for item in _leftovers(lab, max(grace_s, 60.0)):
            (lab / item.path).unlink(missing_ok=True)
            removed += 1
        found, _ = units.scan(lab)
        for name in found:
            batch: list[Unit] = []
            small = [unit for unit in found[name] if unit.manifest["bytes"] < SMALL_BYTES and name != "published"]
            for unit in [*small, None]:
                full = unit is None or sum(u.manifest["bytes"] for u in batch) + unit.manifest["bytes"] > BATCH_BYTES
                if full and len(batch) > 1:
                    _merge(lab, batch)
                    joined += len(batch)
                if full:
                    batch = []
                if unit is not None:
                    batch.append(unit)
        event_files, event_files_removed = _compact_events(lab, grace_s)
    except OSError as error:
        raise StoreError(f"could not compact {lab}: {error}") from error
    if joined or removed:
        views.renew(lab)  # its views name the files
    return {
        "units_joined": joined,
        "units_removed": removed,
        "event_files_joined": event_files,
        "event_files_removed": event_files_removed,
    }
