"""Units: one Parquet file and its manifest, written once and checked once by every reader.

A unit exists when its manifest does. Writing goes Parquet first, manifest last, each through a temporary name."""

import concurrent.futures
import json
import os
import secrets
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from . import atomic, ids, schema
from .errors import Damage, StoreError
from .lab import code_version, is_whole, lab_path, seal
from .rows import CHUNK, fit, order_of, table_named, write_parquet
from .verification import check, checked_files, relative, remember, save_checked, sha256

MEMBER = "_unit"  # column of a merged unit: which unit a row came from; no view shows it
_manifests: dict[str, tuple] = {}  # path -> (size, mtime_ns, ctime_ns), manifest or reason


class Unit(NamedTuple):
    """A published unit. `path` is its Parquet file, `without` the members that another unit tells better."""

    table: str
    unit_id: str
    path: Path
    manifest: dict
    without: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    @property
    def members(self) -> dict[str, str]:
        """Of a merged unit: the units in it and the sha256 that each had."""
        return {member["unit_id"]: member["sha256"] for member in self.manifest.get("members", [])}


def unit_id(table: str, made_from: dict) -> str:
    """A unit's id: `u` and 12 hex digits of the hash of its table and what it was made from."""
    return ids.hash_id("u", table, made_from)


# ----------------------------------------------------------------------------------------- publishing


def _folder(lab: Path, table: schema.Table, rows: pa.Table) -> Path:
    value = "all"
    if table.folder:
        distinct = pc.unique(rows[table.folder].slice(0)) if rows.num_rows else pa.array([], pa.string())
        value = str(distinct[0].as_py()) if len(distinct) == 1 else "mixed"
    key = table.folder or "part"
    return lab / "tables" / table.name / f"{key}={urllib.parse.quote(value, safe='')[:100]}"


def _manifest_paths(lab: Path, table: str, unit: str) -> list[Path]:
    return sorted((lab / "tables" / table).glob(f"*/unit-{unit}.json"))


def publish(lab, table: str, rows, made_from: dict, merge: dict | None = None) -> Unit:
    """Write `rows` as one unit of `table` and return it.

    `made_from` names the work (ids of inputs, configuration hash, seed, shard) and nothing about when or by which
    code: the same `made_from` is the same unit, and publishing it again replaces it. Atomic: a process that dies
    leaves nothing that a reader sees. Raises StoreError where a row does not fit, and where the disk refuses.
    `merge` is compact's: the members of a merged unit, and the merged units that it replaces."""
    lab, declared = lab_path(lab), table_named(table)
    if declared.kind not in ("unit", "package"):
        raise StoreError(f"{table} is not published as units; see docs/store.md for what writes it")
    merged = rows[MEMBER] if merge else None
    fitted = fit(table, rows.drop_columns([MEMBER]) if merge else rows)
    if merge:
        fitted = fitted.append_column(MEMBER, merged)
    if fitted.num_rows > CHUNK:
        fitted = fitted.combine_chunks()
    order = order_of(declared, fitted)
    unit = unit_id(table, made_from)
    folder = _folder(lab, declared, fitted)
    codes = [
        c.name
        for c in declared.columns
        if c.type in (schema.TEXT, schema.INT, schema.BIG, schema.TEXTS)
        and c.name
        not in (
            "sample_id",
            "synthesis_id",
            "text",
            "spoken",
            "eval_id",
            "cut_id",
            "text_asr",
            "position",
            "draw",
            "audio_offset",
            "audio_bytes",
        )
    ]
    temporary = folder / f".unit-{unit}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = next((n for n, name in enumerate(declared.sort) if name[0] == "-"), len(declared.sort))
        keys = [name.lstrip("-") for name in declared.sort[: number + 1]]  # behind a number with few ties all is mixed
        write_parquet(temporary, fitted, order, codes + [MEMBER] * bool(merge), keys)
        sha = sha256(temporary)
        path = folder / f"unit-{unit}.parquet"
        if path.exists() and path.with_suffix(".json").exists() and sha256(path) != sha:
            # readers may hold the old file: the new manifest names the new one, and the switch is one rename
            path = folder / f"unit-{unit}.{sha[:8]}.parquet"
        manifest = seal(
            {
                "table": table,
                "unit_id": unit,
                "made_from": made_from,
                "file": path.name,
                "rows": fitted.num_rows,
                "bytes": temporary.stat().st_size,
                "sha256": sha,
                "schema": declared.version,
                "config_hash": made_from.get("config_hash"),
                "seed": made_from.get("seed"),
                "code_version": code_version(),
                **(merge or {}),
            }
        )
        os.replace(temporary, path)
        atomic.fsync_folder(folder)
        manifest_path = folder / f"unit-{unit}.json"
        atomic.write_json(manifest_path, manifest)
        for old in _manifest_paths(lab, table, unit):  # the same work, once filed under another key
            if old != manifest_path:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"could not write a unit of {table} under {folder}: {error.strerror or error}; nothing of it was published"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    remember(lab, path, sha)
    return Unit(table, unit, path, manifest)


