"""A DuckDB connection over a lab: every table a view in memory, current when refreshed; no lock is held."""

import atexit
import contextlib
import csv
import functools
import os
import threading
import warnings
import weakref
import zlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from . import events, runs, schema, sql, units
from .atomic import fsync_folder
from .errors import StoreError
from .lab import lab_path

_HERE = Path(__file__).parent
_state: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict]" = weakref.WeakKeyDictionary()
QUESTIONS = {path.stem: path.read_text() for path in sorted((_HERE / "questions").glob("*.sql"))}
_lock = threading.RLock()
_warned: set[tuple] = set()
_soon: dict[str, threading.Timer] = {}
_renewing: set[threading.Thread] = set()
_soon_lock = threading.Lock()


class DamagedWarning(UserWarning):
    """A unit or a line was left out; the view `damaged` lists them all."""


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _select(table: schema.Table, found: list[units.Unit]) -> str:
    """SQL that reads the units of a table: one scan per schema version, older ones filled up with nulls."""

    def columns(version):
        return ", ".join(
            (f'CAST("{c.name}" AS JSON)' if c.json else f'"{c.name}"') + f' AS "{c.name}"'
            if c.since <= version
            else f'CAST(NULL AS {schema.column_type(c)}) AS "{c.name}"'
            for c in table.columns
        )

    groups: dict[tuple, list[str]] = {}
    for unit in found:
        if unit.rows:
            key = (min(unit.manifest["schema"], table.version), unit.without)
            groups.setdefault(key, []).append(str(unit.path))
    parts = []
    for (version, without), paths in sorted(groups.items()):
        part = f"SELECT {columns(version)} FROM read_parquet([{', '.join(map(_text, paths))}], hive_partitioning=false)"
        if without:
            part += f" WHERE {units.MEMBER} NOT IN ({', '.join(map(_text, without))})"
        parts.append(part)
    if not parts:
        return f"SELECT {columns(0)} WHERE false"
    return "\nUNION ALL\n".join(parts)


@functools.cache
def published() -> pa.Table:
    """The figures that ship with the package (store/published.csv)."""
    with open(_HERE / "published.csv", encoding="utf-8", newline="") as file:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for name in ("accuracy", "gap"):
            row[name] = None if row[name] is None else float(row[name])
    return units.fit("published", rows)


@functools.lru_cache(10_000)
def check_rule(rule: str) -> None:
    """StoreError unless `rule` is a SQL predicate over the columns of `rule_rows`, without a query of its own."""
    if not rule.strip():
        raise StoreError("a rule is a SQL predicate such as: cer > 0.3 OR list_contains(flags, 'formula')")
    try:
        tree = sql.syntax_tree(f"SELECT sample_id FROM rule_rows WHERE ({rule}\n)")
    except StoreError as error:
        raise StoreError(f"rule {rule!r}: {error}") from None
    node = tree["statements"][0]["node"]
    nodes = [n.get("type") for n in sql._walk(tree)]
    if (
        len(tree["statements"]) != 1
        or node.get("modifiers")
        or not node.get("where_clause")
        or any(
            isinstance(t, str) and (t == "SUBQUERY" or t == "TABLE_FUNCTION" or t.endswith("_QUERY_NODE"))
            for t in nodes
        )
        or sum(t == "SELECT_NODE" for t in nodes) != 1
        or nodes.count("BASE_TABLE") != 1
    ):
        raise StoreError(f"rule {rule!r}: a predicate over the columns of rule_rows, without a query of its own")
    with _lock:
        try:
            _empty().execute(f"EXPLAIN SELECT sample_id FROM rule_rows WHERE ({rule}\n)")
        except duckdb.Error as error:
            raise StoreError(f"rule {rule!r}: {str(error).splitlines()[0]}") from None


@functools.cache
def _empty() -> duckdb.DuckDBPyConnection:
    """A connection with every table and no row, to try rules on."""
    con = duckdb.connect()
    _build(
        con,
        {},
        {name: schema.TABLES[name].arrow().empty_table() for name in ("runs", "metrics", *events.ID, "damaged")},
        "",
        set(),
    )
    return con


