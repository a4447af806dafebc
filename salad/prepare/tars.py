"""WebDataset tars, the form in which Emilia is published: <key>.mp3 and <key>.json, read where they lie.

One tar after the other: its headers and JSON are read once, into an index (kept in `cache` while the tar stays as it
is), and a recording's bytes when it is its turn. Nothing is unpacked, and memory is one tar's index.

Keys and extensions are as the webdataset library has them: the key is the path up to the first dot of the file's name,
folder included, and what follows is the extension, of which the last part tells the kind (`a.speech.flac`). The text is
the JSON's, or `<key>.txt`.

| repository folder | JSON | licence |
| --- | --- | --- |
| Emilia/EN/EN-B000000.tar … | id, wav, text, duration, speaker, language, dnsmos | CC BY-NC 4.0 |
| Emilia-YODAS/EN/EN-B000000.tar … | _id, text, duration, speaker, language, dnsmos, phone_count | CC BY 4.0 |
"""

import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from salad.errors import SaladError
from salad.prepare.lists import LICENCE, SPEAKER, named, part_of
from salad.prepare.recorded import files_under, plain
from salad.speech.audio import Unusable
from store import atomic, lines

AUDIO = frozenset("mp3 flac wav ogg oga opus m4a mp4 aac aif aiff aifc au caf w64 rf64 sph webm mka amr wma voc".split())
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own
BLOCK = tarfile.BLOCKSIZE
VERSION = 2
INDEX = pa.schema(
    [(name, pa.string()) for name in ("id", "key", "text", "speaker", "licence", "language", "answer")]
    + [("own_id", pa.bool_()), ("start", pa.float64()), ("channels", pa.list_(pa.int32()))]
    + [("duration", pa.float64()), ("dnsmos", pa.float64()), ("offset", pa.int64()), ("size", pa.int64())]
    + [("reason", pa.string()), ("detail", pa.string())]
)


def find(source: Path, language: str) -> list[Path]:
    """The tars of a file or folder, in order. Where folders are named by languages (EN, DE …), that language's."""
    if source.is_file():
        return [source]
    paths = sorted(path for path in files_under(source) if path.name.endswith((".tar", ".tar.gz", ".tgz")))

    code = re.split("[-_]", language)[0].upper()

    def of_language(path: Path) -> bool:
        name = path.parent.name
        return not (len(name) == 2 and name.isupper()) or name == code or code == "ANY"

    kept = [path for path in paths if of_language(path)]
    if not kept or all(path.suffix != ".tar" for path in kept):
        there = sorted({path.parent.name for path in paths if not of_language(path)})
        packed = next(iter(kept), None)
        raise SaladError(
            f"{source} holds no tar"
            + (f" in {language!r}; it has {', '.join(there)}" if there else "")
            + (f"; {packed.name} is compressed: gunzip it first" if packed and not there else "")
        )
    return kept


