"""`verify` reads every byte of a lab again and says what is damaged, missing or orphaned; `--repair` moves it away."""

import contextlib
import os
import shutil
import time
import zlib
from pathlib import Path

import pyarrow.parquet as pq

from . import connection, events, files, history, keys, runs, schema, units, verification
from .errors import Damage, StoreError
from .lab import lab_path
from .rules import rule_matches
from .units import Unit

GRACE_S = 3600.0  # what a merge or a new version replaced stays this long, for connections that still read it


def leftovers(lab: Path, grace_s: float) -> list[Damage]:
    """Files under lab/tables that no manifest names, and halves of store.duckdb: what a killed process or a
    replacement left behind."""
    named = set()
    for table in schema.TABLES:
        for path, manifest in units.read_manifests(lab, table):
            named.add(path)
            named.add(path.parent / manifest["file"] if isinstance(manifest, dict) else path.with_suffix(".parquet"))
    orphans = []
    for path in sorted((lab / "tables").glob("*/*/*")) + sorted((lab / "tables").glob("*/*/.*")):
        try:
            old = time.time() - path.stat().st_mtime > grace_s
        except FileNotFoundError:
            continue
        if old and path.is_file() and path not in named:
            orphans.append(Damage(path.parent.parent.name, str(path.relative_to(lab)), "orphaned: no manifest names it"))
    for path in sorted(lab.glob(".store.*.tmp*")):
        try:
            if time.time() - path.stat().st_mtime > grace_s:
                orphans.append(Damage("store.duckdb", path.name, "orphaned: a half that a killed process left"))
        except FileNotFoundError:
            continue
    return orphans


