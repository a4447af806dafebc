"""What came out, as figures that save as SVG, PNG and data, and the rows that they are drawn from."""

from pathlib import Path
from typing import NamedTuple

import altair as alt
import duckdb
import numpy as np
import pandas as pd
from scipy import stats

from salad import analysis
from salad.analysis import ALL
from salad.errors import SaladError
from workbench import charts
from workbench.arena import preferences
from workbench.reports.measures import accuracies, published_means
from workbench.reports.tables import cells_of, heads_of


class Figure(NamedTuple):
    """A figure with the rows that it is drawn from."""

    name: str
    caption: str
    chart: alt.TopLevelMixin
    rows: pd.DataFrame

    def svg(self) -> bytes:
        """On no ground of its own."""
        import vl_convert

        return vl_convert.vegalite_to_svg(self.chart.to_dict()).encode()

    def png(self) -> bytes:
        """On white, twice as fine as the screen."""
        import vl_convert

        return vl_convert.vegalite_to_png({**self.chart.to_dict(), "background": "white"}, scale=2)

    def csv(self) -> bytes:
        """The figure's rows as CSV."""
        return self.rows.to_csv(index=False).encode()


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Report.rows as a person reads them: value ± standard error."""
    cells = [[row["group"], row["contender"], *cells_of(row, rows), row["n_items"]] for row in rows.to_dict("records")]
    return pd.DataFrame(cells, columns=["group", "contender", *heads_of(rows), "items"])


def by_domain(con: duckdb.DuckDBPyConnection, study: dict) -> pd.DataFrame:
    """contender, domain and, where measured, m, f, text, speech, gap: one row per contender and domain."""
    cells = analysis.by_domain(con, study.get("heldout", "heldout"))
    return cells.pivot_table("value", ["contender", "domain"], "measure").reset_index()


def paired(con: duckdb.DuckDBPyConnection, study: dict) -> pd.DataFrame:
    """Every two arms of Stage II at equal hours (within 2 %), item by item: pair, group (the report's, then domains),
    difference in speech accuracy (first minus second, 0 to 1) with its 95 % interval, n, hours of both.

    A domain's interval is Student's t over its items; a group's weighs domains as the report does."""
    arms = con.execute("""
        SELECT contender, sum(seconds) / 3600 AS hours
        FROM contenders JOIN runs USING (run_id) LEFT JOIN selected_speech USING (selection_id)
        WHERE kind = 'stage2' GROUP BY contender, place ORDER BY place, contender""").df()
    out = []
    for i, arm in enumerate(arms.itertuples()):
        for other in list(arms.itertuples())[i + 1 :]:
            if abs(arm.hours - other.hours) > 0.02 * arm.hours:
                continue
            cells = con.execute(
                """SELECT domain, avg(x.correct - y.correct) AS difference, count(*) AS n,
                    stddev_samp(x.correct - y.correct) / sqrt(count(*)) AS se
                FROM answers AS x JOIN answers AS y USING (task, item_id, domain)
                WHERE x.modality = 'speech' AND y.modality = 'speech' AND x.contender = ? AND y.contender = ?
                GROUP BY domain ORDER BY difference DESC""",
                [arm.contender, other.contender],
            ).df()
            hours = [f"{a.contender} ({a.hours:.2f} h)" if a.hours == a.hours else a.contender for a in (arm, other)]
            rows = _with_groups(cells, study)
            out.append(rows.assign(pair=" minus ".join(hours), hours=arm.hours, hours_other=other.hours))
    columns = ["pair", "group", "difference", "low", "high", "n", "hours", "hours_other"]
    return pd.concat(out)[columns] if out else pd.DataFrame(columns=columns)


def _with_groups(cells: pd.DataFrame, study: dict) -> pd.DataFrame:
    half = stats.t.ppf(0.975, np.maximum(cells.n - 1, 1)) * cells.se.fillna(0)
    domains = cells.assign(group=cells.domain, low=cells.difference - half, high=cells.difference + half)
    rows = []
    for name, weights in analysis.groups(study, cells.domain).items():
        part = cells[cells.domain.isin(weights)]
        w = np.array([weights[d] for d in part.domain])
        if not len(part) or not w.sum():
            continue
        mean = float((w * part.difference).sum() / w.sum())
        error = 1.96 * float(np.sqrt((w**2 * part.se.fillna(0) ** 2).sum()) / w.sum())
        rows.append({"group": name, "difference": mean, "low": mean - error, "high": mean + error, "n": part.n.sum()})
    return pd.concat([pd.DataFrame(rows), domains], ignore_index=True)


def published_gaps(con: duckdb.DuckDBPyConnection, rows: pd.DataFrame) -> pd.DataFrame:
    """system, accuracy (%), gap (points), whose: the contenders over all domains, and published means on speech."""
    own = rows[(rows.group == ALL) & rows.speech.notna()]
    own_rows = pd.DataFrame({"system": own.contender, "accuracy": 100 * own.speech, "gap": 100 * own.gap}).assign(
        whose="this lab"
    )
    means = published_means(con).query("modality in ('speech', 'cascade')").dropna(subset=["accuracy", "gap"])
    published = means.assign(system=means.system.where(means.modality == "cascade", means.model), whose="published")
    return pd.concat([own_rows, published[["system", "accuracy", "gap", "whose"]]], ignore_index=True)


def scaling(con: duckdb.DuckDBPyConnection, lab: Path | str, study: dict) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """How M falls with tokens, over all domains by P_web: (points: run, contender, tokens, m; curves: run, contender, tokens,
    m, low, high within what was measured; laws: run, contender, n, e, b, beta and their 95 % intervals in words).

    A run has a law from four scored checkpoints before its decay on (salad.analysis.power_law)."""
    rows = analysis.collect({"here": lab})
    columns = ["run_id", "contender", "tokens", "m"]
    if rows.empty:
        return pd.DataFrame(columns=columns), pd.DataFrame(), pd.DataFrame()
    points = rows[(rows.group == analysis.ALL) & rows.m.notna() & (rows.tokens > 0)]
    curves, laws = [], []
    for (run_id, contender), part in points.groupby(["run_id", "contender"], sort=False):
        part = analysis.before_decay(part)
        try:
            law = analysis.power_law(con, run_id, study["p_web"], part.step, corpus=study.get("heldout", "heldout"))
        except SaladError:  # too few checkpoints, which a caption tells
            continue
        for n in np.geomspace(law.n_min, law.n_max, 30):
            curves.append((run_id, contender, n, *law.at(n)))
        parameters = {
            name: f"{getattr(law, name):.3g} [{law.low[name]:.3g}, {law.high[name]:.3g}]" for name in ("e", "b", "beta")
        }
        laws.append({"run": run_id, "contender": contender, "checkpoints": len(part), **parameters})
    return points[columns], pd.DataFrame(curves, columns=[*columns, "low", "high"]), pd.DataFrame(laws)


def votes(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The A/B app's blind votes: pair, mean, low, high, n, verdict; speech against text first. No row without votes."""
    games = preferences.games(preferences.votes(con))
    estimates = [preferences.speech_against_text(games), *preferences.pairs(games)] if len(games) else []
    rows = [
        {"pair": f"{p.a} against {p.b}", "mean": p.mean, "low": p.low, "high": p.high, "n": p.n, "verdict": p.verdict}
        for p in estimates
        if p.n
    ]
    return pd.DataFrame(rows, columns=["pair", "mean", "low", "high", "n", "verdict"])


def figures(con: duckdb.DuckDBPyConnection, lab: Path | str, study: dict, rows: pd.DataFrame) -> list[Figure]:
    """Every figure that the lab has the data for. Needs the view `contenders` (measures.measured makes it)."""
    long = accuracies(rows)
    out = [Figure("accuracy", "Accuracy by coverage group", charts.accuracy(long), long)] if len(long) else []
    cells = by_domain(con, study)
    if rows.m.notna().any():
        both = rows[["contender", "group", "m", "m_se", "f", "f_se"]]
        out.append(Figure("divergences", "Misalignment and forgetting", charts.divergence_groups(rows), both))
    for name, x, y, figure in (
        ("misalignment-and-speech", "m", "speech", charts.misalignment_and_accuracy),
        ("forgetting-and-text", "f", "text", charts.forgetting_and_accuracy),
    ):
        if {x, y} <= set(cells.columns):
            part = cells[["contender", "domain", x, y]].dropna().rename(columns={y: "accuracy"})
            if part.empty:  # texts of other domains than the tasks
                continue
            words = {"m": "Misalignment M", "f": "Forgetting F"}[x]
            note = stats.spearmanr(part[x], part.accuracy).statistic if len(part) > 2 else np.nan
            caption = f"{words} against {y} accuracy, by domain" + (f" (Spearman {note:.2f})" if note == note else "")
            out.append(Figure(name, caption, figure(part), part))
    points, curves, laws = scaling(con, lab, study)
    if points.run_id.value_counts().gt(1).any():
        note = "; ".join(f"{law.contender} E {law.e}, β {law.beta}" for law in laws.itertuples())
        none = "; a law is fitted from four checkpoints before the decay on"
        caption = "M by tokens" + (f", M = E + B · N^(−β): {note}" if note else none)
        out.append(Figure("scaling", caption, charts.scaling(points, curves), points))
    arms = paired(con, study)
    for i, (pair, part) in enumerate(arms.groupby("pair", sort=False)):
        name = "strategies" if i == 0 else f"strategies-{i + 1}"
        out.append(Figure(name, f"Strategies: {pair}", charts.strategies(part), part))
    near = published_gaps(con, rows)
    out.append(
        Figure("published", "Beside published systems (other models, data and tasks)", charts.beside_published(near), near)
    )
    votes_figures = votes(con)
    if len(votes_figures):
        out.append(Figure("votes", "What people preferred", charts.votes(votes_figures), votes_figures))
    return out
