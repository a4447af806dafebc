"""Units: one Parquet file and its manifest, written once and checked once by every reader.

A unit exists when its manifest does. Writing goes Parquet first, manifest last, each through a temporary name."""

import concurrent.futures
import contextlib
import json
import os
import re
import secrets
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from . import atomic, history, ids, schema
from .errors import Damage, StoreError
from .lab import code_version, is_whole, lab_path, seal
from .rows import CHUNK, Rows, constants, fit, order_of, table_named, write_parquet
from .verification import MEMBER, check, checked_files, relative, remember, save_checked, sha256

ATTEMPTS = 4  # at reading a lab in which units are being joined and removed
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
        """The number of its rows, by its manifest."""
        return self.manifest["rows"]

    @property
    def manifest_path(self) -> Path:
        """Where its manifest is: beside the file, under the file's name or, in older labs, the unit's alone."""
        path = self.path.with_suffix(".json")
        return path if path.exists() else self.path.parent / f"unit-{self.unit_id}.json"

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
    paths = (lab / "tables" / table).glob(f"*/unit-{unit}*.json")
    return sorted(path for path in paths if path.stem == f"unit-{unit}" or path.stem.startswith(f"unit-{unit}-"))


def publish(
    lab: Path | str | None, table: str, rows: Rows, made_from: dict, merge: dict | None = None, since: int | None = None
) -> Unit:
    """Write `rows` as one unit of `table` and return it.

    `made_from` names the work (ids of inputs, configuration hash, seed, shard) and nothing about when or by which
    code: the same `made_from` is the same unit, and publishing it again replaces it. Atomic: a process that dies
    leaves nothing that a reader sees. Raises StoreError where a row does not fit, and where the disk refuses.
    `merge` is compact's: the members of a merged unit, and the merged units that it replaces. `since`: a reading of the
    log's clock, where these are another unit's rows: when that was published."""
    lab, declared = lab_path(lab), table_named(table)
    if declared.kind not in ("unit", "package"):
        raise StoreError(f"{table} is not published as units; see docs/store.md for what writes it")
    merged = rows[MEMBER] if merge else None
    fitted = fit(table, rows.drop_columns([MEMBER]) if merge else rows)
    if merge:
        fitted = fitted.append_column(MEMBER, merged)
    if fitted.num_rows > CHUNK:
        fitted = fitted.combine_chunks()
    constant = constants(declared, fitted)
    order = order_of(declared, fitted, set(constant))
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
    new: list[Path] = []  # what is to be removed again where a later step fails
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = next((n for n, name in enumerate(declared.sort) if name[0] == "-"), len(declared.sort))
        keys = [name.lstrip("-") for name in declared.sort[: number + 1]]  # behind a number with few ties all is mixed
        write_parquet(temporary, fitted, order, codes + [MEMBER] * bool(merge), keys)
        sha = sha256(temporary)
        path = folder / f"unit-{unit}-{sha[:8]}.parquet"  # readers may hold an older one
        manifest = seal(
            {
                "table": table,
                "unit_id": unit,
                "made_from": made_from,
                "file": path.name,
                "keys": {name: constant[name] for name in declared.key if name in constant},
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
        new = [file for file in (path.with_suffix(".json"), path) if not file.exists()]
        os.replace(temporary, path)
        atomic.fsync_folder(folder)
        atomic.write_json(path.with_suffix(".json"), manifest)
        old = folder / f"unit-{unit}.json"  # the same bytes under the name that older versions gave
        old_manifest = read_manifest(old)
        if isinstance(old_manifest, dict) and old_manifest["sha256"] == sha:
            old.unlink(missing_ok=True)
    except OSError as error:
        result = "nothing of it was published"
        try:
            for file in new:  # the manifest first: without it the unit does not exist
                file.unlink(missing_ok=True)
        except OSError:
            result = f"nor could {file.name} be removed, so look whether the unit is there before you publish it again"
        raise StoreError(f"could not write a unit of {table} under {folder}: {error.strerror or error}; {result}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    remember(lab, path, manifest)
    with contextlib.suppress(OSError):  # the unit is there; whoever writes next finds and logs it
        if not history.read(lab).exists:
            adopt(lab, but=unit)
        entry = history.of_manifest(manifest, folder.name)
        others = sorted(set(history.read(lab).versions.get((table, unit), {})) - {sha})
        history.append(lab, [
            entry | ({"supersedes": others} if others else {}) | ({"clock": since} if since is not None else {})])  # fmt: skip
    return Unit(table, unit, path, manifest)


def exists(lab: Path | str | None, table: str, made_from: dict) -> bool:
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


def version_is_here(lab: Path, unit: Unit) -> bool:
    """Whether a unit with these very bytes is in the lab, shown or not."""
    manifests = (read_manifest(path) for path in _manifest_paths(lab, unit.table, unit.unit_id))
    return any(isinstance(manifest, dict) and manifest["sha256"] == unit.manifest["sha256"] for manifest in manifests)


# -------------------------------------------------------------------------------------------- reading


NAME = re.compile(r"unit-(?P<unit>[A-Za-z0-9_]+)(?:[-.](?P<sha8>[0-9a-f]{8}))?\.parquet")


def manifest_fault(manifest: Any) -> str | None:
    """What is wrong with a manifest, or None. One that comes from elsewhere may say anything."""
    if not isinstance(manifest, dict) or "sum" not in manifest or not is_whole(manifest):
        return "its manifest's checksum does not agree"

    def number(value, least=0):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**62

    table, unit, file = (manifest.get(name) for name in ("table", "unit_id", "file"))
    named = NAME.fullmatch(file) if isinstance(file, str) else None
    if not isinstance(table, str) or not isinstance(unit, str):
        return "its manifest names no table or unit"
    if named is None:
        return "its manifest names no file of a unit: a name without a folder, such as unit-u0123456789ab-01234567.parquet"
    if named["unit"] != unit:
        return "it is not where its manifest says"
    if not re.fullmatch(r"[0-9a-f]{64}", str(manifest.get("sha256"))):
        return "its manifest has no sha256"
    if not (number(manifest.get("rows")) and number(manifest.get("bytes")) and number(manifest.get("schema"), 1)):
        return "its manifest has no number of rows, bytes and schema version"
    if not isinstance(manifest.get("made_from"), dict) or not isinstance(manifest.get("keys", {}), dict):
        return "its manifest does not say what it was made from"
    members, replaces = manifest.get("members", []), manifest.get("replaces", [])
    if not isinstance(members, list) or not all(
        isinstance(m, dict) and isinstance(m.get("unit_id"), str) and isinstance(m.get("sha256"), str) for m in members
    ):
        return "its manifest's list of members cannot be read"
    if not isinstance(replaces, list) or not all(isinstance(name, str) for name in replaces):
        return "its manifest's list of what it replaces cannot be read"
    return None


def read_manifest(path: Path, fault: Callable[[Any], str | None] = manifest_fault) -> dict | str | None:
    """A manifest, or why it cannot be read, or None where it is gone. Remembered while the file stays.

    `fault(value)` says what is wrong with what the file holds, or None."""
    try:
        name = str(path)
        stat = os.stat(name)
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        cached = _manifests.get(name)
        if cached and cached[0] == key:
            return cached[1]
        with open(name, "rb") as file:
            manifest = json.loads(file.read())
        manifest = fault(manifest) or manifest
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


def read_manifests(lab: Path, table: str) -> Iterator[tuple[Path, dict | str]]:
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


def scan(lab: Path, remembered: bool = True, as_of: int | None = None) -> tuple[dict[str, list[Unit]], list[Damage]]:
    """Every unit that a reader may show, by table, and what has to be left out or is missing. Each new file's sha256 is
    checked. `as_of`: a reading of the log's clock; what was published until then."""
    for _ in range(ATTEMPTS):
        n_entries = len(history.read(lab).entries)
        units_by_table, damaged, missing = _scan(lab, remembered, as_of)
        if not missing or len(history.read(lab).entries) == n_entries:
            break  # else somebody has joined units and removed their files while we looked
    return units_by_table, damaged + missing


def _scan(lab: Path, remembered: bool, as_of: int | None) -> tuple[dict[str, list[Unit]], list[Damage], list[Damage]]:
    checked_before = checked_files(lab)
    before = len(checked_before)
    past = history.read(lab)
    then = past if as_of is None else past.until(as_of)
    candidates: list[tuple[Path, Unit]] = []
    damaged = [*past.damaged, *past.lost()]
    for name, table in schema.TABLES.items():
        if table.kind not in ("unit", "package"):
            continue
        for path, manifest in read_manifests(lab, name):
            if isinstance(manifest, dict) and (
                manifest["table"] != name or path.stem not in (f"unit-{manifest['unit_id']}", Path(manifest["file"]).stem)
            ):
                manifest = "it is not where its manifest says"
            if isinstance(manifest, str):
                damaged.append(Damage(name, relative(lab, path), manifest))
            else:
                candidates.append((path, Unit(name, manifest["unit_id"], path.parent / manifest["file"], manifest)))

    def checked(item):
        return check(lab, item[1].path, item[1].manifest, remembered)

    if remembered and all(relative(lab, unit.path) in checked_before for _, unit in candidates):
        reasons = list(map(checked, candidates))
    else:
        try:
            with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing frees the GIL
                reasons = list(pool.map(checked, candidates))
        except RuntimeError:  # the interpreter is about to end and starts no more threads
            reasons = list(map(checked, candidates))
    good: dict[str, list[tuple[Unit, int]]] = {}
    for (path, unit), reason in zip(candidates, reasons, strict=True):
        try:
            since = path.stat().st_mtime_ns // 1000
        except FileNotFoundError:
            continue  # replaced and cleaned up while we looked
        if reason:
            damaged.append(Damage(unit.table, relative(lab, unit.path), reason))
        else:
            good.setdefault(unit.table, []).append((unit, since))
    if len(checked_before) != before:
        save_checked(lab)
    named = {(item.table, item.path.rpartition(".")[0]) for item in damaged}
    resolved, missing = {}, []
    for name in {*good, *(table for table, _ in then.versions)}:
        resolved[name], gone = _resolve(then, past, name, good.get(name, []), as_of)
        missing += [item for item in gone if (item.table, item.path.rpartition(".")[0]) not in named]
    return {name: units for name, units in sorted(resolved.items()) if units}, damaged, missing


def _resolve(
    then: history.History, past: history.History, table: str, units: list[tuple[Unit, int]], as_of: int | None = None
) -> tuple[list[Unit], list[Damage]]:
    """Units of one table such that every row is shown once, whatever has been merged, replaced or copied; and those that
    the log names and that are gone. `units` come with the times of their manifests, for those that no log knows.

    Of a unit that was published more than once, the version published last stands. A merged unit stands for its
    members, unless one was published again since."""
    order: dict[str, dict[str, tuple]] = {}  # unit -> sha256 -> when it was published

    def publish(unit: str, sha: str, since: int) -> None:
        version = then.versions.get((table, unit), {}).get(sha)
        if version is not None:
            order.setdefault(unit, {})[sha] = version.order
        elif (as_of is None or since <= as_of) and sha not in past.versions.get((table, unit), {}):
            order.setdefault(unit, {}).setdefault(sha, (since, "", 0))

    merged = [unit for unit, _ in units if unit.members]
    for unit in merged:
        for member, sha in unit.members.items():
            publish(member, sha, 0)  # what was published on its own again is later
    for unit, since in units:
        if not unit.members:
            publish(unit.unit_id, unit.manifest["sha256"], since)
    for (name, unit_id), versions in then.versions.items():
        if name == table and not any(v.entry.get("members") for v in versions.values()):
            for sha, version in versions.items():
                order.setdefault(unit_id, {})[sha] = version.order
    wanted: dict[str, str] = {}  # unit -> sha256 of the version that stands
    for unit_id, orders in order.items():
        preferred = then.preferred_version(table, unit_id)
        wanted[unit_id] = preferred if preferred in orders else max(orders, key=lambda sha: orders[sha])
    kept: list[Unit] = []
    shown: set[str] = set()
    for unit in sorted(merged, key=lambda u: (-len(u.members), u.unit_id)):
        fresh = {m for m, sha in unit.members.items() if m not in shown and wanted.get(m) == sha}
        shown |= fresh
        if fresh:
            kept.append(unit._replace(without=tuple(sorted(set(unit.members) - fresh))))
    for unit, _ in sorted(units, key=lambda item: str(item[0].path)):
        if not unit.members and unit.unit_id not in shown and wanted.get(unit.unit_id) == unit.manifest["sha256"]:
            shown.add(unit.unit_id)
            kept.append(unit)
    missing = [item for unit_id in sorted(wanted) for item in _clashes(then, table, unit_id, wanted[unit_id])]
    for unit_id in sorted(wanted.keys() - shown):
        last = then.versions.get((table, unit_id), {}).get(wanted[unit_id])
        if last is None:
            continue
        if not past.stands(last):  # removed: since then, or long ago and known
            why = past.removed[table, unit_id, last.sha256][1]
            if as_of is not None and then.stands(last):
                missing.append(Damage(table, f"tables/{table}/{last.entry['file']}", f"was removed since: {why}"))
        elif then.stands(last):
            missing.append(Damage(table, f"tables/{table}/{last.entry['file']}", _missing_reason(last)))
    for (name, unit_id), versions in sorted(then.versions.items()):
        if name == table and any(v.entry.get("members") for v in versions.values()):
            version = max(versions.values(), key=lambda v: v.order)
            here = any(u.unit_id == unit_id for u in merged)
            if not here and then.stands(version) and past.stands(version):
                missing.append(Damage(table, f"tables/{table}/{version.entry['file']}", _missing_reason(version)))
    return sorted(kept, key=lambda unit: str(unit.path)), missing


def _clashes(then: history.History, table: str, unit: str, shown: str) -> list[Damage]:
    """Versions of a unit that another lab published, without having seen the one that is shown, or the other way."""
    versions = then.versions.get((table, unit), {})
    if len(versions) < 2 or shown not in versions or then.preferred_version(table, unit):
        return []
    winner = versions[shown].entry
    return [
        Damage(table, f"tables/{table}/{version.entry['file']}", (
            f"conflict: two labs published unit {unit} with other content; the later one, {shown[:8]}, is shown until "
            f"`salad verify --prefer {unit}-{sha[:8]}` or `--prefer {unit}-{shown[:8]}` decides"))
        for sha, version in sorted(versions.items())
        if sha != shown and (winner.get("carried") or version.entry.get("carried"))
        and sha not in winner.get("supersedes", []) and then.stands(version)
    ]  # fmt: skip


def _missing_reason(version: history.Version) -> str:
    made = json.dumps(version.entry["made_from"], ensure_ascii=False) if "made_from" in version.entry else "unknown"
    return (
        f"is missing: {version.entry.get('rows', '?')} rows, published by {version.entry.get('by', '?')} "
        f"({version.writer}) at {version.entry.get('at', '?')}, made from {made:.200}; copy it back, do that work again, "
        "or let `salad verify --repair` write it off"
    )


def adopt(lab: Path, but: str | None = None) -> int:
    """Log the units that no log names: those of a lab from before there were logs, and those whose publisher was killed
    in between. Returns how many. `but`: a unit that is about to be logged. Raises OSError where the lab cannot be written."""
    past, entries = history.read(lab), []
    for name, table in schema.TABLES.items():
        if table.kind in ("unit", "package"):
            for path, manifest in read_manifests(lab, name):
                if (
                    isinstance(manifest, dict)
                    and manifest["table"] == name
                    and manifest["unit_id"] != but
                    and manifest["sha256"] not in past.versions.get((name, manifest["unit_id"]), {})
                ):
                    with contextlib.suppress(FileNotFoundError):
                        since = path.stat().st_mtime_ns // 1000
                        entries.append(history.of_manifest(manifest, path.parent.name, "found") | {"since": since})
    history.append(lab, entries)
    return len(entries)
