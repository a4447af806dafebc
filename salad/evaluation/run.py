"""Evaluate a contender on tasks, as text, as speech and through a cascade, item by item into the store."""

import datetime
import functools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

import store
from salad.errors import SaladError
from salad.evaluation import harness, spoken
from salad.evaluation.contenders import Chooser, Contender, parse_choice
from salad.evaluation.harness import FLOORS, MODALITIES, HarnessLM, Task
from salad.evaluation.scoring import Recording
from salad.evaluation.spoken import SpokenItems
from salad.evaluation.statistics import one_llm
from store.ids import hash_id

CHUNK = 256  # items that are published together: what an interruption costs at most


def evaluate(lab: Path | str, contender: Contender, task_names: list[str], modalities: tuple[str, ...] = MODALITIES,
             voices: list[str] | None = None, tts: str | None = None, asr: str | None = None, limit: int | None = None,
             chunk: int = CHUNK, progress: Callable[[int, int], None] | None = None, seed: int = 0) -> None:  # fmt: skip
    """Answer every item of the tasks in every modality (and voice) that the contender has, and publish the rows.

    task_names: as `salad.evaluation.harness` names them (`piqa`, `piqa@5-spoken`, a group such as `mmlu`). modalities:
    of text, speech and cascade, and of two floors for a contender that hears: `deaf` (the recording of another item,
    drawn by `seed`) and `silent` (silence as long as the recording). Spoken contexts: `salad.evaluation.spoken.prepare`.

    An answer is known by all that its number depends on: contender and its fingerprint, the item's whole prompt, the
    speech, the recogniser. What is known already is left as it is, so that an interrupted evaluation goes on and a
    finished one costs nothing. `limit`: the first items of each task only. progress(done, total) counts items.
    Everything that is wrong with a task, a modality or a voice is a SaladError before anything is answered.
    """
    wanted = chosen(contender, modalities)
    tasks = [harness.load(lab, name) for name in harness.expand(lab, task_names)]
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
                job = EvaluationJob(contender, task, modality, sound, seed, limit)
                jobs.append((job, job.missing(con)))
    total, done = sum(len(missing) for _, missing in jobs), 0
    chunk = min(chunk, getattr(contender, "chunk", chunk))
    for job, missing in jobs:
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            rows = job.answered(part, lambda n, at=done: progress and progress(at + n, total))
            store.publish(lab, "evaluations", rows, {
                "evaluate": job.task.spec.text, "modality": job.modality, "contender": contender.name,
                "run_id": contender.run_id, "step": contender.step,
                "rows": store.ids.digest([row["eval_id"] for row in rows]),
            })  # fmt: skip
            done += len(part)
            if progress is not None:
                progress(done, total)


def chosen(contender: Contender, modalities: Iterable[str], known: tuple[str, ...] = (*MODALITIES, *FLOORS)) -> list[str]:
    """Of the modalities those that the contender has, in order; a SaladError for an unknown one, or where none is left."""
    for modality in modalities:
        if modality not in known:
            raise SaladError(f"no modality {modality!r}; known: {', '.join(known)}")
    has = (*contender.modalities, *(FLOORS if "speech" in contender.modalities else ()))
    found = [modality for modality in known if modality in modalities and modality in has]
    if not found:
        raise SaladError(f"{contender.name} has no {' or '.join(modalities)} side; it has {', '.join(contender.modalities)}")
    return found


