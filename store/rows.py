"""Rows as a table declares them: what is given is fitted, put in order, and written as Parquet."""

import concurrent.futures
import difflib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import schema
from .errors import StoreError

Rows: TypeAlias = Any  # an Arrow table or record batch reader, a DataFrame, or an iterable of dicts
ROW_GROUP = 122_880  # rows, as DuckDB likes them
CHUNK = 4 * ROW_GROUP


def table_named(name: str) -> schema.Table:
    """The declared table of this name; StoreError where there is none."""
    if name not in schema.TABLES:
        raise StoreError(f"no table {name!r}; there are {', '.join(sorted(schema.TABLES))}")
    return schema.TABLES[name]


def _column(table: schema.Table, column: schema.Column, values) -> pa.ChunkedArray | pa.Array:
    """`values` (an Arrow array or a list) as the column's declared type, or StoreError naming column and row."""

    def refuse(row, why):
        raise StoreError(f"{table.name}: column {column.name!r}, row {row}: {why}")

    if isinstance(values, (pa.ChunkedArray, pa.Array)):
        if values.type != column.type:
            try:
                values = values.cast(column.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return _column(table, column, values.to_pylist())
    else:
        if column.json:
            values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        elif column.type == schema.TEXT:
            values = [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
        if pa.types.is_list(column.type):  # Arrow takes a text for a list of letters
            for row, value in enumerate(values):
                if isinstance(value, (str, bytes)):
                    refuse(row, f"{value!r:.80} is no {schema.sql_type(column.type)}; give a list")
        try:
            values = pa.array(values, column.type, from_pandas=False)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            for row, value in enumerate(values):
                try:
                    pa.array([value], column.type, from_pandas=False)
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    refuse(row, f"{value!r:.80} is no {schema.sql_type(column.type)}")
            raise
    if column.required and values.null_count:
        refuse(pc.index(pc.is_null(values), True).as_py(), "must not be null")
    if pa.types.is_floating(column.type):
        # a sum is finite where every value is: one pass, no boolean column
        if not pc.is_finite(pc.coalesce(pc.sum(values), 0.0)).as_py():
            odd = pc.index(pc.is_finite(pc.fill_null(values, 0.0)), False).as_py()
            if odd >= 0:
                refuse(odd, f"{values[odd].as_py()} is not finite; what has no value is null")
    return values


def fit(name: str, rows: Rows) -> pa.Table:
    """`rows` (Arrow table, DataFrame or list of dicts) as the table's declared schema.

    Raises StoreError naming column and row where they don't fit. In a DataFrame NaN means null."""
    table = table_named(name)
    if isinstance(rows, pa.RecordBatchReader):
        rows = rows.read_all()
    if isinstance(rows, pa.Table):
        given = {column: rows[column] for column in rows.column_names}
        length = rows.num_rows
    elif hasattr(rows, "iloc"):  # pandas
        given, length = {}, len(rows)
        for column in rows.columns:
            try:
                given[str(column)] = pa.Array.from_pandas(rows[column])
            except (pa.ArrowException, TypeError, ValueError):
                given[str(column)] = rows[column].tolist()
    else:
        rows = list(rows)
        length, given = len(rows), {}
        names = dict.fromkeys(key for row in rows for key in row)
        given = {key: [row.get(key) for row in rows] for key in names}
    column_names = table.arrow().names
    for column in given:
        if column not in column_names:
            near = difflib.get_close_matches(column, column_names, 1)
            raise StoreError(
                f"{name} has no column {column!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(column_names)}")
            )
    columns = []
    for column in table.columns:
        if column.name in given:
            columns.append(_column(table, column, given[column.name]))
        elif column.required and length:
            raise StoreError(f"{name}: column {column.name!r} is missing, and must not be null")
        else:
            columns.append(pa.repeat(pa.scalar(column.default, column.type), length))
    return pa.table(columns, schema=table.arrow())


def _is_constant(column: pa.ChunkedArray) -> bool:
    """Whether a column says the same in every row."""
    if column.null_count:
        return column.null_count == len(column)
    if len(column) > 1 and column[0] != column[-1]:
        return False
    return not len(column) or pc.all(pc.equal(column, column[0])).as_py() is not False


def _gathered(column: pa.ChunkedArray, indices: np.ndarray) -> pa.Array | pa.ChunkedArray:
    """`column.take(indices)`; of ids, which are all of one length, in half of Arrow's time."""
    if column.type == schema.TEXT and column.num_chunks == 1 and not column.null_count:
        _, offsets, data = column.chunk(0).buffers()
        ends = np.frombuffer(offsets, np.int32)[column.chunk(0).offset :][: len(column) + 1]
        width = int(ends[1] - ends[0])
        if 0 < width <= 64 and (np.diff(ends) == width).all():
            cells = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].view(f"V{width}").take(indices)
            ends = np.arange(0, width * len(indices) + 1, width, dtype=np.int32)
            return pa.Array.from_buffers(schema.TEXT, len(indices), [None, pa.py_buffer(ends), pa.py_buffer(cells)])
    return column.take(pa.array(indices))


