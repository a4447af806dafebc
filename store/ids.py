"""Ids: a letter and 12 hex digits of a hash of what the thing is, the same on every machine."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """`value` as JSON bytes that depend on its content only."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:12]


def hash_id(letter: str, *parts: Any) -> str:
    """An id: `letter` and 12 hex digits of the hash of `parts`, which JSON can hold."""
    return letter + digest(list(parts))


def sample_id(corpus: str, text: str) -> str:
    """The id of a text in a corpus: `s` and 12 hex digits."""
    return hash_id("s", corpus, text)


def synthesis_id(sample_id: str, tts: str, voice: str, seed: int) -> str:
    """The id of a spoken text: `y` and 12 hex digits of its text's id, the synthesizer, the voice and the seed."""
    return hash_id("y", sample_id, tts, voice, seed)


def clustering_id(made_from: dict) -> str:
    """The id of a clustering: `c` and 12 hex digits of what it was made from."""
    return hash_id("c", made_from)


def selection_id(made_from: dict) -> str:
    """The id of a selection: `l` and 12 hex digits of what it was made from."""
    return hash_id("l", made_from)


def run_id(config: dict, parent_run_id: str | None = None, repetition: int = 0) -> str:
    """The id of a run: `r` and 12 hex digits of its configuration, its parent and its repetition."""
    return hash_id("r", config, parent_run_id, repetition)
