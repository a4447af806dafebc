"""One function per figure, each from rows that DuckDB has aggregated; every one returns an Altair chart.

Colours are Okabe and Ito's, which the colour-blind can tell apart; a quantity keeps its colour and, within a lab,
its scale in every figure.
"""

import itertools
import math

import altair as alt
import numpy as np
import pandas as pd

from workbench import divergences, review

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#7f7f7f",
)
MASSES = {
    "p_web": ("P_web", GREY),
    "p_target": ("P_target", VERMILION),
    "drawn_share": ("drawn", SKY),
    "kept_share": ("kept", GREEN),
}
CONTENDERS = {"teacher": GREY, "stage1": PURPLE, "stage2_active": VERMILION, "stage2_uniform": BLUE}
MEANINGS = dict(zip(review.MEANINGS, (GREEN, BLUE, VERMILION, ORANGE), strict=True))
CURVES = {
    "loss": "loss (nats per token)",
    "m": "M of checkpoints (nats per token)",
    "d_speech": "D after speech (nats per token)",
    "d_text": "D on text, which is F (nats per token)",
    "nll": "NLL (nats per token)",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "tokens_per_s": "tokens per second",
}
ROW = 19  # pixels a cluster takes in the panel
alt.utils.schemapi.disable_debug_mode()  # a chart is validated whole when it is shown, not each of its parts as well


