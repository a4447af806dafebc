"""What a page asks again and again, kept in temporary tables of its connection: a selection's texts and their speech, the
probe, what it measured, and the verdicts that stand.

Decisions are not in the tables of texts: a click costs a join with what was said, not another pass over a million rows."""

import weakref
from typing import Any

import duckdb

import store

# One row per drawn text, with its speech: of several syntheses the one that was scored under the checkpoint that the
# selection was drawn with stands for a text, else the first id.
_DRAWN = """
WITH mine AS (SELECT * FROM selected WHERE selection_id = $selection),
scored AS (
    SELECT DISTINCT synthesis_id FROM raw.scored AS v
    JOIN selections AS c ON c.selection_id = $selection AND v.run_id = c.run_id AND v.step = c.step
    WHERE sample_id IN (SELECT sample_id FROM mine)
), spoken AS (
    SELECT sample_id, substr(min(if(scored.synthesis_id IS NULL, '1', '0') || y.synthesis_id), 2) AS synthesis_id
    FROM syntheses AS y LEFT JOIN scored USING (synthesis_id)
    WHERE sample_id IN (SELECT sample_id FROM mine) GROUP BY sample_id
)
SELECT t.selection_id, t.sample_id, t.draw, t.cluster_id, t.d_cluster, t.p_target, y.synthesis_id, y.tts, y.voice, y.cer,
    coalesce(y.duration_s, t.estimated_s) AS seconds, y.duration_s, coalesce(y.flags, []) AS flags
FROM mine AS t LEFT JOIN spoken USING (sample_id)
LEFT JOIN syntheses AS y ON y.synthesis_id = coalesce(t.own_synthesis_id, spoken.synthesis_id)
"""
# The same with the text, its cluster's words, and its divergences under that checkpoint.
_READ = """
WITH chosen AS (SELECT * FROM selections WHERE selection_id = $selection),
scored AS (
    SELECT sample_id, token_mean(d, n_positions) AS d,
        token_mean(m, n_positions) AS m,
        token_mean(f, n_positions_f) AS f
    FROM raw.scored AS v JOIN chosen AS c ON v.run_id = c.run_id AND v.step = c.step
    WHERE sample_id IN (SELECT sample_id FROM {drawn}) GROUP BY ALL
)
SELECT t.selection_id, t.sample_id, t.draw, t.cluster_id, array_to_string(k.terms[1:4], ', ') AS terms,
    t.d_cluster, t.p_target, s.text, s.domain, s.n_tokens, scored.d, scored.m, scored.f, t.synthesis_id, t.tts,
    t.voice, t.cer, t.seconds, t.duration_s, list_concat(coalesce(s.flags, []), t.flags) AS flags
FROM {drawn} AS t JOIN chosen AS c USING (selection_id) LEFT JOIN samples AS s USING (sample_id)
LEFT JOIN scored USING (sample_id)
LEFT JOIN clusters AS k ON k.clustering_id = c.clustering_id AND k.cluster_id = t.cluster_id
"""
# One row per text of the clustering that was scored under that checkpoint, drawn or not: the probe.
_PROBED = """
SELECT a.cluster_id, v.sample_id, sum(v.n_positions) AS n, token_mean(v.d, v.n_positions) AS d,
    max(y.cer) AS cer
FROM raw.scored AS v
JOIN selections AS c ON c.selection_id = $selection AND v.run_id = c.run_id AND v.step = c.step
JOIN assignments AS a ON a.sample_id = v.sample_id AND a.clustering_id = c.clustering_id
LEFT JOIN syntheses AS y ON y.synthesis_id = v.synthesis_id
WHERE v.d IS NOT NULL AND v.n_positions > 0 GROUP BY ALL
"""
# One row per cluster: the token-weighted mean D of its measured texts, and half of its 95 % interval over texts.
_MEASURED = """
SELECT cluster_id, token_mean(d, n) AS d_measured, count(*) AS n_measured, token_mean_half_95(d, n) AS half
FROM {probed} GROUP BY cluster_id
"""
_LAB = ("samples", "selected", "selections", "clusters", "assignments", "syntheses", "divergences")
_HELD = {"drawn": _DRAWN, "read": _READ, "probed": _PROBED, "measured": _MEASURED}
_held: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict]" = weakref.WeakKeyDictionary()


def held_of(con: duckdb.DuckDBPyConnection) -> dict:
    """What is kept for a connection, as long as it lives."""
    return _held.setdefault(con, {})


def hold(con: duckdb.DuckDBPyConnection, selection_id: str, kind: str) -> str:
    """The name of one of a selection's temporary tables (a key of _HELD), made when first asked for and anew when the lab
    has grown: a figure waits for those alone that it reads.

    Decisions are not in them: a click costs a join with what was said, not another pass over a million rows."""
    held, lab = held_of(con), store.version(con, *_LAB)
    name = f'"{kind} {selection_id.replace(chr(34), "")}"'
    if held.get((kind, selection_id)) != lab:
        needed = {other: hold(con, selection_id, other) for other in _HELD if f"{{{other}}}" in _HELD[kind]}
        query = _HELD[kind].format(**needed)
        values = {"selection": selection_id} if "$selection" in query else None
        con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}", values)
        held[kind, selection_id] = lab
    return name


def of_lab(con: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The one value that `query` gives of a lab's divergences, asked anew when there are more of them.

    What scales every figure is a quantile of all rows: asked by each figure it would cost more than the figure."""
    held, lab = held_of(con), store.version(con, "divergences", "token_divergences")
    if held.get(("of lab", query), (None,))[0] != lab:
        held["of lab", query] = lab, con.execute(query).fetchone()[0]
    return held["of lab", query][1]


def verdicts_of(con: duckdb.DuckDBPyConnection, selection_id: str) -> tuple[str, tuple]:
    """The name of a temporary table with the verdicts that stand about a selection's texts, and what it was made from.

    It is made anew after each event: the rules of a large selection are then asked once a click, not by every figure."""
    held, key = held_of(con), store.version(con, *_LAB, "decisions")
    name = f'"verdicts {selection_id.replace(chr(34), "")}"'
    if held.get(("verdicts", selection_id)) != key:
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE {name} AS SELECT sample_id, reviewer, verdict, reason, "at", clock
                FROM current_decisions WHERE selection_id = $selection""",
            {"selection": selection_id},
        )
        held["verdicts", selection_id] = key
    return name, key


def texts_with_verdicts(con: duckdb.DuckDBPyConnection, selection_id: str) -> str:
    """SQL: a WITH clause that ends in `texts`, a selection's texts and what stands about them."""
    return f"""WITH verdicts AS (
        SELECT sample_id, bool_or(verdict = 'drop') AS dropped, bool_or(verdict = 'keep') AS kept,
            arg_max(reason, clock) FILTER (WHERE verdict = 'drop') AS reason,
            string_agg(DISTINCT reviewer, ', ') AS reviewers
        FROM {verdicts_of(con, selection_id)[0]} GROUP BY sample_id
    ), texts AS (
        SELECT t.*, coalesce(dropped, false) AS dropped, coalesce(kept, false) AS kept, reason, reviewers
        FROM {hold(con, selection_id, "read")} AS t LEFT JOIN verdicts USING (sample_id)
    )"""