_NO_MATCHES = "SELECT ''::VARCHAR AS event_id, ''::VARCHAR AS selection_id, ''::VARCHAR AS sample_id WHERE false"


def _rule_matches(decisions: pa.Table) -> tuple[str, list[units.Damage]]:
    """SQL of the view rule_matches over the rules that stand and can be asked, and those that cannot be."""
    parts, damaged = [], []
    undo = pc.fill_null(pc.equal(decisions["verdict"], "undo"), False)
    undone = set(decisions.filter(undo)["undoes"].to_pylist())  # each rule costs a pass over the texts
    for event in decisions.filter(pc.and_(pc.equal(decisions["target"], "rule"), pc.invert(undo))).to_pylist():
        if event["event_id"] not in undone:
            try:
                check_rule(event["rule"])
            except StoreError as error:
                damaged.append(units.Damage("decisions", f"event {event['event_id']}", str(error)))
                continue
            parts.append(
                f"SELECT {_text(event['event_id'])} AS event_id, selection_id, sample_id FROM rule_rows "
                f"WHERE selection_id IN (SELECT selection_id FROM lineage WHERE ancestor_id = "
                f"{_text(event['selection_id'])}) AND ({event['rule']}\n)"
            )
    return "\nUNION ALL\n".join(parts), damaged


def _put(con, name: str, table: schema.Table, rows: pa.Table) -> None:
    """An in-memory table of these rows."""
    con.register("_incoming", rows)
    types = ", ".join(f'CAST("{c.name}" AS {schema.column_type(c)}) AS "{c.name}"' for c in table.columns)
    con.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {types} FROM _incoming")
    con.unregister("_incoming")


def _build(con, found: dict[str, list[units.Unit]], tables: dict[str, pa.Table], rules: str, fresh: set[str]) -> None:
    """(Re)create tables and views; names in `fresh` stand already and stay."""
    con.execute("CREATE SCHEMA IF NOT EXISTS raw")
    for name, rows in tables.items():
        if name not in fresh:
            _put(con, name, schema.TABLES[name], rows)
    names = {table.name: "raw.divergences" if table.name == "divergences" else table.name for table in schema.UNITS}
    first = "questions" not in fresh
    if first:
        _put(con, "raw.published", schema.PUBLISHED, published())
        # A view is bound when it is made, and binding looks at every file: so first over empty tables.
        con.execute(
            "".join(f"CREATE OR REPLACE VIEW {names[table.name]} AS {_select(table, [])};\n" for table in schema.UNITS)
        )
        con.execute(_newest(None) + (_HERE / "views.sql").read_text() + "".join(QUESTIONS.values()))
    if "rules" not in fresh and (rules or not first):
        con.execute(f"CREATE OR REPLACE VIEW rule_matches AS {rules or _NO_MATCHES}")
    for table in schema.UNITS:
        if table.name not in fresh and (found.get(table.name) or not first):
            con.execute(f"CREATE OR REPLACE VIEW {names[table.name]} AS {_select(table, found.get(table.name, []))}")
    if "published" not in fresh:
        con.execute(
            "CREATE OR REPLACE VIEW published AS FROM raw.published UNION ALL BY NAME "
            + _select(schema.PUBLISHED, found.get("published", []))
        )
    if not {"clusters", "assignments", "runs"} <= fresh and found.get("clusters"):
        newest = con.sql("""
            SELECT c.clustering_id FROM (SELECT DISTINCT clustering_id, run_id FROM clusters) c
            LEFT JOIN runs r USING (run_id) ORDER BY r.ended_at DESC NULLS LAST, clustering_id DESC LIMIT 1
        """).fetchall()
        con.execute(_newest(newest[0][0] if newest else None))


def _newest(clustering_id: str | None) -> str:
    """SQL of what the newest clustering is: the one whose pass ended last by runs.ended_at, then by id."""
    told = _text(clustering_id) if clustering_id else "NULL::VARCHAR"
    return "".join(
        f"CREATE OR REPLACE VIEW current_{name} AS FROM {name} WHERE clustering_id = {told};\n"
        for name in ("assignments", "clusters")
    )


