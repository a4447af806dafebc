"""Answers of systems that are run elsewhere: `salad import-predictions FILE.jsonl`.

One JSON object a line: contender, task, item, modality, and `scores` (a log-probability for each choice) or `text` (an
answer in words); voice, tts (the synthesiser) and asr (a cascade's recogniser) where they are known."""

import hashlib
from pathlib import Path

import store
from salad.errors import SaladError
from salad.evaluation import harness
from salad.evaluation.harness import FLOORS, MODALITIES
from salad.evaluation.items import objects
from salad.evaluation.run import grade
from store.ids import hash_id


def read(lab: Path | str, path: Path | str) -> list[dict]:
    """The rows of `evaluations` that a file of predictions makes; anything wrong in it is a SaladError with its line."""
    path = Path(path)
    tasks: dict[str, tuple] = {}
    rows: list[dict] = []
    seen: dict[str, int] = {}
    for number, row in objects(path):
        where = f"{path} line {number}"
        try:
            contender, name, item_id, modality = (row[key] for key in ("contender", "task", "item", "modality"))
        except KeyError as error:
            raise SaladError(f"{where} lacks {error}") from None
        text, scores, voice, tts, asr = (row.get(key) for key in ("text", "scores", "voice", "tts", "asr"))
        for key, value in (("contender", contender), ("task", name), *(("voice", voice), ("tts", tts), ("asr", asr))):
            if not isinstance(value, str) and (value is not None or key in ("contender", "task")):
                raise SaladError(f"{where}: {key} is {value!r}, and must be a text")
        if modality not in (*MODALITIES, *FLOORS):
            raise SaladError(f"{where}: no modality {modality!r}; known: {', '.join((*MODALITIES, *FLOORS))}")
        if (text is None) == (scores is None):
            raise SaladError(f"{where}: give either scores or text")
        if name not in tasks:
            task = harness.load(lab, name)
            tasks[name] = task, {item.item_id: index for index, item in enumerate(task.items)}
        task, places = tasks[name]
        index = places.get(str(item_id))
        if index is None:
            raise SaladError(f"{where}: {name} has no item {item_id!r}; its items are called like {task.items[0].item_id!r}")
        item = task.items[index]
        answer: list[str] | str | list[tuple[float, bool]]
        if scores is None:
            answer = [str(text)] if task.generates else str(text)
        elif not isinstance(scores, list) or len(scores) != len(item.choices) or not all(map(_is_score, scores)):
            raise SaladError(f"{where}: item {item_id} has {len(item.choices)} choices, and needs a number for each")
        else:
            answer = [(float(score), False) for score in scores]
        settings = [] if tts is None and asr is None else [tts, asr]
        eval_id = hash_id("e", None, None, contender, name, modality, voice, item.item_id, *settings)
        if eval_id in seen:
            raise SaladError(f"{where}: item {item_id} was predicted already, on line {seen[eval_id]}")
        seen[eval_id] = number
        rows.append({
            "eval_id": eval_id, "run_id": None, "step": None, "contender": contender, "task": name, "domain": item.domain,
            "modality": modality, "voice": voice, "tts": tts, "asr": asr, "item_id": item.item_id,
            **grade(task, index, answer, scores is not None),
        })  # fmt: skip
    if not rows:
        raise SaladError(f"{path} holds no prediction")
    return rows


def _is_score(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def import_predictions(lab: Path | str, path: Path | str) -> str:
    """Check a whole file, then publish it as one unit; nothing is written where a line is wrong. Returns what to tell.

    The same file again changes nothing; predictions that the lab has from another file are refused."""
    rows = read(lab, path)
    made_from = {"predictions": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    if not store.exists(lab, "evaluations", made_from):
        there = store.connect(lab).execute(
            "select contender, task, item_id from evaluations where eval_id in (select unnest(?)) limit 1",
            [[row["eval_id"] for row in rows]],
        ).fetchone()  # fmt: skip
        if there is not None:
            raise SaladError(f"the lab has answers of {there[0]} to {there[1]} already, such as item {there[2]}; "
                             "give the contender another name")  # fmt: skip
        store.publish(lab, "evaluations", rows, made_from)
    lines = []
    for key in dict.fromkeys((row["contender"], row["task"], row["modality"]) for row in rows):
        mine = [row for row in rows if (row["contender"], row["task"], row["modality"]) == key]
        whole = len(harness.load(lab, key[1]).items)
        unread = sum(not row["parsed"] for row in mine)
        right = sum(row["correct_norm"] for row in mine) / len(mine)
        lines.append(
            f"{key[0]}, {key[1]}, {key[2]}: {len({row['item_id'] for row in mine})} of {whole} items, "
            f"{100 * right:.1f} % right, {100 * unread / len(mine):.1f} % cannot be read and count as wrong"
        )
    return "\n".join(lines)
