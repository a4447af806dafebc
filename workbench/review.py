"""The logic behind notebooks/selection.py: what a selection holds, in which order people read it, what they said
about it, and what their drops did to it. Everything is SQL over the store's views; every action is an event."""

import getpass
import hashlib
import math
import weakref
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

import store
from store.rules import check_rule

REASONS = ("bad synthesis", "not speakable", "duplicate", "off-topic", "unsafe", "other")
QUEUES = {
    "worst": "worst first: the highest divergence, then the highest character error rate",
    "random": "random: in an order that is the same for everybody",
    "flagged": "flagged first: texts and syntheses with a flag",
    "disagreement": "reviewers' disagreement: one says keep, another drop",
    "audit": "audit: the cluster's audit draw, see below",
}
_KEYS = {
    "worst": "d DESC NULLS LAST, cer DESC NULLS LAST, d_cluster DESC NULLS LAST, draw",
    "random": "md5(sample_id)",
    "flagged": "len(flags) DESC, d DESC NULLS LAST, draw",
    "disagreement": "d DESC NULLS LAST, draw",
    "audit": "md5(selection_id || sample_id)",
    "draw": "draw",
    "divergence": "d DESC NULLS LAST, draw",
    "character error rate": "cer DESC NULLS LAST, draw",
}

# One row per drawn text, with its speech: of several syntheses the one that was scored under the checkpoint that the
# selection was drawn with stands for a text, else the first id.
_DRAWN = """
WITH mine AS (SELECT * FROM selected WHERE selection_id = $selection),
scored AS (
    SELECT DISTINCT synthesis_id FROM raw.divergences AS v
    JOIN selections AS c ON c.selection_id = $selection AND v.run_id = c.run_id AND v.step = c.step
    WHERE sample_id IN (SELECT sample_id FROM mine)
), spoken AS (
    SELECT sample_id, substr(min(if(scored.synthesis_id IS NULL, '1', '0') || y.synthesis_id), 2) AS synthesis_id
    FROM syntheses AS y LEFT JOIN scored USING (synthesis_id)
    WHERE sample_id IN (SELECT sample_id FROM mine) GROUP BY sample_id
)
SELECT t.selection_id, t.sample_id, t.draw, t.cluster_id, t.d_cluster, t.p_target, y.synthesis_id, y.tts, y.voice, y.cer,
    coalesce(y.duration_s, t.estimated_s) AS seconds, y.duration_s, coalesce(y.flags, []) AS flags
FROM mine AS t LEFT JOIN spoken USING (sample_id) LEFT JOIN syntheses AS y USING (synthesis_id)
"""

# The same with the text, its cluster's words, and its divergences under that checkpoint.
_READ = """
WITH chosen AS (SELECT * FROM selections WHERE selection_id = $selection),
scored AS (
    SELECT sample_id, token_mean(d, n_positions) AS d,
        token_mean(m, n_positions) AS m,
        token_mean(f, n_positions_f) AS f
    FROM raw.divergences AS v JOIN chosen AS c ON v.run_id = c.run_id AND v.step = c.step
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
FROM raw.divergences AS v
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


def _hold(con, selection_id: str, kind: str) -> str:
    """The name of one of a selection's temporary tables (a key of _HELD), made when first asked for and anew when the lab
    has grown: a figure waits for those alone that it reads.

    Decisions are not in them: a click costs a join with what was said, not another pass over a million rows."""
    held, lab = _held.setdefault(con, {}), store.version(con, *_LAB)
    name = f'"{kind} {selection_id.replace(chr(34), "")}"'
    if held.get((kind, selection_id)) != lab:
        needed = {other: _hold(con, selection_id, other) for other in _HELD if f"{{{other}}}" in _HELD[kind]}
        query = _HELD[kind].format(**needed)
        values = {"selection": selection_id} if "$selection" in query else None
        con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}", values)
        held[kind, selection_id] = lab
    return name


def of_lab(con, query: str):
    """The one value that `query` gives of a lab's divergences, asked anew when there are more of them.

    What scales every figure is a quantile of all rows: asked by each figure it would cost more than the figure."""
    held, lab = _held.setdefault(con, {}), store.version(con, "divergences", "token_divergences")
    if held.get(("of lab", query), (None,))[0] != lab:
        held["of lab", query] = lab, con.execute(query).fetchone()[0]
    return held["of lab", query][1]


def _said(con, selection_id: str) -> tuple[str, tuple]:
    """The name of a temporary table with the verdicts that stand about a selection's texts, and what it was made from.

    It is made anew after each event: the rules of a large selection are then asked once a click, not by every figure."""
    held, key = _held.setdefault(con, {}), store.version(con, *_LAB, "decisions")
    name = f'"verdicts {selection_id.replace(chr(34), "")}"'
    if held.get(("verdicts", selection_id)) != key:
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE {name} AS SELECT sample_id, reviewer, verdict, reason, "at"
                FROM current_decisions WHERE selection_id = $selection""",
            {"selection": selection_id},
        )
        held["verdicts", selection_id] = key
    return name, key


