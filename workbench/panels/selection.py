"""What notebooks/selection.py shows beside charts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import marimo as mo
import pandas as pd

import store
from salad.study.state import mark_reviewed, noted, waits_for_review
from workbench import review
from workbench.markup import markdown, plain
from workbench.panels.elements import plain_table, scrolled, stats

REASONS = list(review.REASONS)
ADJUSTED = """### What stays when speech is accounted for
The clusters' D on the probe as measured, and with CER, duration and speaking rate regressed out: what falls was bad for
its speech, not for its domain."""


def unready(con: duckdb.DuckDBPyConnection, selection_id: str) -> tuple[bool, mo.Html]:
    """Whether a selection cannot be shown, and what to do then: what mo.stop takes."""
    lines = review.unready(con, selection_id)
    return lines is not None, mo.callout(mo.md(lines or ""), kind="warn")


def own_gamma(con: duckdb.DuckDBPyConnection, selection_id: str) -> float:
    """The selection's own gamma, 0 where it has none (uniform)."""
    row = con.execute("SELECT gamma FROM selections WHERE selection_id = ?", [selection_id]).fetchone()
    return float(row[0] or 0.0) if row else 0.0


MANY = 32  # clusters that are shown at first


def cluster_filter(con: duckdb.DuckDBPyConnection, selection_id: str) -> mo.ui.dictionary:
    """Which clusters the figures show: {"words": in the number or the terms, "top": so many of the most divergent}."""
    n = len(review.cluster_table(con, selection_id))
    shown = {f"the {MANY} most divergent": MANY} if n > MANY else {}
    shown[f"all {n}"] = None
    return mo.ui.dictionary(
        {
            "words": mo.ui.text(placeholder="a word or a number", label="find clusters", debounce=300),
            "top": mo.ui.dropdown(shown, value=next(iter(shown)), label="show"),
        }
    )


def clusters(shown_ui: mo.ui.dictionary, *figures) -> mo.Html:
    """The figures of the clusters, row beside row, under what chooses them."""
    words = (
        "### Clusters\nLeft: where speech disagrees with the text teacher. Right: what the web has, what is intended, "
        "drawn, kept. Click a row to read its texts; shift adds one, a double click takes all."
    )
    chosen = mo.hstack(list(shown_ui.elements.values()), justify="start", gap=1)
    return mo.vstack([mo.md(words), chosen, scrolled(*figures)])


def picked(chart: mo.ui.altair_chart) -> list[int]:
    """The cluster ids that are selected in charts.clusters; none means all."""
    return [int(c) for c in (chart.selections.get("cluster") or {}).get("cluster_id", [])]


def picked_words(con: duckdb.DuckDBPyConnection, selection_id: str, ids: list[int], brushed: dict | None = None) -> str:
    """What is chosen in the charts, in words."""
    named = {"cer": "CER", "d": "D"}
    ranges = " and ".join(f"{named[k]} {brushed[k][0]:.2f} to {brushed[k][1]:.2f}" for k in ("cer", "d") if k in (brushed or {}))
    within = f" Drawn texts with {ranges}; a double click in the figure takes all again." if ranges else ""
    if not ids:
        return ("All clusters." if ranges else "All clusters. Click one above to read it alone.") + within
    labels = con.execute(
        """SELECT cluster_id, array_to_string(terms[1:4], ', ') FROM clusters JOIN selections USING (clustering_id)
        WHERE selection_id = ? AND cluster_id IN (SELECT unnest(?)) ORDER BY 1""",
        [selection_id, ids],
    ).fetchall()
    return "Clusters: " + "; ".join(markdown("**{}** {}", c, terms or "") for c, terms in labels) + "." + within


def gamma_facts(con: duckdb.DuckDBPyConnection, selection_id: str, gamma: float) -> mo.Html:
    """Entropy and effective number of clusters of P_target at gamma beside P_web's, and how many texts the kept ones are
    worth when they are weighted to it."""
    from salad.selection import effective_size, entropy

    table = review.cluster_table(con, selection_id, gamma)
    p, web = table.p_target, table.p_web
    facts = (
        ("entropy", f"{entropy(p):.2f} nats", f"P_web {entropy(web):.2f}"),
        ("effective clusters", f"{effective_size(p):.1f} of {len(table)}", f"P_web {effective_size(web):.1f}"),
        ("effective sample size", f"{review.effective_texts(table):,.0f}", f"of {table.kept.sum():,} kept"),
    )
    return mo.md("  \n".join(f"{name} **{value}** ({beside})" for name, value, beside in facts))