def _damaged(found: list[units.Damage]) -> pa.Table:
    rows = [item._asdict() for item in found]
    return pa.Table.from_pylist(rows, schema=schema.DAMAGED.arrow()) if rows else schema.DAMAGED.arrow().empty_table()


def _warn(lab: Path, found: list[units.Damage]) -> None:
    new = [item for item in found if (str(lab), *item) not in _warned]
    for item in new[:5]:
        warnings.warn(f"left out of {item.table}: {item.path}: {item.reason}", DamagedWarning, stacklevel=4)
    if len(new) > 5:
        warnings.warn(
            f"left out besides: {len(new) - 5} more; see the view damaged, or `salad verify`",
            DamagedWarning,
            stacklevel=4,
        )
    _warned.update((str(lab), *item) for item in new)


def refresh(con) -> None:
    """Pick up what others have published, said and logged since. What is damaged is left out, with a warning."""
    if isinstance(con, sql.LockedConnection) or hasattr(con, "_con"):
        con = con._con
    with _lock:
        state = _state.get(con)
        con = con.cursor()  # the caller may still be fetching from theirs
        if state is None:
            row = con.execute("SELECT path FROM raw.lab").fetchone()
            state = {"lab": Path(row[0])}
        lab = state["lab"]
        found, damaged = units.scan(lab)
        said, torn = events.read(lab)
        ran, lost = runs.read(lab, said["run_notes"])
        rules, unasked = _rule_matches(said["decisions"])
        damaged = damaged + torn + lost + unasked
        tables = {**ran, **said, "damaged": _damaged(damaged)}
        now = {
            **{
                name: [(u.path, u.without, u.manifest["sum"]) for u in found.get(name, [])]
                for name in ("published", *(t.name for t in schema.UNITS))
            },
            **tables,
            "questions": QUESTIONS,
            "rules": rules,
        }
        before = state.get("seen", {})
        fresh = {
            name
            for name, value in now.items()
            if name in before and (value.equals(before[name]) if isinstance(value, pa.Table) else value == before[name])
        }
        _warn(lab, damaged)
        if len(fresh) < len(now):
            con.execute("BEGIN")
            try:
                _build(con, found, tables, rules, fresh)
                con.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.TransactionException):  # a full disk has ended the transaction already
                    con.execute("ROLLBACK")
                raise
            state["seen"] = now
            state["changes"] = {name: state.get("changes", {}).get(name, 0) + (name not in fresh) for name in now}


def version(con, *tables: str) -> tuple:
    """Equal as long as these tables hold the same under this connection (`connect`'s): `refresh` changes it where
    somebody has published or said something. For what is computed from tables once and kept."""
    changes = _state[getattr(con, "_con", con)]["changes"]
    return tuple(changes[name] for name in tables)


def connect(lab=None, locked: bool = False, timeout_s: float = 30, memory: str = "2GB"):
    """An in-memory DuckDB connection with every table of the lab as a view; it holds no lock on the lab.

    An empty or missing lab gives empty tables. `locked=True` is for SQL that people type: only SELECT and EXPLAIN,
    no file outside the lab, no network, `timeout_s` seconds and `memory` for a query."""
    con = duckdb.connect()
    con.execute("SET GLOBAL TimeZone='UTC'")
    con.execute("SET enable_progress_bar=false")
    con.execute("SET parquet_metadata_cache=true")
    lab = lab_path(lab)
    con.execute("CREATE SCHEMA raw; CREATE TABLE raw.lab (path VARCHAR)")
    con.execute("INSERT INTO raw.lab VALUES (?)", [str(lab)])
    _state[con] = {"lab": lab}
    refresh(con)
    if locked:
        sql.lock(con, lab)
        return sql.LockedConnection(con, timeout_s, memory)
    return con


def query(lab, text: str, timeout_s: float = 30) -> pa.Table:
    """The answer to one SELECT or EXPLAIN on a locked connection. StoreError where it may not run, or fails."""
    with connect(lab, locked=True, timeout_s=timeout_s) as con:
        return con.table(text)


