"""Rules: SQL predicates by which a reviewer decides about many texts at once."""

import functools
import threading

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from . import catalogue, schema, sql
from .errors import Damage, StoreError

_lock = threading.RLock()


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
    nodes = [n.get("type") for n in sql.walk(tree)]
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
    catalogue.build(
        con,
        {},
        {table.name: table.arrow().empty_table() for table in (*schema.RUNS, *schema.EVENTS, schema.DAMAGED)},
        "",
        (1, 4),
        set(),
    )
    return con


def rule_matches(decisions: pa.Table, rows: str = "rule_rows") -> tuple[str, list[Damage]]:
    """SQL of the view rule_matches over the rules that stand and can be asked, and those that cannot be. `rows`: what
    they are asked about, with the columns of the view rule_rows."""
    parts, damaged = [], []
    undo = pc.fill_null(pc.equal(decisions["verdict"], "undo"), False)
    undone = set(decisions.filter(undo)["undoes"].to_pylist())  # each rule costs a pass over the texts
    for event in decisions.filter(pc.and_(pc.equal(decisions["target"], "rule"), pc.invert(undo))).to_pylist():
        if event["event_id"] not in undone:
            try:
                check_rule(event["rule"])
            except StoreError as error:
                damaged.append(Damage("decisions", f"event {event['event_id']}", str(error)))
                continue
            parts.append(
                f"SELECT {catalogue.quoted(event['event_id'])} AS event_id, selection_id, sample_id FROM {rows} AS rule_rows "
                f"WHERE selection_id IN (SELECT selection_id FROM lineage WHERE ancestor_id = "
                f"{catalogue.quoted(event['selection_id'])}) AND ({event['rule']}\n)"
            )
    return "\nUNION ALL\n".join(parts), damaged


def dropped(con, candidates: pa.Table) -> list[str]:
    """Ids of the texts that standing decisions would drop were they drawn: current_decisions' own rule, over texts that
    are in no selection yet.

    `candidates`: selection_id (whose decisions hold, and those of its ancestors), sample_id, and of the view `drawn` what
    is known already: cluster_id, clustering_id, run_id, step, p_web, d_cluster, estimated_s; the rest reads as null."""
    con.register("_candidates", candidates)
    matches, _ = rule_matches(con.sql("FROM decisions").to_arrow_table(), "rule_rows_of('_texts')")
    try:
        con.execute("CREATE OR REPLACE TEMP TABLE _texts AS FROM drawn WHERE false UNION ALL BY NAME FROM _candidates")
        con.execute(f"CREATE OR REPLACE TEMP TABLE _matches AS {matches or catalogue.NO_MATCHES}")
        found = con.execute(
            "SELECT DISTINCT sample_id FROM standing_decisions('_texts', '_matches') WHERE verdict = 'drop' "
            "AND (selection_id, sample_id) IN (SELECT (selection_id, sample_id) FROM _texts) ORDER BY 1"
        ).fetchall()
        con.execute("DROP TABLE _matches; DROP TABLE _texts")
    finally:
        con.unregister("_candidates")
    return [sample_id for (sample_id,) in found]
