"""Where the lab is, and sealed JSON: a checksum inside each line or document that a reader checks."""

import functools
import importlib.metadata
import os
import subprocess
import zlib
from pathlib import Path

from . import ids

_HEAD = b'{"sum": "'


def lab_path(lab: str | Path | None = None) -> Path:
    """The lab's folder, resolved: the argument, else $SALAD_LAB, else ./lab. It need not exist."""
    return Path(lab or os.environ.get("SALAD_LAB") or "lab").expanduser().resolve()


@functools.cache
def code_version() -> str:
    """The commit of this checkout, with `+` where files differ from it, else the installed version."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return commit + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        try:
            return importlib.metadata.version("salad-workbench")
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


def seal_line(value: dict) -> bytes:
    """`value` as one JSON line whose first key, `sum`, is the CRC-32 of the bytes after it."""
    body = ids.canonical(value)[1:]
    return b'%s%08x", ' % (_HEAD, zlib.crc32(body)) + body + b"\n"


def line_is_whole(line: bytes) -> bool:
    """Whether a line's `sum`, if it has one, agrees with the rest of the line."""
    start = len(_HEAD)
    agrees = line[start : start + 8] == b"%08x" % zlib.crc32(line.rstrip(b"\n")[start + 11 :])
    return agrees == line.startswith(_HEAD)  # a sum that agrees without its head: the head was hit


def seal(document: dict) -> dict:
    """`document` with a `sum` over its content, for JSON files that are written whole."""
    content = {key: value for key, value in document.items() if key != "sum"}
    return {**content, "sum": ids.digest(content)}


def is_whole(document: dict) -> bool:
    """Whether a document's `sum`, if it has one, agrees with its content."""
    if "sum" in document:
        return seal(document)["sum"] == document["sum"]
    return not any(  # a sum that agrees under another name: the name was hit
        isinstance(value, str) and len(value) == 12 and value == ids.digest({k: v for k, v in document.items() if k != key})
        for key, value in document.items()
    )
