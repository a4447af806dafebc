"""Lists of recordings, a row each: TSV, CSV and JSON lines with a path and a text (Common Voice's, NeMo's, Emilia's …).

A row that cannot be read as it stands, or asks for what nobody can decide, is one recording with a `fault`; the others are
read. A list in which no row names a sound and a text is a SaladError.
"""

import csv
import io
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from salad.errors import SaladError
from salad.prepare.recorded import Recorded, comparable, json_rows, plain
from salad.speech.audio import SHORT_S, Unusable, decode
from store import lines
from store.errors import StoreError

AUDIO = ("audio", "path", "wav", "audio_filepath", "file_name", "file", "filename", "wav_filename", "audio_path", "audio_file",
         "file_path", "filepath")  # fmt: skip
TEXT = ("text", "sentence", "transcript", "transcription")
SPEAKER = ("speaker", "speaker_id", "client_id", "voice")
LICENCE = ("licence", "license")
START = ("start_s", "offset", "start_time")  # seconds
END = ("end_s", "end_time")
UNCLEAR = ("start", "end", "begin", "stop", "start_ms", "end_ms", "offset_ms", "start_sample", "end_sample", "start_frame",
           "end_frame", "num_frames")  # fmt: skip
BESIDE = ("", "clips", "wavs")  # folders beside a list in which its files are looked for
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.A)
_HELD = 1_000  # rows that may fail at the beginning of a list before it is held to be none
_QUOTED = 1_000  # lines that one quoted field of a CSV may span


class NotAList(SaladError):
    """A table without a column that names a sound, or without one for texts."""


class Segment(NamedTuple):
    """Which part of a sound is wanted: seconds, and the channels to average (None: all)."""

    start_s: float = 0.0
    duration_s: float | None = None
    channels: tuple[int, ...] | None = None

    def mark(self) -> str:
        """What tells it from other parts of the same file; "" for the whole."""
        channels = "" if self.channels is None else "#" + "+".join(map(str, self.channels))
        return (f"@{self.start_s:g}" if self.start_s else "") + channels


def number_of(value: Any, name: str) -> float | None:
    """A number of seconds, or None where nothing is said. Unusable for what is no number, negative or not finite."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = math.nan
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            number = float(value)
    except OverflowError:
        pass
    if not 0 <= number < 1e9:
        raise Unusable("bad number", f"{name} is {_short(value)}, not a number of seconds")
    return number


def part_of(row: dict, unclear: bool = True) -> Segment:
    """The part of its sound that a row asks for. Unusable where it cannot be told. `unclear`: whether columns such as
    `start`, whose unit is not known, are asked about."""

    def value_of(names: tuple[str, ...]) -> tuple[str, float] | None:
        values = [(name, value) for name in names if (value := number_of(row.get(name), name)) is not None]
        if len({value for _, value in values}) > 1:
            raise Unusable("bad number", " but ".join(f"{name} is {value:g}" for name, value in values))
        return values[0] if values else None

    start, end, duration = value_of(START), value_of(END), value_of(("duration", "duration_s"))
    if unclear and start is None and end is None:
        if asked := next((name for name in UNCLEAR if row.get(name) not in (None, "", 0, "0")), None):
            raise Unusable("unclear column", f"{asked} is {_short(row[asked])}: in seconds it is called start_s and end_s")
    start_s, seconds = start[1] if start else 0.0, duration[1] if duration else None
    if duration is not None and seconds == 0:
        raise Unusable("bad number", f"{duration[0]} is 0")
    if end is not None:
        if end[1] <= start_s:
            raise Unusable("bad number", f"{end[0]} is {end[1]:g}, not after {start_s:g}")
        if duration is not None and seconds is not None and abs(end[1] - start_s - seconds) > SHORT_S:
            raise Unusable("bad number", f"{end[0]} - start is {end[1] - start_s:g}, but {duration[0]} is {seconds:g}")
        seconds = end[1] - start_s
    return Segment(start_s, seconds, channels_of(row))


def channels_of(row: dict) -> tuple[int, ...] | None:
    """The channels that a row asks for, None for all: `channel`, `channels` (numbers from 0), NeMo's `channel_selector`."""
    for name in ("channel", "channels", "channel_selector"):
        value = row.get(name)
        if value in (None, "", "average"):
            continue
        values = value if isinstance(value, list) else [value]
        numbers = [int(item) for item in values if not isinstance(item, bool) and re.fullmatch(r"\d{1,4}", str(item), re.A)]
        if numbers and len(numbers) == len(values):
            return tuple(numbers)
        if name == "channel_selector" or not isinstance(value, str):  # else a word: where it was published, say
            raise Unusable("unclear column", f"{name} is {_short(value)}, not a channel's number from 0")
    return None


