"""What came out: contenders by coverage group, with standard errors, and every published figure beside them. `salad
report` shows it in the terminal and writes report.md, report.html and, for a paper, each table as LaTeX and CSV and each
figure as SVG, PNG and CSV into the lab's folder report/."""

import difflib
import html
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import store
from salad.analysis import ALL, GROUPS, MEASURES, by_domain, by_group, groups, read_study  # noqa: F401 (read here by others)
from salad.selection.exclusion import left_out, speech_by_cluster

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
    known = {run for (run,) in con.execute("SELECT DISTINCT run_id FROM evaluations WHERE run_id IS NOT NULL").fetchall()}
    for run in runs or ():
        if known and run not in known:
            near = difflib.get_close_matches(run, known, 1)
            hint = f"did you mean {near[0]}?" if near else "`salad evaluate --run` does that"
            raise store.StoreError(f"run {run} is not evaluated in {lab}; {hint}")
    chosen = checkpoints(con, runs)
    if chosen.empty:
        raise store.StoreError(
            f"{lab}: nothing is evaluated yet; `salad demo` or `salad evaluate` does that"
            + (f" (asked for {', '.join(runs)})" if runs else "")
        )
    study, rows = measured(lab, con, chosen)
    arms, published = _arms(con), beside_published(con, rows)
    figures = _figures(con, lab, study, rows)
    tables = [*_grids(rows, arms, published), *_clusters_left_out(con)]
    markdown = _markdown(tables)
    files = {lab / "report.md": markdown.encode(), lab / "report.html": _html(tables, figures).encode()}
    for table in tables:
        files[lab / "report" / f"{table.name}.csv"] = _csv(table)
        files[lab / "report" / f"{table.name}.tex"] = latex(table.title, table.heads, table.cells).encode()
    for figure in figures:
        for kind, content in (("svg", figure.svg()), ("png", figure.png()), ("csv", figure.csv())):
            files[lab / "report" / f"figure-{figure.name}.{kind}"] = content
    (lab / "report").mkdir(exist_ok=True)
    for path, content in files.items():
        store.atomic.write_bytes(path, content)
    return Report(lab, rows, arms, published, markdown, lab / "report.md", lab / "report.html", list(files))


