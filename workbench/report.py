"""What came out: contenders by coverage group, with standard errors and the published figures beside them, as a
table in the terminal, as Markdown and as HTML with the figures. `salad report`."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import store
from salad.analysis import ALL, MEASURES, by_domain, by_group, groups, read_study  # noqa: F401 (read here by others)

ORDER = ("teacher", "stage1", "stage2_active", "stage2_uniform")
HEADS = {"m": "M (nats)", "f": "F (nats)", "text": "text", "speech": "speech", "cascade": "cascade", "gap": "gap"}
EXPLAIN = (
    "Accuracies (length-normalised) and the gap are in per cent, ± one standard error over items; M and F are nats per "
    "text position on held-out text, token-weighted within a domain, ± one standard error over texts. The gap is the "
    "teacher's accuracy on text minus the contender's on speech, paired by item. “All domains” weights each domain by "
    "its mass under P_web; in the other rows a group's domains weigh the same. “Broad” is what natural speech does not "
    "cover at all."
)


@dataclass
class Report:
    """`rows`: contender, group, n_items and, for each of MEASURES, its value and `<measure>_se` (accuracies 0 to 1)."""

    lab: Path
    rows: pd.DataFrame
    arms: pd.DataFrame
    published: pd.DataFrame
    markdown: str
    markdown_path: Path
    html_path: Path

    def print(self) -> None:
        """The table, in the terminal."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, head in enumerate(("group", "contender", *HEADS.values())):
            table.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
        last = None
        for row in self.rows.to_dict("records"):
            if last not in (None, row["group"]):
                table.add_section()
            table.add_row(row["group"] if row["group"] != last else "", row["contender"], *_cells(row))
            last = row["group"]
        console = Console(markup=False, highlight=False)
        console = console if console.is_terminal else Console(markup=False, highlight=False, width=150)
        console.print(table)


def report(lab, runs: list[str] | None = None) -> Report:
    """Read a lab's evaluations and divergences and write report.md and report.html into it.

    `runs` names run ids to show; without it each contender stands for its newest evaluated checkpoint. Raises
    StoreError where nothing has been evaluated.
    """
    lab = store.lab_path(lab)
    con = store.connect(lab)
    chosen = checkpoints(con, runs)
    if chosen.empty:
        raise store.StoreError(
            f"{lab}: nothing is evaluated yet; `salad demo` or `salad evaluate` does that"
            + (f" (asked for {', '.join(runs)})" if runs else "")
        )
    study, rows = measured(lab, con, chosen)
    arms, published = _arms(con), published_means(con)
    figures = _figures(con, study, rows)
    markdown = _markdown(rows, arms, published)
    made = Report(lab, rows, arms, published, markdown, lab / "report.md", lab / "report.html")
    store.atomic.write_bytes(made.markdown_path, markdown.encode())
    store.atomic.write_bytes(made.html_path, _html(rows, arms, published, figures).encode())
    return made


