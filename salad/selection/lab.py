"""Selections in a lab: measure clusters, draw, review, freeze, refill. Everything about a draw is in the store."""

import logging
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa

import store
from salad.errors import SaladError
from store.rules import dropped

from .draw import OVERSHOOT, Clusters, Pool, decide, draw
from .exclusion import left_out, speech_by_cluster
from .target import check_gamma, cluster_means, regress_out, text_and_voice

log = logging.getLogger("salad.selection")

SHORT = 0.01  # an arm that lacks more of its budget says so

# one synthesis a text, as training takes it (salad.data.corpora.of_selection)
_SPOKEN = """(SELECT sample_id, synthesis_id, duration_s FROM syntheses WHERE tts <> 'recorded'
    QUALIFY row_number() OVER (PARTITION BY sample_id ORDER BY seed, synthesis_id) = 1)"""

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


def _probe(con, clustering_id, run_id, step, speech) -> pd.DataFrame:
    return con.execute(_PROBE, {"clustering": clustering_id, "run": run_id, "step": step, "speech": speech}).df()


def cluster_divergence(lab, clustering_id: str, run_id: str, step: int, speech: str | None = None,
                       draws: int = 1000, seed: int = 0) -> pd.DataFrame:  # fmt: skip
    """d_cluster of every cluster at a checkpoint, from the texts of the clustering that were scored there.

    `lab`: a folder or a connection. `speech` names the folder of the probe's speech where other texts of the
    clustering were scored too. One row a cluster: cluster_id, size, p_web, terms, n_texts, n_positions, `d`
    (token-weighted, nats) with `d_low` and `d_high` (95 %, bootstrap over texts), d_sample_mean. A cluster without a
    probe position has NaN, and is named in a warning of the log."""
    con = _connect(lab)
    rows = _probe(con, clustering_id, run_id, step, speech)
    return _divergence(con, clustering_id, run_id, step, rows, draws, seed)


def _divergence(con, clustering_id, run_id, step, rows: pd.DataFrame, draws: int, seed: int = 0) -> pd.DataFrame:
    """The same of a probe that was read."""
    table = _clusters(con, clustering_id)
    if not len(rows):
        _nothing_scored(con, clustering_id, run_id, step)
    for name, value in cluster_means(rows.d, rows.n_positions, rows.cluster_id, rows.sample_id.to_numpy(str),
                                     len(table), draws, seed).items():  # fmt: skip
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
    told = "score the probe first: `salad pass score`"
    if others:
        shown = con.execute("SELECT DISTINCT span_min, span_max FROM raw.scored").fetchone() or ("?", "?")
        told = (
            f"it was scored in spans of {' and '.join(f'{low} to {high}' for low, high in others)} units only, and this lab "
            f"compares in spans of {shown[0]} to {shown[1]}: score the probe again, `salad pass score`"
        )
    raise SaladError(f"run {run_id}, step {step} has scored no text of clustering {clustering_id}; {told}")


def cluster_rankings(lab, clustering_id: str, run_id: str, step: int, speech: str | None = None) -> pd.DataFrame:
    """Clusters by divergence, as measured and with the speech's CER, duration and rate regressed out.

    One row a cluster: cluster_id, terms, d, rank, d_adjusted, rank_adjusted (1 is the worst), cer, and of the
    variance of d between syntheses text_variance, voice_variance and text_share (null where no text was spoken
    twice). `.attrs["slopes"]`: nats per unit of cer, second of duration, character a second. A cluster that falls in
    the second ranking was bad for its speech rather than its domain."""
    con = _connect(lab)
    rows = _probe(con, clustering_id, run_id, step, speech)
    table = _divergence(con, clustering_id, run_id, step, rows, draws=0)[["cluster_id", "terms", "d"]]
    rows["dn"] = rows.d * rows.n_positions
    one = rows.groupby(["cluster_id", "sample_id", "synthesis_id"], as_index=False, dropna=False).agg(
        dn=("dn", "sum"), n=("n_positions", "sum"), cer=("cer", "first"), duration_s=("duration_s", "first"),
        rate=("rate", "first"))  # fmt: skip
    one["d"] = one.dn / one.n
    names = [name for name in ("cer", "duration_s", "rate") if one[name].notna().any()]
    table["d_adjusted"], slopes = regress_out(one.d, one[names], one.cluster_id, len(table), one.n)
    table["cer"] = one.groupby("cluster_id").cer.mean().reindex(table.cluster_id).to_numpy()
    for name in ("d", "d_adjusted"):
        table[name.replace("d", "rank", 1)] = table[name].rank(ascending=False, method="min").astype("Int64")
    split = {k: text_and_voice(part.d, part.sample_id.to_numpy(str)) for k, part in one.groupby("cluster_id")}
    for name in ("text_variance", "voice_variance", "text_share"):
        table[name] = [split.get(k, {}).get(name, np.nan) for k in table.cluster_id]
    table.attrs["slopes"] = dict(zip(names, map(float, slopes), strict=True))
    return table