def _texts(con, selection_id: str) -> str:
    """SQL: a WITH clause that ends in `texts`, a selection's texts and what stands about them."""
    return f"""WITH verdicts AS (
        SELECT sample_id, bool_or(verdict = 'drop') AS dropped, bool_or(verdict = 'keep') AS kept,
            arg_max(reason, "at") FILTER (WHERE verdict = 'drop') AS reason,
            string_agg(DISTINCT reviewer, ', ') AS reviewers
        FROM {_said(con, selection_id)[0]} GROUP BY sample_id
    ), texts AS (
        SELECT t.*, coalesce(dropped, false) AS dropped, coalesce(kept, false) AS kept, reason, reviewers
        FROM {_hold(con, selection_id, "read")} AS t LEFT JOIN verdicts USING (sample_id)
    )"""


def reviewer_name() -> str:
    """Who says it: the account's name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "reviewer"


def selections(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The lab's selections with a label to choose by; those drawn by divergence first, children last."""
    return con.execute("""
        SELECT s.*, coalesce(n, 0) AS n_texts, round(coalesce(hours, 0), 2) AS hours,
            format('{} · γ {} · {} texts · {}', strategy, coalesce(gamma, 0), coalesce(n, 0), s.selection_id) AS label
        FROM selections AS s LEFT JOIN (SELECT selection_id, count(*) AS n, sum(estimated_s) / 3600 AS hours
            FROM selected GROUP BY ALL) USING (selection_id)
        ORDER BY parent_selection_id IS NOT NULL, strategy <> 'active', s.selection_id""").df()


def advice(con: duckdb.DuckDBPyConnection, lab: Path | str) -> str | None:
    """What to do when there is nothing to review yet, in a sentence; None where there is a selection."""
    if con.execute("SELECT count(*) FROM selections").fetchone()[0]:
        return None
    n = con.execute("SELECT count(*) FROM samples").fetchone()[0]
    if not n and con.execute("SELECT count(*) FROM runs WHERE status IN ('queued', 'starting', 'running')").fetchone()[0]:
        return (
            f"The lab {lab} has no texts yet, and a run is still going: `notebooks/training.py` shows how far. A selection "
            "is drawn after Stage I; open this again then."
        )
    if not n:
        return (
            f"The lab {lab} is empty. Make one with `make demo` (seven minutes), or say which one to open: "
            f"`SALAD_LAB=path/to/lab marimo edit notebooks/selection.py`."
        )
    return (
        f"The lab {lab} has {n:,} texts but no selection yet. If a demo is running, it comes after Stage I: "
        f"run this again in a moment. Else draw one with `salad select --lab {lab}`."
    )


def unready(con: duckdb.DuckDBPyConnection, selection_id: str) -> str | None:
    """What to do where a selection's clusters or their divergences are not in the lab, in a sentence; None where they are."""
    table = _clusters(con, selection_id)
    named = f"selection `{selection_id}`"
    if table.empty:
        return (
            f"The clusters that {named} was drawn from are not in this lab. If a file is damaged, `salad verify --repair` moves "
            "it away; `salad pass cluster` makes clusters again. Another selection may be whole: choose it above."
        )
    if not table.d_cluster.notna().any():
        return (
            f"Neither the drawn texts of {named} are in this lab nor divergences of its clusters. If a file is damaged, "
            "`salad verify --repair` moves it away; `salad pass score` scores again, `salad select` draws again."
        )
    return None


