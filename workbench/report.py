"""What came out: contenders by coverage group, with standard errors and the published figures beside them, as a
table in the terminal, as Markdown and as HTML with the figures. `salad report`."""

import html
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import store

ORDER = ("teacher", "stage1", "stage2_active", "stage2_uniform")
ALL, GROUPS = "all domains, by P_web", {
    "covered": "covered", "partly covered": "partly covered", "uncovered": "broad", "user": "your texts",
}  # fmt: skip
MEASURES = ("m", "f", "text", "speech", "cascade", "gap")
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
    return study, _table(con, study)


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


def read_study(lab: Path, con) -> dict:
    """lab/study.json: P_web's mass and the coverage of each domain. Without it every domain weighs the same."""
    try:
        study = json.loads((lab / "study.json").read_text())
    except FileNotFoundError:
        study = {}
    except ValueError as error:
        raise store.StoreError(f"{lab / 'study.json'} is not JSON ({error}); the demo writes it anew") from None
    domains = [
        d for (d,) in con.execute("SELECT DISTINCT coalesce(domain, task) FROM evaluations ORDER BY 1").fetchall()
    ]
    study.setdefault("p_web", {d: 1 / len(domains) for d in domains})
    study.setdefault("coverage", {})
    return {**study, "domains": domains}


def by_domain(con, heldout: str = "heldout") -> pd.DataFrame:
    """One row per contender, domain and measure: value, standard error, n. Needs the view `contenders`."""
    con.execute("""CREATE OR REPLACE TEMP VIEW answers AS
        SELECT c.contender, e.modality, coalesce(e.domain, e.task) AS domain, e.task, e.item_id,
            avg(e.correct_norm::INT) AS correct
        FROM evaluations AS e JOIN contenders AS c ON e.contender = c.contender
            AND e.run_id IS NOT DISTINCT FROM c.run_id AND e.step IS NOT DISTINCT FROM c.step
        GROUP BY ALL""")
    accuracy = con.execute("""
        SELECT contender, domain, modality AS measure, avg(correct) AS value,
            stddev_samp(correct) / sqrt(count(*)) AS se, count(*) AS n FROM answers GROUP BY ALL
        UNION ALL
        SELECT s.contender, s.domain, 'gap', avg(t.correct - s.correct),
            stddev_samp(t.correct - s.correct) / sqrt(count(*)), count(*)
        FROM answers AS s JOIN answers AS t USING (task, item_id, domain)
        WHERE s.modality = 'speech' AND t.modality = 'text' AND t.contender = 'teacher' GROUP BY ALL""").df()
    # Per text first: its two patterns are one observation.
    parts = []
    for measure, n in (("m", "n_positions"), ("f", "n_positions_f")):
        parts.append(
            con.execute(
                f"""
            WITH x AS (
                SELECT c.contender, s.domain, v.sample_id, sum(v.{n}) AS n, sum(v.{measure} * v.{n}) / sum(v.{n}) AS x
                FROM divergences AS v JOIN contenders AS c ON v.run_id = c.run_id AND v.step = c.step
                JOIN samples AS s ON s.sample_id = v.sample_id
                WHERE v.{measure} IS NOT NULL AND v.{n} > 0 AND s.corpus = $corpus GROUP BY ALL
            ), mean AS (SELECT contender, domain, sum(x * n) / sum(n) AS value FROM x GROUP BY ALL)
            SELECT contender, domain, '{measure}' AS measure, any_value(value) AS value,
                sqrt(sum((n * (x - value)) ** 2) * count(*) / nullif(count(*) - 1, 0)) / sum(n) AS se, count(*) AS n
            FROM x JOIN mean USING (contender, domain) GROUP BY contender, domain""",
                {"corpus": heldout},
            ).df()
        )
    return pd.concat([accuracy, *parts], ignore_index=True)


def groups(study: dict, domains) -> dict[str, dict[str, float]]:
    """The rows of the table: each group's name, and the weights of its domains."""
    found = {ALL: study["p_web"]}
    for coverage, name in GROUPS.items():
        known = sorted({*study["domains"], *pd.Series(domains).dropna()})
        chosen = [d for d in known if study["coverage"].get(d) == coverage]
        if chosen:
            found[name] = {d: 1 / len(chosen) for d in chosen}
    return found


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Report.rows, one row per modality: contender, group, modality, accuracy, se, n."""
    return pd.concat(
        [
            rows[["contender", "group"]].assign(modality=m, accuracy=rows[m], se=rows[f"{m}_se"], n=rows.n_items)
            for m in ("text", "speech", "cascade")
        ]
    ).dropna(subset=["accuracy"])


def _table(con, study: dict) -> pd.DataFrame:
    cells = by_domain(con, study.get("heldout", "heldout"))
    rows = []
    for group, weights in groups(study, cells.domain).items():
        for contender in con.execute("SELECT contender FROM contenders ORDER BY place, contender").df().contender:
            row = {"group": group, "contender": contender}
            for measure in MEASURES:
                part = cells[(cells.contender == contender) & (cells.measure == measure)].set_index("domain")
                part = part[part.index.isin(weights)]
                # A group's figure stands only where every domain with mass has been measured.
                whole = len(part) and not any(
                    w > 0 and d in study["domains"] and d not in part.index for d, w in weights.items()
                )
                w = np.array([weights[d] for d in part.index])
                row[measure] = float((w * part.value).sum() / w.sum()) if whole else np.nan
                row[f"{measure}_se"] = (
                    float(np.sqrt((w**2 * part.se.fillna(0) ** 2).sum()) / w.sum()) if whole else np.nan
                )
                if measure == "speech" or (measure == "text" and "n_items" not in row):
                    row["n_items"] = int(part.n.sum()) if len(part) else 0
            rows.append(row)
    return pd.DataFrame(rows)


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
