"""What every layout of recordings gives: one recording that is listed, not decoded yet. Names and texts of anybody's."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from salad.errors import SaladError


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


def check_name(name: str) -> None:
    """SaladError for a name of a corpus that is not one folder's."""
    if not name or name != Path(name).name or name.startswith(".") or any(ord(c) < 32 for c in name):
        raise SaladError(f"--name {name!r} is no name for a folder: take letters, digits, - and _")


def plain(text: str) -> str:
    """A text of anybody's that can be written into a file of one's own: halves of surrogate pairs as \\udXXX."""
    return text.encode("utf-8", "backslashreplace").decode()