def texts(
    con,
    selection_id: str,
    cluster_ids=(),
    search: str = "",
    order: str = "divergence",
    page: int = 0,
    size: int = 12,
    standing: str = "all",
    within: dict | None = None,
) -> tuple[pd.DataFrame, int]:
    """One page of a selection's texts, and how many there are.

    `cluster_ids` empty means all; `search` is looked for in the text, without regard to case; `order` is a key
    of _KEYS; `standing` is "all", "kept" or "dropped"; `within` ({"cer": (low, high), "d": (low, high)}) narrows them.
    """
    where, values = _where(cluster_ids, search, standing, within)
    total = con.execute(f"{_texts(con, selection_id)} SELECT count(*) FROM texts WHERE {where}", values).fetchone()[0]
    rows = con.execute(
        f"""{_texts(con, selection_id)} SELECT * FROM texts WHERE {where} ORDER BY {_KEYS[order]}, sample_id
            LIMIT {int(size)} OFFSET {int(page) * int(size)}""",
        values,
    ).df()
    return rows, total


def _where(cluster_ids=(), search="", standing="all", within=None):
    parts, values = ["true"], {}
    if len(cluster_ids):
        parts.append("cluster_id IN (SELECT unnest($clusters))")
        values["clusters"] = [int(c) for c in cluster_ids]
    if search:
        parts.append("contains(lower(text), lower($search))")
        values["search"] = search
    if standing != "all":
        parts.append("dropped" if standing == "dropped" else "NOT dropped")
    for name in {"cer", "d"} & set(within or {}):
        parts.append(f"{name} BETWEEN $low_{name} AND $high_{name}")
        values |= {f"low_{name}": float(within[name][0]), f"high_{name}": float(within[name][1])}
    return " AND ".join(parts), values


def queue(
    con,
    selection_id: str,
    order: str = "worst",
    cluster_ids=(),
    reviewer: str | None = None,
    unjudged: bool = False,
    limit: int = 5000,
    search: str = "",
    per_cluster: int = 20,
    within: dict | None = None,
) -> list[str]:
    """Sample ids in the order in which to read them; with `unjudged`, without those that `reviewer` has judged.

    The order "audit" holds each cluster's first `per_cluster` texts, the same that `audit` counts.
    """
    where, values = _where(cluster_ids, search, within=within)
    if order == "flagged":
        where += " AND len(flags) > 0"
    if order == "disagreement":
        where += " AND dropped AND kept"
    if unjudged:
        where += f" AND sample_id NOT IN (SELECT sample_id FROM {_said(con, selection_id)[0]} WHERE reviewer = $reviewer)"
        values["reviewer"] = reviewer
    first = (
        f"""QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY {_KEYS["audit"]}, sample_id)
                <= {int(per_cluster)}"""
        if order == "audit"
        else ""
    )
    rows = con.execute(
        f"{_texts(con, selection_id)} SELECT sample_id FROM (SELECT * FROM texts {first}) WHERE {where} "
        f"ORDER BY {_KEYS[order]}, sample_id LIMIT {int(limit)}",
        values,
    )
    return [row[0] for row in rows.fetchall()]


def dicts(result) -> list[dict]:
    """The rows of a DuckDB result, by the names of their columns."""
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def card(con, selection_id: str, sample_id: str) -> dict | None:
    """All the listening widget shows of one text: the text, its speech, its words' times, what stands about it,
    and for each token the divergences (nats) and both models' top tokens. None if the text is not there."""
    rows = con.execute(
        f"{_texts(con, selection_id)} SELECT * FROM texts WHERE sample_id = $sample",
        {"sample": sample_id},
    )
    found = dicts(rows)
    if not found:
        return None
    row = found[0]
    row["said"] = (
        con.execute(
            f"""SELECT reviewer, verdict, reason FROM {_said(con, selection_id)[0]}
           WHERE sample_id = ? ORDER BY "at", reviewer""",
            [sample_id],
        )
        .df()
        .to_dict("records")
    )
    row["words"] = read_speech(con, row["synthesis_id"])["words"]
    drawn = con.execute("SELECT run_id, step FROM selections WHERE selection_id = ?", [selection_id]).fetchone()
    row["tokens"] = read_tokens(con, *drawn, sample_id, row["synthesis_id"])
    return row


def read_speech(con, synthesis_id: str | None) -> dict:
    """tts, voice, cer, duration_s and flags of a synthesis, and its words as [char_start, char_end, start_s, end_s]."""
    columns = ("tts", "voice", "cer", "duration_s", "flags", "words")
    found = con.execute(f"SELECT {', '.join(columns)} FROM syntheses WHERE synthesis_id = ?", [synthesis_id]).fetchone()
    told = dict(zip(columns, found or [None] * len(columns), strict=True))
    times = ("char_start", "char_end", "start_s", "end_s")
    words = [[word[key] for key in times] for word in told["words"] or []]
    return told | {"flags": told["flags"] or [], "words": words}


