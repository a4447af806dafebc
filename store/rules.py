"""Rules: SQL predicates by which a reviewer decides about many texts at once.

A rule is one boolean expression over a row of the view `rule_rows` that says the same each time it is asked: DuckDB's
own parser reads it, and nothing but an expression of comparisons, functions and constants passes. It runs wrapped, so
that a text on which it fails (`CAST(text AS INTEGER)`) counts as one on which it does not hold, and is in `damaged`."""

import functools
import json
import threading
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from . import catalogue, schema, sql
from .errors import Damage, StoreError

EXAMPLE = "cer > 0.3 OR list_contains(flags, 'formula')"
EXPRESSIONS = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA",
    "OPERATOR", "TYPE",
}  # fmt: skip
# one call makes a value as large as its argument says, whatever the row holds
UNBOUNDED = {"repeat", "range", "generate_series", "lpad", "rpad", "list_resize", "array_resize", "bar", "generate_subscripts"}
_lock = threading.RLock()


class Trial(NamedTuple):
    """What a rule does in a lab: the texts it was asked of, those it holds for, those it fails on and how."""

    rows: int
    matches: int
    failures: int
    error: str | None


@functools.cache
def _empty() -> duckdb.DuckDBPyConnection:
    """A connection with every table and no row, to try rules on."""
    con = duckdb.connect()
    tables = {table.name: table.arrow().empty_table() for table in (*schema.RUNS, *schema.EVENTS, schema.DAMAGED)}
    catalogue.build(con, {}, tables, "", (1, 4), set())
    return con


@functools.cache
def _refused(name: str) -> str | None:
    """Why a rule may not call this function, or None."""
    if name in UNBOUNDED:
        return f"{name}() makes values of any length"
    with _lock:
        functions = (
            _empty()
            .execute(
                "SELECT DISTINCT function_type, stability, macro_definition FROM duckdb_functions() "
                "WHERE function_name = ? AND internal AND function_type IN ('scalar', 'macro', 'aggregate', 'window')",
                [name],
            )
            .fetchall()
        )
    scalar = [stability for kind, stability, _ in functions if kind == "scalar"]
    macros = [definition for kind, _, definition in functions if kind == "macro"]
    if any(stability != "CONSISTENT" for stability in scalar):
        return f"{name}() does not give the same value each time"
    if not scalar and not macros:
        return f"{name}() is not a function of one row" if functions else f"there is no function {name}()"
    for definition in macros:
        for inner in _functions(sql.syntax_tree(f"SELECT {definition}")):
            if inner != name and _refused(inner):
                return f"{name}(): {_refused(inner)}"
    return None


def _functions(tree) -> list[str]:
    """The names of the functions that an expression calls, operators apart."""
    return [
        node["function_name"].lower()
        for node in sql.walk(tree)
        if node.get("class") == "FUNCTION" and not node.get("is_operator") and isinstance(node.get("function_name"), str)
    ]


@functools.lru_cache(10_000)
def check_rule(rule: str) -> None:
    """StoreError unless `rule` is one deterministic boolean expression over the columns of `rule_rows`."""

    def refuse(why: str):
        raise StoreError(f"rule {rule!r:.300}: {why}")

    if not isinstance(rule, str) or not rule.strip():
        raise StoreError(f"a rule is a SQL predicate such as: {EXAMPLE}")
    if len(rule) > 10_000:
        refuse("it is longer than 10,000 characters")
    try:
        tree = sql.syntax_tree(f"SELECT ({rule}\n) FROM rule_rows")
    except StoreError as error:
        refuse(str(error))
    node = tree["statements"][0]["node"]
    plain = {"type", "select_list", "from_table", "cte_map", "aggregate_handling"}
    extra = {name for name, value in node.items() if name not in plain and value not in (None, [], {}, False)}
    if (
        len(tree["statements"]) != 1
        or node["type"] != "SELECT_NODE"
        or extra
        or len(node.get("select_list", [])) != 1
        or node["from_table"].get("type") != "BASE_TABLE"
        or node["from_table"].get("sample")
        or node.get("cte_map", {}).get("map")
        or node.get("aggregate_handling") != "STANDARD_HANDLING"
        or node["select_list"][0].get("alias")
    ):
        refuse(f"a rule is one predicate over the columns of rule_rows, such as: {EXAMPLE}")
    for part in sql.walk(node["select_list"]):
        if part.get("class") not in (None, *EXPRESSIONS):
            kind = str(part.get("type") or part["class"]).lower().replace("_", " ")
            refuse(f"a predicate over one row has no {kind} in it, no query and no * of its own")
    for name in _functions(node["select_list"]):
        if why := _refused(name):
            refuse(why)
    with _lock:
        try:
            type = _empty().execute(f"DESCRIBE SELECT ({rule}\n) FROM rule_rows").fetchall()[0][1]
            _empty().execute(f"EXPLAIN SELECT sample_id FROM rule_rows WHERE {holds(rule)}")
        except duckdb.Error as error:
            refuse(sql.one_line(error))
    if type not in ("BOOLEAN", '"NULL"'):
        refuse(f"it gives {type}, and a rule is true or false")


