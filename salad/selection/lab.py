"""Selections in a lab: draw, review, freeze, refill. Everything about a draw is in the store."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

import store
from salad import parts
from salad.errors import SaladError
from store.rules import dropped

from .draw import OVERSHOOT, Clusters, Pool, decide, draw
from .probe import cluster_rankings, learning, pool, probe_rows
from .target import check_gamma, target_interval
from .voicing import own_speech

log = logging.getLogger("salad.selection")

SHORT = 0.01  # an arm that lacks more of its budget says so
BY_DIVERGENCE = ("active", "active_rounds", "active_shrunk")  # strategies whose P_target rests on the probe alone


@dataclass(frozen=True)
class Drawn:
    """A selection as it was published: hours of its rows, and what its draw left out."""

    selection_id: str
    hours: float
    notes: tuple[str, ...]


def select(
    lab: Path | str,
    clustering_id: str,
    run_id: str,
    step: int,
    strategy: str = "active",
    gamma: float = 2.0,
    budget_h: float = 1.0,
    seed: int = 0,
    max_cer: float | None = None,
    speech: str | None = None,
    parent: str | None = None,
    number: int | None = None,
) -> str:
    """Draw a selection (METHOD.md, "From selection to training, exactly"), publish it, and return its id.

    With `parent`, the next round of `active_rounds`, `number` from 1: the parent's kept texts come first (freeze it:
    then they are spoken), with the seconds they have, and the draw goes on from the divergences of this checkpoint up
    to `budget_h` in all. active_rounds draws no text of the probe, or the next round would measure what was trained
    on. What the draw left out, and whether it ran dry, is logged. The same arguments on the same probe give the same
    selection; one that exists is not drawn again. Raises SaladError where nothing can be drawn."""
    return select_with_notes(
        lab, clustering_id, run_id, step, strategy, gamma, budget_h, seed, max_cer, speech, parent, number
    ).selection_id


def select_with_notes(
    lab: Path | str,
    clustering_id: str,
    run_id: str,
    step: int,
    strategy: str = "active",
    gamma: float = 2.0,
    budget_h: float = 1.0,
    seed: int = 0,
    max_cer: float | None = None,
    speech: str | None = None,
    parent: str | None = None,
    number: int | None = None,
) -> Drawn:
    """`select`, returning the selection's id, its hours, and notes for the user."""
    _check_numbers(gamma, budget_h, max_cer)
    parts.trust(strategy)
    con = store.connect(lab)
    rows = probe_rows(con, clustering_id, run_id, step, speech)
    made_from = {
        "pass": "select", "clustering_id": clustering_id, "run_id": run_id, "step": step, "strategy": strategy,
        "gamma": gamma, "budget_h": budget_h, "seed": seed, "max_cer": max_cer, "speech": speech, "parent": parent,
        "probe": store.ids.digest(rows[["sample_id", "synthesis_id", "pattern"]].astype(str).values.tolist()),
    }  # fmt: skip
    spans = [[int(low), int(high)] for low, high in sorted(set(zip(rows.span_min, rows.span_max, strict=True)))]
    if spans not in ([], [[1, 4]]):  # as every scoring was, once
        made_from["spans"] = spans
    before, dropped_ids = _carried(con, parent) if parent else (None, [])
    if before is not None:
        made_from["carried"] = store.ids.digest([before.sample_id.tolist(), dropped_ids])
    name = store.ids.selection_id(made_from)
    spent_h = 0.0 if before is None else before.seconds.sum() / 3600
    if _published(lab, made_from):  # somebody may have reviewed it: its texts stay
        ((new_s,),) = con.execute(
            "SELECT sum(estimated_s) FROM selected WHERE selection_id = ? AND draw >= ?",
            [name, 0 if before is None else len(before)],
        ).fetchall()
        return Drawn(name, spent_h + (new_s or 0.0) / 3600, ("it was drawn before, and stays as it is",))
    texts = _pool(con, clustering_id, run_id, step, max_cer, speech, strategy, budget_h)
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
    """Raise SaladError for NaN and infinity, which cannot be compared and must not enter an id."""
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
        dry=(may > 0) & (got == may), cer=texts.cer_K, d_se=texts.d_se_K,
    )  # fmt: skip
    if info["strategy"] in BY_DIVERGENCE:
        probe = probe_rows(con, info["clustering_id"], info["run_id"], info["step"], info["speech"])
        rows["p_target_low"], rows["p_target_high"] = target_interval(
            texts.p_web_K * texts.open_K, probe.d, probe.n_positions, probe.cluster_id, probe.sample_id.to_numpy(str),
            info["gamma"], info["strategy"] == "active_shrunk",
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
    columns = ["sample_id", "cluster_id", "draw", "p_web", "p_target", "d_cluster", "estimated_s", "selection_id"]
    if made_from["pass"] == "freeze":
        rows, columns = rows.assign(own_synthesis_id=rows.synthesis_id), [*columns, "own_synthesis_id"]
    store.publish(lab, "selected", rows[columns], made_from)
    store.publish(lab, "selections", [{"selection_id": name, **info}], made_from)


def _selection(con, selection_id: str) -> dict:
    names = ("selection_id", "clustering_id", "run_id", "step", "strategy", "gamma", "budget_h", "seed",
             "parent_selection_id", "round", "max_cer", "speech")  # fmt: skip
    row = con.execute(f"SELECT {', '.join(names)} FROM selections WHERE selection_id = ?", [selection_id]).fetchone()
    if row is None:
        known = [r[0] for r in con.execute("SELECT selection_id FROM selections ORDER BY 1 LIMIT 9").fetchall()]
        raise SaladError(f"no selection {selection_id} in this lab; it has {', '.join(known) or 'none yet'}")
    return dict(zip(names, row, strict=True))


def _with_speech(con, selection_id: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a selection with `seconds` and `synthesis_id` of its own speech; estimated and null where it is not spoken."""
    own, ways = own_speech(con, selection_id)
    if len(ways) > 1:
        log.warning("selection %s was spoken in %d ways; its speech is that of %s in %s, seed %d, which has the most",
                    selection_id, len(ways), ways[0].tts, ", ".join(ways[0].voices), ways[0].seed)  # fmt: skip
    own = own.set_index("sample_id").reindex(rows.sample_id)
    estimated = pd.to_numeric(rows.estimated_s).fillna(0.0).to_numpy(float)
    seconds = own.duration_s.to_numpy(float)
    return rows.assign(seconds=np.where(np.isnan(seconds), estimated, seconds), synthesis_id=own.synthesis_id.to_numpy(object))


def _carried(con, selection_id: str) -> tuple[pd.DataFrame, list[str]]:
    """The kept rows of a selection in draw order with their seconds (of its own speech, else estimated) and synthesis_id,
    and its dropped ids."""
    _selection(con, selection_id)
    rows = con.execute("SELECT * FROM kept WHERE selection_id = ? ORDER BY draw, sample_id", [selection_id]).df()
    rows = _with_speech(con, selection_id, rows)
    synthesis_rows = con.execute(
        """SELECT DISTINCT sample_id FROM current_decisions
        WHERE selection_id = ? AND verdict = 'drop' ORDER BY 1""",
        [selection_id],
    ).fetchall()
    return rows, [s for (s,) in synthesis_rows]


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


def _pool(con, clustering_id, run_id, step, max_cer, speech, strategy: str, budget_h: float | None) -> Pool:
    """The pool that a strategy decides on, with what `marginal` alone needs: its budget and Stage I's learning curve."""
    texts = pool(con, clustering_id, run_id, step, max_cer, speech)
    return replace(texts, budget_h=budget_h or np.nan, **learning(con, run_id)) if strategy == "marginal" else texts


def _pool_again(con, info: dict) -> Pool:
    """The pool that a selection was drawn from: the same clusters are left out."""
    if info["clustering_id"] is None or info["run_id"] is None:
        raise SaladError(f"selection {info['selection_id']} does not record what it was drawn from; run `salad select` again")
    parts.check(info["strategy"], f"selection {info['selection_id']}")
    names = ("clustering_id", "run_id", "step", "max_cer", "speech", "strategy", "budget_h")
    return _pool(con, *(info[name] for name in names))


def refill(lab: Path | str, selection_id: str) -> str:
    """Replace what reviewers dropped: a child selection of the kept texts and, after them, further draws.

    One text for each dropped one, from its cluster; where that cluster is dry, or the seconds are not yet regained,
    from the clusters of the dropped texts in proportion to the seconds lost there, and at last from any cluster by
    the selection's own strategy. What a standing rule or cluster verdict would drop is not drawn. The child's draw
    numbers go on from its parent's kept ones; its id is a function of the parent and the dropped texts. Returns the
    selection itself where nothing was dropped from it."""
    con = store.connect(lab)
    info = _selection(con, selection_id)
    before, dropped_ids = _carried(con, selection_id)
    lost = con.execute(
        """SELECT l.sample_id, l.cluster_id, l.estimated_s FROM selected l
        WHERE l.selection_id = $1 AND l.sample_id NOT IN (SELECT sample_id FROM kept WHERE selection_id = $1)
        ORDER BY l.draw""",
        [selection_id],
    ).df()
    if not len(lost):
        return selection_id
    lost = _with_speech(con, selection_id, lost)
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
    skip = [*_held_out(texts, info["strategy"]), *dropped_ids, *_ruled_out(con, selection_id, info, texts), *(s for (s,) in seen)]
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


def to_synthesise(lab: Path | str, selection_id: str) -> list[tuple[str, str]]:
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
        drawn = con.execute("SELECT sample_id, draw FROM selected WHERE selection_id = ? ORDER BY draw", [selection_id]).df()
        skip = [*_held_out(texts, info["strategy"]), *dropped_ids, *_ruled_out(con, selection_id, info, texts), *drawn.sample_id]
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
    text_of = dict(con.execute("SELECT sample_id, text FROM samples WHERE sample_id IN (SELECT sample_id FROM selected "
                             "WHERE selection_id = ?)", [selection_id]).fetchall())  # fmt: skip
    return [(s, text_of[s]) for s in rows.sample_id if s in text_of]


def _frozen_id(parent: str, sample_ids, synthesis_ids=()) -> str:
    return store.ids.hash_id("l", parent, sorted(sample_ids), *([sorted(synthesis_ids)] if len(synthesis_ids) else []))


def is_frozen(con: duckdb.DuckDBPyConnection, selection_id: str) -> bool:
    """Whether a selection is what a launch froze: its id is then the hash of its parent and its texts, and of their
    speech where that is not each text's first synthesis."""
    parent = _selection(con, selection_id)["parent_selection_id"]
    rows = con.execute("SELECT sample_id, own_synthesis_id FROM selected WHERE selection_id = ?", [selection_id]).fetchall()
    if not parent or not rows:
        return False
    texts, speech = [s for s, _ in rows], [y for _, y in rows if y is not None]
    return selection_id in (_frozen_id(parent, texts), _frozen_id(parent, texts, speech))


def freeze(lab: Path | str, selection_id: str, budget_h: float | None = None, publish: bool = True) -> str:
    """The child selection that a Stage II trains on: texts that are kept and spoken, in draw order, up to and with
    the first that reaches the budget (by default the selection's own), each with the synthesis that was made for this
    selection (salad.selection.voicing). Its id is the hash of parent and sorted sample ids (and synthesis ids, where those
    are not each text's first), so freezing the same texts again gives the same selection; a frozen one with nothing
    dropped since is itself. One that is over 1 % short says so in a warning of the log. `publish=False` only says what its
    id would be. SaladError where nothing is spoken."""
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
    first = con.execute(
        """SELECT arg_min(synthesis_id, (seed, synthesis_id)) FROM syntheses WHERE tts <> 'recorded'
        AND sample_id IN (SELECT unnest(?)) GROUP BY sample_id""",
        [rows.sample_id.tolist()],
    ).fetchall()
    usual = {synthesis for (synthesis,) in first} == set(rows.synthesis_id)
    name = _frozen_id(selection_id, rows.sample_id, () if usual else rows.synthesis_id)
    made_from = {"pass": "freeze", "parent": selection_id, "selection_id": name}
    if publish and not _published(lab, made_from):  # a run may stand on it: what it holds stays
        child = {**info, "budget_h": budget_h, "parent_selection_id": selection_id}
        del child["selection_id"]
        _publish(lab, name, child, rows.reset_index(), made_from)
    return name


def frozen(lab: Path | str, selection_id: str, publish: bool = True) -> str:
    """The selection itself where it is frozen already, whatever was dropped since; else `freeze`."""
    con = store.connect(lab)
    return selection_id if is_frozen(con, selection_id) else freeze(lab, selection_id, publish=publish)
