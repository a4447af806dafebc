"""Evaluate a contender on tasks, as text, as speech and through a cascade, item by item into the store."""

from pathlib import Path

import store
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation import tasks
from salad.evaluation.scoring import loglikelihoods
from store.ids import hash_id

MODALITIES = ("text", "speech", "cascade")


def context_sample(item: tasks.Item) -> tuple[str, str, str]:
    """(sample id, text, corpus) under which an item's spoken context is kept in the store."""
    return store.ids.sample_id(item.task, item.context), item.context, item.task


def evaluate(lab: Path | str, model, contender: str, run_id: str, step: int, task_names: list[str],
             modalities: tuple[str, ...] = MODALITIES, speech: str = "items", teacher: bool = False,
             progress=None) -> None:  # fmt: skip
    """Publish one `evaluations` unit per task and modality for the contender in `model`.

    Spoken contexts are the syntheses of lab/speech/<speech>; a cascade reads what the ASR check heard in them. The
    original LLM (`teacher`) has no speech side. accuracy: `correct` by summed log-probability, `correct_norm` by
    log-probability per character of the choice, as lm-evaluation-harness has acc and acc_norm.
    """
    con = store.connect(lab)
    todo = []
    for task in task_names:
        items = tasks.load(lab, task)
        for modality in modalities:
            if modality not in MODALITIES:
                raise SaladError(f"no modality {modality!r}; known: {', '.join(MODALITIES)}")
            if teacher and modality == "speech":
                continue
            made_from = {"evaluate": task, "modality": modality, "run_id": run_id, "step": step, "contender": contender,
                         "speech": speech if modality != "text" else None, "items": len(items)}  # fmt: skip
            if not store.exists(lab, "evaluations", made_from):
                todo.append((task, items, modality, made_from))
    spoken = {s.sample_id: s for s in corpora.of_speech(con, [speech])} if any(t[2] != "text" for t in todo) else {}
    heard = dict(con.execute("select synthesis_id, text_asr from syntheses where speech = ?", [speech]).fetchall())
    voices = dict(con.execute("select synthesis_id, voice from syntheses where speech = ?", [speech]).fetchall())
    for number, (_task, items, modality, made_from) in enumerate(todo):
        found = [spoken.get(context_sample(item)[0]) for item in items]
        if modality != "text" and None in found:
            lost = items[found.index(None)]
            raise SaladError(f"item {lost.item_id} of {lost.task} has no spoken context in lab/speech/{speech}")
        if modality == "speech":
            contexts = [corpora.audio(lab, s, model.encoder.sample_rate) for s in found]
        elif modality == "cascade":
            texts = [heard[s.synthesis_id] or "" for s in found]
            contexts = [as_prompt(text, item.context) for text, item in zip(texts, items, strict=True)]
        else:
            contexts = [item.context for item in items]
        scores = loglikelihoods(model, contexts, [list(item.choices) for item in items], teacher)
        rows = [
            _row(item, modality, values, None if s is None else voices[s.synthesis_id], contender, run_id, step)
            for item, values, s in zip(items, scores, found if modality != "text" else [None] * len(items), strict=True)
        ]
        store.publish(lab, "evaluations", rows, made_from)
        if progress is not None:
            progress(number + 1, len(todo))


def as_prompt(transcript: str, context: str) -> str:
    """What a cascade hands to the LLM: the transcript, ending in the mark that the prompt's format has there.

    The mark that ends a context is part of the prompt, not of what is said: no voice tells "?" from "."."""
    mark = context[len(context.rstrip(".,?!:; ")) :]
    return transcript.strip().rstrip(".,?!:; ") + mark


def _row(item, modality, scores, voice, contender, run_id, step) -> dict:
    best = max(range(len(scores)), key=scores.__getitem__)
    normed = max(range(len(scores)), key=lambda i: scores[i] / max(1, len(item.choices[i])))
    return {
        "eval_id": hash_id("e", run_id, step, contender, item.task, modality, voice, item.item_id),
        "run_id": run_id, "step": step, "contender": contender, "task": item.task, "domain": item.domain,
        "modality": modality, "voice": voice, "item_id": item.item_id, "scores": scores,
        "prediction": item.choices[normed], "answer": item.choices[item.answer],
        "correct": best == item.answer, "correct_norm": normed == item.answer,
    }  # fmt: skip
