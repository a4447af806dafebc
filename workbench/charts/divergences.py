"""The figures of divergences: checkpoints by text, group, place and word."""

import altair as alt
import duckdb
import pandas as pd

from workbench import divergences
from workbench.charts.theme import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

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


def distribution(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, labels: list[str], corpus: str | None = None
) -> alt.LayerChart:
    """How many texts diverge how much, a step line per checkpoint; the rule is the token-weighted mean."""
    rows = _named(divergences.histogram(con, scored, measure, corpus), labels)
    means = _named(divergences.facts(con, scored, measure, corpus), labels)[["label", "mean"]]
    tip = ["label", alt.Tooltip("low:Q", format=".3f", title="from"), alt.Tooltip("high:Q", format=".3f", title="to"),
           alt.Tooltip("n:Q", title="texts"), alt.Tooltip("share:Q", format=".1%")]  # fmt: skip
    bars = (
        alt.Chart(rows, width=430, height=210)
        .mark_bar(opacity=0.55, binSpacing=0)
        .encode(
            x=alt.X("low:Q", title=f"{_nats(measure)}, mean of a text", bin="binned"),
            x2="high:Q",
            y=alt.Y("share:Q", title="share of texts", axis=alt.Axis(format="%"), stack=None),
            color=_labels(rows),
            tooltip=tip,
        )
    )
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


def divergence_by_group(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, group: str, labels: list[str], corpus: str | None = None
) -> alt.LayerChart:
    """A measure by domain, corpus or cluster, the first checkpoint's highest group first."""
    rows = _named(divergences.by_group(con, scored, measure, group, corpus), labels)
    rows = rows[["label", "group", "mean", "low", "high", "n_texts", "n_positions"]]
    return _rows_with_intervals(rows, "group", dict.fromkeys(rows.group), measure, ["n_texts", "n_positions"])


def divergence_by_kind(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, labels: list[str], corpus: str | None = None
) -> alt.LayerChart:
    """A measure by kind of word, with the share of all divergence and the tokens that add most to it on hover."""
    rows = _named(divergences.by_kind(con, scored, measure, corpus), labels)
    tips = [
        alt.Tooltip("n:Q", title="tokens"),
        alt.Tooltip("share:Q", format=".0%", title="of all divergence"),
        alt.Tooltip("examples:N", title="most of it from"),
    ]
    return _rows_with_intervals(rows, "kind", dict.fromkeys(rows.kind), measure, tips)


def divergence_by_position(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, labels: list[str], corpus: str | None = None
) -> alt.LayerChart:
    """A measure by place in the text, with its 95 % interval as a band."""
    rows = _named(divergences.by_position(con, scored, measure, corpus), labels)
    base = alt.Chart(rows, width=430, height=210).encode(
        x=alt.X("position:Q", title="token's place in the text", scale=alt.Scale(zero=True)),
        color=_labels(rows, legend=False),
    )
    tip = ["label", alt.Tooltip("position:Q", format=".0f"), alt.Tooltip("mean:Q", format=".3f"), "n"]
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=_nats(measure)), y2="high:Q")
    return alt.layer(band, base.mark_line(point=True).encode(y="mean:Q", tooltip=tip))


def compared(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, a: str, b: str, corpus: str | None = None
) -> alt.LayerChart:
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