def effect(con: duckdb.DuckDBPyConnection, selection_id: str) -> mo.Html:
    """What the drops did: texts, hours, KL to the intended distribution, effective sample size, clusters lost."""
    now = review.effect_of_drops(con, selection_id)
    lost = ", ".join(map(str, now["clusters_lost"]))
    row = stats(
        ("texts kept", f"{now['kept']:,} of {now['drawn']:,}", f"{now['drawn'] - now['kept']:,} dropped"),
        ("hours kept", f"{now['kept_h']:.3f}", f"of {now['drawn_h']:.3f} drawn, {now['budget_h']:.3f} the budget"),
        ("KL(kept ‖ intended)", f"{now['kl_kept']:.4f} nats", f"{now['kl_drawn']:.4f} as drawn"),
        ("effective sample size", f"{now['effective_sample_size']:,.0f}", "kept texts weighted to P_target"),
        ("clusters lost", str(len(now["clusters_lost"])), lost or "none"),
    )
    short = (
        mo.md(
            f"What is kept is {100 * (1 - now['kept_h'] / now['budget_h']):.1f} % short of the budget: "
            "a refill draws on from the same "
            "distribution."
        )
        if now["short_of_budget"]
        else mo.md("")
    )
    by_cluster = plain_table(review.effect_by_cluster(con, selection_id), digits=4)
    return mo.vstack([row, short, mo.accordion({"By cluster": by_cluster})])


SUGGESTS = {
    "fine": "little divergence on speech that the recogniser reads.",
    "candidate domain gap": "the speech is clear, and the model is still far from its teacher: what selection is for.",
    "suspected synthesis fault": "far, on speech that the recogniser cannot read either: hear some before you trust it.",
    "recogniser fault": "the model follows what the recogniser cannot read.",
}


def quadrant_words(con: duckdb.DuckDBPyConnection, selection_id: str, cer_ui: mo.ui.slider, d_ui: mo.ui.slider) -> mo.Html:
    """The quadrants' thresholds, counts and what each suggests."""
    counts = review.quadrants(con, selection_id, cer_ui.value, d_ui.value).set_index("meaning").n
    if counts.empty:
        return mo.md(
            "No text of this clustering is both scored under the selection's checkpoint and checked by a "
            "recogniser: `salad pass score` scores speech, `salad pass synthesise` checks what it speaks."
        )
    lines = [f"- **{name}**, {counts.get(name, 0):,} texts: {words}" for name, words in SUGGESTS.items()]
    return mo.vstack([
        mo.md("Every text of the clustering that is spoken, checked and scored (the probe), by the recogniser's character "
              "error rate and by D. Drag in the figure to read and hear those of them that were drawn."),
        mo.hstack([cer_ui, d_ui], justify="start", gap=2, wrap=True), mo.md("\n".join(lines))])  # fmt: skip


def text_table(rows: pd.DataFrame, on_pick: Callable[[str], object]) -> mo.ui.table:
    """A page of texts; a click on a row calls `on_pick(sample_id)`."""
    shown = pd.DataFrame(
        {
            "draw": rows.draw,
            "cluster": rows.cluster_id,
            "text": rows.text,
            "D": rows.d,
            "M": rows.m,
            "CER": rows.cer,
            "seconds": rows.seconds,
            "stands": [f"dropped: {r.reason}" if r.dropped else "kept" if r.kept else "" for r in rows.itertuples()],
            "flags": [", ".join(f) for f in rows["flags"]],
            "sample_id": rows.sample_id,
        }
    )

    def figure(digits):
        return lambda x: "–" if x is None or pd.isna(x) else f"{x:.{digits}f}"

    return mo.ui.table(
        shown,
        selection="single",
        pagination=False,
        show_search=False,
        show_download=False,
        show_column_summaries=False,
        show_data_types=False,
        wrapped_columns=["text"],
        column_widths={"text": 560},
        hidden_columns=["sample_id"],
        format_mapping={"D": figure(2), "M": figure(2), "CER": figure(2), "seconds": figure(1)},
        on_change=lambda picked: on_pick(picked.sample_id.iloc[0]) if len(picked) else None,
    )