def measured(lab: Path, con, chosen: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """The study, and Report.rows of the chosen checkpoints, which stand in the view `contenders` afterwards."""
    con.register("contenders", chosen)
    study = read_study(lab, con)
    return study, by_group(con, study)


def published_means(con) -> pd.DataFrame:
    """The published means over six benchmarks: system, model, modality, accuracy (%), gap (points), source."""
    return con.execute("""SELECT system, model, modality, accuracy, gap, source FROM published
        WHERE task = 'mean' ORDER BY modality DESC, accuracy DESC""").df()


def checkpoints(con, runs: list[str] | None = None) -> pd.DataFrame:
    """contender, run_id, step: the newest evaluated checkpoint of each contender (by the run's end, then its step)."""
    rows = con.execute(
        """
        SELECT e.contender, e.run_id, e.step FROM
            (SELECT DISTINCT contender, run_id, step FROM evaluations) AS e LEFT JOIN runs AS r USING (run_id)
        WHERE $1 IS NULL OR e.run_id IN (SELECT unnest($1)) OR e.contender = 'teacher'
        QUALIFY row_number() OVER (PARTITION BY e.contender
            ORDER BY r.ended_at DESC NULLS LAST, e.step DESC, e.run_id) = 1
        """,
        [runs],
    ).df()
    rows["place"] = [ORDER.index(c) if c in ORDER else len(ORDER) for c in rows.contender]
    return rows.sort_values(["place", "contender"]).reset_index(drop=True)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Report.rows, one row per modality: contender, group, modality, accuracy, se, n."""
    return pd.concat(
        [
            rows[["contender", "group"]].assign(modality=m, accuracy=rows[m], se=rows[f"{m}_se"], n=rows.n_items)
            for m in ("text", "speech", "cascade")
        ]
    ).dropna(subset=["accuracy"])


def _arms(con) -> pd.DataFrame:
    """The runs behind the table: what each trained on, for how long."""
    return con.execute("""
        SELECT c.contender, c.run_id, r.kind, l.strategy, l.gamma, r.step AS steps, r.tokens,
            round(sum(coalesce(y.duration_s, t.estimated_s)) / 3600, 3) AS selected_h, count(t.sample_id) AS texts,
            round(date_diff('second', any_value(r.started_at), any_value(r.ended_at)), 0) AS seconds
        FROM contenders AS c LEFT JOIN runs AS r USING (run_id) LEFT JOIN selections AS l USING (selection_id)
        LEFT JOIN selected AS t USING (selection_id)
        LEFT JOIN (SELECT sample_id, arg_min(duration_s, synthesis_id) AS duration_s FROM syntheses GROUP BY 1) AS y
            USING (sample_id)
        WHERE c.run_id IS NOT NULL GROUP BY ALL ORDER BY any_value(c.place)""").df()


def _figures(con, study: dict, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(caption, SVG) of each figure that the lab has the data for."""
    import vl_convert

    from workbench import charts, review

    figures = [("Accuracy by coverage group", charts.accuracy(accuracies(rows)))]
    if rows.m.notna().any():
        figures.append(("Misalignment and forgetting", charts.divergence_groups(rows)))
        cells = by_domain(con, study.get("heldout", "heldout")).pivot_table("value", ["contender", "domain"], "measure")
        if {"m", "speech"} <= set(cells.columns):
            both = cells.dropna(subset=["m", "speech"]).rename(columns={"speech": "accuracy"}).reset_index()
            figures.append(("Misalignment and speech accuracy, by domain", charts.misalignment_and_accuracy(both)))
    listed = review.selections(con)
    if len(listed):
        chosen = listed[listed.parent_selection_id.isna()].selection_id.iloc[0]
        figures.append(
            ("Where the text and speech models disagree, and what was drawn and kept", charts.clusters(con, chosen))
        )
    return [(caption, vl_convert.vegalite_to_svg(chart.to_dict())) for caption, chart in figures]


def _cells(row: dict) -> list[str]:
    out = []
    for measure in MEASURES:
        value, se = row[measure], row[f"{measure}_se"]
        if not np.isfinite(value):
            out.append("–")
        elif measure in ("m", "f"):
            out.append(f"{_steady(value):.3f} ± {_steady(se):.3f}")
        else:
            out.append(f"{_steady(100 * value):.1f} ± {_steady(100 * se):.1f}")
    return out


def _steady(value: float) -> float:
    """Without the last digits, which depend on the order of summation and may turn a 5 up or down."""
    return round(value, 8) + 1e-9


def _grids(rows, arms, published) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, cells) of each table, for Markdown and HTML alike."""
    main = [[row["group"], row["contender"], *_cells(row), str(row["n_items"])] for row in rows.to_dict("records")]
    out = [("Results", ["group", "contender", *HEADS.values(), "items"], main)]
    if len(arms):
        heads = ["contender", "run", "selection", "γ", "hours selected", "texts", "steps", "seconds"]
        out.append(
            (
                "Runs",
                heads,
                [
                    [
                        _text(x)
                        for x in (
                            a.contender,
                            a.run_id,
                            a.strategy,
                            a.gamma,
                            a.selected_h,
                            a.texts or None,
                            a.steps,
                            a.seconds,
                        )
                    ]
                    for a in arms.itertuples()
                ],
            )
        )
    if len(published):
        out.append(
            (
                "Published, mean over six benchmarks (another scale of model, data and task)",
                ["system", "model", "modality", "accuracy (%)", "gap (points)", "source"],
                [
                    [_text(x) for x in (p.system, p.model, p.modality, p.accuracy, p.gap, p.source)]
                    for p in published.itertuples()
                ],
            )
        )
    return out


def _text(value) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NaT or value is pd.NA:
        return "–"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _markdown(rows, arms, published) -> str:
    parts = ["# What came out\n", EXPLAIN + "\n"]
    for title, heads, cells in _grids(rows, arms, published):
        parts.append(f"## {title}\n")
        parts.append("| " + " | ".join(heads) + " |")
        parts.append("|" + "---|" * len(heads))
        parts += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
        parts.append("")
    return "\n".join(parts)


_STYLE = """:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
margin: 2rem auto; padding: 0 1rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
font-size: 14px; } th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; } th:nth-child(-n+2),
td:nth-child(-n+2) { text-align: left; } thead th { border-bottom: 1px solid #8888; } tr.first td { border-top: 1px
solid #8884; } figure { margin: 1.5rem 0; padding: 12px; background: #fff; color: #111; border-radius: 8px; overflow-x:
auto; } figcaption { font-weight: 600; margin-bottom: 6px; } .wide { overflow-x: auto; } p { max-width: 46rem; }"""


def _html(rows, arms, published, figures) -> str:
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>What came out</title><style>{_STYLE}</style>",
        f"<h1>What came out</h1><p>{html.escape(EXPLAIN)}</p>",
    ]
    for i, (title, heads, cells) in enumerate(_grids(rows, arms, published)):
        head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
        parts.append(f"<h2>{html.escape(title)}</h2><div class='wide'><table><thead><tr>{head}</tr></thead><tbody>")
        last = None
        for row in cells:
            shown = ["" if i == 0 and row[0] == last else row[0], *row[1:]]
            first = " class='first'" if i == 0 and row[0] != last else ""
            last = row[0]
            parts.append(f"<tr{first}>" + "".join(f"<td>{html.escape(c)}</td>" for c in shown) + "</tr>")
        parts.append("</tbody></table></div>")
        if i == 0:
            parts += [f"<figure><figcaption>{html.escape(c)}</figcaption>{svg}</figure>" for c, svg in figures]
    return "\n".join([*parts, "</html>"])
