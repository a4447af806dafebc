"""Documents of a corpus, streamed: Parquet, JSONL (also .gz), or a folder that `datasets` saved."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from salad.errors import SaladError

LICENCES = ("licence", "license")
IDS = ("doc_id", "id")
BATCH = 1_000  # rows read at a time


class Document(NamedTuple):
    """`text` is None where the row has none, and `fault` then says why ("empty", "unreadable", "no answer")."""

    doc_id: str
    text: str | None
    source: str
    licence: str | None
    domain: str | None
    fault: str | None = None
    answer: str | None = None


class Files(NamedTuple):
    """What a source consists of. kind: parquet, jsonl or datasets."""

    kind: str
    paths: list[Path]

    def fingerprint(self) -> list:
        """Names and sizes: another corpus under the same name is noticed."""
        return [[path.name, path.stat().st_size] for path in self.paths]


def count(files: Files) -> int | None:
    """How many documents there are, for an estimate of the time left; None where only reading them all would tell."""
    try:
        if files.kind == "parquet":
            return sum(pq.read_metadata(path).num_rows for path in files.paths)
        if files.kind == "jsonl" and not any(path.suffix == ".gz" for path in files.paths):
            total = 0
            for path in files.paths:
                with open(path, "rb") as file:
                    last = b"\n"
                    while block := file.read(1 << 22):
                        total, last = total + block.count(b"\n"), block[-1:]
                    total += last != b"\n"
            return total
    except (OSError, pa.ArrowException):
        pass  # reading will say what is wrong with it
    return None


def find(source: Path | str) -> Files:
    """The files of a source. SaladError where there is nothing that can be read."""
    source = Path(source)
    if source.is_dir():
        if any((source / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
            return Files("datasets", sorted(source.rglob("*.arrow")))
        for kind, patterns in (("parquet", ("*.parquet",)), ("jsonl", ("*.jsonl", "*.jsonl.gz", "*.ndjson"))):
            if paths := sorted(path for pattern in patterns for path in source.rglob(pattern)):
                return Files(kind, paths)
        raise SaladError(f"{source} holds no Parquet, no JSONL and no dataset that `datasets` saved")
    if not source.is_file():
        raise SaladError(f"{source} does not exist")
    if source.suffix == ".parquet":
        return Files("parquet", [source])
    if source.name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".json")):
        return Files("jsonl", [source])
    raise SaladError(f"{source} is neither Parquet nor JSONL nor a folder of them")


def read(source: Path | str, column: str = "text", answer: str | None = None) -> Iterator[Document]:
    """Documents in file order, at fixed memory. A row without text, or a line that is not JSON, comes with its fault.

    `column` holds the text, `answer` what is answered to it; `doc_id` or `id`, `licence` or `license`, `source`, and
    `domain` are taken where they are. SaladError for a file that cannot be read, or that does not know a named column."""
    source = Path(source)
    files = find(source)
    if files.kind == "datasets":
        yield from _of_datasets(source, column, answer)
        return
    for path in files.paths:
        rows = _parquet(path, column, answer) if files.kind == "parquet" else _jsonl(path, column, answer)
        name = path.name.partition(".")[0] if len(files.paths) > 1 else source.stem.partition(".")[0]
        for number, row in enumerate(rows):
            yield _document(row, column, answer, f"{name}:{number}", source.name)


def _document(row: dict | None, column: str, answer: str | None, number: str, source: str) -> Document:
    if row is None:
        return Document(number, None, source, None, None, "unreadable")
    text = row.get(column)
    named = next((str(row[key]) for key in IDS if row.get(key) is not None), number)
    licence = next((str(row[key]) for key in LICENCES if row.get(key)), None)
    domain = str(row["domain"]) if row.get("domain") else None
    told = (named, str(row.get("source") or source), licence, domain)
    if not isinstance(text, str) or not text.strip():
        return Document(told[0], None, *told[1:], "empty")
    answered = None if answer is None else row.get(answer)
    if answer is not None and (not isinstance(answered, str) or not answered.strip()):
        return Document(told[0], None, *told[1:], "no answer")
    return Document(told[0], text, *told[1:], answer=answered)


def _wanted(names, column: str, answer: str | None, where) -> list[str]:
    for option, name in (("--column", column), ("--answer", answer)):
        if name is not None and name not in names:
            raise SaladError(f"{where} has no column {name!r}; it has {', '.join(names)}. Name it with {option}")
    return [name for name in names if name in {column, answer, "source", "domain", *LICENCES, *IDS}]


def _parquet(path: Path, column: str, answer: str | None) -> Iterator[dict]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(BATCH, columns=_wanted(file.schema_arrow.names, column, answer, path)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SaladError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _jsonl(path: Path, column: str, answer: str | None) -> Iterator[dict | None]:
    opened = gzip.open if path.suffix == ".gz" else open
    known = False
    try:
        with opened(path, "rb") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    yield None
                    continue
                if not known:
                    _wanted(list(row), column, answer, path)
                    known = True
                yield row
    except (OSError, EOFError) as error:
        raise SaladError(f"{path} cannot be read: {error}") from None


def _of_datasets(folder: Path, column: str, answer: str | None) -> Iterator[Document]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SaladError(f"{folder} cannot be read as a saved dataset: {str(error).splitlines()[0]}") from None
    for split, part in found.items() if isinstance(found, dict) else [(folder.name, found)]:
        part = part.select_columns(_wanted(part.column_names, column, answer, f"{folder} ({split})"))
        number = 0
        for batch in part.with_format("arrow").iter(BATCH):
            for row in batch.to_pylist():
                yield _document(row, column, answer, f"{split}:{number}", folder.name)
                number += 1
