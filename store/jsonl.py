"""JSON lines that grow while they are read: whole lines are taken, torn and damaged ones named. And the file of them
that one process appends to."""

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from .lab import line_is_whole

IDLE_DAYS = 7  # a file that another machine's process appends to counts as finished when it has not changed for this long


class Line(dict):
    """What one whole line holds; `number` is the line's in its file, from 1."""

    __slots__ = ("number",)

    def __init__(self, number: int, value: dict):
        super().__init__(value)
        self.number = number


class Lines(NamedTuple):
    """What has been read of a growing file: the bytes and lines up to the last newline, and what is wrong with which."""

    inode: int
    size: int
    n_lines: int
    lines: list[Line]
    damage: list[str]
    mtime_ns: int


def parse_lines(data: bytes, start_line: int = 1) -> tuple[list[Line], int, list[str]]:
    """JSON lines of `data`: the dicts, the bytes up to the last whole line, and what is wrong with which line."""
    end = data.rfind(b"\n") + 1
    rows, damage = [], []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start_line):
        try:
            if not line_is_whole(line):
                raise ValueError
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
            rows.append(Line(number, row))
        except (ValueError, RecursionError):
            if line.strip():
                damage.append(f"line {number} is damaged and left out")
    return rows, end, damage


def read_new(path: Path, earlier: Lines | None) -> Lines:
    """What a growing JSONL file holds, taking up where `known` ended. Raises OSError."""
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        if earlier and earlier.inode == stat.st_ino and earlier.size <= stat.st_size and earlier.mtime_ns == stat.st_mtime_ns:
            return earlier
        if not earlier or earlier.inode != stat.st_ino or earlier.size >= stat.st_size:  # new, or not merely grown
            earlier = Lines(stat.st_ino, 0, 0, [], [], 0)
        file.seek(earlier.size)
        data = file.read()
    rows, end, damage = parse_lines(data, earlier.n_lines + 1)
    return Lines(
        stat.st_ino, earlier.size + end, earlier.n_lines + data[:end].count(b"\n"), earlier.lines + rows, earlier.damage + damage,
        stat.st_mtime_ns,
    )  # fmt: skip


def plain(value: Any, depth: int = 0) -> Any:
    """`value`, as `json` reads it, where every other reader takes it too; else ValueError: a text that is not Unicode, a
    number that is not finite or no 64-bit integer, nesting beyond 100."""
    if depth > 100:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise ValueError("a text that is not Unicode")
    elif isinstance(value, dict):
        for key, child in value.items():
            plain(key, depth + 1)
            plain(child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            plain(child, depth + 1)
    elif isinstance(value, float):
        if value - value != 0:
            raise ValueError("a number that is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number beyond 64 bits")
    return value


def host() -> str:
    """This machine's name, as file names have it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:60]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def writer_ended(path: Path) -> bool:
    """Whether the process that an `Appender`'s file is named after has ended: by its number on this machine, and on another
    one where the file has not changed for IDLE_DAYS. Raises OSError."""
    name = re.fullmatch(r"(.+)-(\d+)-(\d+)\.jsonl?", path.name)
    if name and name[1] == host():
        return not _alive(int(name[2]))
    return time.time() - path.stat().st_mtime > IDLE_DAYS * 86400


class NotTakenBack(OSError):
    """A write failed, and what had been written of it could not be removed either: it may be there or not."""


class Appender:
    """A JSONL file that this process alone writes, named after it; one line is one write, flushed to the disk."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{host()}-{os.getpid()}-{time.time_ns()}.jsonl"
        self.handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self.size = 0
        self.lines = 0

    def write(self, line: bytes) -> None:
        """Append one line, or several. Raises OSError, and then nothing of them is there, or NotTakenBack, after which this
        file is not to be written again (`is_there` is false)."""
        try:
            done = 0
            while done < len(line):
                done += os.write(self.handle, line[done:])
            os.fsync(self.handle)
        except OSError as error:
            try:
                os.ftruncate(self.handle, self.size)  # half a line must not spoil the next one
            except OSError:
                self.size = -1
                raise NotTakenBack(error.errno, error.strerror) from error
            raise
        self.size += len(line)
        self.lines += line.count(b"\n")

    def is_there(self) -> bool:
        """False where someone moved, removed or cut the file: writing on would lose lines, or hide a loss."""
        try:
            stat = os.stat(self.path)
            return stat.st_ino == os.fstat(self.handle).st_ino and stat.st_size == self.size
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        os.close(self.handle)