def estimate(source: Path, language: str, cache: Path | None) -> int:
    """About how many recordings there are: as many per byte as in the first tar."""
    paths = find(source, language)
    first = index(paths[0], cache).num_rows
    return round(first * sum(path.stat().st_size for path in paths) / max(paths[0].stat().st_size, 1))


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
    last: dict[str, dict] = {}  # key -> its row, whole
    end = 0  # of what has been understood

    def lost(start: int, stop: int) -> None:
        if _anything(file, start, stop):
            detail = f"bytes {start} to {stop} of {path.name} hold no member: fetch the tar again"
            rows.append({"id": f"{path.stem}@{start}", "reason": "unreadable", "detail": detail})

    with open(path, "rb") as file:
        if os.pread(file.fileno(), 2, 0) == b"\x1f\x8b":
            return [{"id": f"{path.stem}@0", "reason": "unreadable", "detail": f"{path.name} is compressed: gunzip it first"}]
        for member in _members(path):
            if member.offset > end:
                lost(end, member.offset)
            end = max(end, member.offset_data + -(-max(member.size, 0) // BLOCK) * BLOCK)
            name = plain(member.name)
            key, extension = split(name)
            half = _half(extension)
            if half is None or _META.match(name):
                continue
            row = open_pairs.get(key) or (last.get(key) if half != "json" else None)
            if half == "audio" and row is not None and row.get("extension", extension) != extension:
                detail = f"{row['key']} has two sounds, .{row['extension']} and .{extension}: a key ends at the first dot"
                row |= {"reason": "unclear", "detail": detail}
                rows.append({"id": name.rpartition("/")[2], "key": name, "own_id": False, "reason": "unclear", "detail": detail})
                continue
            if row is None or half in row:  # the same half again is another recording, of the same name
                row = open_pairs[key] = {"id": key.rpartition("/")[2] or name, "key": key, "own_id": False}
                rows.append(row)
            row[half] = True
            if half == "audio":
                row["extension"] = extension
            if not member.isreg() or member.issparse():
                kind = "a sparse file" if member.issparse() else "a link, or no plain file"
                row |= {"reason": "unreadable", "detail": f"{name} is {kind}"}
                continue
            whole = member.offset_data + member.size <= length
            data = os.pread(file.fileno(), member.size, member.offset_data) if whole and half != "audio" else b""
            if half == "audio":
                row |= {"offset": member.offset_data, "size": member.size}
            elif half == "json":
                columns = _columns(data, path)
                row |= {name: value for name, value in columns.items() if name != "text" or value or "text" not in row}
            elif not row.get("text"):
                row |= _written(data)
            if not whole:
                row |= {"reason": "truncated", "detail": f"{path.name} ends at byte {length}, in the middle of {name}"}
            if "json" in row and "audio" in row:
                last[key] = open_pairs.pop(key, row)
        if end < length:
            lost(end, length)
        elif length == 0:
            rows.append({"id": f"{path.stem}@0", "reason": "unreadable", "detail": f"{path.name} is empty: fetch it again"})
    for row in rows:
        if row.get("reason") is None and "audio" not in row:
            row |= {"reason": "missing", "detail": f"no sound beside {row['id']}.json in {path.name}"}
        elif row.get("reason") is None and "json" not in row and "txt" not in row:
            row |= {"reason": "no text", "detail": f"no {row['id']}.json in {path.name}"}
    return [{key: value for key, value in row.items() if key in INDEX.names} for row in rows]


def split(name: str) -> tuple[str, str]:
    """Key and extension of a member, as webdataset's `base_plus_ext`: up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _half(extension: str) -> str | None:
    """Which half of a recording an extension stands for: audio (by its last part), json, txt; None for anything else."""
    if extension.rpartition(".")[2] in AUDIO:
        return "audio"
    return extension if extension in ("json", "txt") else None


def _written(data: bytes) -> dict:
    try:
        return {"text": data.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        return {"reason": "unreadable", "detail": f"its text is not UTF-8 (byte 0x{data[error.start]:02x})"}


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers, also those behind a damaged one."""
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
    except tarfile.ReadError:  # it ends too early, or is no tar: the caller sees what is left
        return
    except OSError as error:
        raise SaladError(f"{path} cannot be read: {error.strerror}") from None


def _anything(file, start: int, stop: int) -> bool:
    for at in range(start, stop, 1 << 20):
        if os.pread(file.fileno(), min(1 << 20, stop - at), at).strip(b"\0"):
            return True
    return False


def _columns(data: bytes, path: Path) -> dict:
    """What a recording's JSON says, as columns of the index."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # UTF-16 too is read, as JSON's standard has it
        return {"reason": "unreadable", "detail": f"its JSON is damaged ({plain(str(error))})"}
    if not isinstance(value, dict):
        return {"reason": "unreadable", "detail": "its JSON is no object"}
    if lines.has_surrogate(value):
        return {"reason": "unreadable", "detail": "its JSON holds half of a surrogate pair, which is no character"}
    values = {"text": value.get("text"), "speaker": named(value, SPEAKER), "language": value.get("language"),
              "licence": named(value, LICENCE), "answer": value.get("answer")}  # fmt: skip
    columns: dict = {
        key: str(item)
        for key, item in values.items()
        if item not in (None, "")
        and not isinstance(item, (list, dict, bool))
        and (not isinstance(item, float) or math.isfinite(item))
    }
    if name := value.get("id") or value.get("_id"):
        columns |= {"id": str(name), "own_id": True}
    if isinstance(value.get("dnsmos"), (int, float)) and math.isfinite(value["dnsmos"]):
        columns["dnsmos"] = float(value["dnsmos"])
    try:
        part = part_of(value, unclear=False)
        columns |= {"start": part.start_s, "duration": part.duration_s, "channels": part.channels and list(part.channels)}
    except Unusable as error:
        columns |= {"reason": error.args[0], "detail": error.args[1]}
    if "licence" not in columns and "dnsmos" in value:
        columns["licence"] = "CC BY 4.0" if "_id" in value or "Emilia-YODAS" in path.parts else "CC BY-NC 4.0"
    return columns