def _audio(lab: Path, units_by_table: dict[str, list[Unit]]) -> list[Damage]:
    """Shar files that `syntheses` points into and that are missing, too short, or whose FLACs have changed."""
    pointed: dict[str, dict[tuple[int, int], tuple[int | None, str]]] = {}
    for unit in units_by_table.get("syntheses", []):
        column_names = pq.read_schema(unit.path).names
        columns = ["synthesis_id", "audio_path", "audio_offset", "audio_bytes", "audio_crc32"]
        for row in pq.read_table(unit.path, columns=[name for name in columns if name in column_names]).to_pylist():
            if row["audio_path"] is not None:
                place = (row["audio_offset"] or 0, row["audio_bytes"] or 0)
                pointed.setdefault(row["audio_path"], {})[place] = (row.get("audio_crc32"), row["synthesis_id"])
    damage = []
    for name, places in sorted(pointed.items()):
        end = max(offset + size for offset, size in places)
        if not (lab / name).resolve().is_relative_to(lab):
            damage.append(Damage("syntheses", name, "its audio file is outside the lab, and not looked at"))
            continue
        try:
            with open(lab / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                changed = [
                    synthesis
                    for (offset, length), (crc, synthesis) in sorted(places.items())
                    if crc is not None and size >= end and zlib.crc32(os.pread(file.fileno(), length, offset)) != crc
                ]
        except FileNotFoundError:
            damage.append(Damage("syntheses", name, "its audio file is missing"))
            continue
        except OSError as error:
            damage.append(Damage("syntheses", name, f"its audio file cannot be read ({error.strerror})"))
            continue
        if size < end:
            damage.append(Damage("syntheses", name, f"its audio file is truncated: {size} bytes, {end} are pointed at"))
        elif changed:
            verification.forget(lab, name)  # so that the pass that made it looks at it again, whatever its times say
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            synopsis = f"the bytes of {', '.join(changed[:3])}{more} changed: CRC-32 does not agree"
            damage.append(Damage("syntheses", name, f"{synopsis}; what made it makes it again"))
    return damage


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
        lines = [line + b"\n" for line in data.split(b"\n")[:-1] if events.is_event(line + b"\n")]
        place = lab / "damaged" / "events" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    if path.with_suffix(".json").exists():
        _away(lab, path.with_suffix(".json"))
    if lines:
        events.write_whole(path, lines)
    else:
        path.unlink(missing_ok=True)


def inspect(lab: Path, grace_s: float = GRACE_S) -> dict[str, list[Damage]]:
    """What is wrong with a lab, every byte read again, by kind: units, conflicts, events, runs, rules, audio, orphans,
    checkpoints (and encoder frames), files (corpora, tasks, models, cuts)."""
    return _inspect(lab, grace_s)[0]


def _inspect(lab: Path, grace_s: float) -> tuple[dict[str, list[Damage]], list[dict]]:
    """`inspect`, and log entries for files that no record describes yet."""
    units.clear_cache()
    runs.clear_cache()
    events.clear_cache(lab)
    history.clear_cache()
    units_by_table, damaged = units.scan(lab, remembered=False)
    _, conflicts = keys.overlaps(lab, units_by_table, history.read(lab))
    event_tables, event_damage = events.read(lab)
    _, run_damage = runs.read(lab, event_tables["run_notes"])
    _, rule_damage = rule_matches(event_tables["decisions"])
    changed, unrecorded = files.rooms(lab, history.read(lab))
    return {
        "units": damaged, "conflicts": conflicts, "events": event_damage, "runs": run_damage, "rules": rule_damage,
        "audio": _audio(lab, units_by_table), "orphans": leftovers(lab, grace_s),
        "checkpoints": [*files.checkpoints(lab), *files.frames(lab)], "files": changed,
    }, unrecorded  # fmt: skip


def verify(lab: Path | str | None = None, repair: bool = False, grace_s: float = GRACE_S) -> list[Damage]:
    """Read every unit, event and run again and return what is damaged, missing, in conflict or orphaned (table, path,
    reason). Units that no log names are logged, so that a lab from before there were logs gets one.

    `repair=True` moves damaged and orphaned files to lab/damaged/, so that the work that made them can be done
    again, and writes off in the log what is missing; nothing is deleted, and nothing outside the lab is touched. Audio
    and run folders are reported only: the pass or preparation that made a damaged Shar finds it and makes it again."""
    lab = lab_path(lab)
    with contextlib.suppress(OSError):  # a lab that cannot be written is looked at all the same
        units.adopt(lab)
    damage_by_kind, unrecorded = _inspect(lab, grace_s)
    with contextlib.suppress(OSError):
        history.append(lab, unrecorded)
    result = [item for items in damage_by_kind.values() for item in items]
    if repair:
        try:
            _write_off(lab, [item for item in damage_by_kind["units"] if item.table in schema.TABLES])
            for item in damage_by_kind["units"]:
                path = lab / item.path
                if path.parent.parent.parent == lab / "tables":
                    for file in {path.with_suffix(".json"), path.with_suffix(".parquet"), *_old_manifest(path)}:
                        if file.exists() or file.is_symlink():
                            _away(lab, file)
            for name in {Path(item.path).name for item in damage_by_kind["events"]}:
                if events.finished(lab / "events" / name):
                    _mend_events(lab, name)
            for item in damage_by_kind["orphans"]:
                if (lab / item.path).exists():
                    _away(lab, lab / item.path)
        except OSError as error:
            raise StoreError(f"could not repair {lab}: {error}") from error
        if result:
            connection.renew(lab)
    return result


def _old_manifest(path: Path) -> list[Path]:
    """The manifest that names this Parquet file under the name that older versions gave it, if it does."""
    match = units.NAME.fullmatch(path.name)
    if match is None:
        return []
    manifest_path = path.parent / f"unit-{match['unit']}.json"
    manifest = units.read_manifest(manifest_path)
    return [manifest_path] if isinstance(manifest, dict) and manifest["file"] == path.name else []


def _write_off(lab: Path, damaged: list[Damage]) -> None:
    """Log that damaged units are moved away and missing ones given up."""
    past, entries = history.read(lab), []
    by_file = {
        f"tables/{version.table}/{version.entry['file']}": version
        for versions in past.versions.values()
        for version in versions.values()
    }
    for item in damaged:
        for name in (item.path, str(Path(item.path).with_suffix(".parquet"))):
            if version := by_file.get(name):
                entries.append({"op": "remove", "table": version.table, "unit_id": version.unit_id,
                                "sha256": version.sha256, "why": f"salad verify --repair: {item.reason:.200}"})  # fmt: skip
                break
    history.append(lab, entries)


def prefer(lab: Path | str | None, unit: str) -> list[str]:
    """Decide a conflict: the rows of this unit (its id, or id-sha8 for one of its versions) are shown where others have
    their keys. Returns the tables it is in. Raises StoreError where the lab's log names no such unit, or cannot be written."""
    lab = lab_path(lab)
    name, _, sha8 = unit.removeprefix("unit-").removesuffix(".parquet").partition("-")
    try:
        units.adopt(lab)
        versions = [
            version
            for (_, unit_id), published in sorted(history.read(lab).versions.items())
            for version in published.values()
            if unit_id == name and version.sha256.startswith(sha8)
        ]
        if not versions:
            raise StoreError(f"no unit {unit} in the log of {lab}; `salad log` lists them")
        tables = sorted({version.table for version in versions})
        for table in tables:
            shas = {version.sha256 for version in versions if version.table == table}
            history.append(lab, [{"op": "prefer", "table": table, "unit_id": name,
                                  **({"sha256": min(shas)} if sha8 and len(shas) == 1 else {})}])  # fmt: skip
    except OSError as error:
        raise StoreError(f"could not write to {lab / 'log'}: {error.strerror or error}; nothing was decided") from error
    return tables