def _short(value) -> str:
    return plain(repr(value) if not isinstance(value, str) else repr(value)[:60])[:60]


# ------------------------------------------------------------------------------------------------ rows of a file


class _Row(NamedTuple):
    number: int
    value: dict | None
    fault: tuple[str, str] | None = None


def _read(path: Path) -> Iterator[_Row]:
    try:
        encoding = lines.encoding_of(path)
        kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        if kind in ("jsonl", "ndjson", "json"):
            for row in json_rows(path, encoding):
                yield _Row(row.number, row.value, None if row.value is not None else ("unreadable", row.fault or ""))
        else:
            yield from _table(path, encoding, ",;\t|" if kind == "csv" else "\t,;|")
    except StoreError as error:
        raise SaladError(str(error)) from None


def _table(path: Path, encoding: str, delimiters: str) -> Iterator[_Row]:
    header: list[str] | None = None
    delimiter, quoted = _dialect(path, encoding, delimiters)
    for number, fields, fault in _quoted(path, encoding, delimiter) if quoted else _plain_fields(path, encoding, delimiter):
        if header is None:
            if fields is None:
                raise SaladError(f"{path}: its first line, which names the columns, cannot be read: {fault}")
            if len(fields) == 1 and re.fullmatch("sep=.?", fields[0]) or fields == ["sep=", ""]:
                continue  # as spreadsheets write it
            header = [_column(name) for name in fields]
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice:
                raise SaladError(f"{path} has two columns {twice!r}: remove one, or give it another name")
            if not (set(header) & set(AUDIO) and set(header) & set(TEXT)):
                raise NotAList(_needs(path, header))
            continue
        if fields is None:
            yield _Row(number, None, ("unreadable", fault or ""))
        elif len(fields) == len(header):
            yield _Row(number, dict(zip(header, fields, strict=True)))
        else:
            audio_fields = {name: value for name, value in zip(header, fields, strict=False) if name in AUDIO}
            why = f"line {number} has {len(fields)} fields under {len(header)} columns"
            yield _Row(number, audio_fields, ("wrong number of fields", why))


def _column(name: str) -> str:
    """A column's name; those that are looked for may be written in capitals."""
    name = name.strip()
    return name.lower() if name.lower() in {*AUDIO, *TEXT} else name


def _dialect(path: Path, encoding: str, delimiters: str) -> tuple[str, bool]:
    """What stands between the fields of a table, and whether quotation marks enclose fields: the first of `delimiters` by
    which the header names a path and a text. Tabs part fields without quotes, unless the header has them."""
    for line in lines.lines(path, encoding):
        text = (line.text or "").strip()
        if not text or re.fullmatch("sep=.?", text):
            continue
        if "\r" in text:
            raise SaladError(f"{path} ends its lines with carriage returns alone: convert it (tr '\\r' '\\n')")
        for delimiter in delimiters:
            quotes = all(re.fullmatch(r'\s*"[^"]*"\s*', name) for name in text.split(delimiter))
            names = [_column(name.strip().strip('"')) for name in text.split(delimiter)]
            if set(names) & set(AUDIO) and set(names) & set(TEXT):
                return delimiter, delimiter != "\t" or quotes
        break
    return delimiters[0], delimiters[0] != "\t"


def _plain_fields(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str] | None, str | None]]:
    """The fields of lines in which a quotation mark is a character like any other."""
    for line in lines.lines(path, encoding):
        if line.text is None:
            yield line.number, None, line.fault
        elif line.text.strip():
            yield line.number, line.text.split(delimiter), None


def _quoted(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str] | None, str | None]]:
    """Records of RFC 4180: a quoted field may hold the delimiter, quotes (doubled) and line ends. Where a quote is not closed,
    or stands where none may, its line is one fault and the next is read."""
    waiting: list[lines.TextLine] = []
    source = lines.lines(path, encoding)

    def following() -> lines.TextLine | None:
        return waiting.pop(0) if waiting else next(source, None)

    while (line := following()) is not None:
        if line.text is None:
            yield line.number, None, line.fault
            continue
        if not line.text.strip():
            continue
        taken, more = [line], None
        while "\n".join(piece.text or "" for piece in taken).count('"') % 2 and len(taken) < _QUOTED:
            more = following()
            if more is None or more.text is None:
                break
            taken.append(more)
        text = "\n".join(piece.text or "" for piece in taken)
        try:
            (fields,) = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            yield line.number, fields, None
            continue
        except (csv.Error, ValueError) as error:
            yield line.number, None, f"its quotes do not match ({error})"
        waiting[:0] = taken[1:] + ([more] if more is not None and more not in taken else [])


