"""The tables of a lab as DuckDB views and in-memory tables: which SQL reads which units."""

import csv
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from . import schema
from .errors import Damage, StoreError
from .rows import fit
from .units import Unit
from .verification import MEMBER

_HERE = Path(__file__).parent
QUESTIONS = {path.stem: path.read_text() for path in sorted((_HERE / "questions").glob("*.sql"))}
_SPECIAL = re.compile(r"[*?\[]")  # what stands for other names in a path
NO_MATCHES = "SELECT ''::VARCHAR AS event_id, ''::VARCHAR AS selection_id, ''::VARCHAR AS sample_id WHERE false"


def quoted(value: str) -> str:
    """`value` as a SQL string."""
    return "'" + value.replace("'", "''") + "'"


def file_list(paths: Sequence[Path | str]) -> str:
    """These files, and no others, as a list for read_parquet: what stands for other names in a path is escaped.

    Raises StoreError for a path that DuckDB cannot be given: with a backslash beside one of * ? [."""
    escaped = []
    for path in map(str, paths):
        if not _SPECIAL.search(path):
            escaped.append(quoted(path))
            continue
        if "\\" in path:
            raise StoreError(f"{path}: DuckDB cannot open a path with a backslash and one of * ? [ in it; rename the folder")
        escaped.append(quoted(_SPECIAL.sub(lambda found: f"[{found[0]}]", path)))
    return f"[{', '.join(escaped)}]"


def select_of(table: schema.Table, units: list[Unit], hidden: dict[str, list[list[int]]] | None = None) -> str:
    """SQL that reads the units of a table: one scan per schema version, older ones filled up with defaults.

    `hidden`: files of which rows are left out, those that the table raw.hidden names."""

    def columns(version):
        return ", ".join(
            (f'TRY_CAST("{c.name}" AS JSON)' if c.json else f'"{c.name}"') + f' AS "{c.name}"'
            if c.since <= version
            else f'CAST({"NULL" if c.default is None else c.default} AS {schema.column_type(c)}) AS "{c.name}"'
            for c in table.columns
        )

    groups: dict[tuple, list[str]] = {}
    for unit in units:
        if unit.rows:
            path = str(unit.path)
            key = (min(unit.manifest["schema"], table.version), unit.without, path if path in (hidden or ()) else "")
            groups.setdefault(key, []).append(path)
    parts, hidden = [], hidden or {}
    for (version, without, partly), paths in sorted(groups.items()):
        if partly and sum(last - first for first, last in hidden[partly]) == _rows_in(units, partly):
            continue
        rows = ", file_row_number=true" if partly else ""
        part = f"SELECT {columns(version)} FROM read_parquet({file_list(paths)}, hive_partitioning=false{rows})"
        conditions = [f"{MEMBER} NOT IN ({', '.join(map(quoted, without))})"] if without else []
        if partly:
            conditions.append(f"file_row_number NOT IN (SELECT row FROM raw.hidden WHERE path = {quoted(partly)})")
        parts.append(part + (f" WHERE {' AND '.join(conditions)}" if conditions else ""))
    if not parts:
        return f"SELECT {columns(0)} WHERE false"
    return "\nUNION ALL\n".join(parts)


def _rows_in(units: list[Unit], path: str) -> int:
    """The rows of the unit in this file."""
    return next(unit.rows for unit in units if str(unit.path) == path)


