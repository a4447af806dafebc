"""Speak texts: Shar and `syntheses` rows, checked by an ASR model on the way, up to a budget in hours."""

from dataclasses import dataclass
from pathlib import Path

import store
from salad.passes import Progress
from salad.speech import TTS, shar
from store.ids import synthesis_id


@dataclass(frozen=True)
class Job:
    """One text to be spoken in one voice. `text` is what the LLM reads, `spoken` what the voice says."""

    sample_id: str
    text: str
    voice: str
    seed: int = 0


def jobs_of(samples: list[tuple[str, str]], voices: tuple[str, ...], seed: int = 0, per_text: int = 1) -> list[Job]:
    """Jobs for (sample id, text) pairs: each text in `per_text` of the voices, which depend on its id and the seed."""
    made = []
    for sample_id, text in samples:
        first = int(store.ids.digest([seed, sample_id]), 16) % len(voices)
        made += [Job(sample_id, text, voices[(first + k) % len(voices)], seed) for k in range(per_text)]
    return made


def synthesise(lab: Path | str, name: str, jobs: list[Job], tts: TTS, made_from: dict, recogniser=None,
               budget_s: float | None = None, recorded: bool = False, shard_size: int = 100,
               progress: Progress | None = None) -> float:  # fmt: skip
    """Speak `jobs` in order into lab/speech/<name> and publish them, a unit a shard; returns the seconds spoken.

    With `budget_s`, stops at the first text that reaches that many seconds. `recogniser` (salad.speech.check) gives
    every synthesis its transcript, CER and flags. `recorded`: the speech stands for natural recordings, so each voice
    is heard in a room of its own (`salad.speech.room`). Shards and units that exist are not made again; a synthesis
    that another folder of the lab holds counts towards the budget and is not made twice.
    """
    tts_name = "recorded" if recorded else tts.name
    elsewhere = dict(
        store.connect(lab)
        .execute("select synthesis_id, any_value(duration_s) from syntheses where speech <> ? group by 1", [name])
        .fetchall()
    )
    state = {"spent": 0.0, "done": 0}

    def job_id(job: Job) -> str:
        return synthesis_id(job.sample_id, tts_name, job.voice, job.seed)

    def enough() -> bool:
        return budget_s is not None and state["spent"] >= budget_s

    def make(job: Job):
        if enough():
            return None
        if job_id(job) in elsewhere:
            state["spent"] += elsewhere[job_id(job)]
            return None
        utterance = speak(tts, job, recorded)
        state["spent"] += utterance.duration_s
        return shar.Speech(
            job_id(job), job.sample_id, job.text, utterance, job.voice, tts_name, job.seed, planted_in(tts, job)
        )

    def told(count: int):
        state["done"] += count
        if progress is not None:
            progress(*((state["done"], len(jobs)) if budget_s is None else (int(state["spent"]), int(budget_s))))

    for shard, start in enumerate(range(0, len(jobs), shard_size)):
        if enough():
            break
        part, before = jobs[start : start + shard_size], state["spent"]
        rows = shar.write_shard(lab, name, shard, part, make, job_id=job_id, progress=told)
        unit = made_from | {"pass": "synthesise", "speech": name, "shard": shard}
        if not store.exists(lab, "syntheses", unit):
            if recogniser is not None:
                rows = checked(lab, rows, {job.sample_id: job.text for job in part}, recogniser)
            store.publish(lab, "syntheses", rows, unit)
        # counted anew, since a shard that was there already was not spoken now
        seconds = {row["synthesis_id"]: row["duration_s"] for row in rows} | elsewhere
        state["spent"] = before
        for job in part:
            if not enough():
                state["spent"] += seconds.get(job_id(job), 0.0)
    return state["spent"]


def speak(tts: TTS, job: Job, recorded: bool):
    """The utterance of a job: the text's spoken form, word times mapped back to the text."""
    from salad.speech import room
    from salad.speech.spoken import spoken_form, text_words

    form = spoken_form(job.text)
    utterance = tts.speak(form.spoken, job.voice, job.seed)
    utterance.words = text_words(utterance.words, form, job.text)
    if recorded:
        seed = int(store.ids.digest([job.sample_id, job.voice, job.seed]), 16) % 2**31
        utterance = room.record(utterance, seed)
    return utterance


def planted_in(tts: TTS, job: Job) -> dict:
    """The truth about a fault that the miniature plants on purpose, as a column; {} for every other engine."""
    if not hasattr(tts, "planted"):
        return {}
    from salad.speech.spoken import spoken_form

    return {"planted": tts.planted(spoken_form(job.text).spoken, job.voice, job.seed)}


def checked(lab, rows: list[dict], texts: dict[str, str], recogniser) -> list[dict]:
    """The rows with what the ASR check found."""
    from salad.data.corpora import audio_of
    from salad.speech import SAMPLE_RATE
    from salad.speech.check import check_many
    from salad.speech.spoken import spoken_form

    written = [texts[row["sample_id"]] for row in rows]
    found = check_many(
        [audio_of(lab, row, SAMPLE_RATE) for row in rows], written, recogniser,
        spoken=[spoken_form(text).spoken for text in written],
    )  # fmt: skip
    return [
        row | measured.columns() | {"flags": list(dict.fromkeys([*row["flags"], *measured.flags]))}
        for row, measured in zip(rows, found, strict=True)
    ]