def holds(rule: str) -> str:
    """The condition under which a rule, which `check_rule` has passed, holds for a row; where it fails it does not."""
    return f"coalesce(TRY(coalesce(({rule}\n), false)), false)"


def fails(rule: str) -> str:
    """The condition under which evaluating a rule fails on a row."""
    return f"TRY(coalesce(({rule}\n), false)) IS NULL"


def try_rule(con: duckdb.DuckDBPyConnection, rule: str, selection_id: str | None = None) -> Trial:
    """Ask a rule of the texts of a selection, or of all: how many it holds for and how many it fails on, before it is set.

    Raises StoreError where it is not a valid rule, or fails on every text."""
    check_rule(rule)
    where = "" if selection_id is None else f" WHERE selection_id = {catalogue.quoted(selection_id)}"
    cursor = con.cursor()
    rows, matches, failures = cursor.execute(
        f"SELECT count(*), count(*) FILTER ({holds(rule)}), count(*) FILTER ({fails(rule)}) FROM rule_rows{where}"
    ).fetchall()[0]
    error = None
    if failures:
        try:
            cursor.execute(f"SELECT count(*) FILTER (({rule}\n)) FROM rule_rows{where}").fetchone()
        except duckdb.Error as problem:
            error = sql.one_line(problem)
        if failures == rows:
            raise StoreError(f"rule {rule!r:.300} fails on every text: {error}; TRY_CAST gives null where a cast fails")
    return Trial(rows, matches, failures, error)


def rule_matches(decisions: pa.Table, rows: str = "rule_rows") -> tuple[str, list[Damage]]:
    """SQL of the views rule_matches and rule_failures over the rules that stand and can be asked, as JSON of the two
    ("" where no rule stands), and those that cannot be asked. `rows`: what they are asked about, with the columns of the
    view rule_rows."""
    parts, failing, damaged = [], [], []
    undo = pc.fill_null(pc.equal(decisions["verdict"], "undo"), False)
    undone = set(decisions.filter(undo)["undoes"].to_pylist())  # each rule costs a pass over the texts
    is_rule = pc.fill_null(pc.equal(decisions["target"], "rule"), False)
    for event in decisions.filter(pc.and_(is_rule, pc.invert(undo))).to_pylist():
        if event["event_id"] not in undone and event["selection_id"] is not None:
            try:
                check_rule(event["rule"])
            except StoreError as error:
                damaged.append(Damage("decisions", f"event {event['event_id']}", str(error)))
                continue
            select = (
                f"SELECT {catalogue.quoted(event['event_id'])} AS event_id, selection_id, sample_id FROM {rows} AS rule_rows "
                f"WHERE selection_id IN (SELECT selection_id FROM lineage WHERE ancestor_id = "
                f"{catalogue.quoted(event['selection_id'])}) AND "
            )
            parts.append(select + holds(event["rule"]))
            failing.append(select + fails(event["rule"]))
    views = ["\nUNION ALL\n".join(parts), "\nUNION ALL\n".join(failing)]
    return json.dumps(views) if parts else "", damaged


def failures(con: duckdb.DuckDBPyConnection) -> list[Damage]:
    """The rules that fail on texts of the lab, and on how many."""
    rows = con.execute(
        "SELECT event_id, count(DISTINCT sample_id), min(sample_id) FROM rule_failures GROUP BY event_id ORDER BY event_id"
    ).fetchall()
    return [
        Damage("decisions", f"event {event}", f"its rule fails on {n} texts, such as {first}, and does not hold for them")
        for event, n, first in rows
    ]


def dropped(con: duckdb.DuckDBPyConnection, candidates: pa.Table) -> list[str]:
    """Ids of the texts that standing decisions would drop were they drawn: current_decisions' own rule, over texts that
    are in no selection yet.

    `candidates`: selection_id (whose decisions hold, and those of its ancestors), sample_id, and of the view `drawn` what
    is known already: cluster_id, clustering_id, run_id, step, p_web, d_cluster, estimated_s; the rest reads as null."""
    con = con.cursor()  # the caller may still be fetching from theirs; what is made here goes with it
    con.register("_candidates", candidates)
    rules, _ = rule_matches(con.sql("FROM decisions").to_arrow_table(), "rule_rows_of('_texts')")
    con.execute("CREATE TEMP TABLE _texts AS FROM drawn WHERE false UNION ALL BY NAME FROM _candidates")
    con.execute(f"CREATE TEMP TABLE _matches AS {json.loads(rules)[0] if rules else catalogue.NO_MATCHES}")
    rows = con.execute(
        "SELECT DISTINCT sample_id FROM standing_decisions('_texts', '_matches') WHERE verdict = 'drop' "
        "AND (selection_id, sample_id) IN (SELECT (selection_id, sample_id) FROM _texts) ORDER BY 1"
    ).fetchall()
    con.close()
    return [sample_id for (sample_id,) in rows]
