"""`salad report`: contenders by coverage group, with standard errors, and every published figure beside them, in the
terminal, as report.md and report.html, and, for a paper, each table as LaTeX and CSV and each figure as SVG, PNG and CSV
in the lab's folder report/."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pandas as pd
from markupsafe import escape

import store
from salad.selection.exclusion import left_out, speech_by_cluster
from workbench import charts, diagnosis, review, tables
from workbench.reports import diagnosis as diagnosis_page
from workbench.reports.figures import Figure, figures
from workbench.reports.measures import arms_of, beside_published, checkpoints, measured, warm_start_in_words
from workbench.reports.tables import ReportTable, as_csv, cells_of, heads_of, latex, markdown_table, words_of

EXPLAIN = (
    "Accuracies (length-normalised) and the gap are in per cent, ± one standard error over items; M and F are nats per "
    "text position on held-out text, token-weighted within a domain, ± one standard error over texts. The gap is the "
    "teacher's accuracy on text minus the contender's on speech, paired by item. “All domains” weights each domain by "
    "its mass under P_web; in the other rows a group's domains weigh the same. “Broad” is what natural speech does not "
    "cover at all. The heard share, where a contender was asked deaf too, is (speech − deaf) / (text − deaf) in per cent, "
    "deaf with another item's recording, with its 95 % interval by paired bootstrap over items: where that holds 0, nothing "
    "shows that the contender hears."
)


@dataclass
class Report:
    """`rows`: contender, group, n_items and, for each of MEASURES, its value and `<measure>_se` (accuracies 0 to 1).
    `published`: beside_published. `files`: everything that was written."""

    lab: Path
    rows: pd.DataFrame
    arms: pd.DataFrame
    published: pd.DataFrame
    markdown: str
    markdown_path: Path
    html_path: Path
    files: list[Path]
    diagnoses: list[ReportTable] = field(default_factory=list)

    def print(self) -> None:
        """The results, and diagnosed models, in the terminal."""
        if len(self.rows):
            self._print_results()
        for table in self.diagnoses:
            print(f"\n{table.title}:")
            tables.show_words([dict(zip(table.heads, row, strict=True)) for row in table.cells])

    def _print_results(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, head in enumerate(("group", "contender", *heads_of(self.rows))):
            table.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
        last = None
        for row in self.rows.to_dict("records"):
            if last not in (None, row["group"]):
                table.add_section()
            table.add_row(row["group"] if row["group"] != last else "", row["contender"], *cells_of(row, self.rows))
            last = row["group"]
        console = Console(markup=False, highlight=False)
        console = console if console.is_terminal else Console(markup=False, highlight=False, width=150)
        console.print(table)
        if warm := warm_start_in_words(self.lab):
            console.print(warm, soft_wrap=True)


def report(lab: Path | str, runs: list[str] | None = None) -> Report:
    """Read a lab's evaluations, divergences and diagnoses and write report.md and report.html into it.

    `runs` names run ids to show; without it each contender stands for its newest evaluated checkpoint. A lab in which
    nothing is evaluated has its diagnosed models alone. Raises StoreError where there is neither.
    """
    lab = store.lab_path(lab)
    con = store.connect(lab)
    known = {run for (run,) in con.execute("SELECT DISTINCT run_id FROM evaluations WHERE run_id IS NOT NULL").fetchall()}
    for run in runs or ():
        if known and run not in known:
            near = difflib.get_close_matches(run, known, 1)
            hint = f"did you mean {near[0]}?" if near else "`salad evaluate --run` does that"
            raise store.StoreError(f"run {run} is not evaluated in {lab}; {hint}")
    chosen, diagnosed = checkpoints(con, runs), _diagnoses(con)
    if chosen.empty and (runs or not diagnosed):
        raise store.StoreError(
            f"{lab}: nothing is evaluated yet; `salad demo` or `salad evaluate` does that"
            + (f" (asked for {', '.join(runs)})" if runs else "")
        )
    rows, arms, published, drawn, shown = pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), [], []
    if len(chosen):
        study, rows = measured(lab, con, chosen)
        arms, published = arms_of(con), beside_published(con, rows)
        drawn = _figures(con, lab, study, rows)
        shown = [*_grids(rows, arms, published), *clusters_left_out(con)]
    shown = [*shown, *diagnosed]
    words = _explained(lab, shown)
    markdown = _markdown(shown, words)
    files = {lab / "report.md": markdown.encode(), lab / "report.html": _html(shown, drawn, words).encode()}
    for table in shown:
        files[lab / "report" / f"{table.name}.csv"] = as_csv(table)
        files[lab / "report" / f"{table.name}.tex"] = latex(table.title, table.heads, table.cells).encode()
    for figure in drawn:
        for kind, content in (("svg", figure.svg()), ("png", figure.png()), ("csv", figure.csv())):
            files[lab / "report" / f"figure-{figure.name}.{kind}"] = content
    (lab / "report").mkdir(exist_ok=True)
    for path, content in files.items():
        store.atomic.write_bytes(path, content)
    return Report(lab, rows, arms, published, markdown, lab / "report.md", lab / "report.html", list(files), diagnosed)


def _diagnoses(con) -> list[ReportTable]:
    """Diagnosed models on the texts that the newest one has in common with the most of them, and its worst clusters."""
    sides = diagnosis.diagnosed(con)
    if not sides:
        return []
    there = {run: set(part.sample_id) for run, part in diagnosis.read(con, sides).groupby("run_id")}
    first = there.get(sides[0].run_id, set())
    return diagnosis_page.tables(con, [side for side in sides if first <= there.get(side.run_id, set())])


def _figures(con, lab, study: dict, rows: pd.DataFrame) -> list:
    """Each figure that the lab has the data for, the clusters of its first selection among them."""
    drawn = figures(con, lab, study, rows)
    listed = review.selections(con)
    if len(listed):
        chosen = listed[listed.parent_selection_id.isna()].selection_id.iloc[0]
        caption = "Where the text and speech models disagree, and what was drawn and kept"
        draws = con.execute("SELECT * FROM selected WHERE selection_id = ? ORDER BY draw", [chosen]).df()
        drawn.append(Figure("clusters", caption, charts.clusters(con, chosen), draws))
    return drawn


def _grids(rows, arms, published) -> list[ReportTable]:
    """The report's tables, the same for Markdown, HTML, LaTeX and CSV."""
    main = [[row["group"], row["contender"], *cells_of(row, rows), str(row["n_items"])] for row in rows.to_dict("records")]
    out = [ReportTable("results", "Results", ["group", "contender", *heads_of(rows), "items"], main)]
    if len(arms):
        names = ("contender", "run_id", "strategy", "gamma", "selected_h", "texts", "steps", "seconds")
        heads = ["contender", "run", "selection", "γ", "hours selected", "texts", "steps", "seconds"]
        cells = [[words_of(getattr(a, n) if n != "texts" else a.texts or None) for n in names] for a in arms.itertuples()]
        out.append(ReportTable("runs", "Runs", heads, cells))
    heads = [h for h in published.columns if h != "whose"]
    out.append(ReportTable(
        "published", "Beside published figures: accuracy (%) / gap (points); models, data and tasks of another scale",
        heads, [[words_of(x) for x in row] for row in published[heads].itertuples(index=False)],
    ))  # fmt: skip
    return out


