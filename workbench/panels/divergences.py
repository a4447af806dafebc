"""What notebooks/divergences.py shows beside charts."""

from collections.abc import Callable

import duckdb
import marimo as mo
import pandas as pd

from workbench import divergences
from workbench.panels.elements import stats


def compared_table(rows: pd.DataFrame, on_pick: Callable[[str], object]) -> mo.ui.table:
    """A page of texts under two checkpoints; a click on a row calls `on_pick(sample_id)`."""
    columns = {"text": "text", "domain": "domain", "a": "A", "b": "B", "change": "B − A"}
    shown = rows[["sample_id", *columns]].rename(columns=columns)
    return mo.ui.table(
        shown, selection="single", pagination=False, show_search=False, show_download=False, show_data_types=False,
        show_column_summaries=False, wrapped_columns=["text"], column_widths={"text": 220},
        hidden_columns=["sample_id"],
        format_mapping={c: lambda x: "–" if pd.isna(x) else f"{x:.3f}" for c in ("A", "B", "B − A")},
        on_change=lambda picked: on_pick(picked.sample_id.iloc[0]) if len(picked) else None,
    )  # fmt: skip


def divergence_facts(con: duckdb.DuckDBPyConnection, scored: str, measure: str, labels: list[str], corpus: str | None) -> mo.Html:
    """The token-weighted mean of each checkpoint with its interval, and the mean over texts beside it."""
    table = divergences.facts(con, scored, measure, corpus).set_index("label")
    return stats(*(
        (f"{key}: {label}", f"{row['mean']:.3f} nats",
         f"[{row.low:.3f}, {row.high:.3f}]; mean of {row.n_texts:,.0f} texts {row.mean_per_text:.3f}")
        for key, label, row in ((k, v, table.loc[v]) for k, v in zip("AB", labels, strict=False) if v in table.index)
    ))  # fmt: skip