def _terms_of(table: pd.DataFrame, cluster_id: int) -> list[str]:
    terms = table.terms[int(cluster_id)]
    return [] if terms is None else list(terms)


def pool(lab, clustering_id: str, run_id: str, step: int, max_cer: float | None = None,
         speech: str | None = None) -> Pool:  # fmt: skip
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
    rows = _probe(con, clustering_id, run_id, step, speech)
    probed = set(rows.sample_id)
    total = (rows.d * rows.n_positions).groupby(rows.sample_id).sum()
    d = total / rows.n_positions.groupby(rows.sample_id).sum()
    notes, opened = [], np.ones(len(table), bool)
    if max_cer is not None:
        if not speech_rows.cer.notna().any():
            raise SaladError("max_cer: no recording of the probe has a CER; check them first with `salad pass check`, or leave "
                             "max_cer out")  # fmt: skip
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
        d_N=d.reindex(texts.sample_id),
        domain_N=texts.domain.fillna("").to_numpy(str),
        nll_N=texts.nll.to_numpy(float),
        open_K=opened,
        probed_N=texts.sample_id.isin(probed).to_numpy(bool),
        cer_K=speech_rows.set_index("cluster_id").cer.reindex(table.cluster_id).to_numpy(float),
        notes=notes,
    )


@dataclass(frozen=True)
class Drawn:
    """A selection as it was published: hours of its rows, and what its draw left out."""

    selection_id: str
    hours: float
    notes: tuple[str, ...]


def select(lab, clustering_id: str, run_id: str, step: int, strategy: str = "active", gamma: float = 2.0,
           budget_h: float = 1.0, seed: int = 0, max_cer: float | None = None, speech: str | None = None,
           parent: str | None = None, number: int | None = None) -> str:  # fmt: skip
    """Draw a selection (METHOD.md, "From selection to training, exactly"), publish it, and return its id.

    With `parent`, the next round of `active_rounds`, `number` from 1: the parent's kept texts come first (freeze it:
    then they are spoken), with the seconds they have, and the draw goes on from the divergences of this checkpoint up
    to `budget_h` in all. active_rounds draws no text of the probe, or the next round would measure what was trained
    on. What the draw left out, and whether it ran dry, is logged. The same arguments on the same probe give the same
    selection; one that exists is not drawn again. Raises SaladError where nothing can be drawn."""
    return select_told(lab, clustering_id, run_id, step, strategy, gamma, budget_h, seed, max_cer, speech, parent,
                       number).selection_id  # fmt: skip