@dataclass
class EvaluationJob:
    """A task's items for one contender in one modality, heard as `sound` (None: read). `seed`: of modality deaf."""

    contender: Contender
    task: Task
    modality: str
    sound: SpokenItems | None
    seed: int = 0
    limit: int | None = None

    @property
    def speech(self) -> SpokenItems:
        """`sound`, for the modalities that have one."""
        assert self.sound is not None
        return self.sound

    def missing(self, con) -> list[int]:
        """The items that have no row yet; in voice `recorded`, of those that someone has spoken."""
        who = self.contender
        found = con.execute(
            """select eval_id, fingerprint is null and (run_id is not null or contender = 'teacher' or compute_s is not null)
               from evaluations where contender = ? and task = ? and modality = ?""",  # computed: not brought in from a file
            [who.name, self.task.spec.text, self.modality],
        ).fetchall()  # fmt: skip
        known = {eval_id for eval_id, _ in found}
        unmarked = {eval_id for eval_id, old in found if old or fingerprint(who) is None}
        unmarked = unmarked if unmarked and self._owns_unmarked_rows(con) else set()
        return [i for i in self.askable() if self.eval_id(i) not in known
                and (not unmarked or self._legacy_id(i) not in unmarked)]  # fmt: skip

    def askable(self) -> list[int]:
        """The items whose speech there is."""
        items = range(len(self.task.items[: self.limit]))
        return [i for i in items if self.sound is None or all(text in self.sound for text in self.task.spoken_in(i))]

    def voice(self, index: int) -> str | None:
        """The voice of an item's own context."""
        if self.sound is None:
            return None
        row = self.sound.row(self.task.items[index].context)
        return spoken.RECORDED if row["tts"] == spoken.RECORDED else row["voice"]

    def asr(self, index: int) -> str | None:
        """The recogniser of a cascade."""
        return self.speech.asr(self.task.items[index].context) if self.modality == "cascade" else None

    def eval_id(self, index: int) -> str:
        """The id of the answer to an item: of all that its number depends on."""
        who, item = self.contender, self.task.items[index]
        heard = [] if self.sound is None else [self.sound.row(text)["synthesis_id"] for text in self.task.spoken_in(index)]
        return hash_id("e", {
            "contender": who.name, "run_id": who.run_id, "step": who.step, "fingerprint": fingerprint(who),
            "task": item.task, "item": item.item_id, "content": content(self.task, index), "modality": self.modality,
            "heard": heard, "asr": None if self.sound is None else self.asr(index),
            "seed": self.seed if self.modality == "deaf" else None,
        })  # fmt: skip

    def _legacy_id(self, index: int) -> str | None:
        """The id before evaluations had fingerprints, where it can mean nothing else: the speech is the only one in its
        voice, and a cascade's transcript the one that is kept with the speech."""
        who, item = self.contender, self.task.items[index]
        if self.modality in FLOORS or self.sound is not None and not self.sound.is_only(item.context):
            return None
        if self.modality == "cascade" and not self.speech.is_transcribed(item.context):
            return None
        return hash_id("e", who.run_id, who.step, who.name, item.task, self.modality, self.voice(index), item.item_id)

    def _owns_unmarked_rows(self, con) -> bool:
        """Whether rows without a fingerprint under this contender's name are its own: a run's are; of a contender that
        is no run, where the lab knows no other of this name, and of a teacher, where all of its runs have one LLM."""
        who = self.contender
        if who.run_id is not None or fingerprint(who) is None:
            return True
        others = con.execute(
            "select count(distinct fingerprint) from evaluations where contender = ? and run_id is null and fingerprint <> ?",
            [who.name, fingerprint(who)],
        ).fetchone()[0]  # fmt: skip
        return not others and one_llm(con)

    def answered(self, part: list[int], progress) -> list[dict]:
        """The rows of `evaluations` for the items `part`."""
        who, task = self.contender, self.task
        model = HarnessLM(who, self.modality, None if self.sound is None else self._hear())
        model.progress = lambda n, of: progress(n)
        requests = [request for index in part for request in task.requests[index]]
        started = time.perf_counter()
        reasons: list[str | None] = [None] * len(part)
        answers: list[Any]
        if self.modality == "cascade":
            self.speech.transcribe([text for index in part for text in task.spoken_in(index)])
        if task.generates:
            answers = [[text] for text in model.generate_until(requests)]
            reasons = [getattr(text, "finish_reason", None) for (text,) in answers]
        elif who.scores:
            flat = iter(model.loglikelihood(requests))
            answers = [[next(flat) for _ in task.requests[index]] for index in part]
        else:
            prompts = [model.prompt(task.requests[index][0]) for index in part]
            answers = cast(Chooser, who).choose(prompts, [list(task.items[index].choices) for index in part], progress)
            reasons = [getattr(answer, "finish_reason", None) for answer in answers]
        seconds, at = (time.perf_counter() - started) / len(part), datetime.datetime.now(datetime.UTC)
        rows = []
        for index, answer, reason in zip(part, answers, reasons, strict=True):
            item, texts = task.items[index], task.spoken_in(index) if self.sound is not None else []
            heard = [self.speech.row(self.heard(text)) for text in texts]
            rows.append({
                "eval_id": self.eval_id(index), "run_id": who.run_id, "step": who.step, "contender": who.name,
                "fingerprint": fingerprint(who), "teacher": getattr(who, "teacher_fingerprint", None),
                "content": content(task, index), "task": item.task, "domain": item.domain, "modality": self.modality,
                "voice": self.voice(index), "item_id": item.item_id,
                "tts": self.speech.row(item.context)["tts"] if texts else None,
                "syntheses": [row["synthesis_id"] for row in heard] if texts else None,
                "asr": self.asr(index) if texts else None, "seed": self.seed if self.modality == "deaf" else None,
                "speech_s": sum(row["duration_s"] for row in heard) if texts and self.modality != "cascade" else None,
                "compute_s": seconds, "finish_reason": reason, "at": at,
                **grade(task, index, answer, who.scores),
            })  # fmt: skip
        return rows

    def _hear(self) -> Callable[[str, str], Recording | str]:
        """What stands in a prompt for a spoken text."""
        if self.modality == "cascade":
            return lambda _, text: self.speech.transcript(text)
        rate = self.contender.sample_rate
        if self.modality == "silent":
            return lambda _, text: self.speech.silence(text, rate)
        return lambda _, text: self.speech.recording(self.heard(text), rate)

    def heard(self, text: str) -> str:
        """The text whose recording is heard for `text`: in modality deaf another's."""
        return self._others[text] if self.modality == "deaf" else text

    @functools.cached_property
    def _others(self) -> dict[str, str]:
        """Each spoken text and another, drawn by the seed: a random cycle through all of them."""
        texts = sorted({text for index in self.askable() for text in self.task.spoken_in(index)})
        if len(texts) < 2:
            raise SaladError(f"task {self.task.spec.text}: with one context there is no other item's recording")
        order = np.random.default_rng(self.seed).permutation(len(texts))
        return {texts[a]: texts[b] for a, b in zip(order, np.roll(order, 1), strict=True)}