@alt.theme.register("salad", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    """Lines and ground that do on white and on black, so that a figure takes the page's own colours."""
    lines = {"gridColor": "#88888844", "tickColor": "#888888aa", "domainColor": "#888888aa"}
    config = {"background": "transparent", "axis": lines, "view": {"stroke": "#88888866"}}
    return {"config": config}


def _contenders(names) -> alt.Scale:
    """The fixed colours of those that are shown (a study's arms have no "stage2_"), and further ones for contenders
    that a user has named."""
    known = {n: CONTENDERS.get(n) or CONTENDERS.get(f"stage2_{n}") for n in sorted(names, key=_place)}
    spare = itertools.cycle([SKY, GREEN, ORANGE])
    return alt.Scale(domain=list(known), range=[colour or next(spare) for colour in known.values()])


def _place(name: str) -> tuple[int, str]:
    order = list(CONTENDERS)
    own = name if name in CONTENDERS else f"stage2_{name}"
    return (order.index(own) if own in CONTENDERS else len(order)), name


def _top_d(con) -> float:
    """The upper end of every axis of D per text: the lab's largest, rounded up to a half."""
    top = review.of_lab(con, "SELECT quantile_cont(d, 0.995) FROM raw.divergences") or 1.0
    return float(-(-top // 0.5) * 0.5)


def _cluster_axis(order, labels=True, limit=270) -> alt.Y:
    axis = alt.Axis(labels=labels, labelLimit=limit, ticks=False, domain=False, grid=True)
    return alt.Y("label:N", sort=list(order), title=None, axis=axis)


def clusters(con, selection_id: str) -> alt.LayerChart:
    """d_cluster with its 95 % interval, the most divergent cluster first.

    A click on a row selects the cluster (parameter `cluster`, field cluster_id); shift adds one, a double click
    takes all again.
    """
    table = review.cluster_table(con, selection_id)
    table = table[["cluster_id", "label", "size", "d_measured", "low", "high", "n_measured", "drawn"]]
    pick = alt.selection_point(name="cluster", fields=["cluster_id"], empty=True)
    faded = alt.condition(pick, alt.value(1.0), alt.value(0.3))
    y = _cluster_axis(table.label)
    axis = alt.Axis(orient="top", title="d_cluster, 95 % interval (nats per token)", tickCount=5)
    x = {"scale": alt.Scale(domain=[0, _top_d(con)], clamp=True), "axis": axis}
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
    row = base.mark_bar(opacity=0, cursor="pointer", size=ROW).encode(
        y=y, x=alt.value(0), x2=alt.value(220), tooltip=tip
    )
    interval = base.mark_rule(strokeWidth=2, color=BLUE).encode(y=y, x=alt.X("low:Q", **x), x2="high:Q", opacity=faded)
    point = base.mark_point(filled=True, size=70, color=BLUE).encode(y=y, x=alt.X("d_measured:Q", **x), opacity=faded)
    return alt.layer(interval, point, row.add_params(pick))


def masses(con, selection_id: str, gamma: float | None = None) -> alt.Chart:
    """The mass of each cluster under P_web and P_target (at `gamma`, else the selection's own), and the share of
    the texts that are drawn and kept: the rows stand beside those of `clusters`."""
    table = review.cluster_table(con, selection_id, gamma)
    names = {key: name for key, (name, _) in MASSES.items()}
    long = table[["label", *MASSES]].melt("label", list(MASSES), "quantity", "mass")
    long["quantity"] = long.quantity.map(names)
    floor = 10.0 ** math.floor(math.log10(max(table.p_web.min(), 1e-6))) / 10
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


def quadrants(con, selection_id: str, cer_at: float = 0.1, d_at: float | None = None) -> alt.LayerChart:
    """The probe's texts by character error rate and divergence, counted in cells, cut into four by two thresholds.

    A drag selects (parameter `brush`, fields cer and d); a double click takes all again."""
    d_at = review.median_d(con, selection_id) if d_at is None else d_at
    top = _top_d(con)
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


def adjusted_ranking(con, selection_id: str) -> alt.LayerChart:
    """The clusters' D as measured, and with CER, duration and rate regressed out: what stays high is the text's."""
    table = review.adjusted_ranking(con, selection_id)[
        ["cluster_id", "label", "d", "d_adjusted", "rank", "rank_adjusted"]
    ]
    order = table.label.tolist()
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=200, ticks=False, domain=False, grid=True))
    scale = alt.Scale(domain=[0, _top_d(con)], clamp=True)
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


def hours(con, selection_id: str, gamma: float) -> alt.LayerChart:
    """Hours that each cluster would get of the budget at `gamma`, beside those drawn and kept now."""
    table = review.cluster_table(con, selection_id, gamma)
    budget = table.budget_h.iloc[0]
    table["at_gamma"] = budget * table.p_target
    order = table.label.tolist()
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    # the most that the slider can give one cluster, so that the scale stays while γ moves
    top = max(float(table[["drawn_h", "kept_h"]].max().max()), float(budget * review.target(table, 6).max()))
    table = table[["label", "at_gamma", "drawn_h", "kept_h"]]
    x = alt.X("at_gamma:Q", scale=alt.Scale(domain=[0, top], clamp=True), title="hours of speech")
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


def accuracy(rows: pd.DataFrame) -> alt.HConcatChart:
    """Accuracy by contender, one panel per modality, a row per coverage group, with ± one standard error.

    `rows`: contender, group, modality, accuracy, se, n (report.accuracies).
    """
    groups = list(dict.fromkeys(rows.group))
    panels = []
    for modality in [m for m in ("text", "speech", "cascade") if m in set(rows.modality)]:
        part = rows[rows.modality == modality].assign(low=lambda r: r.accuracy - r.se, high=lambda r: r.accuracy + r.se)
        offset = alt.YOffset("contender:N", sort=list(CONTENDERS))
        first = not panels
        y = alt.Y(
            "group:N", sort=groups, title=None, axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=220)
        )
        colour = alt.Color(
            "contender:N", scale=_contenders(sorted(set(rows.contender))), legend=alt.Legend(orient="top", title=None)
        )
        base = alt.Chart(part, width=210, height={"step": 15, "for": "offset"}, title=modality)
        panels.append(
            alt.layer(
                base.mark_rule(strokeWidth=2).encode(y=y, yOffset=offset, color=colour, x=alt.X("low:Q"), x2="high:Q"),
                base.mark_point(filled=True, size=60).encode(
                    y=y,
                    yOffset=offset,
                    color=colour,
                    x=alt.X(
                        "accuracy:Q",
                        scale=alt.Scale(domain=[0, 1]),
                        title="accuracy ± SE",
                        axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
                    ),
                    tooltip=[
                        "contender",
                        "group",
                        alt.Tooltip("accuracy:Q", format=".3f"),
                        alt.Tooltip("se:Q", format=".3f"),
                        "n",
                    ],
                ),
            )
        )
    return alt.hconcat(*panels)


