"""The figures of training: what was logged, and what scored checkpoints have."""

import altair as alt
import duckdb

from workbench import divergences
from workbench.charts.theme import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

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


def curves(con: duckdb.DuckDBPyConnection, name: str = "loss", runs: list[str] = None) -> alt.LayerChart:
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
        WHERE $runs IS NULL OR run_id IN (SELECT unnest($runs)) ORDER BY 1""",
        values,
    ).fetchall()
    drawn = {*rows.run, *(points.run if scored else ())}
    shown = [run for (run,) in named if runs is not None or run in drawn]
    colour = alt.Color(
        "run:N",
        scale=alt.Scale(domain=shown, range=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY]),
        legend=alt.Legend(orient="top", title=None, columns=2, labelLimit=260),
    )
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(zero=True))
    title = CURVES.get(name, name)
    line = (
        alt.Chart(rows, width=490, height=190)
        .mark_line()
        .encode(x=x, y=alt.Y("value:Q", title=title), color=colour, tooltip=["run", "step", alt.Tooltip("value:Q", format=".4f")])
    )
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
