"""A DuckDB connection over a lab: every table a view in memory, current when refreshed; no lock is held."""

import atexit
import contextlib
import datetime
import os
import secrets
import shutil
import tempfile
import threading
import time
import warnings
import weakref
import zlib
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, overload

import duckdb
import pyarrow as pa

from . import catalogue, events, history, keys, runs, schema, sql, units
from .atomic import fsync_folder
from .errors import Damage, DamagedWarning, StoreError
from .lab import lab_path
from .rules import failures, rule_matches

Connection: TypeAlias = duckdb.DuckDBPyConnection | sql.LockedConnection
Time: TypeAlias = str | datetime.datetime | None  # ISO 8601 with its zone, or aware; None is now
_state: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict[str, Any]]" = weakref.WeakKeyDictionary()
ATTEMPTS = 5  # at reading a lab whose files are being joined and removed meanwhile
ASKED = {"rules", "samples", "selected", "selections", "syntheses", "divergences", "clusters"}  # what a rule's answer rests on
_lock = threading.RLock()
_warned: set[tuple] = set()
_soon: dict[str, threading.Timer] = {}
_renewing: set[threading.Thread] = set()
_soon_lock = threading.Lock()


def _warn(lab: Path, damage: list[Damage]) -> None:
    new = [item for item in damage if (str(lab), *item) not in _warned]
    for item in new[:5]:
        warnings.warn(f"left out of {item.table}: {item.path}: {item.reason}", DamagedWarning, stacklevel=4)
    if len(new) > 5:
        warnings.warn(
            f"left out besides: {len(new) - 5} more; see the view damaged, or `salad verify`",
            DamagedWarning,
            stacklevel=4,
        )
    _warned.update((str(lab), *item) for item in new)


def refresh(con: Connection) -> None:
    """Show the units, events and metrics that others have written since. Damaged files are left out, with a warning."""
    if type(con) is sql.LockedConnection:
        con.mark_stale()
    bare = _bare(con)
    with _lock:
        state = _state.get(bare)
        cursor = bare.cursor()  # the caller may still be fetching from theirs
        if state is None:
            state = {"lab": Path(cursor.execute("SELECT path FROM raw.lab").fetchall()[0][0])}
        for more in reversed(range(ATTEMPTS)):
            try:
                return _refresh(cursor, state)
            except (FileNotFoundError, duckdb.IOException) as error:  # somebody compacts: the files have other names now
                if not more:
                    raise StoreError(f"{state['lab']}: {sql.one_line(error)}") from error
                time.sleep(0.01)


def _refresh(con, state: dict) -> None:
    lab, as_of = state["lab"], state.get("as_of")
    units_by_table, damaged = units.scan(lab, as_of=as_of)
    past = history.read(lab)
    hidden, conflicts = keys.overlaps(lab, units_by_table, past if as_of is None else past.until(as_of))
    event_tables, event_damage = events.read(lab, as_of)
    run_tables, run_damage = runs.read(lab, event_tables["run_notes"], as_of)
    rules, rule_damage = rule_matches(event_tables["decisions"])
    damaged = damaged + conflicts + event_damage + run_damage + rule_damage
    tables = {**run_tables, **event_tables, "damaged": catalogue.damaged_table(damaged)}
    now = {
        **{
            name: [(u.path, u.without, u.manifest["sum"], hidden.get(str(u.path))) for u in units_by_table.get(name, [])]
            for name in ("published", *(t.name for t in schema.UNITS))
        },
        **tables,
        "questions": catalogue.QUESTIONS,
        "rules": rules,
        "spans": catalogue.scoring_spans(lab, units_by_table, run_tables["runs"]),
        "hidden": hidden,
    }
    for name in ("divergences", "token_divergences"):  # whoever keeps what it computed from them asks for their version
        now[name].append(now["spans"])
    before = state.get("seen", {})
    fresh = {
        name
        for name, value in now.items()
        if name in before and (value.equals(before[name]) if isinstance(value, pa.Table) else value == before[name])
    }
    _warn(lab, damaged)
    if len(fresh) == len(now):
        return
    failing = state.get("failures", [])
    con.execute("BEGIN")
    try:
        catalogue.build(con, units_by_table, tables, rules, now["spans"], fresh, hidden)
        if not ASKED <= fresh:
            failing = failures(con) if rules else []
        if failing != state.get("failures", []) or (failing and "damaged" not in fresh):
            catalogue.put(con, "damaged", schema.DAMAGED, catalogue.damaged_table(damaged + failing))
        con.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.TransactionException):  # a full disk has ended the transaction already
            con.execute("ROLLBACK")
        raise
    _warn(lab, failing)
    if state.get("failures", []) != failing:
        fresh.discard("damaged")
    state["failures"], state["seen"] = failing, now
    state["changes"] = {name: state.get("changes", {}).get(name, 0) + (name not in fresh) for name in now}