def divergence_groups(rows: pd.DataFrame) -> alt.HConcatChart:
    """Misalignment M and forgetting F by coverage group and contender, with ± one standard error. `rows`: contender, group,
    m, m_se, f, f_se."""
    groups = list(dict.fromkeys(rows.group))
    scale = _contenders(sorted(set(rows.contender[rows.m.notna() | rows.f.notna()])))
    colour = alt.Color("contender:N", scale=scale, legend=alt.Legend(orient="top", title=None))
    offset = alt.YOffset("contender:N", sort=list(CONTENDERS))
    panels = []
    for key, title in (("m", "misalignment M"), ("f", "forgetting F")):
        part = rows[rows[key].notna()]
        part = part.assign(low=part[key] - part[f"{key}_se"], high=part[key] + part[f"{key}_se"])
        axis = alt.Axis(labels=not panels, ticks=False, domain=False, labelLimit=220)
        base = alt.Chart(part, width=310, height={"step": 15, "for": "offset"}).encode(
            y=alt.Y("group:N", sort=groups, title=None, axis=axis), yOffset=offset,
        )  # fmt: skip
        tip = ["contender", "group", alt.Tooltip(f"{key}:Q", format=".4f"), alt.Tooltip(f"{key}_se:Q", format=".4f")]
        x = {"title": f"{title} ± SE (nats per token)", "axis": alt.Axis(tickCount=5)}
        panels.append(alt.layer(
            base.mark_bar(size=11, opacity=0.75).encode(x=alt.X(f"{key}:Q", **x), color=colour, tooltip=tip),
            base.mark_rule(strokeWidth=2, color=GREY).encode(x=alt.X("low:Q", **x), x2="high:Q"),
        ))  # fmt: skip
    return alt.hconcat(*panels)


def misalignment_and_accuracy(rows: pd.DataFrame) -> alt.Chart:
    """Does M tell speech accuracy? A point per domain and contender. `rows`: contender, domain, m, accuracy."""
    return (
        alt.Chart(rows, width=430, height=260)
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X(
                "m:Q",
                scale=alt.Scale(type="symlog", constant=0.01),
                title="misalignment M (nats per token)",
                axis=alt.Axis(values=[0, 0.01, 0.03, 0.1, 0.3, 1, 3], format="~g"),
            ),
            y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), title="speech accuracy", axis=alt.Axis(format="%")),
            color=alt.Color("contender:N", scale=_contenders(sorted(set(rows.contender))), title=None),
            tooltip=["contender", "domain", alt.Tooltip("m:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f")],
        )
    )