def select_told(lab, clustering_id, run_id, step, strategy="active", gamma=2.0, budget_h=1.0, seed=0, max_cer=None,
                speech=None, parent=None, number=None) -> Drawn:  # fmt: skip
    """`select`, with what it has to say."""
    _check_numbers(gamma, budget_h, max_cer)
    con = store.connect(lab)
    rows = _probe(con, clustering_id, run_id, step, speech)
    made_from = {
        "pass": "select", "clustering_id": clustering_id, "run_id": run_id, "step": step, "strategy": strategy,
        "gamma": gamma, "budget_h": budget_h, "seed": seed, "max_cer": max_cer, "speech": speech, "parent": parent,
        "probe": store.ids.digest(rows[["sample_id", "synthesis_id", "pattern"]].astype(str).values.tolist()),
    }  # fmt: skip
    spans = [[int(low), int(high)] for low, high in sorted(set(zip(rows.span_min, rows.span_max, strict=True)))]
    if spans not in ([], [[1, 4]]):  # as every scoring was, once
        made_from["spans"] = spans
    before, dropped_ids = _carried(con, parent) if parent else (None, [])
    if parent:
        made_from["carried"] = store.ids.digest([before.sample_id.tolist(), dropped_ids])
    name = store.ids.selection_id(made_from)
    spent_h = 0.0 if before is None else before.seconds.sum() / 3600
    if _published(lab, made_from):  # somebody may have reviewed it: its texts stay
        new_s = con.execute("SELECT sum(estimated_s) FROM selected WHERE selection_id = ? AND draw >= ?",
                            [name, 0 if before is None else len(before)]).fetchone()[0]  # fmt: skip
        return Drawn(name, spent_h + (new_s or 0.0) / 3600, ("it was drawn before, and stays as it is",))
    texts = pool(con, clustering_id, run_id, step, max_cer, speech)
    left_h = budget_h - spent_h
    if left_h <= 0:
        raise SaladError(f"selection {parent} has {spent_h:.3g} h already; a round needs a budget above that")
    if parent:
        source = {"clustering_id": clustering_id, "run_id": run_id, "step": step}
        dropped_ids = [*dropped_ids, *_ruled_out(con, parent, source, texts)]
    skip = [*_held_out(texts, strategy), *dropped_ids, *([] if before is None else before.sample_id)]
    made = draw(texts, strategy, gamma, left_h, seed, skip)
    notes = (*(n for n in texts.notes if n not in made.notes), *made.notes)
    info = {"clustering_id": clustering_id, "run_id": run_id, "step": step, "strategy": strategy, "gamma": gamma,
            "budget_h": budget_h, "seed": seed, "parent_selection_id": parent, "round": number, "max_cer": max_cer,
            "speech": speech}  # fmt: skip
    chosen = _rows(texts, made, before)  # refused before anything is published where there is none
    _publish_clusters(con, lab, name, info, texts, made, skip, made_from)
    _publish(lab, name, info, chosen, made_from)
    for note in notes:
        log.warning("selection %s (%s): %s", name, strategy, note)
    return Drawn(name, spent_h + made.seconds / 3600, notes)


def _check_numbers(gamma: float, budget_h: float, max_cer: float | None) -> None:
    """SaladError for a number that is none: NaN and infinity compare with nothing, and stand in no id."""
    check_gamma(gamma)
    if not (np.isfinite(budget_h) and budget_h > 0):
        raise SaladError(f"budget is {budget_h} h; it must be more than 0")
    if max_cer is not None and not (np.isfinite(max_cer) and max_cer >= 0):
        raise SaladError(f"max_cer is {max_cer}; it must be 0 or more, or not given")


def _held_out(texts: Pool, strategy: str) -> list[str]:
    """The probe, where it will be measured again and must not have been trained on."""
    return np.asarray(texts.sample_ids, object)[texts.probed_N].tolist() if strategy == "active_rounds" else []


def _publish_clusters(con, lab, name: str, info: dict, texts: Pool, made, skip, made_from: dict) -> None:
    """What the draw saw in each cluster: both rankings, what it was to give, what it gave, and why not."""
    ranked = cluster_rankings(con, info["clustering_id"], info["run_id"], info["step"], info["speech"])
    cluster, k = texts.cluster_N[made.rows], len(texts.p_web_K)
    gone = set(skip)
    usable = np.array([s not in gone for s in texts.sample_ids], bool) & texts.open_K[texts.cluster_N]
    may, got = np.bincount(texts.cluster_N[usable], minlength=k), np.bincount(cluster, minlength=k)
    known = np.isfinite(texts.cer_K)
    why = np.where(np.isnan(texts.d_cluster_K) & (made.p_target_K == 0), "no probe", "")
    why = np.where(texts.open_K, why, np.where(known, "CER", "CER unknown"))
    rows = ranked[["cluster_id", "d_adjusted", "rank", "rank_adjusted", "text_share"]].assign(
        selection_id=name, p_web=texts.p_web_K, d_cluster=texts.d_cluster_K, p_target=made.p_target_K,
        left_out=[w or None for w in why], texts=got, seconds=np.bincount(cluster, texts.seconds_N[made.rows], k),
        dry=(may > 0) & (got == may), cer=texts.cer_K,
    )  # fmt: skip
    store.publish(lab, "selection_clusters", rows, made_from)


