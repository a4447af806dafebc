"""What a lab knows of each cluster and text when a selection is drawn: the probe's divergences and speech."""

import json
import logging
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import numpy as np
import pandas as pd

import store
from salad.errors import SaladError

from .draw import Pool
from .exclusion import left_out, speech_by_cluster
from .target import cluster_means, regress_out, text_and_voice

log = logging.getLogger("salad.selection")

_PROBE = """SELECT a.cluster_id, v.sample_id, v.synthesis_id, v.pattern, v.d, v.n_positions, y.cer, y.duration_s,
        length(coalesce(s.spoken, s.text)) / nullif(y.duration_s, 0) AS rate, v.span_min, v.span_max
    FROM raw.scored v
    JOIN assignments a ON a.sample_id = v.sample_id AND a.clustering_id = $clustering
    JOIN samples s ON s.sample_id = v.sample_id
    LEFT JOIN syntheses y ON y.synthesis_id = v.synthesis_id
    WHERE v.run_id = $run AND v.step = $step AND ($speech IS NULL OR y.speech = $speech)
        AND v.d IS NOT NULL AND v.n_positions > 0
    ORDER BY v.sample_id, v.synthesis_id, v.pattern"""


def _connect(lab_or_con):
    return lab_or_con if hasattr(lab_or_con, "execute") else store.connect(lab_or_con)


def _clusters(con, clustering_id: str) -> pd.DataFrame:
    table = con.execute(
        "SELECT cluster_id, size, p_web, terms FROM clusters WHERE clustering_id = ? ORDER BY 1", [clustering_id]
    ).df()
    if not len(table):
        raise SaladError(f"no clustering {clustering_id} in this lab; make one with `salad pass cluster`")
    if list(table.cluster_id) != list(range(len(table))):
        raise SaladError(
            f"clustering {clustering_id}: its clusters are not numbered from 0; is a unit damaged? see `salad verify`"
        )
    return table


def probe_rows(con: duckdb.DuckDBPyConnection, clustering_id: str, run_id: str, step: int, speech: str | None) -> pd.DataFrame:
    """The scored texts of a clustering at a checkpoint: one row per text, synthesis and pattern, in a fixed order."""
    return con.execute(_PROBE, {"clustering": clustering_id, "run": run_id, "step": step, "speech": speech}).df()