def measured(lab: Path, con, chosen: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """The study, and Report.rows of the chosen checkpoints, which stand in the view `contenders` afterwards."""
    con.register("contenders", chosen)
    study = read_study(lab, con)
    return study, by_group(con, study)


def published_means(con) -> pd.DataFrame:
    """The published means over six benchmarks: system, model, modality, accuracy (%), gap (points), source."""
    return con.execute("""SELECT system, model, modality, accuracy, gap, source FROM published
        WHERE task = 'mean' ORDER BY modality DESC, accuracy DESC""").df()


# lm-evaluation-harness's names of the published benchmarks
BENCHMARKS = {
    "StoryCloze": ("storycloze", "xstorycloze_en"), "MMSU": ("mmsu", "voicebench_mmsu"),
    "OpenBookQA": ("openbookqa",), "HellaSwag": ("hellaswag",), "ARC-Challenge": ("arc_challenge",), "PIQA": ("piqa",),
}  # fmt: skip


def beside_published(con, rows: pd.DataFrame) -> pd.DataFrame:
    """Every published system beside this lab's contenders: system, model, modality, a column for each benchmark and for
    the mean (accuracy in per cent / gap in points; several figures of one source are parted by "; "), source.

    This lab's rows give its own tasks under the benchmarks of their names, and its whole (all domains by P_web) under
    `mean`; they are of another scale of model, data and task. Needs the view `contenders`."""
    heads = [*BENCHMARKS, "mean"]
    found = con.execute("FROM published").df()
    out = []
    for key, part in found.groupby(["system", "model", "modality", "source"], sort=False, dropna=False):
        row = dict(zip(("system", "model", "modality", "source"), key, strict=True))
        for head in heads:
            cells = part[(part.task == head) & (part.accuracy.notna() | part.gap.notna())]
            row[head] = "; ".join(_pair(a, g) for a, g in zip(cells.accuracy, cells.gap, strict=True)) or "–"
        out.append(row)
    theirs = pd.DataFrame(out)
    theirs["whose"] = "published"
    own = by_domain(con)
    tasks = dict(con.execute("SELECT DISTINCT coalesce(domain, task), task FROM evaluations").fetchall())
    mine = []
    for contender in rows.contender.unique():
        whole = rows[(rows.group == ALL) & (rows.contender == contender)].iloc[0]
        for modality in ("text", "speech", "cascade"):
            if not np.isfinite(whole[modality]):
                continue
            row = {"system": contender, "model": "this lab", "modality": modality, "source": "this lab", "whose": "ours"}
            for head, names in BENCHMARKS.items():
                part = own[(own.contender == contender) & own.domain.map(lambda d, n=names: tasks.get(d) in n)]
                value, gap = (part[part.measure == x].value for x in (modality, "gap"))
                row[head] = _pair(100 * value.mean(), 100 * gap.mean() if modality == "speech" else np.nan)
            row["mean"] = _pair(100 * whole[modality], 100 * whole.gap if modality == "speech" else np.nan)
            mine.append(row)
    made = pd.concat([pd.DataFrame(mine), theirs], ignore_index=True)
    return made[["system", "model", "modality", *heads, "source", "whose"]]


def _pair(accuracy, gap) -> str:
    """accuracy/gap as the paper has it; – for what is not there."""
    a, g = (f"{_steady(x):.1f}" if x is not None and np.isfinite(x) else "–" for x in (accuracy, gap))
    return a if g == "–" else f"{a}/{g}"


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


def _figures(con, lab, study: dict, rows: pd.DataFrame) -> list:
    """Each figure that the lab has the data for (`workbench.results.Figure`)."""
    from workbench import charts, results, review

    figures = results.figures(con, lab, study, rows)
    listed = review.selections(con)
    if len(listed):
        chosen = listed[listed.parent_selection_id.isna()].selection_id.iloc[0]
        caption = "Where the text and speech models disagree, and what was drawn and kept"
        told = con.execute("SELECT * FROM selected WHERE selection_id = ? ORDER BY draw", [chosen]).df()
        figures.append(results.Figure("clusters", caption, charts.clusters(con, chosen), told))
    return figures


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


class Table(NamedTuple):
    """A table as people read it: text cells, and a file's name."""

    name: str
    title: str
    heads: list[str]
    cells: list[list[str]]


def _grids(rows, arms, published) -> list[Table]:
    """The report's tables, the same for Markdown, HTML, LaTeX and CSV."""
    main = [[row["group"], row["contender"], *_cells(row), str(row["n_items"])] for row in rows.to_dict("records")]
    out = [Table("results", "Results", ["group", "contender", *HEADS.values(), "items"], main)]
    if len(arms):
        names = ("contender", "run_id", "strategy", "gamma", "selected_h", "texts", "steps", "seconds")
        heads = ["contender", "run", "selection", "γ", "hours selected", "texts", "steps", "seconds"]
        cells = [[_text(getattr(a, n) if n != "texts" else a.texts or None) for n in names] for a in arms.itertuples()]
        out.append(Table("runs", "Runs", heads, cells))
    heads = [h for h in published.columns if h != "whose"]
    out.append(Table(
        "published", "Beside published figures: accuracy (%) / gap (points); models, data and tasks of another scale",
        heads, [[_text(x) for x in row] for row in published[heads].itertuples(index=False)],
    ))  # fmt: skip
    return out


def _clusters_left_out(con) -> list[Table]:
    """Clusters that selections left out for their CER, with what their texts are made of; or none."""
    asked = con.execute(
        """SELECT clustering_id, speech, max_cer, list(selection_id ORDER BY selection_id) FROM selections
           WHERE max_cer IS NOT NULL GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    cells = []
    for clustering, speech, max_cer, names in asked:
        terms = dict(
            con.execute("SELECT cluster_id, terms FROM clusters WHERE clustering_id = ?", [clustering]).fetchall()
        )
        for row in left_out(speech_by_cluster(con, clustering, speech), max_cer).itertuples():
            plain = "–" if pd.isna(row.cer_plain) else f"{row.cer_plain:.2f} ({row.n_plain})"
            cells.append([
                ", ".join(names), f"{max_cer:g}", str(row.cluster_id), ", ".join((terms.get(row.cluster_id) or [])[:4]),
                str(row.n), f"{row.cer:.2f}", f"{row.raw_cer:.2f}", plain, f"{100 * row.digits:.1f}",
                f"{100 * row.symbols:.1f}", row.blame,
            ])  # fmt: skip
    heads = ["selections", "bound", "cluster", "terms", "syntheses", "CER", "raw CER", "CER without digits, symbols (n)",
             "digits %", "symbols %", "blame"]  # fmt: skip
    return [Table("left-out", "Clusters left out for their character error rate", heads, cells)] if cells else []


_LATEX = {"\\": r"\textbackslash{}"} | {c: rf"\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "γ": r"$\gamma$",
    "α": r"$\alpha$", "β": r"$\beta$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "“": "``", "”": "''",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def latex(caption: str, heads: list[str], cells: list[list[str]]) -> str:
    """A LaTeX table for the package booktabs: numbers to the right, words to the left, rules between groups."""
    number = [all(not c or c[:1] in "0123456789-−–" for c in column) for column in zip(*cells, strict=True)]
    lines = [
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering\small", rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{{''.join('r' if n else 'l' for n in number) or 'l' * len(heads)}}}", r"\toprule",
        " & ".join(map(_escaped, heads)) + r" \\", r"\midrule",
    ]  # fmt: skip
    grouped = len({row[0] for row in cells}) <= len(cells) / 2
    for i, row in enumerate(cells):
        if grouped and i and row[0] != cells[i - 1][0]:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_escaped, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _csv(table: Table) -> bytes:
    return pd.DataFrame(table.cells, columns=table.heads).to_csv(index=False).encode()


def _text(value) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NaT or value is pd.NA:
        return "–"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def markdown_table(heads: list[str], cells: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *([c.replace("|", "\\|") for c in row] for row in cells)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown(tables: list[Table]) -> str:
    parts = ["# What came out\n", EXPLAIN + "\n"]
    for table in tables:
        parts += [f"## {table.title}\n", markdown_table(table.heads, table.cells), ""]
    return "\n".join(parts)


_STYLE = """:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
margin: 2rem auto; padding: 0 1rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
font-size: 14px; } th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; } th:nth-child(-n+2),
td:nth-child(-n+2) { text-align: left; } thead th { border-bottom: 1px solid #8888; } tr.first td { border-top: 1px
solid #8884; } figure { margin: 1.5rem 0; padding: 12px; background: #fff; color: #111; border-radius: 8px; overflow-x:
auto; } figcaption { font-weight: 600; margin-bottom: 6px; } .wide { overflow-x: auto; } p { max-width: 46rem; }"""


def _html(tables: list[Table], figures: list) -> str:
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>What came out</title><style>{_STYLE}</style>",
        f"<h1>What came out</h1><p>{html.escape(EXPLAIN)}</p>",
    ]
    for i, (_, title, heads, cells) in enumerate(tables):
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
            parts += [
                f"<figure><figcaption>{html.escape(f.caption)}</figcaption>{f.svg().decode()}</figure>" for f in figures
            ]
    return "\n".join([*parts, "</html>"])