def curves(con, name: str = "loss", runs=None) -> alt.LayerChart:
    """A logged value by step, one line per run, at most 400 points a run; on it, where `name` is a divergence, what the
    runs' scored checkpoints have on each corpus (a shape), with the 95 % interval over texts."""
    values = {"runs": list(runs) if runs is not None else None}
    rows = con.execute(
        """
        WITH m AS (SELECT *, ntile(400) OVER (PARTITION BY run_id ORDER BY step) AS part FROM metrics
                   WHERE name = $name AND ($runs IS NULL OR run_id IN (SELECT unnest($runs))))
        SELECT any_value(coalesce(config->>'contender', kind)) || ' ' || run_id AS run,
            max(m.step) AS step, avg(value) AS value
        FROM m JOIN runs USING (run_id) GROUP BY run_id, part ORDER BY run, step""",
        {"name": name, **values},
    ).df()
    points = divergences.of_checkpoints(con, divergences.LOGGED[name], **values) if name in divergences.LOGGED else None
    scored = points is not None and len(points) > 0
    # every run has its place, so that it keeps its colour where another has logged nothing
    named = con.execute(
        """SELECT coalesce(config->>'contender', kind) || ' ' || run_id FROM runs
        WHERE $runs IS NULL OR run_id IN (SELECT unnest($runs)) ORDER BY 1""", values
    ).fetchall()  # fmt: skip
    drawn = {*rows.run, *(points.run if scored else ())}
    shown = [run for (run,) in named if runs is not None or run in drawn]
    colour = alt.Color(
        "run:N",
        scale=alt.Scale(domain=shown, range=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY]),
        legend=alt.Legend(orient="top", title=None, columns=2, labelLimit=260),
    )  # fmt: skip
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(zero=True))
    title = CURVES.get(name, name)
    line = (
        alt.Chart(rows, width=490, height=190)
        .mark_line()
        .encode(x=x, y=alt.Y("value:Q", title=title), color=colour,
                tooltip=["run", "step", alt.Tooltip("value:Q", format=".4f")])
    )  # fmt: skip
    if not scored:
        return alt.layer(line)
    shape = alt.Shape("corpus:N", legend=alt.Legend(orient="top", title="checkpoints, scored on"))
    tip = ["run", "step", "corpus", *(alt.Tooltip(f"{c}:Q", format=".4f") for c in ("value", "low", "high")),
           alt.Tooltip("n_texts:Q", title="texts")]  # fmt: skip
    base = alt.Chart(points, width=490, height=190).encode(x=x, color=colour)
    between = base.mark_line(strokeDash=[4, 3]).encode(y=alt.Y("value:Q", title=title), detail="corpus:N")
    interval = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    point = base.mark_point(filled=True, size=90, opacity=1).encode(y=alt.Y("value:Q", title=title), shape=shape, tooltip=tip)
    return alt.layer(*([line] if len(rows) else []), between, interval, point)


# ------------------------------------------------------------------------------ divergences of checkpoints

TWO = [BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION]
DOMAINS = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#8c6d1f", GREY, "#000000"]


def _labels(rows: pd.DataFrame, legend: bool = True) -> alt.Color:
    """The checkpoints' colour: the first is blue, the second orange."""
    shown = alt.Legend(orient="top", title=None, labelLimit=330, columns=1) if legend else None
    return alt.Color("label:N", sort=None, scale=alt.Scale(range=TWO), legend=shown)


def _named(rows: pd.DataFrame, labels) -> pd.DataFrame:
    """In the order in which the checkpoints were chosen, so that each keeps its colour."""
    return rows.sort_values("label", key=lambda s: s.map({v: i for i, v in enumerate(labels)}), kind="stable")


def _nats(measure: str) -> str:
    return f"{measure.upper()} (nats per token)"


def distribution(con, scored: str, measure: str, labels, corpus: str | None = None) -> alt.LayerChart:
    """How many texts diverge how much, a step line per checkpoint; the rule is the token-weighted mean."""
    rows = _named(divergences.histogram(con, scored, measure, corpus), labels)
    means = _named(divergences.facts(con, scored, measure, corpus), labels)[["label", "mean"]]
    tip = ["label", alt.Tooltip("low:Q", format=".3f", title="from"), alt.Tooltip("high:Q", format=".3f", title="to"),
           alt.Tooltip("n:Q", title="texts"), alt.Tooltip("share:Q", format=".1%")]  # fmt: skip
    bars = (
        alt.Chart(rows, width=430, height=210)
        .mark_bar(opacity=0.55, binSpacing=0)
        .encode(
            x=alt.X("low:Q", title=f"{_nats(measure)}, mean of a text", bin="binned"), x2="high:Q",
            y=alt.Y("share:Q", title="share of texts", axis=alt.Axis(format="%"), stack=None),
            color=_labels(rows), tooltip=tip,
        )
    )  # fmt: skip
    rule = alt.Chart(means).mark_rule(strokeWidth=2, strokeDash=[5, 3])
    return alt.layer(bars, rule.encode(x="mean:Q", color=_labels(rows)))


def _rows_with_intervals(rows: pd.DataFrame, y: str, order, measure: str, tips, width=330) -> alt.LayerChart:
    """A row per group, a point with its 95 % interval per checkpoint."""
    at = alt.Y(f"{y}:N", sort=list(order), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=230))
    offset = alt.YOffset("label:N", sort=list(dict.fromkeys(rows.label)))
    base = alt.Chart(rows, width=width, height={"step": 11, "for": "offset"})
    colour = _labels(rows, legend=False)
    tip = [y, "label", alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f", title="from"),
           alt.Tooltip("high:Q", format=".3f", title="to"), *tips]  # fmt: skip
    axis = {"title": f"{_nats(measure)}, 95 % interval"}
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(y=at, yOffset=offset, x=alt.X("low:Q", **axis), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=at, yOffset=offset, x=alt.X("mean:Q", scale=alt.Scale(zero=True), **axis), color=colour, tooltip=tip
        ),
    )


