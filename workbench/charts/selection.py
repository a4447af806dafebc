"""The figures of a selection: clusters, their mass, quadrants, rankings, hours."""

import math

import altair as alt
import duckdb
import pandas as pd

from workbench import review
from workbench.charts.theme import BLUE, GREEN, GREY, ORANGE, ROW, SKY, VERMILION, top_d

MASSES = {
    "p_web": ("P_web", GREY),
    "p_target": ("P_target", VERMILION),
    "drawn_share": ("drawn", SKY),
    "kept_share": ("kept", GREEN),
}
MEANINGS = dict(zip(review.MEANINGS, (GREEN, BLUE, VERMILION, ORANGE), strict=True))


def _cluster_axis(order, labels=True, limit=270) -> alt.Y:
    axis = alt.Axis(labels=labels, labelLimit=limit, ticks=False, domain=False, grid=True)
    return alt.Y("label:N", sort=list(order), title=None, axis=axis)


def _shown(table: pd.DataFrame, words: str, top: int | None) -> pd.DataFrame:
    """The clusters whose number or terms hold `words`, without regard to case, the `top` most divergent of them."""
    table = table[table.label.str.contains(words.strip(), case=False, regex=False)] if words.strip() else table
    return table if top is None else table.head(top)


def clusters(con: duckdb.DuckDBPyConnection, selection_id: str, words: str = "", top: int | None = None) -> alt.LayerChart:
    """d_cluster with its 95 % interval, the most divergent cluster first; of those whose number or terms hold `words`, the
    `top` first.

    A click on a row selects the cluster (parameter `cluster`, field cluster_id); shift adds one, a double click
    takes all again.
    """
    table = _shown(review.cluster_table(con, selection_id), words, top)
    table = table[["cluster_id", "label", "size", "d_measured", "low", "high", "n_measured", "drawn"]]
    pick = alt.selection_point(name="cluster", fields=["cluster_id"], empty=True)
    faded = alt.condition(pick, alt.value(1.0), alt.value(0.3))
    y = _cluster_axis(table.label)
    axis = alt.Axis(orient="top", title="d_cluster, 95 % interval (nats per token)", tickCount=5)
    x = {"scale": alt.Scale(domain=[0, top_d(con)], clamp=True), "axis": axis}
    base = alt.Chart(table, width=220, height={"step": ROW})
    tip = [
        "label",
        alt.Tooltip("size", title="texts"),
        alt.Tooltip("n_measured", title="texts measured"),
        "drawn",
        *(
            alt.Tooltip(f"{f}:Q", format=".3f", title=t)
            for f, t in (("d_measured", "d_cluster"), ("low", "from"), ("high", "to"))
        ),
    ]
    # An invisible bar makes the whole row the target of the click, not its point alone.
    row = base.mark_bar(opacity=0, cursor="pointer", size=ROW).encode(y=y, x=alt.value(0), x2=alt.value(220), tooltip=tip)
    interval = base.mark_rule(strokeWidth=2, color=BLUE).encode(y=y, x=alt.X("low:Q", **x), x2="high:Q", opacity=faded)
    point = base.mark_point(filled=True, size=70, color=BLUE).encode(y=y, x=alt.X("d_measured:Q", **x), opacity=faded)
    return alt.layer(interval, point, row.add_params(pick))


def masses(
    con: duckdb.DuckDBPyConnection, selection_id: str, gamma: float | None = None, words: str = "", top: int | None = None
) -> alt.Chart:
    """The mass of each cluster under P_web and P_target (at `gamma`, else the selection's own), and the share of
    the texts that are drawn and kept: the rows stand beside those of `clusters`."""
    table = review.cluster_table(con, selection_id, gamma)
    names = {key: name for key, (name, _) in MASSES.items()}
    floor = 10.0 ** math.floor(math.log10(max(table.p_web.min(), 1e-6))) / 10
    table = _shown(table, words, top)
    long = table[["label", *MASSES]].melt("label", list(MASSES), "quantity", "mass")
    long["quantity"] = long.quantity.map(names)
    long["shown"] = long.mass.clip(lower=floor)  # nothing at all stands at the left edge
    colour = alt.Scale(domain=list(names.values()), range=[c for _, c in MASSES.values()])
    shape = alt.Scale(domain=list(names.values()), range=["stroke", "diamond", "circle", "triangle-right"])
    legend = alt.Legend(orient="bottom", title=None)
    return (
        alt.Chart(long, width=270, height={"step": ROW})
        .mark_point(size=60, strokeWidth=2)
        .encode(
            y=_cluster_axis(table.label, labels=False),
            x=alt.X(
                "shown:Q",
                scale=alt.Scale(type="log", domain=[floor, 1], clamp=True),
                axis=alt.Axis(orient="top", title="share (log scale)", format="~%", tickCount=5),
            ),
            color=alt.Color("quantity:N", scale=colour, legend=legend),
            shape=alt.Shape("quantity:N", scale=shape, legend=legend),
            tooltip=["label", "quantity", alt.Tooltip("mass:Q", format=".2%")],
        )
    )


