"""What any notebook is laid out with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import marimo as mo
import pandas as pd

import store
from workbench.markup import markdown, plain


def state(con: duckdb.DuckDBPyConnection, lab: Path | str) -> mo.Html:
    """A line about units that were left out and about a lab that cannot be written to, where it is so."""
    parts = []
    rows = con.execute('SELECT "table", path, reason FROM damaged').fetchall()
    if rows:
        parts.append(
            f"{len(rows)} file{'s are' if len(rows) > 1 else ' is'} damaged and left out "
            + markdown("(first: <code>{}</code>: {}). ", rows[0][1], rows[0][2])
            + "`salad verify --repair` moves them away, so that they can be made again."
        )
    if not os.access(lab, os.W_OK, effective_ids=os.access in os.supports_effective_ids) and os.path.isdir(lab):
        parts.append(
            markdown("<code>{}</code> is read-only for you: all can be seen and heard, and nothing decided, ", lab)
            + "spoken or started. To work on it, ask its owner for write access, or copy the folder and set `SALAD_LAB` to "
            "the copy."
        )
    return mo.vstack([mo.callout(mo.md(words), kind="warn") for words in parts]) if parts else mo.md("")


def lab_name(lab: Path | str) -> mo.Html:
    """Which lab is shown."""
    return mo.md(markdown("<code>{}</code>", lab))


def stats(*facts: tuple[str, str, str | None]) -> mo.Html:
    """Figures with their labels, side by side."""
    return mo.hstack(
        [mo.stat(value, label=label, caption=caption, bordered=True) for label, value, caption in facts],
        wrap=True,
        justify="start",
        gap=0.5,
    )


def answer(locked: duckdb.DuckDBPyConnection, query: str, rows: int = 200) -> mo.Html:
    """What a SELECT that a person typed gives on a locked connection, at most `rows` of it; else why not, in a line."""
    try:
        table = locked.table(query)
    except store.StoreError as error:
        return mo.callout(mo.md(plain(error)), kind="danger")
    size = f"{table.num_rows:,} rows" + (f", the first {rows} shown" if table.num_rows > rows else "")
    page = mo.ui.table(table.slice(0, rows).to_pandas(), selection=None, page_size=10, show_column_summaries=False)
    return mo.vstack([mo.md(size), page])


def figure(chart: Any) -> mo.Html:
    """A figure with its caption, to save as SVG, PNG or the rows behind it."""
    saves = [
        mo.download(make, f"{chart.name}.{kind}", mime, label=kind.upper())
        for kind, mime, make in (
            ("svg", "image/svg+xml", chart.svg),
            ("png", "image/png", chart.png),
            ("csv", "text/csv", chart.csv),
        )
    ]
    return mo.vstack([mo.md("#### " + plain(chart.caption)), chart.chart, mo.hstack(saves, justify="start", gap=0.5)])


def plain_table(rows: pd.DataFrame, digits: int = 2) -> mo.ui.table:
    """A table without selection, download or search."""
    return mo.ui.table(
        rows,
        selection=None,
        pagination=False,
        show_search=False,
        show_download=False,
        show_column_summaries=False,
        show_data_types=False,
        max_height=260,
        wrapped_columns=["text"] if "text" in rows else None,
        format_mapping={c: f"{{:.{digits}f}}".format for c in rows.select_dtypes("float")},
    )


def differences(table: Any) -> mo.Html:
    """What control.differences found, folded away; how to ask where it found nothing."""
    if table is None:
        return mo.md("Choose two runs to see how they differ in configuration, code, data and results.")
    shown = mo.ui.table(table, selection=None, page_size=20, show_data_types=False, show_column_summaries=False)
    return mo.accordion({markdown("how {} differ: {} lines", " and ".join(table.columns[2:]), len(table)): shown})


def row(*parts) -> mo.Html:
    """Beside each other at their own widths, below each other where the window is narrow."""
    cells = "".join(
        f"<div style='flex:0 0 auto;width:min-content;min-width:380px;max-width:100%'>{mo.as_html(part)}</div>" for part in parts
    )
    return mo.Html(f"<div style='display:flex;flex-wrap:wrap;gap:12px 28px;align-items:flex-start'>{cells}</div>")


def beside(left: mo.Html, right: mo.Html) -> mo.Html:
    """`left` at its own width, `right` in the room that it leaves."""
    cells = f"<div>{mo.as_html(left)}</div><div style='min-width:0'>{mo.as_html(right)}</div>"
    return mo.Html(f"<div style='display:grid;grid-template-columns:max-content minmax(0,1fr);gap:20px'>{cells}</div>")


def main_and_side(main: mo.Html, side: mo.Html) -> mo.Html:
    """`main`, as wide as there is room, and `side` beside it, 400 pixels wide, however wide `main` would like to be; below
    each other where the window is narrower than 950 pixels."""
    cells = (
        f"<div style='flex:1 1 600px;min-width:0'>{mo.as_html(main)}</div>"
        f"<div style='flex:0 1 400px;min-width:320px'>{mo.as_html(side)}</div>"
    )
    return mo.Html(f"<div style='display:flex;flex-wrap:wrap;gap:12px 28px;align-items:flex-start'>{cells}</div>")


def scrolled(*charts, height: int = 640) -> mo.Html:
    """Charts whose rows stand beside each other, in one scroll: 128 clusters are 2,400 pixels."""
    cells = "".join(f"<div style='flex:none'>{mo.as_html(chart)}</div>" for chart in charts)
    return mo.Html(f"<div style='display:flex;gap:2px;max-height:{height}px;overflow:auto'>{cells}</div>")


def when_seen(make: Callable[[], object], height: int) -> mo.Html:
    """A tall chart that takes seconds to compute in a large lab: made when it comes into sight, in a scroll of its own."""
    return mo.lazy(lambda: scrolled(make(), height=height), show_loading_indicator=True)