def read_tokens(con, run_id: str, step: int, sample_id: str, synthesis_id: str | None) -> list[dict]:
    """A text's tokens as a checkpoint scored them, in order, with both models' likeliest tokens as [token, p]."""
    tokens = dicts(
        con.execute(
            """
        SELECT token, char_start, char_end, start_s, end_s, d, m, f, after_speech, teacher_top AS teacher,
            student_top AS student
        FROM token_divergences
        WHERE run_id = ? AND step = ? AND sample_id = ? AND synthesis_id = ? ORDER BY position, pattern""",
            [run_id, step, sample_id, synthesis_id],
        )
    )
    for token in tokens:
        for side in ("teacher", "student"):
            token[side] = [[t["token"], t["p"]] for t in token[side] or []]
    return tokens


def top_divergence(con) -> float:
    """Where the ribbon's colour is fullest: the lab's 98th percentile of D per token, so that it is one scale for
    every text of a lab."""
    top = of_lab(con, "SELECT quantile_cont(d, 0.98) FROM token_divergences")
    return float(top) if top else 1.0


def cluster_table(con, selection_id: str, gamma: float | None = None) -> pd.DataFrame:
    """One row per cluster: d_cluster with a 95 % interval, its mass under P_web and P_target (at `gamma`, else
    the selection's own), the share of texts drawn and kept, and hours.

    The interval is Student's t on the ratio sum(d·n)/sum(n) over the measured texts; null below two of them.
    """
    table = _clusters(con, selection_id).copy()
    drawn_gamma = table.gamma.fillna(0).iloc[0] if len(table) else 0.0
    table["p_target"] = target(table, drawn_gamma if gamma is None else gamma)
    return table


def _clusters(con, selection_id: str) -> pd.DataFrame:
    """`cluster_table` without what depends on γ, kept until the lab has grown or something was said: five figures of a
    page are made from it."""
    drawn, measured = (_hold(con, selection_id, kind) for kind in ("drawn", "measured"))
    verdicts, key = _said(con, selection_id)
    held = _held[con]
    if held.get(("clusters", selection_id), (None,))[0] == key:
        return held["clusters", selection_id][1]
    table = con.execute(
        f"""
    WITH dropped AS (
        SELECT DISTINCT sample_id, true AS gone FROM {verdicts} WHERE verdict = 'drop'
    ), drawn AS (
        SELECT t.cluster_id, max(t.d_cluster) AS d_drawn, count(*) AS drawn,
            count(*) FILTER (WHERE gone IS NULL) AS kept, sum(seconds) / 3600 AS drawn_h,
            coalesce(sum(seconds) FILTER (WHERE gone IS NULL), 0) / 3600 AS kept_h
        FROM {drawn} AS t LEFT JOIN dropped USING (sample_id) GROUP BY 1
    )
    SELECT k.cluster_id, k.cluster_id || ' ' || coalesce(array_to_string(k.terms[1:4], ', '), '') AS label,
        k.size, k.p_web, coalesce(d_drawn, d_measured) AS d_cluster, d_measured, half,
        coalesce(n_measured, 0) AS n_measured, coalesce(drawn, 0) AS drawn, coalesce(kept, 0) AS kept,
        coalesce(drawn_h, 0) AS drawn_h, coalesce(kept_h, 0) AS kept_h, c.gamma, c.strategy, c.budget_h, s.left_out
    FROM clusters AS k JOIN selections AS c ON c.selection_id = $selection AND c.clustering_id = k.clustering_id
    LEFT JOIN (
        SELECT cluster_id, max(left_out) AS left_out FROM selection_clusters WHERE selection_id = $selection
        OR selection_id IN (SELECT ancestor_id FROM lineage WHERE selection_id = $selection) GROUP BY 1
    ) AS s USING (cluster_id)
    LEFT JOIN {measured} USING (cluster_id) LEFT JOIN drawn USING (cluster_id)
    ORDER BY d_cluster DESC NULLS LAST, cluster_id
    """,
        {"selection": selection_id},
    ).df()
    table["low"] = np.maximum(table.d_measured - table.half, 0)
    table["high"] = table.d_measured + table.half
    table["drawn_share"] = table.drawn / max(table.drawn.sum(), 1)
    table["kept_share"] = table.kept / max(table.kept.sum(), 1)
    held["clusters", selection_id] = (key, table)
    return table