def clusters_left_out(con: duckdb.DuckDBPyConnection) -> list[ReportTable]:
    """Clusters that selections left out for their CER, with what their texts are made of; or none."""
    asked = con.execute(
        """SELECT clustering_id, speech, max_cer, list(selection_id ORDER BY selection_id) FROM selections
           WHERE max_cer IS NOT NULL GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    cells = []
    for clustering, speech, max_cer, names in asked:
        terms = dict(con.execute("SELECT cluster_id, terms FROM clusters WHERE clustering_id = ?", [clustering]).fetchall())
        for row in left_out(speech_by_cluster(con, clustering, speech), max_cer).itertuples():
            plain = "–" if pd.isna(row.cer_plain) else f"{row.cer_plain:.2f} ({row.n_plain})"
            cells.append([
                ", ".join(names), f"{max_cer:g}", str(row.cluster_id), ", ".join((terms.get(row.cluster_id) or [])[:4]),
                str(row.n), f"{row.cer:.2f}", f"{row.raw_cer:.2f}", plain, f"{100 * row.digits:.1f}",
                f"{100 * row.symbols:.1f}", row.blame,
            ])  # fmt: skip
    heads = ["selections", "bound", "cluster", "terms", "syntheses", "CER", "raw CER", "CER without digits, symbols (n)",
             "digits %", "symbols %", "blame"]  # fmt: skip
    return [ReportTable("left-out", "Clusters left out for their character error rate", heads, cells)] if cells else []


def explain(lab: Path | str) -> str:
    """What the tables of a lab hold, in words, and whether its adapters were warm-started."""
    return " ".join(part for part in (EXPLAIN, warm_start_in_words(lab)) if part)


def _explained(lab: Path | str, tables: list[ReportTable]) -> str:
    """What stands above a report's tables: of results, of diagnoses, or of both."""
    names = {table.name for table in tables}
    return " ".join([explain(lab)] * ("results" in names) + [diagnosis_page.LEGEND] * ("diagnoses" in names))


def _markdown(tables: list[ReportTable], words: str) -> str:
    parts = ["# What came out\n", words + "\n"]
    for table in tables:
        parts += [f"## {table.title}\n", markdown_table(table.heads, table.cells), ""]
    return "\n".join(parts)


_STYLE = """:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
margin: 2rem auto; padding: 0 1rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
font-size: 14px; } th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; } th:nth-child(-n+2),
td:nth-child(-n+2) { text-align: left; } thead th { border-bottom: 1px solid #8888; } tr.first td { border-top: 1px
solid #8884; } figure { margin: 1.5rem 0; padding: 12px; background: #fff; color: #111; border-radius: 8px; overflow-x:
auto; } figcaption { font-weight: 600; margin-bottom: 6px; } .wide { overflow-x: auto; } p { max-width: 46rem; }"""


def _html(tables: list[ReportTable], figures: list, words: str) -> str:
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>What came out</title><style>{_STYLE}</style>",
        f"<h1>What came out</h1><p>{escape(words)}</p>",
    ]
    for i, (_, title, heads, cells) in enumerate(tables):
        head = "".join(f"<th>{escape(h)}</th>" for h in heads)
        parts.append(f"<h2>{escape(title)}</h2><div class='wide'><table><thead><tr>{head}</tr></thead><tbody>")
        last = None
        for row in cells:
            shown = ["" if i == 0 and row[0] == last else row[0], *row[1:]]
            first = " class='first'" if i == 0 and row[0] != last else ""
            last = row[0]
            parts.append(f"<tr{first}>" + "".join(f"<td>{escape(c)}</td>" for c in shown) + "</tr>")
        parts.append("</tbody></table></div>")
        if i == 0:
            parts += [f"<figure><figcaption>{escape(f.caption)}</figcaption>{f.svg().decode()}</figure>" for f in figures]
    return "\n".join([*parts, "</html>"])
