"""Tasks: items of lab/tasks/<task>.jsonl, one JSON object a line."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from salad.errors import SaladError


@dataclass(frozen=True)
class Item:
    """A multiple-choice item. A choice continues the context after one space; `answer` is the right one's index."""

    item_id: str
    task: str
    domain: str
    context: str
    choices: tuple[str, ...]
    answer: int


def names(lab: Path | str) -> list[str]:
    return sorted(path.stem for path in (Path(lab) / "tasks").glob("*.jsonl"))


def load(lab: Path | str, task: str) -> list[Item]:
    """The items of a task; an unknown task or a broken item is a SaladError that says which."""
    path = Path(lab) / "tasks" / f"{task}.jsonl"
    if not path.is_file():
        near = difflib.get_close_matches(task, names(lab), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names(lab)) or 'none'}"
        raise SaladError(f"no task {task!r} in {lab}; {hint}")
    items = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            raw = json.loads(line)
            choices = tuple(raw["choices"])
            item = Item(raw["item_id"], task, raw.get("domain", task), raw["context"], choices, raw["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise SaladError(f"{path} line {number}: {error} is missing or wrong") from None
        if len(item.choices) < 2 or not 0 <= item.answer < len(item.choices):
            raise SaladError(f"{path} line {number}: item {item.item_id} lacks choices or its answer is none of them")
        if not item.context.strip():
            raise SaladError(f"{path} line {number}: item {item.item_id} has an empty context")
        items.append(item)
    return items