def _rows(texts: Pool, made, before: pd.DataFrame | None) -> pd.DataFrame:
    cluster = texts.cluster_N[made.rows]
    rows = pd.DataFrame({
        "sample_id": np.asarray(texts.sample_ids, object)[made.rows], "cluster_id": cluster,
        "p_web": texts.p_web_K[cluster], "p_target": made.p_target_K[cluster],
        "d_cluster": texts.d_cluster_K[cluster], "estimated_s": texts.seconds_N[made.rows],
    })  # fmt: skip
    if before is not None:
        rows = pd.concat([before[rows.columns], rows], ignore_index=True) if len(rows) else before[rows.columns]
    if not len(rows):
        raise SaladError("the draw found no text: every text is dropped or in a cluster that is left out")
    return rows


def _published(lab, made_from: dict) -> bool:
    """Whether a selection of this making is in the lab, whole. Its row in `selections` is published last."""
    return all(store.exists(lab, table, made_from) for table in ("selected", "selections"))


def _publish(lab, name: str, info: dict, rows: pd.DataFrame, made_from: dict) -> None:
    rows = rows.assign(selection_id=name, draw=np.arange(len(rows)))
    columns = ("sample_id", "cluster_id", "draw", "p_web", "p_target", "d_cluster", "estimated_s", "selection_id")
    store.publish(lab, "selected", rows[list(columns)], made_from)
    store.publish(lab, "selections", [{"selection_id": name, **info}], made_from)


def _selection(con, selection_id: str) -> dict:
    names = ("selection_id", "clustering_id", "run_id", "step", "strategy", "gamma", "budget_h", "seed",
             "parent_selection_id", "round", "max_cer", "speech")  # fmt: skip
    found = con.execute(f"SELECT {', '.join(names)} FROM selections WHERE selection_id = ?", [selection_id]).fetchone()
    if found is None:
        known = [r[0] for r in con.execute("SELECT selection_id FROM selections ORDER BY 1 LIMIT 9").fetchall()]
        raise SaladError(f"no selection {selection_id} in this lab; it has {', '.join(known) or 'none yet'}")
    return dict(zip(names, found, strict=True))


def _carried(con, selection_id: str) -> tuple[pd.DataFrame, list[str]]:
    """The kept rows of a selection in draw order with their seconds (spoken, else estimated), and its dropped ids."""
    _selection(con, selection_id)
    rows = con.execute(f"""SELECT k.*, coalesce(y.duration_s, k.estimated_s, 0) AS seconds, y.synthesis_id
        FROM kept k LEFT JOIN {_SPOKEN} y USING (sample_id) WHERE k.selection_id = ? ORDER BY draw, sample_id""",
                       [selection_id]).df()  # fmt: skip
    found = con.execute(
        """SELECT DISTINCT sample_id FROM current_decisions
        WHERE selection_id = ? AND verdict = 'drop' ORDER BY 1""",
        [selection_id],
    ).fetchall()
    return rows, [s for (s,) in found]


def _ruled_out(con, selection_id: str, info: dict, texts: Pool) -> list[str]:
    """Texts of the pool that standing decisions on a selection, or on those that it comes from, would drop were they drawn
    from the clustering and the checkpoint in `info`."""
    d_K = np.asarray(texts.d_cluster_K, float)
    return dropped(con, pa.table({
        "selection_id": pa.repeat(selection_id, len(texts.sample_ids)), "sample_id": pa.array(texts.sample_ids, pa.string()),
        "cluster_id": pa.array(texts.cluster_N, pa.int32()), "p_web": texts.p_web_K[texts.cluster_N],
        "d_cluster": pa.array(d_K[texts.cluster_N], from_pandas=True), "estimated_s": texts.seconds_N,
        **{name: pa.repeat(pa.scalar(info[name]), len(texts.sample_ids)) for name in ("clustering_id", "run_id", "step")},
    }))  # fmt: skip


