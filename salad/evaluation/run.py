"""Evaluate a contender on tasks, as text, as speech and through a cascade, item by item into the store."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import store
from salad.errors import SaladError
from salad.evaluation import harness, spoken
from salad.evaluation.contenders import Contender, parse_choice
from salad.evaluation.harness import MODALITIES, HarnessLM, Task
from salad.evaluation.spoken import Spoken
from store.ids import hash_id

CHUNK = 256  # items that are published together: what an interruption costs at most


def evaluate(lab: Path | str, contender: Contender, task_names: list[str], modalities: tuple[str, ...] = MODALITIES,
             voices: list[str] | None = None, tts: str = "espeak", asr: str | None = None, limit: int | None = None,
             chunk: int = CHUNK, progress: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
    """Answer every item of the tasks in every modality (and voice) that the contender has, and publish the rows.

    task_names: as `salad.evaluation.harness` names them (`piqa`, `piqa@5-spoken`, a group such as `mmlu`). Spoken
    contexts: `salad.evaluation.spoken.prepare`. Items that this contender has answered already are left as they are,
    so that an interrupted evaluation goes on and a finished one costs nothing. `limit`: the first items of each task
    only. progress(done, total) counts items. Everything that is wrong with a task, a modality or a voice is a SaladError
    before anything is answered.
    """
    for modality in modalities:
        if modality not in MODALITIES:
            raise SaladError(f"no modality {modality!r}; known: {', '.join(MODALITIES)}")
    if not set(modalities) & set(contender.modalities):
        raise SaladError(f"{contender.name} has no {' or '.join(modalities)} side; it has {', '.join(contender.modalities)}")
    tasks = [harness.load(lab, name) for name in harness.expand(lab, task_names)]
    wanted = [modality for modality in MODALITIES if modality in modalities and modality in contender.modalities]
    jobs, con = [], None
    for task in tasks:
        sounds = []
        if set(wanted) - {"text"}:
            texts = [text for i in range(len(task.items[:limit])) for text in task.spoken_in(i)]
            recordings = None
            if task.audio is not None and not task.spec.spoken_shots:
                recordings = task.audio[:limit]
            sounds = spoken.prepare(lab, task.spec.name, texts, voices, tts, asr, recordings)
        con = con or store.connect(lab)
        for modality in wanted:
            for sound in [None] if modality == "text" else sounds:
                jobs.append((task, modality, sound, _missing(con, contender, task, modality, sound, limit)))
    total, done = sum(len(missing) for *_, missing in jobs), 0
    for task, modality, sound, missing in jobs:
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            rows = _answered(contender, task, modality, sound, part, lambda n, at=done: progress and progress(at + n, total))
            store.publish(lab, "evaluations", rows, {
                "evaluate": task.spec.text, "modality": modality, "contender": contender.name, "run_id": contender.run_id,
                "step": contender.step, "rows": store.ids.digest([row["eval_id"] for row in rows]),
            })  # fmt: skip
            done += len(part)
            if progress is not None:
                progress(done, total)


def _voice(task: Task, index: int, sound: Spoken | None) -> str | None:
    if sound is None:
        return None
    row = sound.row(task.items[index].context)
    return spoken.RECORDED if row["tts"] == spoken.RECORDED else row["voice"]


def eval_id(contender: Contender, task: str, modality: str, voice: str | None, item_id: str) -> str:
    return hash_id("e", contender.run_id, contender.step, contender.name, task, modality, voice, item_id)


def _missing(con, contender, task: Task, modality: str, sound: Spoken | None, limit: int | None) -> list[int]:
    """The items that have no row yet; in voice `recorded`, of those that someone has spoken."""
    known = {
        row[0]
        for row in con.execute(
            "select eval_id from evaluations where contender = ? and task = ? and modality = ?",
            [contender.name, task.spec.text, modality],
        ).fetchall()
    }
    missing = []
    for index, item in enumerate(task.items[:limit]):
        if sound is not None and not all(text in sound for text in task.spoken_in(index)):
            continue
        if eval_id(contender, item.task, modality, _voice(task, index, sound), item.item_id) not in known:
            missing.append(index)
    return missing


def _answered(contender, task: Task, modality: str, sound: Spoken | None, part: list[int], progress) -> list[dict]:
    hear = None
    if modality == "speech":
        hear = lambda _, text: sound.recording(text, contender.sample_rate)  # noqa: E731
    elif modality == "cascade":
        hear = lambda _, text: sound.transcript(text)  # noqa: E731
    model = HarnessLM(contender, modality, hear)
    model.progress = lambda n, of: progress(n)
    requests = [request for index in part for request in task.requests[index]]
    started, answers = time.perf_counter(), None
    if task.generates:
        answers = [[text] for text in model.generate_until(requests)]
    elif contender.scores:
        flat = iter(model.loglikelihood(requests))
        answers = [[next(flat) for _ in task.requests[index]] for index in part]
    else:
        prompts = [model.prompt(task.requests[index][0]) for index in part]
        answers = contender.choose(prompts, [list(task.items[index].choices) for index in part], progress)
    seconds = (time.perf_counter() - started) / len(part)
    rows = []
    for index, answer in zip(part, answers, strict=True):
        item, voice = task.items[index], _voice(task, index, sound)
        heard = sum(sound.row(text)["duration_s"] for text in task.spoken_in(index)) if modality == "speech" else None
        rows.append({
            "eval_id": eval_id(contender, item.task, modality, voice, item.item_id),
            "run_id": contender.run_id, "step": contender.step, "contender": contender.name, "task": item.task,
            "domain": item.domain, "modality": modality, "voice": voice, "item_id": item.item_id, "speech_s": heard,
            "compute_s": seconds, **judged(task, index, answer, contender.scores),
        })  # fmt: skip
    return rows


def judged(task: Task, index: int, answer, scores: bool) -> dict:
    """scores, prediction, answer, correct, correct_norm and parsed of an item: by the harness' own metrics where there
    are scores or an open answer; an answer in words that names no choice is wrong."""
    item = task.items[index]
    if task.generates:
        right = bool(task.results(index, answer)["acc"])
        return {"scores": None, "prediction": answer[0], "answer": item.reference, "correct": right, "correct_norm": right,
                "parsed": bool(answer[0].strip())}  # fmt: skip
    told = {"answer": item.choices[item.answer]}
    if not scores:
        choice = parse_choice(answer, list(item.choices))
        right = choice == item.answer
        return told | {"scores": None, "prediction": answer if choice is None else item.choices[choice], "correct": right,
                       "correct_norm": right, "parsed": choice is not None}  # fmt: skip
    found = task.results(index, answer)
    sums = [float(score) for score, _ in answer]
    normed = int(np.argmax(np.array(sums) / np.array([float(len(choice)) for choice in item.choices])))
    return told | {"scores": sums, "prediction": item.choices[normed], "correct": bool(found["acc"]),
                   "correct_norm": bool(found["acc_norm"]), "parsed": True}  # fmt: skip