def divergence_by_group(con, scored: str, measure: str, group: str, labels, corpus=None) -> alt.LayerChart:
    """A measure by domain, corpus or cluster, the first checkpoint's highest group first."""
    rows = _named(divergences.by_group(con, scored, measure, group, corpus), labels)
    rows = rows[["label", "group", "mean", "low", "high", "n_texts", "n_positions"]]
    return _rows_with_intervals(rows, "group", dict.fromkeys(rows.group), measure, ["n_texts", "n_positions"])


def divergence_by_kind(con, scored: str, measure: str, labels, corpus=None) -> alt.LayerChart:
    """A measure by kind of word, with the share of all divergence and the tokens that add most to it on hover."""
    rows = _named(divergences.by_kind(con, scored, measure, corpus), labels)
    tips = [alt.Tooltip("n:Q", title="tokens"), alt.Tooltip("share:Q", format=".0%", title="of all divergence"),
            alt.Tooltip("examples:N", title="most of it from")]  # fmt: skip
    return _rows_with_intervals(rows, "kind", dict.fromkeys(rows.kind), measure, tips)


def divergence_by_position(con, scored: str, measure: str, labels, corpus=None) -> alt.LayerChart:
    """A measure by place in the text, with its 95 % interval as a band."""
    rows = _named(divergences.by_position(con, scored, measure, corpus), labels)
    base = alt.Chart(rows, width=430, height=210).encode(
        x=alt.X("position:Q", title="token's place in the text", scale=alt.Scale(zero=True)),
        color=_labels(rows, legend=False),
    )
    tip = ["label", alt.Tooltip("position:Q", format=".0f"), alt.Tooltip("mean:Q", format=".3f"), "n"]
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=_nats(measure)), y2="high:Q")
    return alt.layer(band, base.mark_line(point=True).encode(y="mean:Q", tooltip=tip))


def compared(con, scored: str, measure: str, a: str, b: str, corpus=None) -> alt.LayerChart:
    """Two checkpoints text by text: below the diagonal B is better. A drag selects texts (parameter `brush`, fields
    a and b); in a large lab a mark stands for the texts of a cell."""
    rows = divergences.compared(con, scored, measure, a, b, corpus)
    top = float(rows[["a", "b"]].max().max()) * 1.02 if len(rows) else 1.0
    scale = alt.Scale(type="sqrt", domain=[0, top], nice=False)
    domains = sorted(con.execute("SELECT DISTINCT coalesce(domain, '–') FROM samples ORDER BY 1").df().iloc[:, 0])
    colour = alt.Scale(domain=domains, range=[DOMAINS[i % len(DOMAINS)] for i in range(len(domains))])
    points = (
        alt.Chart(rows, width=430, height=370)
        .mark_circle(opacity=0.65)
        .encode(
            x=alt.X("a:Q", scale=scale, title=f"A: {a.split(' · ')[0]}, {_nats(measure)}"),
            y=alt.Y("b:Q", scale=scale, title=f"B: {b.split(' · ')[0]}, {_nats(measure)}"),
            size=alt.Size("n:Q", legend=None, scale=alt.Scale(domain=[1, max(10, rows.n.max() if len(rows) else 1)],
                                                              range=[30, 400])),
            color=alt.Color("domain:N", scale=colour, legend=alt.Legend(title=None)),
            tooltip=["domain", alt.Tooltip("a:Q", format=".3f"), alt.Tooltip("b:Q", format=".3f"),
                     alt.Tooltip("n:Q", title="texts")],
        )
        .add_params(alt.selection_interval(name="brush"))
    )  # fmt: skip
    line = alt.Chart(pd.DataFrame({"x": [0, top], "y": [0, top]})).mark_line(color=GREY, strokeDash=[4, 3])
    return alt.layer(points, line.encode(x="x:Q", y="y:Q"))