def _pool_again(con, info: dict) -> Pool:
    """The pool that a selection was drawn from: the same clusters are left out."""
    if info["clustering_id"] is None or info["run_id"] is None:
        raise SaladError(f"selection {info['selection_id']} does not say what it was drawn from; select anew")
    return pool(con, info["clustering_id"], info["run_id"], info["step"], info["max_cer"], info["speech"])


def refill(lab, selection_id: str) -> str:
    """Replace what reviewers dropped: a child selection of the kept texts and, after them, further draws.

    One text for each dropped one, from its cluster; where that cluster is dry, or the seconds are not yet regained,
    from the clusters of the dropped texts in proportion to the seconds lost there, and at last from any cluster by
    the selection's own strategy. What a standing rule or cluster verdict would drop is not drawn. The child's draw
    numbers go on from its parent's kept ones; its id is a function of the parent and the dropped texts. Returns the
    selection itself where nothing was dropped from it."""
    con = store.connect(lab)
    info = _selection(con, selection_id)
    before, dropped_ids = _carried(con, selection_id)
    lost = con.execute("""SELECT l.sample_id, l.cluster_id, coalesce(y.duration_s, l.estimated_s, 0) AS seconds
        FROM selected l LEFT JOIN """ + _SPOKEN + """ y USING (sample_id)
        WHERE l.selection_id = $1 AND l.sample_id NOT IN (SELECT sample_id FROM kept WHERE selection_id = $1)
        ORDER BY l.draw""", [selection_id]).df()  # fmt: skip
    if not len(lost):
        return selection_id
    made_from = {"pass": "refill", "parent": selection_id, "dropped": store.ids.digest(sorted(lost.sample_id))}
    name = store.ids.selection_id(made_from)
    if _published(lab, made_from):
        return name
    texts = _pool_again(con, info)
    seen = con.execute(
        """SELECT DISTINCT sample_id FROM selected WHERE selection_id IN
        (SELECT ancestor_id FROM lineage WHERE selection_id = ?)""",
        [selection_id],
    ).fetchall()
    skip = [*_held_out(texts, info["strategy"]), *dropped_ids, *_ruled_out(con, selection_id, info, texts),
            *(s for (s,) in seen)]  # fmt: skip
    own_K = decide(texts, info["strategy"], info["gamma"] or 0.0)[1]
    by_cluster = np.bincount(lost.cluster_id, lost.seconds, len(texts.p_web_K)) * texts.open_K
    shares = by_cluster / max(by_cluster.sum(), 1e-12) + 1e-9 * own_K
    seed = int(store.ids.digest([info["seed"], sorted(lost.sample_id)]), 16)
    hours = float(lost.seconds.sum()) / 3600
    made = draw(texts, lambda pool, gamma: Clusters(shares), 0.0, hours, seed, skip, overshoot=1.0,
                first=lost.cluster_id.astype(int).tolist())  # fmt: skip
    made = made._replace(p_target_K=own_K)
    child = {**info, "parent_selection_id": selection_id}
    del child["selection_id"]
    chosen = _rows(texts, made, before)
    _publish_clusters(con, lab, name, child, texts, made, skip, made_from)
    _publish(lab, name, child, chosen, made_from)
    for note in made.notes:
        log.warning("refill %s of %s: %s", name, selection_id, note)
    return name