def audio(con, synthesis_id: str) -> bytes:
    """The FLAC file of a synthesis, read out of its Shar without unpacking. StoreError where there is none."""
    raw = getattr(con, "_con", con)
    cursor = raw.cursor()
    row = cursor.execute(
        "SELECT audio_path, audio_offset, audio_bytes, audio_crc32 FROM syntheses WHERE synthesis_id = ?", [synthesis_id]
    ).fetchone()
    if row is None or row[0] is None:
        raise StoreError(f"no audio of synthesis {synthesis_id} in this lab")
    lab = Path(cursor.execute("SELECT path FROM raw.lab").fetchone()[0])
    path = (lab / row[0]).resolve()
    if not path.is_relative_to(lab):
        raise StoreError(f"synthesis {synthesis_id}: {row[0]} is outside the lab")
    try:
        with open(path, "rb") as file:
            file.seek(row[1])
            data = file.read(row[2])
    except OSError as error:
        raise StoreError(f"synthesis {synthesis_id}: {row[0]} cannot be read ({error.strerror})") from error
    if len(data) != row[2] or data[:4] != b"fLaC":
        raise StoreError(f"synthesis {synthesis_id}: no whole FLAC at byte {row[1]} of {row[0]}; is it truncated?")
    if row[3] is not None and zlib.crc32(data) != row[3]:
        raise StoreError(f"synthesis {synthesis_id}: the bytes of its FLAC in {row[0]} changed; make it again")
    return data


def _comment(con) -> None:
    """Say beside each table and view what a row is; beside `misalignment`, that it is the one to start at."""
    told = {name: f"One row is {table.row}." for name, table in schema.TABLES.items()}
    told["misalignment"] = "Start here: one row is a spoken text under a checkpoint, with all that is known of it."
    kinds = dict(con.execute("SELECT table_name, table_type FROM information_schema.tables").fetchall())
    for name, text in told.items():
        kind = "VIEW" if kinds[name] == "VIEW" else "TABLE"
        con.execute(f'COMMENT ON {kind} main."{name}" IS {_text(text)}')


def renew_soon(lab=None, after_s: float = 10.0) -> None:
    """`renew` in the background once nobody has asked for it for `after_s` seconds, or when this process ends: for
    a review session, which renews after its last click and not at each. A lab that cannot be written is let be."""
    lab = lab_path(lab)

    def due():
        with _soon_lock:
            if _soon.get(str(lab)) is not timer:  # put off once more, or done already
                return
            del _soon[str(lab)]
            _renewing.add(threading.current_thread())
        try:
            with contextlib.suppress(StoreError):
                if lab.is_dir():
                    renew(lab)
        finally:
            with _soon_lock:
                _renewing.discard(threading.current_thread())

    with _soon_lock:
        earlier = _soon.get(str(lab))
        if earlier is not None:
            earlier.cancel()
        timer = _soon[str(lab)] = threading.Timer(after_s, due)
        timer.daemon = True
        timer.start()


@atexit.register
def _renew_now() -> None:
    """What `renew_soon` has put off, and what it has begun: a thread that is inside DuckDB when the interpreter ends takes
    the process down with it."""
    with _soon_lock:
        waiting, begun = list(_soon.values()), list(_renewing)
    for timer in waiting:
        timer.cancel()
        timer.function()
    for thread in begun:
        thread.join()


def renew(lab=None) -> Path:
    """Write lab/store.duckdb anew: a DuckDB file with every table, `misalignment` first. Returns its path.

    Small tables are in it; those of units are views on their Parquet files. A new file, then renamed: a program
    that holds the old one open keeps it."""
    lab = lab_path(lab)
    final = lab / "store.duckdb"
    temporary = lab / f".store.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        lab.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(str(temporary)) as con:
            con.execute("SET GLOBAL TimeZone='UTC'")
            con.execute("CREATE SCHEMA raw; CREATE TABLE raw.lab (path VARCHAR)")
            con.execute("INSERT INTO raw.lab VALUES (?)", [str(lab)])
            _state[con] = {"lab": lab}
            refresh(con)
            _comment(con)
            con.execute("CHECKPOINT")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
        fsync_folder(lab)
    except (OSError, duckdb.IOException, duckdb.TransactionException, duckdb.FatalException) as error:
        raise StoreError(f"could not write {final}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        Path(f"{temporary}.wal").unlink(missing_ok=True)
    return final