def tokens(cards: dict, measure: str) -> alt.Chart:
    """A text token by token under each checkpoint (divergences.tokens), with both models' likeliest tokens on hover."""
    rows = divergences.tokens(cards)
    names = "['" + "','".join(t.strip().replace("\\", "").replace("'", "’") for t in _token_names(rows)) + "']"
    return (
        alt.Chart(rows, width={"step": 22}, height=130)
        .mark_bar()
        .encode(
            x=alt.X("place:O", title=None, axis=alt.Axis(labelExpr=f"{names}[datum.value]", labelAngle=-50)),
            xOffset=alt.XOffset("label:N", sort=list(cards)),
            y=alt.Y(f"{measure}:Q", title=_nats(measure)),
            color=_labels(rows, legend=False),
            tooltip=["label", "token", *(alt.Tooltip(f"{k}:Q", format=".3f", title=k.upper()) for k in "mdf"),
                     "teacher", "student"],
        )
    )  # fmt: skip


def _token_names(rows: pd.DataFrame) -> list[str]:
    return rows.drop_duplicates("place").sort_values("place").token.tolist()


# ------------------------------------------------------------------------------------------------ results


def forgetting_and_accuracy(rows: pd.DataFrame) -> alt.Chart:
    """Does F tell text accuracy? A point per domain and contender. `rows`: contender, domain, f, accuracy."""
    return (
        alt.Chart(rows, width=430, height=260)
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("f:Q", title="forgetting F (nats per token)", axis=alt.Axis(tickCount=5)),
            y=alt.Y("accuracy:Q", scale=alt.Scale(zero=False), title="text accuracy", axis=alt.Axis(format="%")),
            color=alt.Color("contender:N", scale=_contenders(sorted(set(rows.contender))), title=None),
            tooltip=["contender", "domain", alt.Tooltip("f:Q", format=".4f"), alt.Tooltip("accuracy:Q", format=".3f")],
        )
    )


def beside_published(rows: pd.DataFrame) -> alt.LayerChart:
    """Speech accuracy and gap of the lab's contenders beside published systems, which were measured on other tasks
    with other models. `rows`: system, accuracy, gap (per cent, points), whose (this lab, published)."""
    low, high = min(0.0, rows.gap.min()) - 3, max(20.0, rows.gap.max()) + 3
    shown = rows.assign(label=_apart(rows.accuracy.to_numpy(float), 0.045 * max(20.0, np.ptp(rows.accuracy))))
    shown["side"] = np.where(shown.gap > low + 0.7 * (high - low), "left", "right")
    base = alt.Chart(shown, width=430, height=300).encode(
        x=alt.X("gap:Q", title="text–speech gap (points)", scale=alt.Scale(domain=[low, high], nice=False))
    )
    scale = alt.Scale(zero=False, padding=20)
    colour = alt.Color(
        "whose:N",
        scale=alt.Scale(domain=["this lab", "published"], range=[VERMILION, GREY]),
        legend=alt.Legend(orient="top", title=None),
    )
    tip = ["system", "whose", alt.Tooltip("accuracy:Q", format=".1f"), alt.Tooltip("gap:Q", format=".1f")]
    y = alt.Y("accuracy:Q", title="speech accuracy (%)", scale=scale)
    words = [
        base.transform_filter(alt.datum.side == side).mark_text(align=align, dx=dx, fontSize=11).encode(
            text="system:N", color=colour, y=alt.Y("label:Q", scale=scale, title="speech accuracy (%)"))
        for side, align, dx in (("right", "left", 8), ("left", "right", -8))
    ]  # fmt: skip
    return alt.layer(base.mark_point(filled=True, size=90, opacity=1).encode(y=y, color=colour, tooltip=tip), *words)


