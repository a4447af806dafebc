"""Documents of a corpus, streamed: Parquet, JSONL (also .gz), or a folder that `datasets` saved.

What cannot be read costs itself: a row, or the rest of a file that is damaged, is one document with a `fault`."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from salad.errors import SaladError
from salad.prepare.recorded import files_under, json_rows, plain
from store import lines
from store.errors import StoreError

LICENCES = ("licence", "license")
IDS = ("doc_id", "id")
BATCH = 1_000  # rows read at a time


class Document(NamedTuple):
    """`text` is None where the row has none, and `fault` then says why ("empty", "unreadable", "not UTF-8", "no answer",
    "unreadable file")."""

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
        below = list(files_under(source))
        by_kind = {kind: sorted(path for path in below if path.name.lower().endswith(ends) and path.is_file())
                 for kind, ends in _ENDS.items()}  # fmt: skip
        if by_kind["packed"]:
            raise SaladError(f"{by_kind['packed'][0]} is compressed in a way that is not read here: unpack it, or use gzip")
        if by_kind["parquet"] and by_kind["jsonl"]:
            raise SaladError(
                f"{source} holds Parquet ({by_kind['parquet'][0].name} …) and JSONL ({by_kind['jsonl'][0].name} …), perhaps of "
                "the same documents: name the one that is wanted"
            )
        for kind in ("parquet", "jsonl"):
            if by_kind[kind]:
                return Files(kind, by_kind[kind])
        raise SaladError(f"{source} holds no Parquet, no JSONL and no dataset that `datasets` saved")
    if not source.is_file():
        raise SaladError(f"{source} does not exist")
    if source.suffix.lower() == ".parquet":
        return Files("parquet", [source])
    if source.name.lower().endswith((*_ENDS["jsonl"], ".json", ".json.gz")):
        return Files("jsonl", [source])
    raise SaladError(f"{source} is neither Parquet nor JSONL nor a folder of them")


_ENDS = {
    "parquet": (".parquet",), "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "packed": tuple(f".{kind}.{end}" for kind in ("jsonl", "ndjson", "json") for end in ("zst", "bz2", "xz", "lz4", "br")),
}  # fmt: skip


def read(source: Path | str, column: str = "text", answer: str | None = None) -> Iterator[Document]:
    """Documents in file order, at fixed memory. A row without text, a line that is not JSON, and the rest of a file that
    is damaged come with their fault.

    `column` holds the text, `answer` what is answered to it; `doc_id` or `id`, `licence` or `license`, `source`, and
    `domain` are taken where they are. SaladError where no file can be read, or one does not know a named column."""
    source = Path(source)
    files = find(source)
    if files.kind == "datasets":
        yield from _of_datasets(source, column, answer)
        return
    several, refused, any_read = len(files.paths) > 1, None, False
    for path in files.paths:
        rows = _parquet(path, column, answer) if files.kind == "parquet" else _jsonl(path, column, answer)
        name = path.name.partition(".")[0] if several else source.stem.partition(".")[0]
        number = 0
        try:
            for row in rows:
                any_read = True
                yield _document(row, column, answer, f"{name}:{number}", source.name)
                number += 1
        except _Unreadable as error:
            if not several and not number:
                raise SaladError(str(error)) from None
            refused = refused or str(error)
            yield Document(f"{name}:{number}", None, source.name, None, None, "unreadable file")
    if refused and not any_read:
        raise SaladError(refused)


class _Unreadable(Exception):
    """A file, or the rest of it, cannot be read."""


def _document(row: dict | str, column: str, answer: str | None, number: str, source: str) -> Document:
    """A row, or why it is none, as a document."""
    if isinstance(row, str):
        return Document(number, None, source, None, None, row)
    text = row.get(column)
    named = next((_plain(row[key]) for key in IDS if row.get(key) is not None and row[key] == row[key]), number)  # no NaN
    licence = next((_plain(row[key]) for key in LICENCES if row.get(key)), None)
    domain = _plain(row["domain"]) if row.get("domain") else None
    common = (named, _plain(row.get("source") or source), licence, domain)
    if text is not None and not isinstance(text, str):
        return Document(common[0], None, *common[1:], "unreadable")
    if text is None or not text.strip():
        return Document(common[0], None, *common[1:], "empty")
    answered = None if answer is None else row.get(answer)
    if answer is not None and (not isinstance(answered, str) or not answered.strip()):
        return Document(common[0], None, *common[1:], "no answer")
    return Document(common[0], text, *common[1:], answer=answered)


def _plain(value) -> str:
    return plain(str(value))


def _wanted(names, column: str, answer: str | None, where) -> list[str]:
    for option, name in (("--column", column), ("--answer", answer)):
        if name is not None and name not in names:
            there = ", ".join(map(_plain, names))
            raise SaladError(f"{where} has no column {name!r}; it has {there}. Name it with {option}")
    return [name for name in names if name in {column, answer, "source", "domain", *LICENCES, *IDS}]


def _parquet(path: Path, column: str, answer: str | None) -> Iterator[dict | str]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(BATCH, columns=_wanted(file.schema_arrow.names, column, answer, path)):
                yield from _rows(batch)
    except (OSError, pa.ArrowException) as error:
        raise _Unreadable(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _rows(batch: pa.RecordBatch) -> Iterator[dict | str]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # Parquet promises UTF-8 and does not check it
        for number in range(len(batch)):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                yield "not UTF-8"


def _jsonl(path: Path, column: str, answer: str | None) -> Iterator[dict | str]:
    held: list[dict | str] = []
    known = False
    try:
        for row in json_rows(path, lines.encoding_of(path, whole=False)):
            value: dict | str | None = row.value
            if value is None:
                fault = row.fault or ""
                if "from here on" in fault:
                    raise _Unreadable(f"{path} cannot be read: {fault}")
                value = "not UTF-8" if "UTF-8" in fault else "unreadable"
            if not known:
                held.append(value)
                known = isinstance(value, dict) and column in value and (answer is None or answer in value)
                if known or len(held) > BATCH:
                    if not known:
                        break
                    yield from held
                continue
            yield value
    except StoreError as error:
        raise _Unreadable(str(error)) from None
    if not known:
        _wanted(
            list(next((row_held for row_held in held if isinstance(row_held, dict)), {column: 0, answer: 0})),
            column,
            answer,
            path,
        )
        yield from held


def _of_datasets(folder: Path, column: str, answer: str | None) -> Iterator[Document]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SaladError(f"{folder} cannot be read as a saved dataset: {str(error).splitlines()[0]}") from None
    for split, part in dataset.items() if isinstance(dataset, dict) else [(folder.name, dataset)]:
        part = part.select_columns(_wanted(part.column_names, column, answer, f"{folder} ({split})"))
        number = 0
        for batch in part.with_format("arrow").iter(BATCH):
            for row in (row for piece in batch.to_batches() for row in _rows(piece)):
                yield _document(row, column, answer, f"{split}:{number}", folder.name)
                number += 1