def cluster_divergence(
    lab: Path | str, clustering_id: str, run_id: str, step: int, speech: str | None = None, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """d_cluster of every cluster at a checkpoint, from the texts of the clustering that were scored there.

    `lab`: a folder or a connection. `speech` names the folder of the probe's speech where other texts of the
    clustering were scored too. One row a cluster: cluster_id, size, p_web, terms, n_texts, n_positions, `d`
    (token-weighted, nats) with `d_low` and `d_high` (95 %, bootstrap over texts), d_sample_mean. A cluster without a
    probe position has NaN, and is named in a warning of the log."""
    con = _connect(lab)
    rows = probe_rows(con, clustering_id, run_id, step, speech)
    return _divergence(con, clustering_id, run_id, step, rows, draws, seed)


def _divergence(con, clustering_id, run_id, step, rows: pd.DataFrame, draws: int, seed: int = 0) -> pd.DataFrame:
    """The same of a probe that was read."""
    table = _clusters(con, clustering_id)
    if not len(rows):
        _nothing_scored(con, clustering_id, run_id, step)
    for name, value in cluster_means(
        rows.d, rows.n_positions, rows.cluster_id, rows.sample_id.to_numpy(str), len(table), draws, seed
    ).items():
        table[name] = value
    lacking = table.cluster_id[(table.n_positions == 0) & (table["size"] > 0)]
    if len(lacking):
        log.warning("clusters without a probe position: %s", ", ".join(map(str, lacking)))
    return table


def _nothing_scored(con, clustering_id: str, run_id: str, step: int) -> NoReturn:
    others = con.execute(
        """SELECT DISTINCT span_min, span_max FROM raw.divergences JOIN assignments USING (sample_id)
        WHERE clustering_id = ? AND run_id = ? AND step = ? ORDER BY ALL""",
        [clustering_id, run_id, step],
    ).fetchall()
    hint = "score the probe first: `salad pass score`"
    if others:
        shown = con.execute("SELECT DISTINCT span_min, span_max FROM raw.scored WHERE span_max > 0").fetchone() or ("?", "?")
        hint = (
            f"it was scored in spans of {' and '.join(f'{low} to {high}' for low, high in others)} units only, and this lab "
            f"compares in spans of {shown[0]} to {shown[1]}: score the probe again, `salad pass score`"
        )
    raise SaladError(f"run {run_id}, step {step} has scored no text of clustering {clustering_id}; {hint}")


def cluster_rankings(lab: Path | str, clustering_id: str, run_id: str, step: int, speech: str | None = None) -> pd.DataFrame:
    """Clusters by divergence, as measured and with the speech's CER, duration and rate regressed out.

    One row a cluster: cluster_id, terms, d, rank, d_adjusted, rank_adjusted (1 is the worst), cer, and of the
    variance of d between syntheses text_variance, voice_variance and text_share (null where no text was spoken
    twice). `.attrs["slopes"]`: nats per unit of cer, second of duration, character a second. A cluster that falls in
    the second ranking was bad for its speech rather than its domain."""
    con = _connect(lab)
    rows = probe_rows(con, clustering_id, run_id, step, speech)
    table = _divergence(con, clustering_id, run_id, step, rows, draws=0)[["cluster_id", "terms", "d"]]
    rows["dn"] = rows.d * rows.n_positions
    texts = rows.groupby(["cluster_id", "sample_id", "synthesis_id"], as_index=False, dropna=False).agg(
        dn=("dn", "sum"), n=("n_positions", "sum"), cer=("cer", "first"), duration_s=("duration_s", "first"),
        rate=("rate", "first"))  # fmt: skip
    texts["d"] = texts.dn / texts.n
    names = [name for name in ("cer", "duration_s", "rate") if texts[name].notna().any()]
    table["d_adjusted"], slopes = regress_out(texts.d, texts[names], texts.cluster_id, len(table), texts.n)
    table["cer"] = texts.groupby("cluster_id").cer.mean().reindex(table.cluster_id).to_numpy()
    for name in ("d", "d_adjusted"):
        table[name.replace("d", "rank", 1)] = table[name].rank(ascending=False, method="min").astype("Int64")
    split = {k: text_and_voice(part.d, part.sample_id.to_numpy(str)) for k, part in texts.groupby("cluster_id")}
    for name in ("text_variance", "voice_variance", "text_share"):
        table[name] = [split.get(k, {}).get(name, np.nan) for k in table.cluster_id]
    table.attrs["slopes"] = dict(zip(names, map(float, slopes), strict=True))
    return table


def _terms_of(table: pd.DataFrame, cluster_id: int) -> list[str]:
    terms = table.terms[int(cluster_id)]
    return [] if terms is None else list(terms)


def _uncovered(con) -> dict[str, tuple[str, ...]]:
    """The domains that lab/study.json calls uncovered, for the oracle; {} where it names the coverage of none."""
    path = Path(con.execute("SELECT path FROM raw.lab").fetchone()[0]) / "study.json"
    try:
        coverage = json.loads(path.read_text())["coverage"]
        return {"uncovered": tuple(domain for domain, kind in coverage.items() if kind == "uncovered")}
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def learning(con, run_id: str) -> dict[str, Any]:
    """For `marginal`: hours of the natural speech that a run was trained on, and β and E of its Stage I's learning curve (M over
    tokens, held-out text by P_web) where four checkpoints before the decay were scored; NaN and 0 where not."""
    from salad import analysis

    row = con.execute(
        "WITH RECURSIVE up AS (SELECT run_id, parent_run_id, config FROM runs WHERE run_id = ? UNION ALL "
        "SELECT r.run_id, r.parent_run_id, r.config FROM runs r JOIN up ON r.run_id = up.parent_run_id) "
        "SELECT run_id, json_extract(config, '$.data.natural')::VARCHAR FROM up WHERE parent_run_id IS NULL", [run_id]
    ).fetchone()  # fmt: skip
    if row is None:
        return {}
    names = json.loads(row[1] or "[]")
    hours = con.execute("SELECT sum(duration_s) / 3600 FROM syntheses WHERE speech IN (SELECT unnest(?))", [names]).fetchone()[0]
    found = {"natural_h": float("nan") if hours is None else float(hours)}
    path = con.execute("SELECT path FROM raw.lab").fetchone()[0]
    try:
        study = analysis.read_study(path, con)
        law = analysis.power_law(con, row[0], study["p_web"], corpus=study.get("heldout", "heldout"), draws=2)
    except (SaladError, store.StoreError):
        return found
    return found | {"beta": law.beta, "floor": max(0.0, law.e)}


def pool(
    lab: Path | str | duckdb.DuckDBPyConnection,
    clustering_id: str,
    run_id: str,
    step: int,
    max_cer: float | None = None,
    speech: str | None = None,
) -> Pool:
    """What a strategy decides on, read from a lab: texts, estimated seconds, divergences, clusters above `max_cer`.

    A text's seconds are its spoken characters · the probe's seconds per character. The teacher's NLL of texts is what
    the pass `embed` left beside their embeddings."""
    con = _connect(lab)
    table = cluster_divergence(con, clustering_id, run_id, step, speech, draws=0)
    texts = con.execute(
        """SELECT a.sample_id, a.cluster_id, s.domain, length(coalesce(s.spoken, s.text)) AS chars, e.nll
        FROM assignments a JOIN samples s USING (sample_id)
        LEFT JOIN (SELECT sample_id, any_value(nll) AS nll FROM embeddings GROUP BY 1) e USING (sample_id)
        WHERE a.clustering_id = ? ORDER BY 1""",
        [clustering_id],
    ).df()
    speech_rows = speech_by_cluster(con, clustering_id, speech, (run_id, step))
    if not speech_rows.chars.sum() > 0:
        raise SaladError(f"no probe speech for clustering {clustering_id}: a text's seconds are estimated from it")
    per_char = speech_rows.seconds.sum() / speech_rows.chars.sum()
    rows = probe_rows(con, clustering_id, run_id, step, speech)
    probed = set(rows.sample_id)
    total = (rows.d * rows.n_positions).groupby(rows.sample_id).sum()
    d = total / rows.n_positions.groupby(rows.sample_id).sum()
    notes, opened = [], np.ones(len(table), bool)
    if max_cer is not None:
        if not speech_rows.cer.notna().any():
            raise SaladError(
                "max_cer: no recording of the probe has a CER; check them first with `salad pass check`, or leave max_cer out"
            )
        unknown = speech_rows.cluster_id[speech_rows.cer.isna()].to_numpy(int)
        opened[unknown] = False
        if len(unknown):
            notes.append(f"left out because no recording of them has a CER: cluster {', '.join(map(str, unknown))}")
        bad = left_out(speech_rows, max_cer)
        opened[bad.cluster_id.to_numpy(int)] = False
        if len(bad):
            notes.append(
                f"left out for a CER above {max_cer:g}: cluster "
                + ", ".join(
                    f"{row.cluster_id} ({row.cer:.2f}: {', '.join((_terms_of(table, row.cluster_id))[:3])}; "
                    f"{100 * row.digits:.0f} % digits, {100 * row.symbols:.0f} % symbols, blame: {row.blame})"
                    for row in bad.itertuples()
                )
            )
    return Pool.of(
        texts.sample_id.tolist(),
        texts.cluster_id,
        texts.chars * per_char,
        len(table),
        p_web_K=table.p_web,
        d_cluster_K=table.d,
        d_se_K=table.d_se,
        d_N=d.reindex(texts.sample_id),
        domain_N=texts.domain.fillna("").to_numpy(str),
        nll_N=texts.nll.to_numpy(float),
        open_K=opened,
        probed_N=texts.sample_id.isin(probed).to_numpy(bool),
        **_uncovered(con),
        cer_K=speech_rows.set_index("cluster_id").cer.reindex(table.cluster_id).to_numpy(float),
        notes=notes,
    )
