"""One row a key: of rows of two units that have the same key one is shown, and where they differ, `damaged` says so.

A table's key is declared in schema.py. Of the rows with one key those of the unit that a user preferred are shown
(`salad verify --prefer UNIT`), else those of the unit published last, by the log's clock. Which rows lose is found out
once for each set of units: only units whose keys can meet are compared, by a hash of the key first."""

import json
import threading
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from . import history, ids, schema
from .catalogue import file_list, quoted
from .errors import Damage
from .units import Unit
from .verification import MEMBER, relative, write_beside

PLACES = ("audio_path", "audio_offset", "cut_id", "speech")  # where a thing is filed, not what it is: import moves it
_hashes: dict[tuple[str, tuple], np.ndarray] = {}  # (sha256, members left out) -> a hash of each key, sorted
_comparisons: dict[str, tuple[dict[str, list[list[int]]], list[tuple]]] = {}  # a set of units -> what was found
_lock = threading.RLock()


class Overlaps(dict):
    """Path of a unit's file -> the rows of it whose key another unit tells better, as [first, last + 1], from 0."""


def _constant(unit: Unit, column: str) -> tuple | None:
    """What a unit's rows all say in a column of the key, as a tuple of one, or None where that is not known."""
    keys = unit.manifest.get("keys")
    if keys is not None:
        return (json.dumps(keys[column]),) if column in keys else None
    table = schema.TABLES[unit.table]  # an older unit: by its folder, whose name says so
    name, _, value = unit.path.parent.name.partition("=")
    return (value,) if column == table.folder == name and value not in ("mixed", "all") and len(value) < 90 else None


def _groups(units: list[Unit]) -> list[list[Unit]]:
    """Units of a table whose keys can meet; those that say different things in a column of the key cannot."""
    groups = [units]
    for column in schema.TABLES[units[0].table].key:
        after = []
        for group in groups:
            values = [_constant(unit, column) for unit in group]
            old = [unit.manifest.get("keys") is None for unit in group]
            if None in values or (any(old) and not all(old)):  # a folder's name and a value do not compare
                after.append(group)
                continue
            split: dict[tuple | None, list[Unit]] = {}
            for unit, value in zip(group, values, strict=True):
                split.setdefault(value, []).append(unit)
            after += split.values()
        groups = after
    return [group for group in groups if len(group) > 1 or group[0].members]


def _key(table: schema.Table) -> list[str]:
    """The columns by which units are compared: a sample's tokens are all in one unit."""
    return [name for name in table.key if not (table.name == "token_divergences" and name == "position")]


def _read(unit: Unit, names: list[str]) -> str:
    """These columns as a unit's file has them, as a list for SELECT; what it lacks, or leaves null, as its default."""
    columns = {c.name: c for c in schema.TABLES[unit.table].columns}
    expressions = []
    for name in names:
        column = columns[name]
        value = f'"{name}"' if column.since <= unit.manifest["schema"] else "NULL"
        if column.default is not None:
            value = f"coalesce({value}, {column.default})"
        expressions.append(f'CAST({value} AS {schema.sql_type(column.type)}) AS "{name}"')
    return ", ".join(expressions)


def _hash_keys(con: duckdb.DuckDBPyConnection, unit: Unit) -> np.ndarray:
    hashes = _hashes.get((unit.manifest["sha256"], unit.without))
    if hashes is None:
        columns = ", ".join(f'"{name}"' for name in _key(schema.TABLES[unit.table]))
        where = f" WHERE {MEMBER} NOT IN ({', '.join(map(quoted, unit.without))})" if unit.without else ""
        member = f", {MEMBER}" if unit.members else ""  # in a merged unit a key counts once a member
        source = f"(SELECT {_read(unit, _key(schema.TABLES[unit.table]))}{member} FROM read_parquet({file_list([unit.path])}, "
        source += f"hive_partitioning=false){where})"
        fresh_hashes = con.execute(f"SELECT DISTINCT hash({columns}) AS h{member} FROM {source}").fetchnumpy()["h"]
        hashes = _hashes[unit.manifest["sha256"], unit.without] = np.sort(np.asarray(fresh_hashes, np.uint64))
    return hashes


def _ranks(group: list[Unit], past: history.History) -> list[tuple[str, str | None, tuple]]:
    """(path, member, order) of each unit, and of each member of the merged ones: the greatest order is shown."""
    ranks = []
    for unit in group:
        for name, sha in (unit.members or {unit.unit_id: unit.manifest["sha256"]}).items():
            if name not in unit.without:
                version = past.versions.get((unit.table, name), {}).get(sha)
                since = version.clock if version else unit.path.stat().st_mtime_ns // 1000 if not unit.members else 0
                order = (past.preferred.get((unit.table, name), 0), since, name, sha)
                ranks.append((str(unit.path), name if unit.members else None, order))
    return ranks