def constants(table: schema.Table, rows: pa.Table) -> dict[str, str | int | None]:
    """Of the columns that sort a table or tell its rows apart, those that say the same in every row, and what."""
    names = dict.fromkeys([*(name.lstrip("-") for name in table.sort), *table.key])
    return {name: rows[name][0].as_py() if len(rows) else None for name in names if _is_constant(rows[name])}


def order_of(table: schema.Table, rows: pa.Table, constant: set[str]) -> np.ndarray | None:
    """Indices that put rows in the table's order, or None where they stand so. `constant`: columns that say the same
    in every row."""
    keys = []
    for key in table.sort:
        if key.lstrip("-") not in constant:  # a key that is the same in every row costs nothing
            keys.append((key.lstrip("-"), "descending" if key[0] == "-" else "ascending"))
    if not keys:
        return None
    if rows[keys[0][0]].type != schema.NUMBER:
        return pc.sort_indices(rows, keys).to_numpy()
    # by one number with few ties: NumPy's sort is ten times faster; the tied rows alone see the other keys
    sign = -1.0 if keys[0][1] == "descending" else 1.0
    values = sign * pc.fill_null(rows[keys[0][0]], sign * np.inf).to_numpy()
    order = np.argsort(values)
    values = values[order]
    equal = values[1:] == values[:-1]
    tied = np.zeros(len(order), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    if tied.any():
        among = np.sort(order[tied])
        order[tied] = among[pc.sort_indices(rows.take(among), keys).to_numpy()]
    return order


def write_parquet(path: Path, rows: pa.Table, order: np.ndarray | None, codes: list[str], keys: list[str]) -> None:
    """Parquet, zstd, row groups of 122,880 rows, flushed to the disk. `codes`: columns worth a dictionary; `keys`:
    those whose least and greatest values let a query pass over row groups, which the others only pay for."""

    same = set() if order is None else {n for n in codes if rows[n].type != schema.TEXTS and _is_constant(rows[n])}

    def part(start: int) -> pa.Table:
        if order is None:
            return rows.slice(start, CHUNK)
        indices = order[start : start + CHUNK]
        return pa.table(
            [rows[name].slice(start, CHUNK) if name in same else _gathered(rows[name], indices) for name in rows.column_names],
            schema=rows.schema,
        )

    with (
        pq.ParquetWriter(
            path, rows.schema, compression="zstd", compression_level=1, use_dictionary=codes, write_statistics=keys
        ) as writer,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        ahead = pool.submit(part, 0)  # the next rows are put in order while these are compressed
        for start in range(0, rows.num_rows, CHUNK):
            chunk, ahead = ahead.result(), pool.submit(part, start + CHUNK)
            writer.write_table(chunk, row_group_size=ROW_GROUP)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
