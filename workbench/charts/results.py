"""The figures of results: accuracy, gap, scaling, strategies, votes."""

import altair as alt
import numpy as np
import pandas as pd

from workbench.charts.theme import BLUE, CONTENDERS, GREY, VERMILION, contenders_scale


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
        y = alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=220))
        colour = alt.Color(
            "contender:N", scale=contenders_scale(sorted(set(rows.contender))), legend=alt.Legend(orient="top", title=None)
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
    scale = contenders_scale(sorted(set(rows.contender[rows.m.notna() | rows.f.notna()])))
    colour = alt.Color("contender:N", scale=scale, legend=alt.Legend(orient="top", title=None))
    offset = alt.YOffset("contender:N", sort=list(CONTENDERS))
    panels = []
    for key, title in (("m", "misalignment M"), ("f", "forgetting F")):
        part = rows[rows[key].notna()]
        part = part.assign(low=part[key] - part[f"{key}_se"], high=part[key] + part[f"{key}_se"])
        axis = alt.Axis(labels=not panels, ticks=False, domain=False, labelLimit=220)
        base = alt.Chart(part, width=310, height={"step": 15, "for": "offset"}).encode(
            y=alt.Y("group:N", sort=groups, title=None, axis=axis),
            yOffset=offset,
        )
        tip = ["contender", "group", alt.Tooltip(f"{key}:Q", format=".4f"), alt.Tooltip(f"{key}_se:Q", format=".4f")]
        x = {"title": f"{title} ± SE (nats per token)", "axis": alt.Axis(tickCount=5)}
        panels.append(
            alt.layer(
                base.mark_bar(size=11, opacity=0.75).encode(x=alt.X(f"{key}:Q", **x), color=colour, tooltip=tip),
                base.mark_rule(strokeWidth=2, color=GREY).encode(x=alt.X("low:Q", **x), x2="high:Q"),
            )
        )
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
            color=alt.Color("contender:N", scale=contenders_scale(sorted(set(rows.contender))), title=None),
            tooltip=["contender", "domain", alt.Tooltip("m:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f")],
        )
    )


def forgetting_and_accuracy(rows: pd.DataFrame) -> alt.Chart:
    """Does F tell text accuracy? A point per domain and contender. `rows`: contender, domain, f, accuracy."""
    return (
        alt.Chart(rows, width=430, height=260)
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("f:Q", title="forgetting F (nats per token)", axis=alt.Axis(tickCount=5)),
            y=alt.Y("accuracy:Q", scale=alt.Scale(zero=False), title="text accuracy", axis=alt.Axis(format="%")),
            color=alt.Color("contender:N", scale=contenders_scale(sorted(set(rows.contender))), title=None),
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
        base.transform_filter(alt.datum.side == side)
        .mark_text(align=align, dx=dx, fontSize=11)
        .encode(text="system:N", color=colour, y=alt.Y("label:Q", scale=scale, title="speech accuracy (%)"))
        for side, align, dx in (("right", "left", 8), ("left", "right", -8))
    ]
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
    colour = alt.Color("contender:N", scale=contenders_scale(sorted(set(points.contender))), title=None)
    tip = ["contender", "run_id", alt.Tooltip("tokens:Q", format=",.0f"), alt.Tooltip("m:Q", format=".4f")]
    layers = [
        alt.Chart(points, width=430, height=260)
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(x=x, y=y, color=colour, tooltip=tip)
    ]
    if len(curves):
        fitted = alt.Chart(curves).encode(x=x, color=colour, detail="run_id:N")
        layers = [fitted.mark_area(opacity=0.2).encode(y=alt.Y("low:Q"), y2="high:Q"), fitted.mark_line().encode(y=y), *layers]
    return alt.layer(*layers)


def strategies(rows: pd.DataFrame) -> alt.LayerChart:
    """How much more one arm answers right than the other, paired by item, in points with a 95 % interval; one row per
    domain and group. `rows`: pair, group, difference, low, high (0 to 1), n."""
    shown = rows.assign(**{c: 100 * rows[c] for c in ("difference", "low", "high")})
    y = alt.Y(
        "group:N", sort=list(dict.fromkeys(rows.group)), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=220)
    )
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
        base.mark_point(filled=True, size=80, opacity=1).encode(y=y, x=alt.X("difference:Q", **x), color=colour, tooltip=tip),
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
