"""What every layout of recordings gives: one recording that is listed, not decoded yet. Names and texts of anybody's."""

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from store import lines


@dataclass(frozen=True)
class Recorded:
    """A recording that is listed. `load(longest_s)` gives float32 [T] and its rate in Hz, or raises
    salad.speech.audio.Unusable. `fault`: the (reason, detail) for which it is set aside unheard; `answer`: what a chat
    answers to the text.

    `place`: file, start and channel, which tell one recording from another where two have the same `id`; `own_id`: whether
    the source itself gives the id. `file`: what is listed, as the list has it."""

    id: str
    text: str
    speaker: str
    load: Callable[..., tuple[np.ndarray, int]]
    licence: str | None = None
    domain: str | None = None
    custom: dict = field(default_factory=dict)
    fault: tuple[str, str] | None = None
    answer: str | None = None
    place: str = ""
    own_id: bool = True
    file: str | None = None


def not_loaded(fault: tuple[str, str]) -> Callable[..., tuple[np.ndarray, int]]:
    """What loads a recording that is set aside: it raises salad.speech.audio.Unusable with the reason."""

    def load(longest_s: float | None = None) -> tuple[np.ndarray, int]:
        from salad.speech.audio import Unusable

        raise Unusable(*fault)

    return load


def check_name(name: str) -> None:
    """SaladError for a name of a corpus that is not one folder's."""
    if not name or name != Path(name).name or name.startswith(".") or any(ord(c) < 32 for c in name):
        raise SaladError(f"--name {name!r} is no name for a folder: take letters, digits, - and _")


def plain(text: str) -> str:
    """A text of anybody's that can be written into a file of one's own: halves of surrogate pairs as \\udXXX."""
    return text.encode("utf-8", "backslashreplace").decode()


def comparable(name: str) -> str:
    """A file's name in the form in which names from lists and from disks are compared: accents in one form of Unicode (some
    systems write them in two characters), `/` between folders, no blanks around it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").strip())


def files_under(folder: Path) -> Iterator[Path]:
    """The files below a folder, in no order. Links to folders are followed, each real folder once, so that a link to a
    folder above ends. Raises SaladError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise SaladError(f"{error.filename} cannot be read: {error.strerror}") from None

    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(root, name) for name in names)


def json_rows(path: Path, encoding: str) -> Iterator[lines.Row]:
    """The objects of JSON lines, or of a file that is one JSON array of objects, which is read as a whole. An array's
    objects are numbered in place of lines. Raises StoreError where the file cannot be opened."""
    first = next((line.text for line in lines.lines(path, encoding) if line.text is None or line.text.strip()), None)
    if first is None or not first.lstrip().startswith("[") or ".json" not in path.name.lower() or ".jsonl" in path.name.lower():
        yield from lines.rows(path, encoding)
        return
    text = "\n".join(line.text if line.text is not None else "\udc80" for line in lines.lines(path, encoding))
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield lines.Row(1, None, f"it is not one JSON array ({error}), from here on")
        return
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            yield lines.Row(number, None, f"it is not a JSON object but {type(item).__name__}")
        elif lines.has_surrogate(item):
            yield lines.Row(number, None, "it holds half of a surrogate pair, or a byte that is not UTF-8")
        else:
            yield lines.Row(number, item)