def _needs(path: Path, names) -> str:
    return f"{path}: a row needs a path ({', '.join(AUDIO)}) and a text ({', '.join(TEXT)}); it has {', '.join(map(str, names))}"


def listed(path: Path, folder: Path, licence: str | None = None, unclear: bool = True) -> Iterator[Recorded]:
    """The recordings of a list, with files relative to `folder`. NotAList where no row is one."""
    held: list[_Row] = []
    known = False
    for row in _read(path):
        if not known:
            if row.value is None or row.fault or not (set(row.value) & set(AUDIO) and set(row.value) & set(TEXT)):
                held.append(row)
                if len(held) > _HELD:
                    break
                continue
            known = True
            for earlier in held:
                yield _recorded(earlier, path, folder, licence, unclear)
        yield _recorded(row, path, folder, licence, unclear)
    if known or not held:
        return
    named = next((row for row in held if row.value is not None and row.fault is None), None)
    if named is not None:
        raise NotAList(_needs(path, named.value))
    for earlier in held:  # a table whose rows all have a fault
        yield _recorded(earlier, path, folder, licence, unclear)


def _recorded(row: _Row, path: Path, folder: Path, licence: str | None, unclear: bool) -> Recorded:
    value, fault, part = row.value or {}, row.fault, Segment()
    if fault is None and lines.has_surrogate(value):
        fault = ("unreadable", f"line {row.number} holds half of a surrogate pair, which is no character")
    sound = value.get("audio")  # as `datasets` writes one that lies in a file
    if isinstance(sound, dict) and isinstance(sound.get("path"), str) and not sound.get("bytes"):
        value = value | {"audio": sound["path"]}
    audio, text = named(value, AUDIO), named(value, TEXT)
    file = None if audio is None else relative(audio, folder)
    if fault is None:
        odd = next((name for name in (*AUDIO, *TEXT) if isinstance(value.get(name), (list, dict, bool))), None)
        if odd:
            fault = ("unreadable", f"line {row.number}: {odd} is {_short(value[odd])}, not a text")
    if fault is None:
        try:
            part = part_of(value, unclear)
        except Unusable as error:
            fault = error.args
    own = named(value, ("id", "utt_id"))
    extra = {"dnsmos": value["dnsmos"]} if isinstance(value.get("dnsmos"), (int, float, str)) and "dnsmos" in value else {}
    return Recorded(
        own or (Path(audio).stem if audio else f"{path.stem}-{row.number}"), " ".join((text or "").split()),
        named(value, SPEAKER) or "unknown",
        lambda longest_s=None: load(folder, audio, part, longest_s),
        named(value, LICENCE) or licence, named(value, ("domain",)), extra,
        fault if fault is None or row.value is None else (fault[0], _with_line(fault[1], row.number)),
        named(value, ("answer",)), f"{file or path.stem + ':' + str(row.number)}{part.mark()}", own is not None,
        file and comparable(file),
    )  # fmt: skip


def _with_line(detail: str, number: int) -> str:
    return detail if detail.startswith("line ") else f"line {number}: {detail}"


def relative(audio: str, folder: Path) -> str:
    """A file of a list as its place is told: relative to the list's folder where it lies under it."""
    name = posixpath.normpath(audio)
    root = posixpath.normpath(str(folder)) + "/"
    return name.removeprefix(root)


def load(folder: Path, audio: str | None, part: Segment, longest_s: float | None = None) -> tuple[np.ndarray, int]:
    """A part of a list's file, which lies in `folder`, or in `clips` or `wavs` there."""
    if not audio:
        raise Unusable("missing", "the row names no file")
    spellings = dict.fromkeys([audio, audio.strip(), audio.replace("\\", "/"), comparable(audio),
                               unicodedata.normalize("NFD", comparable(audio))])  # fmt: skip
    places = [folder / beside / spelling for spelling in spellings for beside in BESIDE]
    return decode(first_file(places), part.start_s, part.duration_s, part.channels, longest_s)


def first_file(places: list[Path]) -> Path:
    """The first of the places where a file is; the first place where there is none."""
    for place in places:
        try:
            if place.is_file():
                return place
        except (OSError, ValueError):  # a name that no file can have
            continue
    return places[0]


def named(row: dict, names: tuple[str, ...]) -> str | None:
    """The first of some columns that holds a text or a number."""
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            continue  # pandas writes NaN where it has nothing
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None