def exists(lab, table: str, made_from: dict) -> bool:
    """Whether this work is published, merged into a bigger unit or not: its manifest is whole, and its Parquet file
    there and as long as the manifest says. No byte of it is read: `scan` finds what changed inside."""
    lab, unit = lab_path(lab), unit_id(table, made_from)

    def there(path: Path, manifest) -> bool:
        if not isinstance(manifest, dict):
            return False
        try:
            return (path.parent / manifest["file"]).stat().st_size == manifest["bytes"]
        except OSError:
            return False

    if any(there(path, read_manifest(path)) for path in _manifest_paths(lab, table, unit)):
        return True
    return any(
        unit in Unit(table, "", path, manifest).members and there(path, manifest)
        for path, manifest in read_manifests(lab, table)
        if isinstance(manifest, dict) and "members" in manifest
    )


# -------------------------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> dict | str | None:
    """A manifest, or why it cannot be read, or None where it is gone. Remembered while the file stays."""
    try:
        name = str(path)
        stat = os.stat(name)
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = _manifests.get(name)
        if known and known[0] == key:
            return known[1]
        with open(name, "rb") as file:
            manifest = json.loads(file.read())
        if not isinstance(manifest, dict) or "sum" not in manifest or not is_whole(manifest):
            manifest = "its manifest's checksum does not agree"
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        manifest = "its manifest is not JSON"
    except OSError as error:
        return f"its manifest cannot be read ({error.strerror})"
    _manifests[str(path)] = (key, manifest)
    return manifest


def clear_cache() -> None:
    """Forget the manifests that this process has read, as a new process would."""
    _manifests.clear()


def read_manifests(lab: Path, table: str):
    """(path, manifest or why it cannot be read) of every manifest of a table."""
    root = lab / "tables" / table
    try:
        folders = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for folder in folders:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("unit-") and entry.name.endswith(".json"):
                path = Path(entry.path)
                manifest = read_manifest(path)
                if manifest is not None:
                    yield path, manifest


def scan(lab: Path, remembered: bool = True) -> tuple[dict[str, list[Unit]], list[Damage]]:
    """Every unit that a reader may show, by table, and what has to be left out. Each new file's sha256 is checked."""
    known = checked_files(lab)
    before = len(known)
    found: list[tuple[Path, Unit]] = []
    damaged: list[Damage] = []
    for name, table in schema.TABLES.items():
        if table.kind not in ("unit", "package"):
            continue
        for path, manifest in read_manifests(lab, name):
            if isinstance(manifest, dict) and (manifest["table"], f"unit-{manifest['unit_id']}") != (name, path.stem):
                manifest = "it is not where its manifest says"
            if isinstance(manifest, str):
                damaged.append(Damage(name, relative(lab, path), manifest))
            else:
                found.append((path, Unit(name, manifest["unit_id"], path.parent / manifest["file"], manifest)))

    def checked(item):
        return check(lab, item[1].path, item[1].manifest, remembered)

    if remembered and all(relative(lab, unit.path) in known for _, unit in found):
        reasons = list(map(checked, found))
    else:
        try:
            with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing frees the GIL
                reasons = list(pool.map(checked, found))
        except RuntimeError:  # the interpreter is about to end and starts no more threads
            reasons = list(map(checked, found))
    good: dict[str, list[Unit]] = {}
    for (path, unit), reason in zip(found, reasons, strict=True):
        if reason and not path.exists():
            continue  # replaced and cleaned up while we looked
        if reason:
            damaged.append(Damage(unit.table, relative(lab, unit.path), reason))
        else:
            good.setdefault(unit.table, []).append(unit)
    if len(known) != before:
        save_checked(lab)
    return {name: resolve(units) for name, units in good.items()}, damaged


def resolve(units: list[Unit]) -> list[Unit]:
    """Units of one table such that every row is told once, whatever has been merged, replaced or copied.

    A merged unit stands for its members, unless one was published again with other bytes since."""
    single = {}
    for unit in sorted((u for u in units if not u.members), key=lambda u: u.path.stat().st_mtime_ns):
        single[unit.unit_id] = unit  # filed twice under two keys: the later one
    kept, told = [], {}
    merged = [unit for unit in units if unit.members]
    replaced = {name for unit in merged for name in unit.manifest["replaces"]}
    for unit in sorted((u for u in merged if u.unit_id not in replaced), key=lambda u: (-len(u.members), u.unit_id)):
        fresh = {
            m: sha
            for m, sha in unit.members.items()
            if m not in told and (m not in single or single[m].manifest["sha256"] == sha)
        }
        told.update(fresh)
        if fresh:
            kept.append(unit._replace(without=tuple(sorted(set(unit.members) - set(fresh)))))
    kept += [unit for unit in single.values() if unit.unit_id not in told]
    return sorted(kept, key=lambda unit: str(unit.path))