def quadrants(
    con: duckdb.DuckDBPyConnection, selection_id: str, cer_at: float = 0.1, d_at: float | None = None
) -> alt.LayerChart:
    """The probe's texts by character error rate and divergence, counted in cells, cut into four by two thresholds.

    A drag selects (parameter `brush`, fields cer and d); a double click takes all again."""
    d_at = review.median_d(con, selection_id) if d_at is None else d_at
    top = top_d(con)
    cells = review.cells(con, selection_id, top)
    counts = review.quadrants(con, selection_id, cer_at, d_at)
    counts["y"] = counts.high_d.map({True: top * 0.96, False: top * 0.04})
    counts["text"] = [f"{meaning}: {n:,}" for meaning, n in zip(counts.meaning, counts.n, strict=True)]
    x = alt.X(
        "cer:Q",
        scale=alt.Scale(type="sqrt", domain=[0, 1]),
        title="character error rate of the recogniser",
        axis=alt.Axis(values=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1], format="~%"),
    )
    y = alt.Y("d:Q", scale=alt.Scale(domain=[0, top]), title="D (nats per token)")
    most = max(10, int(cells.n.max())) if len(cells) else 10
    scale = alt.Scale(scheme="cividis", type="symlog", reverse=True, domain=[1, most])
    count = alt.Color("n:Q", scale=scale, title="texts")
    tip = [alt.Tooltip("cer:Q", format=".2f", title="CER from"), alt.Tooltip("d:Q", format=".2f", title="D from"), "n"]
    heat = (
        alt.Chart(cells, width=450, height=280)
        .mark_rect()
        .encode(x=x, x2="cer_end", y=y, y2="d_end", color=count, tooltip=tip)
        .add_params(alt.selection_interval(name="brush", encodings=["x", "y"]))
    )
    cuts = alt.Chart(pd.DataFrame({"cer": [cer_at], "d": [d_at]}))
    rules = cuts.mark_rule(strokeDash=[4, 3], color=GREY)
    colour = alt.Color("meaning:N", scale=alt.Scale(domain=list(MEANINGS), range=list(MEANINGS.values())), legend=None)
    words = [
        alt.Chart(counts[counts.high_cer == high])
        .mark_text(fontWeight="bold", fontSize=12, align=align)
        .encode(x=alt.value(at), y="y:Q", text="text:N", color=colour)
        for high, align, at in ((True, "right", 444), (False, "left", 6))
    ]
    return alt.layer(heat, rules.encode(x="cer:Q"), rules.encode(y="d:Q"), *words)


def adjusted_ranking(con: duckdb.DuckDBPyConnection, selection_id: str) -> alt.LayerChart:
    """The clusters' D as measured, and with CER, duration and rate regressed out: what stays high is the text's."""
    table = review.adjusted_ranking(con, selection_id)[["cluster_id", "label", "d", "d_adjusted", "rank", "rank_adjusted"]]
    order = table.label.tolist()
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=200, ticks=False, domain=False, grid=True))
    scale = alt.Scale(domain=[0, top_d(con)], clamp=True)
    base = alt.Chart(table, width=230, height={"step": 14})
    line = base.mark_rule(color=GREY, opacity=0.6).encode(y=y, x=alt.X("d:Q", scale=scale), x2="d_adjusted:Q")
    long = table.melt(["cluster_id", "label", "rank", "rank_adjusted"], ["d", "d_adjusted"], "which", "value")
    long["which"] = long.which.map({"d": "measured", "d_adjusted": "CER, duration, rate regressed out"})
    points = (
        alt.Chart(long)
        .mark_point(filled=True, size=50)
        .encode(
            y=y,
            x=alt.X("value:Q", scale=scale, title="cluster's D (nats per token)"),
            color=alt.Color(
                "which:N",
                scale=alt.Scale(domain=["measured", "CER, duration, rate regressed out"], range=[BLUE, ORANGE]),
                legend=alt.Legend(orient="top", title=None, labelLimit=260),
            ),
            tooltip=["label", "which", alt.Tooltip("value:Q", format=".3f"), "rank", "rank_adjusted"],
        )
    )
    return alt.layer(line, points)


def hours(
    con: duckdb.DuckDBPyConnection, selection_id: str, gamma: float, words: str = "", top: int | None = None
) -> alt.LayerChart:
    """Hours that each cluster would get of the budget at `gamma`, beside those drawn and kept now."""
    table = review.cluster_table(con, selection_id, gamma)
    budget = table.budget_h.iloc[0]
    table["at_gamma"] = budget * table.p_target
    # the most that the slider can give one cluster, so that the scale stays while γ moves
    most = max(float(table[["drawn_h", "kept_h"]].max().max()), float(budget * review.target(table, 6).max()))
    table = _shown(table, words, top)
    order = table.label.tolist()
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    table = table[["label", "at_gamma", "drawn_h", "kept_h"]]
    x = alt.X("at_gamma:Q", scale=alt.Scale(domain=[0, most], clamp=True), title="hours of speech")
    bars = (
        alt.Chart(table, width=190, height={"step": 14})
        .mark_bar(color=VERMILION, opacity=0.55)
        .encode(
            y=y,
            x=x,
            tooltip=[
                "label",
                alt.Tooltip("at_gamma:Q", format=".4f", title=f"hours at γ {gamma:g}"),
                alt.Tooltip("drawn_h:Q", format=".4f"),
                alt.Tooltip("kept_h:Q", format=".4f"),
            ],
        )
    )
    kept = alt.Chart(table).mark_tick(color=GREEN, thickness=3, size=12).encode(y=y, x="kept_h:Q")
    return alt.layer(bars, kept)