def to_synthesise(lab, selection_id: str) -> list[tuple[str, str]]:
    """(sample id, text) of what is to be spoken, in draw order: what no standing verdict drops.

    Where drops leave less than the budget, the selection is drawn on: further rows of the same selection, by the
    same strategy from the same checkpoint's divergences, published as a unit of their own. Synthesis stops at the
    first text that reaches the budget."""
    con = store.connect(lab)
    info = _selection(con, selection_id)
    rows, dropped_ids = _carried(con, selection_id)
    asked = (info["budget_h"] or 0.0) * 3600
    if dropped_ids and rows.seconds.sum() < asked and not is_frozen(con, selection_id):
        texts = _pool_again(con, info)
        drawn = con.execute("SELECT sample_id, draw FROM selected WHERE selection_id = ? ORDER BY draw",
                            [selection_id]).df()  # fmt: skip
        skip = [*_held_out(texts, info["strategy"]), *dropped_ids, *_ruled_out(con, selection_id, info, texts),
                *drawn.sample_id]  # fmt: skip
        first = int(drawn.draw.max()) + 1
        seed = int(store.ids.digest([info["seed"], first]), 16)
        made = draw(texts, info["strategy"], info["gamma"] or 0.0, (asked * OVERSHOOT - rows.seconds.sum()) / 3600,
                    seed, skip, overshoot=1.0)  # fmt: skip
        for note in made.notes:
            log.warning("selection %s, drawn on: %s", selection_id, note)
        if len(made.rows):
            more = _rows(texts, made, None)
            more = more.assign(selection_id=selection_id, draw=first + np.arange(len(more)))
            store.publish(lab, "selected", more, {"pass": "draw on", "selection_id": selection_id, "first": first})
            store.refresh(con)
            rows, _ = _carried(con, selection_id)
    texts = dict(con.execute("SELECT sample_id, text FROM samples WHERE sample_id IN (SELECT sample_id FROM selected "
                             "WHERE selection_id = ?)", [selection_id]).fetchall())  # fmt: skip
    return [(s, texts[s]) for s in rows.sample_id if s in texts]


def _frozen_id(parent: str, sample_ids) -> str:
    return store.ids.hash_id("l", parent, sorted(sample_ids))


def is_frozen(con, selection_id: str) -> bool:
    """Whether a selection is what a launch froze: its id is then the hash of its parent and its texts."""
    info = _selection(con, selection_id)
    found = con.execute("SELECT sample_id FROM selected WHERE selection_id = ?", [selection_id]).fetchall()
    return bool(info["parent_selection_id"]) and selection_id == _frozen_id(
        info["parent_selection_id"], [s for (s,) in found]
    )


def freeze(lab, selection_id: str, budget_h: float | None = None, publish: bool = True) -> str:
    """The child selection that a Stage II trains on: texts that are kept and spoken, in draw order, up to and with
    the first that reaches the budget (by default the selection's own). Its id is the hash of parent and sorted
    sample ids, so freezing the same texts again gives the same selection; a frozen one with nothing dropped since is
    itself. One that is over 1 % short says so in a warning of the log. `publish=False` only says what its id would be.
    SaladError where nothing is spoken."""
    con = store.connect(lab)
    info = _selection(con, selection_id)
    rows, dropped_ids = _carried(con, selection_id)
    budget_h = info["budget_h"] if budget_h is None else budget_h
    if is_frozen(con, selection_id) and not dropped_ids and budget_h == info["budget_h"]:
        return selection_id
    rows = rows[rows.synthesis_id.notna()]
    if not len(rows):
        raise SaladError(f"selection {selection_id} has no text that is kept and spoken; synthesise it first")
    if budget_h is not None:
        reached = int(np.searchsorted(rows.seconds.cumsum(), budget_h * 3600))
        rows = rows.iloc[: reached + 1]
        hours = rows.seconds.sum() / 3600
        if hours < (1 - SHORT) * budget_h:
            log.warning(
                "selection %s is %.1f %% short of its budget: %.3g h of %.3g h are kept and spoken; refill it",
                selection_id,
                100 * (1 - hours / budget_h),
                hours,
                budget_h,
            )
    name = _frozen_id(selection_id, rows.sample_id)
    child = {**info, "budget_h": budget_h, "parent_selection_id": selection_id}
    del child["selection_id"]
    if publish:
        _publish(lab, name, child, rows.reset_index(), {"pass": "freeze", "parent": selection_id, "selection_id": name})
    return name


def frozen(lab, selection_id: str, publish: bool = True) -> str:
    """The selection itself where it is frozen already, whatever was dropped since; else `freeze`."""
    con = store.connect(lab)
    return selection_id if is_frozen(con, selection_id) else freeze(lab, selection_id, publish=publish)