def _losers(con: duckdb.DuckDBPyConnection, group: list[Unit], ranks: list, hashes: np.ndarray) -> tuple[dict, list]:
    """Of the rows whose key has one of these hashes: those that lose, by path, and which unit loses how many rows of
    other content to which."""
    table = schema.TABLES[group[0].table]
    key = ", ".join(f'"{name}"' for name in _key(table))
    content = [c.name for c in table.columns if c.name not in _key(table) and c.name not in PLACES]
    orders = sorted({order for _, _, order in ranks})
    con.register("_hashes", pa.table({"h": pa.array(hashes, pa.uint64())}))
    con.register("_ranks", pa.table({
        "_path": [path for path, _, _ in ranks], "_member": pa.array([member for _, member, _ in ranks], pa.string()),
        "_unit": [order[2] for _, _, order in ranks], "_rank": [orders.index(order) for _, _, order in ranks]}))  # fmt: skip
    parts = []
    for unit in group:
        parts.append(
            f"SELECT * FROM (SELECT {quoted(str(unit.path))} AS _path, file_row_number AS _row, "
            f"{_read(unit, _key(table))}, {_read(unit, content) or '1 AS _one'}, "
            f"{MEMBER if unit.members else 'NULL::VARCHAR'} AS _member "
            f"FROM read_parquet({file_list([unit.path])}, hive_partitioning=false, file_row_number=true)) "
            f"WHERE hash({key}) IN (SELECT h FROM _hashes)"
        )
    names = ", ".join(f'"{name}"' for name in content)
    con.execute(f"""CREATE OR REPLACE TEMP TABLE _rows AS
        SELECT r._path, r._row, k._unit, k._rank, hash({key}) AS _h, {key},
            {f"hash({names})" if content else "0::UBIGINT"} AS _said
        FROM ({" UNION ALL BY NAME ".join(parts)}) r
        JOIN _ranks k ON k._path = r._path AND k._member IS NOT DISTINCT FROM r._member""")
    same = " AND ".join(f'r."{name}" IS NOT DISTINCT FROM b."{name}"' for name in _key(table))
    con.execute(f"""CREATE OR REPLACE TEMP TABLE _lost AS
        SELECT r._path, r._row, r._unit, b._unit AS _winner, b._said <> r._said AS _differs
        FROM _rows r JOIN (SELECT {key}, any_value(_h) AS _h, max(_rank) AS _rank, arg_max(_unit, _rank) AS _unit,
                bit_xor(_said) FILTER (_rank = _best) AS _said
            FROM (SELECT *, max(_rank) OVER (PARTITION BY {key}) AS _best FROM _rows) GROUP BY {key}) b
        ON r._h = b._h AND {same} WHERE r._rank < b._rank""")
    if table.name == "token_divergences":  # many rows a key: the two sides differ where their sums do
        con.execute(f"""
            CREATE OR REPLACE TEMP TABLE _sums AS SELECT {key}, _unit, bit_xor(_said) AS _said FROM _rows GROUP BY ALL;
            UPDATE _lost SET _differs = false WHERE (_unit, _winner) NOT IN (
                SELECT (a._unit, b._unit) FROM _sums a JOIN _sums b
                ON {same.replace('r."', 'a."')} AND a._said <> b._said)""")
    rows: dict[str, list[list[int]]] = {}  # runs of rows: a unit that another tells as a whole is one
    for path, first, last in con.execute("""SELECT _path, min(_row), max(_row) + 1 FROM
            (SELECT _path, _row, _row - row_number() OVER (PARTITION BY _path ORDER BY _row) AS _run FROM _lost)
            GROUP BY _path, _run ORDER BY ALL""").fetchall():
        rows.setdefault(path, []).append([first, last])
    conflicts = con.execute(
        "SELECT _unit, _winner, count(*), any_value(_path) FROM _lost WHERE _differs GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return rows, conflicts


def _cache_file(lab: Path) -> Path:
    return lab / ".store-cache" / "overlaps-3.json"


def overlaps(lab: Path, units_by_table: dict[str, list[Unit]], past: history.History) -> tuple[Overlaps, list[Damage]]:
    """The rows of these units that no view shows, because another unit has their key, and the conflicts among them."""
    hidden, damaged, con, learnt, loaded = Overlaps(), [], None, False, False
    with _lock:
        for name, units in units_by_table.items():
            table = schema.TABLES[name]
            units = [unit for unit in units if unit.rows]
            if not table.key or not units:
                continue
            for group in _groups(units):
                ranks = _ranks(group, past)
                if len(ranks) < 2:
                    continue
                mark = ids.digest([name, *([relative(lab, Path(path)), member, order] for path, member, order in ranks)])
                if mark not in _comparisons and not loaded:
                    _comparisons.update(_load(lab))
                    loaded = True
                if mark not in _comparisons:
                    learnt = True
                    con = con or duckdb.connect()
                    hashes = np.sort(np.concatenate([_hash_keys(con, unit) for unit in group]))
                    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
                    rows, conflicts = _losers(con, group, ranks, twice) if len(twice) else ({}, [])
                    _comparisons[mark] = (
                        {relative(lab, Path(path)): numbers for path, numbers in rows.items()},
                        [(loser, winner, n, relative(lab, Path(path))) for loser, winner, n, path in conflicts],
                    )
                rows, conflicts = _comparisons[mark]
                hidden.update({str(lab / path): numbers for path, numbers in rows.items()})
                for loser, winner, n, path in conflicts:
                    if not past.preferred.get((name, winner)):
                        damaged.append(Damage(name, path, (
                            f"conflict: {n} rows of unit {loser} have keys of unit {winner}, which was published later, "
                            f"and say something else; those of {winner} are shown until `salad verify --prefer "
                            f"{loser}` or `--prefer {winner}` decides")))  # fmt: skip
        if learnt:
            _save(lab)
    return hidden, damaged


def _load(lab: Path) -> dict:
    try:
        comparisons = json.loads(_cache_file(lab).read_bytes())
        return {mark: (dict(rows), [tuple(item) for item in conflicts]) for mark, (rows, conflicts) in comparisons.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _save(lab: Path) -> None:
    """Remember beside the lab what was compared, newest last; in memory only where it cannot be written."""
    write_beside(lab, "overlaps-3.json", dict(list(_comparisons.items())[-2000:]))
