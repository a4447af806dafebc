"""SQL that people type: one SELECT or EXPLAIN, files of the lab only, no network, limits on time and memory."""

import difflib
import functools
import json
import os
import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pyarrow as pa

from .errors import StoreError

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
_parser_lock = threading.Lock()


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that parses; it holds no data. Made late: a process that forks must not have its threads."""
    return duckdb.connect()


def walk(value):
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
        tree = json.loads(_parser().execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0])
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


def lock(con: duckdb.DuckDBPyConnection, lab, memory: str = "2GB") -> None:
    """Shut a connection in: the lab's files only, no extensions, no settings. The order matters."""
    folder = str(lab).replace("'", "''")
    temporary = os.path.join(tempfile.gettempdir(), f"store-{os.getpid()}").replace("'", "''")
    for setting in (
        f"allowed_directories=['{folder}']",
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


def _bytes(size: str) -> float:
    """ "2GB" as a number of bytes."""
    number, unit = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?B)\s*", size, re.IGNORECASE).groups()
    return float(number) * 1000 ** "BKMGT".index(unit[0].upper())


class LockedConnection:
    """A DuckDB connection that runs SELECT and EXPLAIN only, each within `timeout_s` seconds.

    Takes the place of a DuckDBPyConnection where a tool wants one (mo.sql, embedding-atlas)."""

    def __init__(self, con: duckdb.DuckDBPyConnection, timeout_s: float, memory: str):
        self._con, self._timeout_s, self._memory = con, timeout_s, memory
        self._result = con

    @property
    def __class__(self):  # mo.sql asks isinstance(engine, DuckDBPyConnection)
        return duckdb.DuckDBPyConnection

    def _run(self, sql, parameters=None, timeout_s=None):
        if not isinstance(sql, str):
            raise StoreError("SQL is given as text here")
        check_statement(sql)
        limit = timeout_s or self._timeout_s
        con = self._con.cursor()
        # in a thread of its own: this one, which waits, hears the clock and a Ctrl-C; one inside DuckDB would not
        with ThreadPoolExecutor(1, "sql") as pool:
            answer = pool.submit(self._read, con, sql, parameters)
            try:
                return answer.result(limit)
            except TimeoutError:
                raise StoreError(f"stopped after {limit:g} s: narrow the query down, or give it more time") from None
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise StoreError(f"SQL: {' '.join(str(error).split('LINE 1:')[0].split())}") from None
            finally:
                while not answer.done():  # again and again: DuckDB forgets one that comes before the query has begun
                    con.interrupt()
                    wait([answer], 0.02)

    def _read(self, con, sql, parameters) -> pa.Table:
        reader = con.sql(sql, params=parameters).to_arrow_reader()
        batches, size = [], 0
        for batch in reader:  # a result is outside DuckDB's own memory limit
            batches.append(batch)
            size += batch.nbytes
            if size > _bytes(self._memory):
                raise StoreError(f"the answer is larger than {self._memory}: aggregate, or add a LIMIT")
        return pa.Table.from_batches(batches, reader.schema)

    def execute(self, query, parameters=None, timeout_s=None):
        result = self._con.cursor()
        result.register("_result", self._run(query, parameters, timeout_s))
        self._result = result.execute("FROM _result")
        return self

    def __getattr__(self, name):
        if name in FETCHES:
            return getattr(self._result, name)
        raise AttributeError(f"a locked connection has no {name}; it runs SELECT and EXPLAIN")

    def sql(self, query, alias="", params=None, **_):
        return self._con.from_arrow(self._run(query, params))

    query = sql

    def table(self, query, parameters=None, timeout_s=None) -> pa.Table:
        """The answer as an Arrow table."""
        return self._run(query, parameters, timeout_s)

    def cursor(self):
        return LockedConnection(self._con.cursor(), self._timeout_s, self._memory)

    def interrupt(self):
        self._con.interrupt()

    def close(self):
        self._con.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