@functools.cache
def published() -> pa.Table:
    """The figures that ship with the package (store/published.csv)."""
    with open(_HERE / "published.csv", encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for name in ("accuracy", "gap"):
            row[name] = None if row[name] is None else float(row[name])
    return fit("published", rows)


def put(con: duckdb.DuckDBPyConnection, name: str, table: schema.Table, rows: pa.Table) -> None:
    """An in-memory table of these rows."""
    con.register("_incoming", rows)
    types = ", ".join(f'CAST("{c.name}" AS {schema.column_type(c)}) AS "{c.name}"' for c in table.columns)
    con.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {types} FROM _incoming")
    con.unregister("_incoming")


WHOLE_PROMPT = (0, 0)  # the spans of a diagnosis: its whole prompt is speech, in every lab the same
SPANS = "coalesce(span_min, 1) AS span_min, coalesce(span_max, 4) AS span_max"


@functools.lru_cache(256)
def _ranges_of(paths: tuple[str, ...]) -> dict[tuple[int, int], int]:
    """The ranges of spans in these Parquet files, and how many checkpoints each was scored on."""
    files = f"read_parquet({file_list(list(paths))}, hive_partitioning=false)"
    with duckdb.connect() as con:
        ranges = con.sql(f"SELECT DISTINCT {SPANS} FROM {files}").fetchall()
        if len(ranges) > 1:
            ranges = con.sql(f"""SELECT span_min, span_max, count(*) FROM
                (SELECT DISTINCT {SPANS}, run_id, step FROM {files}) GROUP BY ALL""").fetchall()
        return {(low, high): (number or [0])[0] for low, high, *number in ranges}


def scoring_spans(lab: Path, units_by_table: dict[str, list[Unit]], runs: pa.Table) -> tuple[int, int]:
    """(shortest, longest) span, in units, of the scorings that the lab's views compare; other scorings are in the tables alone.

    One range for all checkpoints, so that they compare: the one that lab/study.json names (`scoring.span_units`), else
    that in which the newest finished Stage I was trained, else that of the most checkpoints; where the lab was never
    scored in it, the next of these. `ran`: the table runs."""
    units = [unit for unit in units_by_table.get("divergences", []) if unit.rows]
    older = [unit for unit in units if unit.manifest["schema"] < 2]
    newer: list[str] = []
    checkpoints_by_span: dict[tuple, set[tuple[str, str]]] = {}  # what a manifest says of all rows need not be read from the file
    for unit in units:
        if unit.manifest["schema"] >= 2:
            keys = unit.manifest.get("keys", {})
            spans = tuple(keys.get(name, "") for name in ("span_min", "span_max"))
            if {"run_id", "step"} <= keys.keys() and all(span is None or type(span) is int for span in spans):
                spans = tuple(default if span is None else span for span, default in zip(spans, (1, 4), strict=True))
                checkpoints_by_span.setdefault(spans, set()).add((str(keys["run_id"]), str(keys["step"])))
            else:
                newer.append(str(unit.path))
    try:
        scored = dict(_ranges_of(tuple(sorted(newer)))) if newer else {}
    except duckdb.Error:  # a file that is removed meanwhile: a query of it fails with a message
        scored = {}
    for spans, checkpoints in checkpoints_by_span.items():
        scored[spans] = scored.get(spans, 0) + len(checkpoints)
    scored.pop(WHOLE_PROMPT, None)
    if older:
        scored[1, 4] = scored.get((1, 4), 0) + len({unit.path.parent.name for unit in older})
    preferences = []
    try:
        study = json.loads((lab / "study.json").read_text())
        preferences += [study[part]["span_units"] for part in ("scoring",) if isinstance(study.get(part), dict)]
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    stage1 = [row for row in runs.select(["kind", "status", "ended_at", "run_id", "config"]).to_pylist()
              if row["kind"] == "stage1" and row["status"] == "done"]  # fmt: skip
    for row in sorted(stage1, key=lambda r: (r["ended_at"] is not None, r["ended_at"] or 0, r["run_id"]), reverse=True):
        sequences = json.loads(row["config"] or "{}").get("sequences") or {}
        preferences.append(sequences.get("span_units"))
    for spans in preferences:
        if isinstance(spans, list) and len(spans) == 2 and tuple(spans) in scored:
            return tuple(spans)
    return max(scored, key=lambda spans: (scored[spans], spans), default=(1, 4))


def build(
    con: duckdb.DuckDBPyConnection, units_by_table: dict[str, list[Unit]], tables: dict[str, pa.Table], rules: str,
    spans: tuple[int, int], fresh: set[str], hidden: dict[str, list[list[int]]] | None = None,
) -> None:  # fmt: skip
    """(Re)create tables and views; names in `fresh` stand already and stay. `spans`: those of `scoring_spans`; `hidden`:
    rows of units that no view shows."""
    hidden = hidden or {}
    con.execute("CREATE SCHEMA IF NOT EXISTS raw")
    for name, rows in tables.items():
        if name not in fresh:
            put(con, name, schema.TABLES[name], rows)
    names = {table.name: "raw.divergences" if table.name == "divergences" else table.name for table in schema.UNITS}
    first = "questions" not in fresh
    if "hidden" not in fresh:
        sizes = {str(unit.path): unit.rows for units in units_by_table.values() for unit in units}
        runs = [  # of a unit that is hidden as a whole nothing is read
            (path, first, last)
            for path, rows in hidden.items()
            if sum(last - first for first, last in rows) < sizes.get(path, 0)
            for first, last in rows
        ]
        columns = list(zip(*runs, strict=True)) or [(), (), ()]
        types = (("path", schema.TEXT), ("first", schema.BIG), ("last", schema.BIG))
        rows = pa.table({name: pa.array(values, type) for (name, type), values in zip(types, columns, strict=True)})
        con.register("_incoming", rows)
        con.execute("CREATE OR REPLACE TABLE raw.hidden AS SELECT path, unnest(range(first, last)) AS row FROM _incoming")
        con.unregister("_incoming")
    if first:
        put(con, "raw.published", schema.PUBLISHED, published())
        # A view is bound when it is made, and binding looks at every file: so first over empty tables.
        con.execute("".join(f"CREATE OR REPLACE VIEW {names[table.name]} AS {select_of(table, [])};\n" for table in schema.UNITS))
        con.execute(_of_spans(spans) + _newest(None) + (_HERE / "views.sql").read_text() + "".join(QUESTIONS.values()))
    if "rules" not in fresh and (rules or not first):
        matches, failures = json.loads(rules) if rules else (NO_MATCHES, NO_MATCHES)
        con.execute(f"CREATE OR REPLACE VIEW rule_matches AS {matches}; CREATE OR REPLACE VIEW rule_failures AS {failures}")
    for table in schema.UNITS:
        if table.name not in fresh and (units_by_table.get(table.name) or not first):
            con.execute(
                f"CREATE OR REPLACE VIEW {names[table.name]} AS {select_of(table, units_by_table.get(table.name, []), hidden)}"
            )
    if not first and "spans" not in fresh:
        con.execute(_of_spans(spans))
    if "published" not in fresh:
        con.execute(
            "CREATE OR REPLACE VIEW published AS FROM raw.published UNION ALL BY NAME "
            + select_of(schema.PUBLISHED, units_by_table.get("published", []), hidden)
        )
    if not {"clusters", "assignments", "runs"} <= fresh and units_by_table.get("clusters"):
        newest = con.sql("""
            SELECT c.clustering_id FROM (SELECT DISTINCT clustering_id, run_id FROM clusters) c
            LEFT JOIN runs r USING (run_id) ORDER BY r.ended_at DESC NULLS LAST, clustering_id DESC LIMIT 1
        """).fetchall()
        con.execute(_newest(newest[0][0] if newest else None))


def _of_spans(spans: tuple[int, int]) -> str:
    """SQL of the scorings that all other views show: of one range of spans, and diagnoses."""
    of = f"span_min = {spans[0]} AND span_max = {spans[1]}"
    if spans == (1, 4):
        of = "coalesce(span_min, 1) = 1 AND coalesce(span_max, 4) = 4"
    of = f"({of}) OR (span_min, span_max) = {WHOLE_PROMPT}"
    return (
        f"CREATE OR REPLACE VIEW raw.scored AS FROM raw.divergences WHERE {of};\n"
        f"CREATE OR REPLACE VIEW raw.scored_tokens AS FROM token_divergences WHERE {of};\n"
    )


def _newest(clustering_id: str | None) -> str:
    """SQL of what the newest clustering is: the one whose pass ended last by runs.ended_at, then by id."""
    literal = quoted(clustering_id) if clustering_id else "NULL::VARCHAR"
    return "".join(
        f"CREATE OR REPLACE VIEW current_{name} AS FROM {name} WHERE clustering_id = {literal};\n"
        for name in ("assignments", "clusters")
    )


def damaged_table(damage: list[Damage]) -> pa.Table:
    """The rows of `damaged`."""
    rows = [{key: text.encode("utf-8", "replace").decode() for key, text in item._asdict().items()} for item in damage]
    return pa.Table.from_pylist(rows, schema=schema.DAMAGED.arrow()) if rows else schema.DAMAGED.arrow().empty_table()


def comment(con: duckdb.DuckDBPyConnection) -> None:
    """Say beside each table and view what a row is; beside `misalignment`, that it is the one to start at."""
    comments = {name: f"One row is {table.row}." for name, table in schema.TABLES.items()}
    comments["misalignment"] = "Start here: one row is a spoken text under a checkpoint, with all that is known of it."
    kinds = dict(con.execute("SELECT table_name, table_type FROM information_schema.tables").fetchall())
    for name, text in comments.items():
        kind = "VIEW" if kinds[name] == "VIEW" else "TABLE"
        con.execute(f'COMMENT ON {kind} main."{name}" IS {quoted(text)}')
