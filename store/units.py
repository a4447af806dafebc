"""Units: one Parquet file and its manifest, written once and checked once by every reader.

A unit exists when its manifest does. Writing goes Parquet first, manifest last, each through a temporary name."""

import concurrent.futures
import difflib
import hashlib
import json
import os
import secrets
import threading
import time
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import atomic, ids, schema
from .errors import StoreError
from .lab import code_version, is_whole, lab_path, seal

ROW_GROUP = 122_880  # rows, as DuckDB likes them
CHUNK = 4 * ROW_GROUP
SAVE_S = 5.0  # seconds between two writings of what was checked, where files are checked one by one
MEMBER = "_unit"  # column of a merged unit: which unit a row came from; no view shows it
_verified: dict[str, dict[str, list]] = {}  # lab -> relative path -> [size, mtime_ns, ctime_ns, sha256]
_manifests: dict[str, tuple] = {}  # path -> (size, mtime_ns, ctime_ns), manifest or reason
_saved: dict[str, float] = {}  # lab -> when what `remembered` knows was last put beside it
_lock = threading.RLock()


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


class Damage(NamedTuple):
    """Something a reader left out: its table, its path relative to the lab, and why."""

    table: str
    path: str
    reason: str


def unit_id(table: str, made_from: dict) -> str:
    """A unit's id: `u` and 12 hex digits of the hash of its table and what it was made from."""
    return ids.hash_id("u", table, made_from)


# ---------------------------------------------------------------------------------------------- rows


def _table(name: str) -> schema.Table:
    if name not in schema.TABLES:
        raise StoreError(f"no table {name!r}; there are {', '.join(sorted(schema.TABLES))}")
    return schema.TABLES[name]


def _column(table: schema.Table, column: schema.Column, values) -> pa.ChunkedArray | pa.Array:
    """`values` (an Arrow array or a list) as the column's declared type, or StoreError naming column and row."""

    def refuse(row, why):
        raise StoreError(f"{table.name}: column {column.name!r}, row {row}: {why}")

    if isinstance(values, (pa.ChunkedArray, pa.Array)):
        if values.type != column.type:
            try:
                values = values.cast(column.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return _column(table, column, values.to_pylist())
    else:
        if column.json:
            values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        elif column.type == schema.TEXT:
            values = [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
        if pa.types.is_list(column.type):  # Arrow takes a text for a list of letters
            for row, value in enumerate(values):
                if isinstance(value, (str, bytes)):
                    refuse(row, f"{value!r:.80} is no {schema.sql_type(column.type)}; give a list")
        try:
            values = pa.array(values, column.type, from_pandas=False)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            for row, value in enumerate(values):
                try:
                    pa.array([value], column.type, from_pandas=False)
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    refuse(row, f"{value!r:.80} is no {schema.sql_type(column.type)}")
            raise
    if column.required and values.null_count:
        refuse(pc.index(pc.is_null(values), True).as_py(), "must not be null")
    if pa.types.is_floating(column.type):
        # a sum is finite where every value is: one pass, no boolean column
        if not pc.is_finite(pc.coalesce(pc.sum(values), 0.0)).as_py():
            odd = pc.index(pc.is_finite(pc.fill_null(values, 0.0)), False).as_py()
            if odd >= 0:
                refuse(odd, f"{values[odd].as_py()} is not finite; what has no value is null")
    return values


def fit(name: str, rows) -> pa.Table:
    """`rows` (Arrow table, DataFrame or list of dicts) as the table's declared schema.

    Raises StoreError naming column and row where they don't fit. In a DataFrame NaN means null."""
    table = _table(name)
    if isinstance(rows, pa.RecordBatchReader):
        rows = rows.read_all()
    if isinstance(rows, pa.Table):
        given = {column: rows[column] for column in rows.column_names}
        length = rows.num_rows
    elif hasattr(rows, "iloc"):  # pandas
        given, length = {}, len(rows)
        for column in rows.columns:
            try:
                given[str(column)] = pa.Array.from_pandas(rows[column])
            except (pa.ArrowException, TypeError, ValueError):
                given[str(column)] = rows[column].tolist()
    else:
        rows = list(rows)
        length, given = len(rows), {}
        names = dict.fromkeys(key for row in rows for key in row)
        given = {key: [row.get(key) for row in rows] for key in names}
    known = table.arrow().names
    for column in given:
        if column not in known:
            near = difflib.get_close_matches(column, known, 1)
            raise StoreError(
                f"{name} has no column {column!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}")
            )
    columns = []
    for column in table.columns:
        if column.name in given:
            columns.append(_column(table, column, given[column.name]))
        elif column.required and length:
            raise StoreError(f"{name}: column {column.name!r} is missing, and must not be null")
        else:
            columns.append(pa.nulls(length, column.type))
    return pa.table(columns, schema=table.arrow())


def _is_constant(column: pa.ChunkedArray) -> bool:
    """Whether a column says the same in every row."""
    if column.null_count:
        return column.null_count == len(column)
    return not len(column) or pc.all(pc.equal(column, column[0])).as_py() is not False


def _gathered(column: pa.ChunkedArray, indices: np.ndarray) -> pa.Array | pa.ChunkedArray:
    """`column.take(indices)`; of ids, which are all of one length, in half of Arrow's time."""
    if column.type == schema.TEXT and column.num_chunks == 1 and not column.null_count:
        _, offsets, data = column.chunk(0).buffers()
        ends = np.frombuffer(offsets, np.int32)[column.chunk(0).offset :][: len(column) + 1]
        width = int(ends[1] - ends[0])
        if 0 < width <= 64 and (np.diff(ends) == width).all():
            cells = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].view(f"V{width}").take(indices)
            ends = np.arange(0, width * len(indices) + 1, width, np.int32)
            return pa.Array.from_buffers(schema.TEXT, len(indices), [None, pa.py_buffer(ends), pa.py_buffer(cells)])
    return column.take(pa.array(indices))