def rule_preview(con: duckdb.DuckDBPyConnection, selection_id: str, predicate: str) -> mo.Html:
    """The count and 20 examples of a rule, or what is wrong with it in one line."""
    if not predicate.strip():
        return mo.md(
            "A rule is a SQL condition on a text, for example `cer > 0.3`, `regexp_matches(text, '[{}=]')` or "
            "`list_contains(flags, 'near-duplicate')`. It also holds for refills and for selections made from this one."
        )
    try:
        count, rows = review.rule_preview(con, selection_id, predicate)
    except RuntimeError as error:
        return mo.callout(mo.md(plain(error)), kind="danger")
    keep = [c for c in ("text", "domain", "cluster_id", "cer", "d", "m", "duration_s", "flags") if c in rows]
    return mo.vstack(
        [
            mo.md(f"**{count:,}** texts would be dropped" + (f"; {len(rows)} of them:" if count else ".")),
            plain_table(rows[keep]) if count else mo.md(""),
        ]
    )


def events_table(con: duckdb.DuckDBPyConnection, selection_id: str) -> mo.ui.table:
    """The decisions on the selection that have not been undone, newest first; at most 200."""
    rows = review.standing_events(con, selection_id, limit=200)
    shown = rows[
        [
            "at",
            "reviewer",
            "verdict",
            "target",
            "sample_id",
            "cluster_id",
            "rule",
            "weight",
            "reason",
            "note",
            "event_id",
        ]
    ]
    shown = shown.dropna(axis=1, how="all").astype(object)
    shown = shown.where(shown.notna(), "")
    return mo.ui.table(
        shown,
        selection="single",
        page_size=8,
        show_search=False,
        show_download=False,
        show_column_summaries=False,
        show_data_types=False,
        format_mapping={
            "at": lambda t: f"{t:%Y-%m-%d %H:%M:%S}",
            "cluster_id": lambda c: "" if c == "" else f"{c:.0f}",
        },
    )


def audits(con: duckdb.DuckDBPyConnection, selection_id: str, ids: list[int], n: int, more: int = 20) -> mo.Html:
    """The fault rate of each picked cluster's audit, with its interval and what `more` texts would buy."""
    if not ids:
        return mo.md("Click a cluster above; choose the queue “audit” to judge its first texts in a fixed random order.")
    lines = []
    for c in ids:
        a = review.audit(con, selection_id, c, n, more=more)
        rate = (
            f"{a['faults']} of {a['judged']} judged are faulty: {100 * a['rate']:.0f} % "
            if a["judged"]
            else "nothing judged yet: the rate is anywhere in "
        )
        lines.append(
            f"- cluster **{c}**: {rate}[{100 * a['low']:.0f}, {100 * a['high']:.0f}] %, width {100 * a['width']:.0f} "
            f"points; {more} more would make it about {100 * a['width_after']:.0f}. {len(a['unjudged'])} of this "
            f"audit's {a['drawn']} are still to be judged."
        )
    return mo.md("\n".join(lines))


def agreement(con: duckdb.DuckDBPyConnection, selection_id: str) -> mo.Html:
    """Each pair of reviewers: the texts that both have judged, and how often they agree."""
    rows = review.agreement(con, selection_id)
    if rows.empty:
        return mo.md("No text has been judged by two reviewers yet.")
    return mo.md(
        "\n".join(
            markdown("- {} and {} judged {} texts both and agree on {:.0f} %", r.one, r.other, r.both, 100 * r.agree)
            + (f" (κ {r.kappa:.2f})" if pd.notna(r.kappa) else "")
            for r in rows.itertuples()
        )
    )


