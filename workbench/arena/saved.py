"""A saved comparison: lab/arena/a<12 hex digits>.json, read as what it has to be, whoever wrote it."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import store

LARGEST = 2_000_000  # bytes


class SavedToken(BaseModel):
    """A token of a saved answer; see answers.Token."""

    model_config = ConfigDict(allow_inf_nan=False)
    text: str
    d: float | None
    ours: list[tuple[str, float]]
    teachers: list[tuple[str, float]]


class SavedAnswer(BaseModel):
    """A saved answer; see answers.Answer.facts."""

    model_config = ConfigDict(allow_inf_nan=False)
    contender: str
    run_id: str | None
    step: int | None
    modality: str
    text: str
    ended: str
    first_s: float
    total_s: float
    n_tokens: int
    d: float | None
    gives_away: bool
    tokens: list[SavedToken]


class SavedComparison(BaseModel):
    """A saved comparison; see service.SideBySide.facts."""

    model_config = ConfigDict(allow_inf_nan=False)
    comparison: str = Field(pattern=r"^a[0-9a-f]{12}$")
    at: datetime.datetime
    text: str | None
    heard: str | None = None
    cer: float | None = None
    answer: str | None = None
    source: str = "item"
    voice: str
    duration_s: float
    notes: list[str] = []
    blind: bool = False
    choice: Literal["left", "right", "tie", "both_bad"] | None = None
    left: SavedAnswer
    right: SavedAnswer
    cascade: SavedAnswer | None = None


def read(path: Path) -> dict:
    """The facts of a saved comparison; a StoreError in one line where the file does not hold one."""
    try:
        if path.stat().st_size > LARGEST:
            raise store.StoreError(f"{path.name} is not a saved comparison: it is larger than {LARGEST // 10**6} MB")
        facts = SavedComparison.model_validate_json(path.read_bytes())
    except OSError as error:
        raise store.StoreError(f"{path.name} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise store.StoreError(f"{path.name} is not a saved comparison: {where or 'file'}: {first['msg']}") from None
    if facts.comparison != path.stem:
        raise store.StoreError(f"{path.name} holds the comparison {facts.comparison}")
    return facts.model_dump(mode="json")
