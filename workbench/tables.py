"""An Arrow table as the command line shows and writes it."""

import datetime
import json
from typing import TextIO

import pyarrow as pa


def show(table: pa.Table, width: int | None = None) -> None:
    """Print as a table, as wide as the terminal; all of it where the output is not a terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for field in table.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        grid.add_column(
            field.name,
            justify="right" if number else "left",
            max_width=width,
            overflow="ellipsis" if width else "fold",
            no_wrap=bool(width),
        )
    for row in table.to_pylist():
        grid.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False, emoji=False).print(grid)
    if table.num_rows != 1:
        print(f"{table.num_rows:,} rows")


def show_words(rows: list[dict[str, str]]) -> None:
    """Print rows of words as a table: numbers to the right, as wide as the terminal, without a count of rows."""
    import sys

    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0] if rows else ():
        number = all(row[name][:1] in "0123456789-−–" for row in rows)
        grid.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False, emoji=False).print(grid)


def rounded(rows: list[dict]) -> pa.Table:
    """Rows as a table to be read: floats with three digits after the point, and no column that is empty throughout."""
    kept = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    return pa.Table.from_pylist(
        [{key: round(row[key], 3) if isinstance(row[key], float) else row[key] for key in kept} for row in rows]
    )


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def write_csv(table: pa.Table, to: TextIO) -> None:
    """RFC 4180, with a header; lists and structs as JSON."""
    import csv

    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in table.to_pylist():
        writer.writerow(["" if v is None else _json(v) if isinstance(v, list | dict) else v for v in row.values()])


def write_json(table: pa.Table, to: TextIO) -> None:
    """One object a line."""
    for row in table.to_pylist():
        to.write(_json(row) + "\n")


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda v: v.isoformat() if hasattr(v, "isoformat") else str(v))


def write_parquet(table: pa.Table, to: str) -> None:
    """Through a temporary name, so that a reader never sees half a file."""
    import pyarrow.parquet as pq

    import store

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    store.atomic.write_bytes(to, buffer.getvalue().to_pybytes())