def target(table: pd.DataFrame, gamma: float) -> np.ndarray:
    """P_target of a cluster table at `gamma`; a cluster that was never measured, or that the draw left out, has none."""
    from salad.selection import target_distribution

    d = table.d_cluster.to_numpy(float)
    p = np.zeros(len(table))
    known = np.isfinite(d) & table.left_out.isna().to_numpy()
    if known.any():
        p[known] = target_distribution(table.p_web.to_numpy(float)[known], d[known], float(gamma))
    return p


def effective_texts(table: pd.DataFrame) -> float:
    """The effective sample size of the kept texts when they are weighted to a cluster table's P_target (Kish)."""
    from salad.selection import effective_size

    p, kept = table.p_target.to_numpy(float), table.kept.to_numpy()
    held = (kept > 0) & (p > 0)
    return effective_size(np.repeat(p[held] / kept[held], kept[held])) if held.any() else 0.0


def effect_of_drops(con, selection_id: str) -> dict:
    """What the drops did: texts and hours drawn and kept, KL(drawn ‖ P_target) and KL(kept ‖ P_target) in nats,
    the effective sample size of the kept texts when they are weighted to P_target, and clusters that are lost.

    For a uniform selection the intended distribution is P_web (γ = 0).
    """
    from salad.selection import kl

    table = cluster_table(con, selection_id)
    p, kept = table.p_target.to_numpy(float), table.kept.to_numpy()
    budget = table.budget_h.iloc[0] if len(table) else math.nan
    return {
        "drawn": int(table.drawn.sum()),
        "kept": int(table.kept.sum()),
        "drawn_h": float(table.drawn_h.sum()),
        "kept_h": float(table.kept_h.sum()),
        "budget_h": float(budget),
        "kl_drawn": kl(table.drawn_share, p) if table.drawn.sum() else math.nan,
        "kl_kept": kl(table.kept_share, p) if kept.sum() else math.nan,
        "effective_sample_size": effective_texts(table),
        "clusters_lost": [int(c) for c in table.cluster_id[(table.drawn > 0) & (table.kept == 0)]],
        "short_of_budget": bool(table.kept_h.sum() < 0.99 * budget) if budget == budget else False,
    }


def effect_by_cluster(con, selection_id: str) -> pd.DataFrame:
    """The same cluster by cluster, what lost most first: cluster, drawn, kept (texts), drawn_h, kept_h, intended (share,
    P_target), kept_share, kl (the cluster's addend to KL(kept ‖ intended), nats)."""
    table = cluster_table(con, selection_id)
    p, q = table.p_target.to_numpy(float), table.kept_share.to_numpy(float)
    both = (p > 0) & (q > 0)
    table["kl"] = np.where(both, q * np.log(np.where(both, q / np.where(p > 0, p, 1), 1)), 0.0)
    table = table.assign(lost=table.drawn - table.kept).sort_values(["lost", "drawn_h"], ascending=False)
    columns = ["label", "drawn", "kept", "drawn_h", "kept_h", "p_target", "kept_share", "kl"]
    return table[columns].rename(columns={"label": "cluster", "p_target": "intended"}).reset_index(drop=True)


MEANINGS = ("fine", "candidate domain gap", "suspected synthesis fault", "recogniser fault")


def quadrants(con, selection_id: str, cer_at: float = 0.1, d_at: float | None = None) -> pd.DataFrame:
    """Counts of the probe's texts (scored texts of the clustering, drawn or not) by high or low CER and divergence,
    and what each suggests: high_cer, high_d, n, meaning. `d_at` defaults to their median D; a text that was spoken
    several times stands by its mean D and its worst CER."""
    values = {"cer": cer_at, "d": d_at if d_at is not None else median_d(con, selection_id)}
    return con.execute(
        f"""SELECT cer > $cer AS high_cer, d > $d AS high_d, count(*) AS n,
            CASE WHEN cer > $cer AND d > $d THEN 'suspected synthesis fault' WHEN d > $d THEN 'candidate domain gap'
                 WHEN cer > $cer THEN 'recogniser fault' ELSE 'fine' END AS meaning
        FROM {_hold(con, selection_id, "probed")} WHERE cer IS NOT NULL GROUP BY ALL ORDER BY n DESC""",
        values,
    ).df()