def _apart(values: np.ndarray, least: float) -> np.ndarray:
    """Places for labels at `values`, moved as little as keeps neighbours `least` apart."""
    order = np.argsort(values, kind="stable")
    placed = values[order].astype(float)
    for _ in range(200):
        near = least - np.diff(placed)
        if (near <= 1e-9).all():
            break
        for i in np.flatnonzero(near > 0):
            middle = (placed[i] + placed[i + 1]) / 2
            placed[i], placed[i + 1] = middle - least / 2, middle + least / 2
    out = np.empty_like(placed)
    out[order] = placed
    return out


def scaling(points: pd.DataFrame, curves: pd.DataFrame) -> alt.LayerChart:
    """M of each run's checkpoints by the tokens that it had fed, with the fitted power law and its 95 % band.

    `points`: run_id, contender, tokens, m; `curves`: the same with low and high, empty where nothing was fitted."""
    x = alt.X("tokens:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="tokens fed (log scale)",
              axis=alt.Axis(format="~s", tickCount=6))  # fmt: skip
    y = alt.Y("m:Q", scale=alt.Scale(type="log", padding=12), title="misalignment M (nats per token, log scale)")
    colour = alt.Color("contender:N", scale=_contenders(sorted(set(points.contender))), title=None)
    tip = ["contender", "run_id", alt.Tooltip("tokens:Q", format=",.0f"), alt.Tooltip("m:Q", format=".4f")]
    layers = [alt.Chart(points, width=430, height=260).mark_point(filled=True, size=60, opacity=0.9).encode(
        x=x, y=y, color=colour, tooltip=tip)]  # fmt: skip
    if len(curves):
        fitted = alt.Chart(curves).encode(x=x, color=colour, detail="run_id:N")
        layers = [fitted.mark_area(opacity=0.2).encode(y=alt.Y("low:Q"), y2="high:Q"), fitted.mark_line().encode(y=y), *layers]
    return alt.layer(*layers)


def strategies(rows: pd.DataFrame) -> alt.LayerChart:
    """How much more one arm answers right than the other, paired by item, in points with a 95 % interval; one row per
    domain and group. `rows`: pair, group, difference, low, high (0 to 1), n."""
    shown = rows.assign(**{c: 100 * rows[c] for c in ("difference", "low", "high")})
    y = alt.Y("group:N", sort=list(dict.fromkeys(rows.group)), title=None,
              axis=alt.Axis(ticks=False, domain=False, labelLimit=220))  # fmt: skip
    base = alt.Chart(shown, width=390, height={"step": 22})
    names = [part.split(" (")[0] for part in rows.pair.iloc[0].split(" minus ")] if len(rows) else ["the first", "the second"]
    shown["tells"] = "neither"
    shown.loc[rows.low > 0, "tells"], shown.loc[rows.high < 0, "tells"] = names
    scale = alt.Scale(domain=[*names, "neither"], range=[VERMILION, BLUE, GREY])
    colour = alt.Color("tells:N", scale=scale, legend=alt.Legend(orient="bottom", title="better"))
    tip = ["pair", "group", *(alt.Tooltip(f"{c}:Q", format="+.1f") for c in ("difference", "low", "high")), "n"]
    x = {"title": "difference in speech accuracy (points), 95 % interval"}
    return alt.layer(
        alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="x:Q"),
        base.mark_rule(strokeWidth=2.5).encode(y=y, x=alt.X("low:Q", **x), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            y=y, x=alt.X("difference:Q", **x), color=colour, tooltip=tip
        ),
    )


def votes(rows: pd.DataFrame) -> alt.LayerChart:
    """How often one answer is preferred to another, with a 95 % interval. `rows`: pair, mean, low, high, n."""
    y = alt.Y("pair:N", sort=list(rows.pair), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=330))
    base = alt.Chart(rows, width=330, height={"step": 24})
    tip = ["pair", *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("mean", "low", "high")), "n"]
    x = {"scale": alt.Scale(domain=[0, 1]), "title": "share of points for the first, 95 % interval"}
    return alt.layer(
        alt.Chart(pd.DataFrame({"x": [0.5]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="x:Q"),
        base.mark_rule(strokeWidth=2.5, color=BLUE).encode(y=y, x=alt.X("low:Q", **x), x2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1, color=BLUE).encode(y=y, x=alt.X("mean:Q", **x), tooltip=tip),
    )
