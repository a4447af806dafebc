"""`verify` reads every byte of a lab again and says what is damaged, missing or orphaned; `--repair` moves it away."""

import os
import shutil
import time
import zlib
from pathlib import Path

import pyarrow.parquet as pq

from . import connection, events, runs, schema, units, verification
from .errors import Damage, StoreError
from .jsonl import parse_lines
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
            verification.forget(lab, name)  # so that the pass that made it looks at it again, whatever its times say
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
            line for line in data.splitlines(keepends=True) if line.endswith(b"\n") and not parse_lines(line)[2]
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
    units.clear_cache()
    runs.clear_cache()
    events.clear_cache(lab)
    found, damaged = units.scan(lab, remembered=False)
    said, torn = events.read(lab)
    _, lost = runs.read(lab, said["run_notes"])
    _, unasked = rule_matches(said["decisions"])
    orphans = leftovers(lab, grace_s)
    result = damaged + torn + lost + unasked + _audio(lab, found) + orphans
    if repair:
        try:
            for item in damaged:
                path = lab / item.path
                manifest = next(
                    (
                        p
                        for p, m in units.read_manifests(lab, item.table)
                        if p == path or (isinstance(m, dict) and p.parent / m["file"] == path)
                    ),
                    None,
                )
                for file in {manifest, path if path.suffix == ".parquet" else path.with_suffix(".parquet")}:
                    if file is not None and file.exists():
                        _away(lab, file)
            for name in {Path(item.path).name for item in torn}:
                if events.finished(lab / "events" / name):
                    _mend_events(lab, name)
            for item in orphans:
                if (lab / item.path).exists():
                    _away(lab, lab / item.path)
        except OSError as error:
            raise StoreError(f"could not repair {lab}: {error}") from error
        if result:
            connection.renew(lab)
    return result