def cells(con, selection_id: str, top: float, n: int = 25) -> pd.DataFrame:
    """The same texts counted in n × n cells: even in the square root of CER, and in D up to `top`."""
    return con.execute(
        f"""WITH placed AS (SELECT floor(sqrt(least(cer, 0.9999)) * $n) AS i, floor(least(d / $top, 0.9999) * $n) AS j
            FROM {_hold(con, selection_id, "probed")} WHERE cer IS NOT NULL)
        SELECT (i / $n) ** 2 AS cer, ((i + 1) / $n) ** 2 AS cer_end, j / $n * $top AS d, (j + 1) / $n * $top AS d_end,
            count(*) AS n FROM placed GROUP BY ALL""",
        {"top": top, "n": float(n)},
    ).df()


def median_d(con, selection_id: str) -> float:
    """The median D of the probe's texts that have a CER; 0 where there is none."""
    held = _hold(con, selection_id, "probed")
    return float(con.execute(f"SELECT median(d) FROM {held} WHERE cer IS NOT NULL").fetchone()[0] or 0.0)


def usual_cer(con, selection_id: str) -> float:
    """The CER above which a text of the probe stands out: the median (a text by its worst voice) to the next 0.02, as
    some voices are strange to a recogniser; from 0.1 to 0.6."""
    held = _hold(con, selection_id, "probed")
    median = con.execute(f"SELECT median(cer) FROM {held}").fetchone()[0] or 0.0
    return float(min(max(np.ceil(median * 50) / 50, 0.1), 0.6))


def adjusted_ranking(con, selection_id: str) -> pd.DataFrame:
    """Clusters' D before and after CER, duration and rate are regressed out (salad.selection.cluster_rankings), the
    most divergent first, with a label to show."""
    from salad.selection import cluster_rankings

    chosen = con.execute("SELECT clustering_id, run_id, step FROM selections WHERE selection_id = ?", [selection_id])
    table = cluster_rankings(con, *chosen.fetchone()).dropna(subset=["d", "d_adjusted"])
    terms = [", ".join(list(t)[:4]) if t is not None else "" for t in table.terms]
    table["label"] = [f"{c} {t}" for c, t in zip(table.cluster_id, terms, strict=True)]
    return table.sort_values("rank").reset_index(drop=True)


@dataclass
class Review:
    """What one reviewer says about one selection. Every method appends an event; nothing is ever taken away."""

    lab: Path
    selection_id: str
    reviewer: str

    def _say(self, **fields) -> dict:
        said = store.append(self.lab, "decisions", selection_id=self.selection_id, reviewer=self.reviewer, **fields)
        store.renew_soon(self.lab)
        return said

    def drop(self, sample_id: str, reason: str, note: str | None = None) -> dict:
        return self._say(target="sample", sample_id=sample_id, verdict="drop", reason=reason, note=note)

    def keep(self, sample_id: str, note: str | None = None) -> dict:
        return self._say(target="sample", sample_id=sample_id, verdict="keep", note=note)

    def rule(self, predicate: str, reason: str) -> dict:
        """Drop by a SQL predicate over rule_rows; it holds for refills and child selections too."""
        return self._say(target="rule", rule=predicate, verdict="drop", reason=reason)

    def cluster(self, cluster_id: int, verdict: str, reason: str | None = None, weight: float | None = None) -> dict:
        """verdict: drop (leave it out), keep, or reweight by `weight` at the next draw."""
        return self._say(target="cluster", cluster_id=int(cluster_id), verdict=verdict, reason=reason, weight=weight)

    def undo(self, con, event_id: str | None = None) -> dict | None:
        """Take back an event, or the reviewer's latest standing one on this selection: what it was, None if there
        is none."""
        said = standing_events(con, self.selection_id, self.reviewer, event_id=event_id, limit=1)
        if said.empty:
            return None
        last = said.iloc[0]
        self._say(
            target=last.target,
            sample_id=_value(last.sample_id),
            rule=_value(last.rule),
            verdict="undo",
            cluster_id=None if pd.isna(last.cluster_id) else int(last.cluster_id),
            undoes=last.event_id,
        )
        return {key: _value(value) for key, value in last.items()}


def _value(x):
    return None if pd.api.types.is_scalar(x) and pd.isna(x) else x


def standing_events(con, selection_id: str, reviewer: str | None = None, target: str | None = None,
                    event_id: str | None = None, limit: int | None = None) -> pd.DataFrame:  # fmt: skip
    """The events on a selection that no undo has taken back, newest first, at most `limit`."""
    return con.execute(
        f"""
        SELECT * FROM decisions WHERE selection_id = $1 AND verdict <> 'undo' AND ($2 IS NULL OR reviewer = $2)
            AND ($3 IS NULL OR target = $3) AND ($4 IS NULL OR event_id = $4)
            AND event_id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)
        ORDER BY "at" DESC, event_id DESC {"" if limit is None else f"LIMIT {int(limit)}"}""",
        [selection_id, reviewer, target, event_id],
    ).df()


