"""WebDataset tars, the form in which Emilia is published: <key>.mp3 and <key>.json, read where they lie.

One tar after the other: its headers and JSON are read once, into an index (kept in `cache` while the tar stays as it
is), and a recording's bytes when it is its turn. Nothing is unpacked, and memory is one tar's index.

| repository folder | JSON | licence |
| --- | --- | --- |
| Emilia/EN/EN-B000000.tar … | id, wav, text, duration, speaker, language, dnsmos | CC BY-NC 4.0 |
| Emilia-YODAS/EN/EN-B000000.tar … | _id, text, duration, speaker, language, dnsmos, phone_count | CC BY 4.0 |
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from salad.errors import SaladError
from store import atomic

AUDIO = {"mp3", "flac", "wav", "ogg", "opus"}
BLOCK = tarfile.BLOCKSIZE
VERSION = 1
INDEX = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "speaker", "licence", "language")]
    + [("duration", pa.float64()), ("dnsmos", pa.float64()), ("offset", pa.int64()), ("size", pa.int64())]
    + [("reason", pa.string()), ("detail", pa.string())]
)


def find(source: Path, language: str) -> list[Path]:
    """The tars of a file or folder, in order. Where folders are named by languages (EN, DE …), that language's."""
    if source.is_file():
        return [source]
    found = sorted(source.rglob("*.tar"))

    def of_language(path: Path) -> bool:
        name = path.parent.name
        return not (len(name) == 2 and name.isupper()) or name == language.upper()

    kept = [path for path in found if of_language(path)]
    if not kept:
        there = sorted({path.parent.name for path in found})
        packed = next(source.rglob("*.tar.gz"), None)
        raise SaladError(
            f"{source} holds no tar"
            + (f" in {language!r}; it has {', '.join(there)}" if there else "")
            + (f"; {packed.name} is compressed: gunzip it first" if packed and not there else "")
        )
    return kept


def estimate(source: Path, language: str, cache: Path | None) -> int:
    """About how many recordings there are: as many per byte as in the first tar."""
    found = find(source, language)
    first = index(found[0], cache).num_rows
    return round(first * sum(path.stat().st_size for path in found) / max(found[0].stat().st_size, 1))


def index(path: Path, cache: Path | None = None) -> pa.Table:
    """A row for every recording that the tar lists, in its order, those that cannot be read with the reason: a half
    of a pair that is missing, JSON that is none. So does each stretch of the tar that holds no member, as one row."""
    stat = path.stat()
    mark = json.dumps([VERSION, str(path), stat.st_size, stat.st_mtime_ns])
    kept = None if cache is None else cache / f"{path.stem}-{xxhash.xxh3_64_hexdigest(str(path).encode())}.parquet"
    if kept is not None and kept.exists():
        try:
            table = pq.read_table(kept)
            if table.schema.metadata.get(b"tar") == mark.encode():
                return table
        except (OSError, pa.ArrowException):
            pass  # read again
    table = pa.Table.from_pylist(_scan(path, stat.st_size), schema=INDEX).replace_schema_metadata({"tar": mark})
    if kept is not None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        atomic.write_bytes(kept, buffer.getvalue())
    return table


def read(path: Path, offset: int, size: int) -> bytes:
    """A member's bytes. OSError where the file cannot be read."""
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)


def _scan(path: Path, length: int) -> list[dict]:
    rows: list[dict] = []
    open_pairs: dict[str, dict] = {}  # key -> its row, while a half is missing
    end = 0  # of what has been understood

    def lost(start: int, stop: int) -> None:
        if _anything(file, start, stop):
            told = f"bytes {start} to {stop} of {path.name} hold no member: fetch the tar again"
            rows.append({"id": f"{path.stem}@{start}", "reason": "unreadable", "detail": told})

    with open(path, "rb") as file:
        for member in _members(path):
            if member.offset > end:
                lost(end, member.offset)
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            if not member.isfile() or extension not in {"json", *AUDIO}:
                continue
            key, half = f"{folder}/{stem}", "json" if extension == "json" else "audio"
            row = open_pairs.get(key)
            if row is None or half in row:  # the same half again is another recording, of the same name
                row = open_pairs[key] = {"id": stem}
                rows.append(row)
            whole = member.offset_data + member.size <= length
            if half == "audio":
                row |= {"audio": True, "offset": member.offset_data, "size": member.size}
            else:
                row["json"] = True
                row |= _told(os.pread(file.fileno(), member.size, member.offset_data) if whole else b"", path)
            if not whole:
                row |= {"reason": "truncated", "detail": f"{path.name} ends at byte {length}, in the middle of {member.name}"}
            if "json" in row and "audio" in row:
                del open_pairs[key]
        if end < length:
            lost(end, length)
        elif length == 0:
            rows.append({"id": f"{path.stem}@0", "reason": "unreadable", "detail": f"{path.name} is empty: fetch it again"})
    for row in rows:
        if row.get("reason") is None and "audio" not in row:
            row |= {"reason": "missing", "detail": f"no sound beside {row['id']}.json in {path.name}"}
        elif row.get("reason") is None and "json" not in row:
            row |= {"reason": "no text", "detail": f"no {row['id']}.json in {path.name}"}
    return [{key: value for key, value in row.items() if key not in ("json", "audio")} for row in rows]


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers, also those behind a damaged one."""
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # else it keeps them all
    except tarfile.ReadError:  # it ends too early, or is no tar: the caller sees what is left
        return
    except OSError as error:
        raise SaladError(f"{path} cannot be read: {error.strerror}") from None


def _anything(file, start: int, stop: int) -> bool:
    for at in range(start, stop, 1 << 20):
        if os.pread(file.fileno(), min(1 << 20, stop - at), at).strip(b"\0"):
            return True
    return False


def _told(data: bytes, path: Path) -> dict:
    """What a recording's JSON says, as columns of the index."""
    try:
        row = json.loads(data)
    except ValueError as error:
        return {"reason": "unreadable", "detail": f"its JSON is damaged ({error})"}
    if not isinstance(row, dict):
        return {"reason": "unreadable", "detail": "its JSON is no object"}
    told = {"text": row.get("text"), "speaker": row.get("speaker"), "language": row.get("language"),
            "licence": row.get("licence") or row.get("license")}  # fmt: skip
    told = {key: str(value) for key, value in told.items() if value not in (None, "")}
    if name := row.get("id") or row.get("_id"):
        told["id"] = str(name)
    for key in ("duration", "dnsmos"):
        if isinstance(row.get(key), (int, float)):
            told[key] = float(row[key])
    if "licence" not in told and "dnsmos" in row:
        told["licence"] = "CC BY 4.0" if "_id" in row or "Emilia-YODAS" in path.parts else "CC BY-NC 4.0"
    return told