def buttons(
    con: duckdb.DuckDBPyConnection,
    judge: review.Review,
    rule: str,
    reason: str,
    weight: float,
    clusters: list[int],
    events: Any,
    on_decision: Callable[[str], object],
    on_drawn: Callable[[str], object],
) -> dict[str, mo.ui.button]:
    """Set the rule, leave the picked clusters out, take them back in, reweight them, accept or reject their audit, undo,
    refill, end the review. Each writes its event on its click, and tells `on_decision` in words; a refill tells `on_drawn` its
    id."""

    def each(verdict, words, *details):
        if not clusters:
            return "Click a cluster in the chart first."
        for c in clusters:
            judge.cluster(c, verdict, *details)
        return f"Clusters {', '.join(map(str, clusters))} {words}."

    def undo():
        event = judge.undo(con, events.event_id.iloc[0] if events is not None and len(events) else None)
        return (
            markdown("Taken back: {} of a {}.", event["verdict"], event["target"]) if event else "Nothing of yours to undo here."
        )

    def set_rule():
        if not rule.strip():
            return "Write a rule first."
        return markdown("Rule set: <code>{}</code>.", judge.rule(rule, reason)["rule"])

    def refill():
        from salad import selection

        child = selection.refill(judge.lab, judge.selection_id)
        if child == judge.selection_id:
            return "Nothing was dropped from this selection: there is nothing to refill."
        on_drawn(child)
        return f"Refilled as `{child}`, which is chosen above. Its new texts are yet to be spoken."

    def reviewed():
        mark_reviewed(judge.lab, judge.reviewer)
        return "Reviewed: rerun `salad study`, and Stage II begins."

    def button(label, act):
        def clicked(_):
            try:
                message = act()
            except (RuntimeError, OSError) as error:
                message = markdown("Not done: {}", error)
            store.refresh(con)
            on_decision(message)

        return mo.ui.button(label=label, on_change=clicked)

    return {
        "rule": button("set this rule", set_rule),
        "leave out": button("leave out", lambda: each("drop", "left out", reason)),
        "take in": button("take back in", lambda: each("keep", "taken back in")),
        "reweight": button("reweight", lambda: each("reweight", f"reweighted by {weight:g}", reason, weight)),
        "accept": button("accept", lambda: each("keep", "accepted", "audit")),
        "reject": button("reject", lambda: each("drop", "rejected and left out", "audit")),
        "undo": button("undo the selected event, else my last", undo),
        "refill": button("refill what was dropped", refill),
        "reviewed": button("reviewed: let Stage II begin", reviewed),
    }


def review_gate(lab: Path | str, button: mo.ui.button, decided: tuple[int, str]) -> mo.Html:
    """Of a study that waits for a person before Stage II: what it waits for, and the button that ends the wait; afterwards who
    ended it and when. Empty for any other lab. `decided`: the number and words of the last decision, after which it is drawn
    anew."""
    if waits_for_review(lab):
        words = (
            "**This study waits for you.** When you have listened and dropped what is bad, let Stage II begin; what you "
            "dropped is replaced in draw order first. Then rerun `salad study`."
        )
        return mo.callout(mo.vstack([mo.md(words), button]), kind="warn")
    record = noted(lab, "reviewed")
    if record is None:
        return mo.md("")
    by = f" by {record['by']}" if record.get("by") else ""
    return mo.md(markdown("Reviewed {}; rerun <code>salad study</code> to go on to Stage II.", f"{record['at'][:16]} UTC{by}"))


def go_on(
    lab: Path | str, con: duckdb.DuckDBPyConnection, selection_id: str, recipe: str, on: str, *, export: bool, launch: bool
) -> mo.Html:
    """Export the kept texts, or start Stage II on them. Returns a message about the result."""
    try:
        if export:
            with mo.status.spinner("writing texts and speech"):
                folder = review.export_kept(lab, con, selection_id)
            return mo.md(
                markdown("Written to <code>{}</code>: `texts.parquet`, `selection.json` with the hash", folder)
                + (" and a Lhotse Shar in `speech/`." if (folder / "speech").exists() else "; nothing of it is spoken yet.")
            )
        if launch:
            child, run = review.launch_stage2(lab, selection_id, recipe, on)
            return mo.md(
                f"Run `{run.run_id}` has started on `{child}`, the kept and spoken texts frozen; it goes on when this "
                "notebook closes. `notebooks/training.py` shows how it fares."
            )
    except (RuntimeError, OSError) as error:
        return mo.callout(mo.md(plain(error)), kind="danger")
    return mo.md("Launching freezes what is kept and spoken now as a selection of its own; later drops do not change that run.")