def rule_preview(con, selection_id: str, predicate: str, examples: int = 20) -> tuple[int, pd.DataFrame]:
    """How many of the selection's texts a predicate would drop, and some of them; StoreError if it is no predicate.

    The store accepts a predicate only: no query of its own, no function that reads files.
    """
    check_rule(predicate)
    source = f"FROM rule_rows WHERE selection_id = $selection AND ({predicate}\n)"
    try:
        count = con.execute(f"SELECT count(*) {source}", {"selection": selection_id}).fetchone()[0]
        rows = con.execute(
            f"SELECT * {source} ORDER BY md5(sample_id) LIMIT {int(examples)}", {"selection": selection_id}
        ).df()
    except duckdb.Error as error:
        raise store.StoreError(f"this rule does not run: {str(error).splitlines()[0]}") from None
    return count, rows


def audit(con, selection_id: str, cluster_id: int, n: int, reviewer: str | None = None, more: int = 20) -> dict:
    """A cluster's audit: its first `n` texts in a fixed random order, how many are judged, and the fault rate.

    A text is judged when someone said keep or drop of it by hand (`reviewer` alone, if named), and faulty when
    one said drop. The interval is Jeffreys', 95 %; `width_after` is the expected width after `more` further texts
    at the same rate. `sample_ids` in the order to read them.
    """
    rows = con.execute(
        f"""{_texts(con, selection_id)},
        drawn AS (SELECT sample_id FROM texts WHERE cluster_id = $cluster
            ORDER BY md5(selection_id || sample_id), sample_id LIMIT $n),
        judged AS (SELECT sample_id, bool_or(verdict = 'drop') AS fault FROM decisions
            WHERE target = 'sample' AND selection_id = $selection AND verdict IN ('keep', 'drop')
                AND ($reviewer IS NULL OR reviewer = $reviewer)
                AND event_id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL) GROUP BY sample_id)
        SELECT sample_id, fault FROM drawn LEFT JOIN judged USING (sample_id)""",
        {"selection": selection_id, "cluster": int(cluster_id), "n": int(n), "reviewer": reviewer},
    ).fetchall()
    judged = sum(fault is not None for _, fault in rows)
    faults = sum(bool(fault) for _, fault in rows)
    low, high = fault_interval(faults, judged)
    rate = (faults + 0.5) / (judged + 1)  # one half before anything is judged
    after = fault_interval(faults + round(rate * more), judged + more)
    return {
        "sample_ids": [s for s, _ in rows],
        "unjudged": [s for s, fault in rows if fault is None],
        "drawn": len(rows),
        "judged": judged,
        "faults": faults,
        "rate": faults / judged if judged else None,
        "low": low,
        "high": high,
        "width": high - low,
        "more": more,
        "width_after": after[1] - after[0],
    }


def fault_interval(faults: int, judged: int) -> tuple[float, float]:
    """Jeffreys' 95 % interval of a rate: Beta(faults + ½, judged − faults + ½), closed at 0 and 1."""
    from scipy import special  # a fifth of a second to import, and seldom asked for

    low, high = special.betaincinv(faults + 0.5, judged - faults + 0.5, [0.025, 0.975])
    return (0.0 if faults == 0 else float(low)), (1.0 if faults == judged else float(high))


def agreement(con, selection_id: str) -> pd.DataFrame:
    """For each pair of reviewers: texts that both judged, share on which they agree, Cohen's kappa (null where
    chance alone would agree)."""
    verdicts, _ = _said(con, selection_id)
    pairs = con.execute(
        f"""
        SELECT a.reviewer AS one, b.reviewer AS other, count(*) AS both,
            avg((a.verdict = b.verdict)::INT) AS agree, avg((a.verdict = 'drop')::INT) AS pa,
            avg((b.verdict = 'drop')::INT) AS pb
        FROM {verdicts} AS a JOIN {verdicts} AS b USING (sample_id)
        WHERE a.reviewer < b.reviewer GROUP BY ALL ORDER BY ALL"""
    ).df()
    chance = pairs.pa * pairs.pb + (1 - pairs.pa) * (1 - pairs.pb)
    pairs["kappa"] = ((pairs.agree - chance) / (1 - chance)).where(chance < 1)
    return pairs.drop(columns=["pa", "pb"])