def fingerprint(contender: Contender) -> str | None:
    """What a contender computes with, hashed; None for one that does not say."""
    return getattr(contender, "fingerprint", None)


def content(task: Task, index: int) -> str:
    """Hash of what an item asks: its prompt with the examples before it, its choices and what is right."""
    item = task.items[index]
    asked = json.loads(json.dumps([request.args for request in task.requests[index]], default=str))
    return store.ids.digest([asked, task.spec.spoken_shots, list(item.choices), item.answer, item.reference])


def grade(task: Task, index: int, answer, scores: bool) -> dict:
    """scores, prediction, answer, correct, correct_norm and parsed of an item: by the harness' own metrics where there
    are scores or an open answer; an answer in words that names no choice is wrong."""
    item = task.items[index]
    if task.generates:
        right = bool(task.results(index, answer)["acc"])
        return {"scores": None, "prediction": str(answer[0]), "answer": item.reference, "correct": right, "correct_norm": right,
                "parsed": bool(answer[0].strip())}  # fmt: skip
    row = {"answer": item.choices[item.answer]}
    if not scores:
        choice = parse_choice(answer, list(item.choices))
        right = choice == item.answer
        return row | {"scores": None, "prediction": str(answer) if choice is None else item.choices[choice], "correct": right,
                       "correct_norm": right, "parsed": choice is not None}  # fmt: skip
    found = task.results(index, answer)
    sums = [float(score) for score, _ in answer]
    normed = int(np.argmax(np.array(sums) / np.array([float(len(choice)) for choice in item.choices])))
    return row | {"scores": sums, "prediction": item.choices[normed], "correct": bool(found["acc"]),
                   "correct_norm": bool(found["acc_norm"]), "parsed": True}  # fmt: skip
