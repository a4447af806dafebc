"""SQL that people type: one SELECT or EXPLAIN, files of the lab only, no network, limits on time and memory."""

import contextlib
import difflib
import functools
import json
import os
import pickle
import re
import secrets
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from .errors import StoreError

Parameters: TypeAlias = list | tuple | dict[str, Any] | None
QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# A table function may read what a pointer names, switch a setting, or run a text as SQL: only these are let through.
FUNCTIONS = re.compile(
    r"range|generate_series|unnest|repeat|repeat_row|json_each|json_tree|glob|summary|histogram"
    r"|(read|scan)_(parquet|csv|csv_auto|json|json_auto|ndjson|ndjson_auto|json_objects|text|blob)"
    r"|parquet_(scan|schema|metadata|file_metadata|kv_metadata)|sniff_csv|query_table"
    r"|duckdb_(columns|tables|views|functions|settings|types|schemas|databases|constraints)"
    r"|pragma_(table_info|version|show)|pg_timezone_names|icu_calendar_names"
)
FETCHES = {
    "fetchone",
    "fetchmany",
    "fetchall",
    "fetchdf",
    "df",
    "pl",
    "fetchnumpy",
    "to_arrow_table",
    "description",
    "fetch_arrow_table",
    "arrow",
    "rowcount",
    "fetch_record_batch",
    "to_arrow_reader",
    "fetch_arrow_reader",
}
QUESTIONS = {path.stem for path in Path(__file__).parent.joinpath("questions").glob("*.sql")}
GRACE_S = 2.0  # from when a query's time is over until its process is killed
START_S = 60.0  # what a process may take to be ready, on a busy machine
_parser_lock = threading.Lock()


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that parses; it holds no data. Made late: a process that forks must not have its threads."""
    return duckdb.connect()


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict inside nested lists and dicts, outermost first."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from walk(child)
    elif isinstance(value, list):
        for child in value:
            yield from walk(child)


def syntax_tree(sql: str) -> dict:
    """DuckDB's syntax tree of one SELECT; StoreError where it is none."""
    with _parser_lock:
        tree = json.loads(_parser().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
    if tree.get("error"):
        raise StoreError(f"SQL: {tree.get('error_message', 'cannot be read')}".splitlines()[0])
    return tree


def check_select(sql: str) -> None:
    """StoreError unless `sql` is one SELECT that changes nothing: one whose CTE holds a COPY is typed SELECT too."""
    for node in walk(syntax_tree(sql)):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in QUERIES:
            raise StoreError(f"only SELECT and EXPLAIN run here, no {kind.removesuffix('_QUERY_NODE')} inside one")
        if kind == "TABLE_FUNCTION":
            name = str((node.get("function") or {}).get("function_name", "")).lower()
            if name not in QUESTIONS and not FUNCTIONS.fullmatch(name):
                near = difflib.get_close_matches(name, QUESTIONS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; questions with names: {', '.join(sorted(QUESTIONS))}"
                raise StoreError(f"the table function {name or '?'} does not run here{hint}")


def check_statement(sql: str) -> None:
    """StoreError unless `sql` is one SELECT or one EXPLAIN of a SELECT."""
    try:
        with _parser_lock:
            statements = _parser().extract_statements(sql)
    except duckdb.Error as error:
        raise StoreError(f"SQL: {' '.join(str(error).split())}") from None
    if len(statements) != 1:
        raise StoreError(f"one statement at a time, please; here are {len(statements)}")
    kind, text = statements[0].type.name, statements[0].query
    if kind == "EXPLAIN":  # EXPLAIN ANALYZE runs what it explains
        check_select(re.sub(r"^\s*explain(\s+analyze|\s*\([^()]*\))?\s+", "", text, flags=re.IGNORECASE))
    elif kind in ("SELECT", "MULTI"):
        check_select(text)
    else:
        raise StoreError(f"only SELECT and EXPLAIN run here, not {kind}")


def lock(con: duckdb.DuckDBPyConnection, lab: Path | str, memory: str = "2GB") -> None:
    """Shut a connection in: the lab's files only, no extensions, no settings. The order matters."""
    folder = str(lab).replace("'", "''")
    escaped = re.sub(r"[*?\[]", lambda match: f"[{match[0]}]", folder)  # as the views name it, see catalogue.file_list
    # made by DuckDB when a query has no memory left; a name that nobody can foresee, so that nobody has put a link there
    temporary = os.path.join(tempfile.gettempdir(), f"store-{os.getpid()}-{secrets.token_hex(16)}").replace("'", "''")
    for setting in (
        f"allowed_directories=['{folder}', '{escaped}']",
        "autoinstall_known_extensions=false",
        "autoload_known_extensions=false",
        "allow_community_extensions=false",
        "python_enable_replacements=false",
        f"memory_limit='{memory}'",
        f"temp_directory='{temporary}'",
        "max_temp_directory_size='20GB'",
        "enable_external_access=false",
        "lock_configuration=true",
    ):
        con.execute(f"SET {setting}")


def size_in_bytes(size: str) -> float:
    """ "2GB" as a number of bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?B)\s*", size, re.IGNORECASE)
    if match is None:
        raise StoreError(f"{size!r} is not an amount of memory such as 2GB")
    number, unit = match.groups()
    return float(number) * 1000 ** "BKMGT".index(unit[0].upper())


def one_line(error: BaseException) -> str:
    """What DuckDB says, without the picture of where."""
    return " ".join(str(error).split("LINE 1:")[0].split())


def too_long(limit: float) -> str:
    """The message for a query that was stopped after `limit` seconds."""
    return f"stopped after {limit:g} s: narrow the query down, or give it more time"


def _end(worker: dict) -> None:
    """Kill a worker's process; `worker` holds its attributes, so that this can run when it is gone."""
    process, worker["process"] = worker["process"], None
    if process is not None and worker["owner"] == os.getpid():
        process.kill()
        process.wait()
        for handle in (worker["questions"], worker["answers"]):
            with contextlib.suppress(OSError):
                os.close(handle)


class Worker:
    """The process that runs the queries of a locked connection; started when asked, and again after it had to be killed."""

    def __init__(self, lab: Path, memory: str, as_of):
        self.start_with = {"lab": str(lab), "memory": memory, "as_of": as_of}
        self.memory = memory
        self.lock = threading.RLock()
        self.stale = False  # whether it has to look for what is new before it answers
        self.process: subprocess.Popen | None = None
        self.owner = 0
        weakref.finalize(self, _end, self.__dict__)

    def start(self) -> None:
        """Start the process, where none runs; it makes itself ready while this one goes on."""
        with self.lock:
            if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
                return
            self.stop()
            (theirs, self.questions), (self.answers, yours) = os.pipe(), os.pipe()
            home = str(Path(__file__).resolve().parent.parent)
            path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "store.worker", str(theirs), str(yours)], pass_fds=(theirs, yours),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True, env={**os.environ, "PYTHONPATH": path},
                )  # fmt: skip
            finally:
                os.close(theirs)
                os.close(yours)
            self.owner, self.stale = os.getpid(), False
            self._send(self.start_with)

    def stop(self) -> None:
        """Kill the process."""
        _end(self.__dict__)

    def _send(self, value: dict) -> None:
        data = pickle.dumps(value)
        data = struct.pack("<q", len(data)) + data
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer will be missing
            while data:
                data = data[os.write(self.questions, data) :]

    def _receive(self, size: int, until: float) -> bytes:
        parts = []
        while size:
            if not select.select([self.answers], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(self.answers, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def ask(self, sql: str, parameters: Parameters, limit: float) -> pa.Table:
        """The answer to a query. StoreError where it may not run, fails, or takes too long or too much."""
        with self.lock:
            self.start()
            question = {"sql": sql, "parameters": parameters, "timeout_s": limit, "refresh": self.stale}
            self.stale, whole = False, False
            try:
                self._send(question)
                until = time.monotonic() + limit + GRACE_S + (START_S if not self.warm else 0)
                head, body = struct.unpack("<qq", self._receive(16, until))
                self.warm = True
                reply = json.loads(self._receive(head, until + GRACE_S))
                data = self._receive(body, until + limit + GRACE_S)
                whole = not reply.get("fatal")
            except TimeoutError:
                raise StoreError(too_long(limit)) from None
            except (EOFError, OSError):
                raise StoreError(f"SQL: stopped: it needs more memory than {self.memory}, or DuckDB failed at it") from None
            finally:
                if not whole:  # too late, dead, or interrupted: a hard stop
                    self.stop()
                    self.warm = False
        if "error" in reply:
            raise StoreError(reply["error"])
        return pa.ipc.open_stream(data).read_all()

    warm = False  # whether it has answered yet: the first question waits for it to have started


class LockedConnection:
    """A DuckDB connection that runs SELECT and EXPLAIN only, each within `timeout_s` seconds and `memory`, in a process of
    its own that is killed where it takes more.

    Takes the place of a DuckDBPyConnection where a tool wants one (mo.sql, embedding-atlas)."""

    def __init__(self, con: duckdb.DuckDBPyConnection, worker: Worker, timeout_s: float):
        self.bare, self._worker, self._timeout_s = con, worker, timeout_s  # `bare` runs nothing that a person typed
        self._result = con

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # mo.sql asks isinstance(engine, DuckDBPyConnection)
        return duckdb.DuckDBPyConnection

    def _run(self, sql: str, parameters: Parameters = None, timeout_s: float | None = None) -> pa.Table:
        if not isinstance(sql, str):
            raise StoreError("SQL is given as text here")
        return self._worker.ask(sql, parameters, timeout_s or self._timeout_s)

    def mark_stale(self) -> None:
        """The next query reads what others have written since."""
        self._worker.stale = True

    def execute(self, query: str, parameters: Parameters = None, timeout_s: float | None = None) -> "LockedConnection":
        """Run one SELECT or EXPLAIN and keep its answer for `fetchall` and the like. Raises StoreError."""
        result = self.bare.cursor()
        result.register("_result", self._run(query, parameters, timeout_s))
        self._result = result.execute("FROM _result")
        return self

    def __getattr__(self, name):
        if name in FETCHES:
            return getattr(self._result, name)
        raise AttributeError(f"a locked connection has no {name}; it runs SELECT and EXPLAIN")

    def sql(self, query: str, alias: str = "", params: Parameters = None, **_: Any) -> duckdb.DuckDBPyRelation:
        """The answer to one SELECT or EXPLAIN as a relation of DuckDB. Raises StoreError."""
        return self.bare.from_arrow(self._run(query, params))

    query = sql

    def table(self, query: str, parameters: Parameters = None, timeout_s: float | None = None) -> pa.Table:
        """The answer to one SELECT or EXPLAIN as an Arrow table. Raises StoreError."""
        return self._run(query, parameters, timeout_s)

    def cursor(self) -> "LockedConnection":
        """A second connection to the same lab and process, with results of its own."""
        return LockedConnection(self.bare.cursor(), self._worker, self._timeout_s)

    def interrupt(self) -> None:
        """Stop the query that runs, and the process that runs it."""
        self._worker.stop()

    def close(self) -> None:
        """Close the connection and stop its process."""
        self._worker.stop()
        self.bare.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