BY_HAND = 2**31 - 1  # the seed of speech made here, so that the synthesis pass, with its own seed, makes its own


def speak_now(lab: Path, con, sample_id: str) -> None:
    """Speak a text that has no speech yet with the lab's usual engine and voices, and keep it in the lab."""
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    voices = con.execute("""SELECT tts, list(DISTINCT voice ORDER BY voice) FROM syntheses WHERE tts <> 'recorded'
        GROUP BY tts ORDER BY count(*) DESC, tts LIMIT 1""").fetchone() or ("espeak", None)
    tts = load_tts(voices[0])
    text = con.execute("SELECT text FROM samples WHERE sample_id = ?", [sample_id]).fetchone()[0]
    jobs = jobs_of([(sample_id, text)], tuple(voices[1] or tts.voices[:1]), BY_HAND)
    synthesise(lab, f"by-hand-{sample_id}", jobs, tts, {"by hand": sample_id})


def stage2_recipe(con, selection_id: str) -> str:
    """The recipe of Stage II that belongs to the Stage I which the selection was drawn with, else the miniature's."""
    from salad import recipes

    found = con.execute(
        "SELECT r.recipe FROM selections AS l JOIN runs AS r USING (run_id) WHERE l.selection_id = ?", [selection_id]
    ).fetchone()
    name = (found[0] or "").replace("stage1", "stage2") if found else ""
    return name if name in recipes.names() else "miniature_stage2"


def launch_stage2(lab: Path, selection_id: str, recipe: str, on: str = "here"):
    """Freeze what is kept and synthesised as a child selection and start Stage II on it: (child id, Run)."""
    import launch_gpu
    from salad import selection

    child = selection.freeze(lab, selection_id)
    return child, launch_gpu.launch(recipe, on=on, lab=lab, overrides={"selection": child})


def export_kept(lab: Path, con, selection_id: str) -> Path:
    """Write what is kept of a selection to lab/exports/<hash of selection and kept texts>/: texts.parquet, selection.json
    (whose and what it is), and the speech that exists as a Lhotse Shar in speech/.

    Returns the folder, which appears at once and whole; the same texts give the same one."""
    import shutil
    import tempfile

    from workbench.tables import write_parquet

    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE export_kept AS {_texts(con, selection_id)}
            SELECT * FROM texts WHERE NOT dropped ORDER BY draw"""
    )
    rows = con.sql("SELECT * FROM export_kept").to_arrow_table()
    speech = con.sql("""SELECT cut_id, regexp_replace(audio_path, '/[^/]*$', '') AS folder
        FROM export_kept JOIN syntheses USING (synthesis_id) WHERE audio_path IS NOT NULL""").fetchall()
    wanted = {cut for cut, _ in speech}
    name = store.ids.hash_id("l", selection_id, sorted(rows["sample_id"].to_pylist()), sorted(wanted))
    final = Path(lab) / "exports" / name
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".") as place:
        folder = Path(place, name)
        folder.mkdir()
        write_parquet(rows, folder / "texts.parquet")
        store.atomic.write_json(folder / "selection.json", {
            "hash": name, "selection_id": selection_id, "texts": len(rows), "spoken": len(wanted),
            "texts_sha256": hashlib.sha256((folder / "texts.parquet").read_bytes()).hexdigest(),
            "dropped_by_rule": standing_events(con, selection_id, target="rule").rule.tolist(),
        })  # fmt: skip
        if wanted:
            _export_speech([Path(lab, f) for f in sorted({f for _, f in speech})], wanted, folder / "speech")
        shutil.move(folder, final)
        store.atomic.fsync_folder(final.parent)
    return final


def _export_speech(folders: list[Path], wanted: set[str], to: Path) -> None:
    """The wanted cuts of Shar folders as a Shar of their own, one at a time: the audio of a study need not fit memory."""
    from lhotse import CutSet  # seconds to import
    from lhotse.shar import SharWriter

    from salad import interrupts

    to.mkdir()
    with SharWriter(str(to), fields={"recording": "flac"}, shard_size=1000) as writer:
        for folder in folders:
            for cut in CutSet.from_shar(in_dir=str(folder)):
                if cut.id in wanted:
                    # where it was read from is of no use elsewhere
                    cut.custom = {k: v for k, v in (cut.custom or {}).items() if not k.startswith("shar")}
                    with interrupts.held():
                        writer.write(cut)
