"""A selection by cluster: its masses, what the drops did to it, and its probe's texts by CER and divergence."""

import math

import duckdb
import numpy as np
import pandas as pd

from workbench.review.held import held_of, hold, verdicts_of


def cluster_table(con: duckdb.DuckDBPyConnection, selection_id: str, gamma: float | None = None) -> pd.DataFrame:
    """One row per cluster: d_cluster with a 95 % interval, its mass under P_web and P_target (at `gamma`, else
    the selection's own), the share of texts drawn and kept, and hours.

    The interval is Student's t on the ratio sum(d·n)/sum(n) over the measured texts; null below two of them.
    """
    table = clusters_without_gamma(con, selection_id).copy()
    drawn_gamma = table.gamma.fillna(0).iloc[0] if len(table) else 0.0
    table["p_target"] = target(table, drawn_gamma if gamma is None else gamma)
    return table


def clusters_without_gamma(con: duckdb.DuckDBPyConnection, selection_id: str) -> pd.DataFrame:
    """`cluster_table` without what depends on γ, kept until the lab has grown or something was said: five figures of a
    page are made from it."""
    drawn, measured = (hold(con, selection_id, kind) for kind in ("drawn", "measured"))
    verdicts, key = verdicts_of(con, selection_id)
    held = held_of(con)
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


def effect_of_drops(con: duckdb.DuckDBPyConnection, selection_id: str) -> dict:
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


def effect_by_cluster(con: duckdb.DuckDBPyConnection, selection_id: str) -> pd.DataFrame:
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


def quadrants(con: duckdb.DuckDBPyConnection, selection_id: str, cer_at: float = 0.1, d_at: float | None = None) -> pd.DataFrame:
    """Counts of the probe's texts (scored texts of the clustering, drawn or not) by high or low CER and divergence,
    and what each suggests: high_cer, high_d, n, meaning. `d_at` defaults to their median D; a text that was spoken
    several times stands by its mean D and its worst CER."""
    values = {"cer": cer_at, "d": d_at if d_at is not None else median_d(con, selection_id)}
    return con.execute(
        f"""SELECT cer > $cer AS high_cer, d > $d AS high_d, count(*) AS n,
            CASE WHEN cer > $cer AND d > $d THEN 'suspected synthesis fault' WHEN d > $d THEN 'candidate domain gap'
                 WHEN cer > $cer THEN 'recogniser fault' ELSE 'fine' END AS meaning
        FROM {hold(con, selection_id, "probed")} WHERE cer IS NOT NULL GROUP BY ALL ORDER BY n DESC""",
        values,
    ).df()


def cells(con: duckdb.DuckDBPyConnection, selection_id: str, top: float, n: int = 25) -> pd.DataFrame:
    """The same texts counted in n × n cells: even in the square root of CER, and in D up to `top`."""
    return con.execute(
        f"""WITH placed AS (SELECT floor(sqrt(least(cer, 0.9999)) * $n) AS i, floor(least(d / $top, 0.9999) * $n) AS j
            FROM {hold(con, selection_id, "probed")} WHERE cer IS NOT NULL)
        SELECT (i / $n) ** 2 AS cer, ((i + 1) / $n) ** 2 AS cer_end, j / $n * $top AS d, (j + 1) / $n * $top AS d_end,
            count(*) AS n FROM placed GROUP BY ALL""",
        {"top": top, "n": float(n)},
    ).df()


def median_d(con: duckdb.DuckDBPyConnection, selection_id: str) -> float:
    """The median D of the probe's texts that have a CER; 0 where there is none."""
    held = hold(con, selection_id, "probed")
    return float(con.execute(f"SELECT median(d) FROM {held} WHERE cer IS NOT NULL").fetchone()[0] or 0.0)


def usual_cer(con: duckdb.DuckDBPyConnection, selection_id: str) -> float:
    """The CER above which a text of the probe stands out: the median (a text by its worst voice) to the next 0.02, as
    some voices are strange to a recogniser; from 0.1 to 0.6."""
    held = hold(con, selection_id, "probed")
    median = con.execute(f"SELECT median(cer) FROM {held}").fetchone()[0] or 0.0
    return float(min(max(np.ceil(median * 50) / 50, 0.1), 0.6))


def adjusted_ranking(con: duckdb.DuckDBPyConnection, selection_id: str) -> pd.DataFrame:
    """Clusters' D before and after CER, duration and rate are regressed out (salad.selection.cluster_rankings), the
    most divergent first, with a label to show."""
    from salad.selection import cluster_rankings

    chosen = con.execute("SELECT clustering_id, run_id, step FROM selections WHERE selection_id = ?", [selection_id])
    table = cluster_rankings(con, *chosen.fetchone()).dropna(subset=["d", "d_adjusted"])
    terms = [", ".join(list(t)[:4]) if t is not None else "" for t in table.terms]
    table["label"] = [f"{c} {t}" for c, t in zip(table.cluster_id, terms, strict=True)]
    return table.sort_values("rank").reset_index(drop=True)
