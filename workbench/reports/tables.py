"""A table of the report as people read it: text cells, as Markdown, HTML, LaTeX and CSV."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from salad.analysis import MEASURES

HEADS = {"m": "M (nats)", "f": "F (nats)", "text": "text", "speech": "speech", "cascade": "cascade", "gap": "gap"}


class ReportTable(NamedTuple):
    """A table as people read it: text cells, and a file's name."""

    name: str
    title: str
    heads: list[str]
    cells: list[list[str]]


def heads_of(rows: pd.DataFrame) -> list[str]:
    """The heads of Report.rows' measures; the heard share where a contender was asked deaf."""
    return [*HEADS.values(), *(["heard share"] if _asked_deaf(rows) else [])]


def _asked_deaf(rows: pd.DataFrame) -> bool:
    return "heard_n" in rows and bool(rows.heard_n.gt(0).any())


def heard_cell(row: dict) -> str:
    """A heard share in per cent with its 95 % interval, saying where that holds 0, or that there is none."""
    if not row["heard_n"] > 0:
        return "–"
    if not np.isfinite(row["heard"]):
        return "text no better than deaf"
    low, high = (f"{steady(100 * x):.0f}" if np.isfinite(x) else "∞" for x in (row["heard_low"], row["heard_high"]))
    return f"{steady(100 * row['heard']):.0f} ({low} to {high})" + ("" if row["heard_low"] > 0 else ", holds 0")


def cells_of(row: dict, rows: pd.DataFrame) -> list[str]:
    """The cells of a table as text."""
    out = []
    for measure in MEASURES:
        value, se = row[measure], row[f"{measure}_se"]
        if not np.isfinite(value):
            out.append("–")
        elif measure in ("m", "f"):
            out.append(f"{steady(value):.3f} ± {steady(se):.3f}")
        else:
            out.append(f"{steady(100 * value):.1f} ± {steady(100 * se):.1f}")
    return out + ([heard_cell(row)] if _asked_deaf(rows) else [])


def steady(value: float) -> float:
    """Without the last digits, which depend on the order of summation and may turn a 5 up or down."""
    return round(value, 8) + 1e-9


def words_of(value: object) -> str:
    """A value as text for a table."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NaT or value is pd.NA:
        return "–"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def as_csv(table: ReportTable) -> bytes:
    """A table as CSV."""
    return pd.DataFrame(table.cells, columns=table.heads).to_csv(index=False).encode()


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


def markdown_table(heads: list[str], cells: list[list[str]]) -> str:
    """A Markdown table, whose cells are words: no markup of theirs is read."""
    rows = [heads, ["---"] * len(heads), *([c.replace("|", "\\|").replace("<", "&lt;") for c in row] for row in cells)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
