"""Items as everyone here sees them, and the files of lab/tasks.

lab/tasks/<task>.jsonl is one of two things, told apart by its first line: items of our own (item_id, context, choices,
answer, and domain if they have one), or the rows of a data set that an lm-evaluation-harness task of that name reads
(PIQA's goal, sol1, sol2, label, for example). lab/tasks/<task>.examples.jsonl holds the rows that few-shot examples
are taken from, where there are such. `salad.evaluation.harness` makes tasks of them; `salad.evaluation.tasks` has the
items of any task.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import store
from salad.errors import SaladError
from store import lines


@dataclass(frozen=True)
class Item:
    """A multiple-choice item. `context` is what is spoken of it; a choice continues it after one space; `answer` is the
    right one's index. An open question (of a generating task) has no choices and `answer` -1, its reference in
    `reference`."""

    item_id: str
    task: str
    domain: str
    context: str
    choices: tuple[str, ...]
    answer: int
    reference: str | None = None


def names(lab: Path | str) -> list[str]:
    """The tasks of lab/tasks/*.jsonl."""
    return sorted(path.stem for path in (Path(lab) / "tasks").glob("*.jsonl") if "." not in path.stem)


def unknown(lab: Path | str, task: str, others: Sequence[str] = ()) -> SaladError:
    """What to say of a task that does not exist: the nearest that does."""
    near = difflib.get_close_matches(task, [*names(lab), *others], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the lab's own: {', '.join(names(lab)) or 'none'}"
    return SaladError(f"no task {task!r} in {Path(lab) / 'tasks'} or in lm-evaluation-harness; {hint}")


def written(path: Path | str) -> Iterator[lines.TextLine]:
    """The lines of a text file that people bring, in any encoding that says which it is; one that cannot be read is a
    SaladError with its number."""
    path = Path(path)
    store.files.check(path)
    try:
        for line in lines.lines(path, lines.encoding_of(path)):
            if line.text is None or lines.has_surrogate(line.text):
                raise SaladError(f"{path} line {line.number}: {line.fault or 'it holds half of a surrogate pair'}")
            yield line
    except store.StoreError as error:
        if not path.is_file():
            raise SaladError(f"{path} cannot be read: it is no file") from None
        raise SaladError(str(error)) from None


def objects(path: Path | str) -> Iterator[tuple[int, dict]]:
    """(line number, object) of JSON lines; a line that is no object is a SaladError with its number. Empty lines are
    passed over."""
    for line in written(path):
        text = line.text or ""  # `written` has raised for a line that is none
        if text.strip():
            found, fault = lines.parsed(text)
            if found is None:
                raise SaladError(f"{path} line {line.number} is no JSON object: {fault}")
            yield line.number, found


def rows(path: Path) -> list[dict]:
    """The objects of a task's file."""
    found = [row for _, row in objects(path)]
    if not found:
        raise SaladError(f"{path} holds no item")
    return found


def is_ours(first: dict) -> bool:
    """Whether a file that begins with this object holds items of our own."""
    return "context" in first and "choices" in first


def own(path: Path, task: str) -> list[Item]:
    """The items of our own that a file holds; a broken item is a SaladError that says which."""
    items = []
    for number, raw in objects(path):
        try:
            if not isinstance(raw["choices"], list) or not isinstance(raw["context"], str) or type(raw["answer"]) is not int:
                wanted = "choices are a list, context is a text, answer the right one's number"
                raise SaladError(f"{path} line {number}: something is missing or wrong: {wanted}")
            choices = tuple(str(choice) for choice in raw["choices"])
            item = Item(raw["item_id"], task, raw.get("domain", task), raw["context"], choices, raw["answer"])
            check(item, f"{path} line {number}")
        except (KeyError, TypeError, AttributeError) as error:
            raise SaladError(f"{path} line {number}: {error} is missing or wrong") from None
        items.append(item)
    return items


def check(item: Item, where: str) -> None:
    """SaladError, naming the item, where it lacks choices, an answer or a context."""
    if item.reference is None and (len(item.choices) < 2 or not all(choice.strip() for choice in item.choices)):
        raise SaladError(f"{where}: item {item.item_id} lacks choices: it has {sum(map(bool, item.choices))}")
    if item.reference is None and not 0 <= item.answer < len(item.choices):
        raise SaladError(f"{where}: item {item.item_id} has answer {item.answer}, which is none of its choices")
    if not item.context.strip():
        raise SaladError(f"{where}: item {item.item_id} has an empty context, so that there is nothing to speak")