def _order(table: schema.Table, rows: pa.Table) -> np.ndarray | None:
    """Indices that put rows in the table's order, or None where they stand so."""
    keys = []
    for key in table.sort:
        if not _is_constant(rows[key.lstrip("-")]):  # a key that is the same in every row costs nothing
            keys.append((key.lstrip("-"), "descending" if key[0] == "-" else "ascending"))
    if not keys:
        return None
    if rows[keys[0][0]].type != schema.NUMBER:
        return pc.sort_indices(rows, keys).to_numpy()
    # by one number with few ties: NumPy's sort is ten times faster; the tied rows alone see the other keys
    sign = -1.0 if keys[0][1] == "descending" else 1.0
    values = sign * pc.fill_null(rows[keys[0][0]], sign * np.inf).to_numpy()
    order = np.argsort(values)
    values = values[order]
    equal = values[1:] == values[:-1]
    tied = np.zeros(len(order), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    if tied.any():
        among = np.sort(order[tied])
        order[tied] = among[pc.sort_indices(rows.take(among), keys).to_numpy()]
    return order


# ----------------------------------------------------------------------------------------- publishing


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_parquet(path: Path, rows: pa.Table, order: np.ndarray | None, codes: list[str], keys: list[str]) -> None:
    """Parquet, zstd, row groups of 122,880 rows, flushed to the disk. `codes`: columns worth a dictionary; `keys`:
    those whose least and greatest values let a query pass over row groups, which the others only pay for."""

    same = set() if order is None else {n for n in codes if rows[n].type != schema.TEXTS and _is_constant(rows[n])}

    def part(start: int) -> pa.Table:
        if order is None:
            return rows.slice(start, CHUNK)
        indices = order[start : start + CHUNK]
        return pa.table(
            [
                rows[name].slice(start, CHUNK) if name in same else _gathered(rows[name], indices)
                for name in rows.column_names
            ],
            schema=rows.schema,
        )

    with (
        pq.ParquetWriter(
            path, rows.schema, compression="zstd", compression_level=1, use_dictionary=codes, write_statistics=keys
        ) as writer,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        ahead = pool.submit(part, 0)  # the next rows are put in order while these are compressed
        for start in range(0, rows.num_rows, CHUNK):
            chunk, ahead = ahead.result(), pool.submit(part, start + CHUNK)
            writer.write_table(chunk, row_group_size=ROW_GROUP)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    lab, declared = lab_path(lab), _table(table)
    if declared.kind not in ("unit", "package"):
        raise StoreError(f"{table} is not published as units; see docs/store.md for what writes it")
    merged = rows[MEMBER] if merge else None
    fitted = fit(table, rows.drop_columns([MEMBER]) if merge else rows)
    if merge:
        fitted = fitted.append_column(MEMBER, merged)
    if fitted.num_rows > CHUNK:
        fitted = fitted.combine_chunks()
    order = _order(declared, fitted)
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
        _write_parquet(temporary, fitted, order, codes + [MEMBER] * bool(merge), keys)
        sha = _sha256(temporary)
        path = folder / f"unit-{unit}.parquet"
        if path.exists() and path.with_suffix(".json").exists() and _sha256(path) != sha:
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
    with _lock:
        _remember(lab, path, sha)
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

    if any(there(path, _read_manifest(path)) for path in _manifest_paths(lab, table, unit)):
        return True
    return any(
        unit in Unit(table, "", path, manifest).members and there(path, manifest)
        for path, manifest in _read_manifests(lab, table)
        if isinstance(manifest, dict) and "members" in manifest
    )


# -------------------------------------------------------------------------------------------- reading


def _read_manifest(path: Path) -> dict | str | None:
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


def _read_manifests(lab: Path, table: str):
    root = lab / "tables" / table
    try:
        folders = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for folder in folders:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("unit-") and entry.name.endswith(".json"):
                path = Path(entry.path)
                manifest = _read_manifest(path)
                if manifest is not None:
                    yield path, manifest


def _cache_file(lab: Path) -> Path:
    return lab / ".store-cache" / "verified.json"


def _load_verified(lab: Path) -> dict[str, list]:
    try:
        return json.loads(_cache_file(lab).read_bytes())
    except (OSError, ValueError):
        return {}


def _fingerprint(stat: os.stat_result) -> list:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _relative(lab: Path, path: Path) -> str:
    """`path` under the lab; Path.relative_to costs more than the rest of a check."""
    return str(path)[len(str(lab)) + 1 :]


def _remember(lab: Path, path: Path, sha: str) -> None:
    known = _verified.setdefault(str(lab), _load_verified(lab))
    known[_relative(lab, path)] = [*_fingerprint(path.stat()), sha]


def _save_verified(lab: Path) -> None:
    """Remember beside the lab what was checked; in memory only where the lab cannot be written."""
    known = _verified[str(lab)]
    merged = {path: value for path, value in {**_load_verified(lab), **known}.items() if (lab / path).exists()}
    try:
        atomic.write_bytes(_cache_file(lab), json.dumps(merged, indent=0).encode())
    except OSError:
        pass


def remembered(lab: Path | str, path: Path, key: str, check) -> str | None:
    """`check()`: why the file cannot be trusted, or None; not asked again while the file (size, times) and `key`, which
    names what it is checked against, stay as they were when it was found whole. Remembered as a unit's check is."""
    name, mark = os.path.relpath(path, lab), [*_fingerprint(path.stat()), key]
    lab = lab_path(lab)
    with _lock:
        known = _verified.setdefault(str(lab), _load_verified(lab))
    if known.get(name) == mark:
        return None
    reason = check()
    if reason is None:
        with _lock:
            known[name] = mark
            if time.monotonic() - _saved.get(str(lab), -SAVE_S) >= SAVE_S:
                _save_verified(lab)
                _saved[str(lab)] = time.monotonic()
    return reason


def forget(lab: Path, name: str) -> None:
    """The file `name`, relative to the lab, has to be checked again: it was found damaged."""
    with _lock:
        known = _verified.setdefault(str(lab), _load_verified(lab))
        if known.pop(name, None) is not None:
            try:
                atomic.write_bytes(_cache_file(lab), json.dumps(known, indent=0).encode())
            except OSError:
                pass


def check(lab: Path, path: Path, manifest: dict, remembered: bool = True) -> str | None:
    """Why a unit's Parquet file cannot be trusted, or None. `remembered=False` reads every byte again."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "its Parquet file is missing"
    except OSError as error:
        return f"its Parquet file cannot be read ({error.strerror})"
    if stat.st_size != manifest["bytes"]:
        return f"truncated or changed: {stat.st_size} bytes instead of {manifest['bytes']}"
    known = _verified.get(str(lab), {}).get(_relative(lab, path))
    if remembered and known == [*_fingerprint(stat), manifest["sha256"]]:
        return None
    try:
        sha = _sha256(path)
    except OSError as error:
        return f"its Parquet file cannot be read ({error.strerror})"
    if sha != manifest["sha256"]:
        forget(lab, _relative(lab, path))
        return "its bytes changed: sha256 does not agree with the manifest"
    with _lock:
        _verified.setdefault(str(lab), {})[_relative(lab, path)] = [*_fingerprint(stat), sha]
    return None


def scan(lab: Path, remembered: bool = True) -> tuple[dict[str, list[Unit]], list[Damage]]:
    """Every unit that a reader may show, by table, and what has to be left out. Each new file's sha256 is checked."""
    with _lock:
        if str(lab) not in _verified:
            _verified[str(lab)] = _load_verified(lab)
        before = len(_verified[str(lab)])
    found: list[tuple[Path, Unit]] = []
    damaged: list[Damage] = []
    for name, table in schema.TABLES.items():
        if table.kind not in ("unit", "package"):
            continue
        for path, manifest in _read_manifests(lab, name):
            if isinstance(manifest, dict) and (manifest["table"], f"unit-{manifest['unit_id']}") != (name, path.stem):
                manifest = "it is not where its manifest says"
            if isinstance(manifest, str):
                damaged.append(Damage(name, _relative(lab, path), manifest))
            else:
                found.append((path, Unit(name, manifest["unit_id"], path.parent / manifest["file"], manifest)))
    known = _verified[str(lab)]

    def checked(item):
        return check(lab, item[1].path, item[1].manifest, remembered)

    if remembered and all(_relative(lab, unit.path) in known for _, unit in found):
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
            damaged.append(Damage(unit.table, _relative(lab, unit.path), reason))
        else:
            good.setdefault(unit.table, []).append(unit)
    with _lock:
        if len(_verified[str(lab)]) != before:
            _save_verified(lab)
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