def _bare(con: Connection) -> duckdb.DuckDBPyConnection:
    """The connection under a locked one, for what this package asks itself."""
    return con.bare if type(con) is sql.LockedConnection else cast(duckdb.DuckDBPyConnection, con)


def version(con: Connection, *tables: str) -> tuple:
    """Equal as long as these tables hold the same under this connection (`connect`'s): `refresh` changes it where
    somebody has published a unit or appended an event. For what is computed from tables once and kept."""
    changes = _state[_bare(con)]["changes"]
    return tuple(changes[name] for name in tables)


@overload
def connect(
    lab: Path | str | None = None, locked: Literal[False] = False, timeout_s: float = 30, memory: str = "2GB", as_of: Time = None
) -> duckdb.DuckDBPyConnection: ...


@overload
def connect(
    lab: Path | str | None = None, *, locked: Literal[True], timeout_s: float = 30, memory: str = "2GB", as_of: Time = None
) -> sql.LockedConnection: ...


def connect(
    lab: Path | str | None = None, locked: bool = False, timeout_s: float = 30, memory: str = "2GB", as_of: Time = None
) -> Connection:
    """An in-memory DuckDB connection with every table of the lab as a view; it holds no lock on the lab.

    An empty or missing lab gives empty tables. `locked=True` is for SQL that people type: only SELECT and EXPLAIN,
    no file outside the lab, no network, `timeout_s` seconds and `memory` for a query. `as_of`: a time (ISO 8601 with
    its zone, or an aware datetime); the lab as it was then: units, events, metrics, and runs that had started. What
    compact or a user has removed since is in `damaged`."""
    then = None if as_of is None else history.moment(as_of)
    lab = lab_path(lab)
    worker = sql.Worker(lab, memory, as_of) if locked else None
    if worker:
        worker.start()  # it makes itself ready while this process does
    con = duckdb.connect()
    con.execute("SET GLOBAL TimeZone='UTC'")
    con.execute("SET enable_progress_bar=false")
    con.execute("SET parquet_metadata_cache=true")
    con.execute("CREATE SCHEMA raw; CREATE TABLE raw.lab (path VARCHAR)")
    con.execute("INSERT INTO raw.lab VALUES (?)", [str(lab)])
    _state[con] = {"lab": lab, "as_of": then}
    refresh(con)
    if worker:
        return sql.LockedConnection(con, worker, timeout_s)
    return con


def query(lab: Path | str | None, text: str, timeout_s: float = 30, as_of: Time = None) -> pa.Table:
    """The answer to one SELECT or EXPLAIN on a locked connection. StoreError where it may not run, or fails."""
    with connect(lab, locked=True, timeout_s=timeout_s, as_of=as_of) as con:
        return con.table(text)


def audio(con: Connection, synthesis_id: str) -> bytes:
    """The FLAC file of a synthesis, read out of its Shar without unpacking. StoreError where there is none."""
    raw = _bare(con)
    cursor = raw.cursor()
    row = cursor.execute(
        "SELECT audio_path, audio_offset, audio_bytes, audio_crc32 FROM syntheses WHERE synthesis_id = ?", [synthesis_id]
    ).fetchone()
    if row is None or row[0] is None:
        raise StoreError(f"no audio of synthesis {synthesis_id} in this lab")
    lab = Path(cursor.execute("SELECT path FROM raw.lab").fetchall()[0][0])
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


def renew_soon(lab: Path | str | None = None, after_s: float = 10.0) -> None:
    """`renew` in the background once nobody has asked for it for `after_s` seconds, or when this process ends: for
    a review session, which renews after its last click and not at each. Read-only labs are skipped."""
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


def renew(lab: Path | str | None = None) -> Path:
    """Write lab/store.duckdb anew: a DuckDB file with every table, `misalignment` first. Returns its path.

    Small tables are in it; those of units are views on their Parquet files. A new file, then renamed: a program
    that holds the old one open keeps it."""
    lab = lab_path(lab)
    final = lab / "store.duckdb"
    temporary = lab / f".store.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        lab.mkdir(parents=True, exist_ok=True)
        units.adopt(lab)  # of units that were copied here, or whose publisher was killed, too
        made = temporary
        if "?" in str(lab):  # DuckDB takes what follows for options, and puts its journal before it
            made = Path(tempfile.mkdtemp(prefix="store-")) / temporary.name
        with duckdb.connect(str(made)) as con:
            con.execute("SET GLOBAL TimeZone='UTC'")
            con.execute("CREATE SCHEMA raw; CREATE TABLE raw.lab (path VARCHAR)")
            con.execute("INSERT INTO raw.lab VALUES (?)", [str(lab)])
            _state[con] = {"lab": lab}
            refresh(con)
            catalogue.comment(con)
            con.execute("CHECKPOINT")
        if made != temporary:
            shutil.copyfile(made, temporary)
            shutil.rmtree(made.parent)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
        fsync_folder(lab)
    except (OSError, duckdb.Error) as error:
        raise StoreError(f"could not write {final}: {sql.one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            Path(f"{temporary}.wal").unlink(missing_ok=True)
    return final
