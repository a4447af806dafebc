"""JSON lines that grow while they are read: whole lines are taken, torn and damaged ones named."""

import json
import os
from pathlib import Path

from .lab import line_is_whole


def parse_lines(data: bytes, start_line: int = 1) -> tuple[list[dict], int, list[str]]:
    """JSON lines of `data`: the dicts, the bytes up to the last whole line, and what is wrong with which line."""
    end = data.rfind(b"\n") + 1
    rows, wrong = [], []
    for number, line in enumerate(data[:end].splitlines(keepends=True), start_line):
        try:
            if not line_is_whole(line):
                raise ValueError
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
            rows.append(row)
        except (ValueError, RecursionError):
            if line.strip():
                wrong.append(f"line {number} is damaged and left out")
    return rows, end, wrong


def read_new(path: Path, known: tuple | None) -> tuple:
    """(inode, bytes, lines, items, damage) of a growing JSONL file, taking up where `known` ended."""
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        if known and known[0] == stat.st_ino and known[1] <= stat.st_size and known[5] == stat.st_mtime_ns:
            return known
        if not known or known[0] != stat.st_ino or known[1] >= stat.st_size:  # new, or not merely grown
            known = (stat.st_ino, 0, 0, [], [], 0)
        file.seek(known[1])
        data = file.read()
    rows, end, wrong = parse_lines(data, known[2] + 1)
    return (
        stat.st_ino,
        known[1] + end,
        known[2] + data[:end].count(b"\n"),
        known[3] + rows,
        known[4] + wrong,
        stat.st_mtime_ns,
    )
