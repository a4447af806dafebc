"""Speak texts: Shar and `syntheses` rows, checked by an ASR model on the way, up to a budget in hours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import store
from salad.errors import SaladError
from salad.passes import Part, Progress, run_parts
from salad.selection.voicing import Voicing, note, voice_of
from salad.speech import TTS, shar
from salad.speech.utterance import Utterance
from store.ids import synthesis_id

if TYPE_CHECKING:
    from salad.speech.check import Recogniser

SURELY = 0.9  # of the budget: what workers may speak before it is known how long the rest is


@dataclass(frozen=True)
class Job:
    """One text to be spoken in one voice. `text` is what the LLM reads, `spoken` what the voice says."""

    sample_id: str
    text: str
    voice: str
    seed: int = 0


def jobs_of(samples: list[tuple[str, str]], voices: tuple[str, ...], seed: int = 0, per_text: int = 1) -> list[Job]:
    """Jobs for (sample id, text) pairs: each text in `per_text` of the voices, which depend on its id and the seed."""
    return [
        Job(sample_id, text, voice_of(sample_id, voices, seed, turn), seed)
        for sample_id, text in samples
        for turn in range(per_text)
    ]


def synthesise(
    lab: Path | str,
    name: str,
    jobs: list[Job],
    tts: TTS,
    made_from: dict,
    recogniser: Recogniser | None = None,
    budget_s: float | None = None,
    recorded: bool = False,
    shard_size: int = 100,
    progress: Progress | None = None,
    estimated_s: dict[str, float] | None = None,
    shard: int = 0,
    shards: int = 1,
    selection: str | None = None,
    voices: tuple[str, ...] = (),
) -> float:
    """Speak `jobs` in order into lab/speech/<name> and publish them; returns the seconds spoken that are known here.

    `shard_size` jobs are a part: a Shar shard and a unit. `recogniser` (salad.speech.check) gives every synthesis its
    transcript, CER and flags. `recorded`: the speech stands for natural recordings, so each voice is heard in a room
    of its own (`salad.speech.room`). Parts that are done are not made again; a synthesis that another folder of the
    lab holds counts towards the budget and is not made twice.

    `selection`: whose speech this is. It is noted beside it with `voices`, those that `jobs_of` had: what trains on the
    selection hears these syntheses, however often else its texts are spoken.

    With `budget_s`, stops at the first text that reaches that many seconds. How far that is, is known when the parts
    before are: so side by side the workers speak the parts that will surely be needed, by `estimated_s` of each
    sample, and whoever finds all parts before the next one done goes on with that."""
    if selection is not None:
        seed = jobs[0].seed if jobs else 0
        note(lab, name, selection, Voicing(tts.name, tuple(voices) or tuple(dict.fromkeys(job.voice for job in jobs)), seed))
    speaker = _Speaker(lab, name, jobs, tts, made_from, recogniser, budget_s, recorded, shard_size)
    parts = speaker.parts()
    if budget_s is None:
        run_parts(lab, parts, shard, shards, progress)
        return speaker.spent()
    ends = np.cumsum([sum((estimated_s or {}).get(job.sample_id, np.inf) for job in part) for part in speaker.groups])
    speaker.sure = int((ends <= SURELY * budget_s).sum())
    speaker.heard = speaker.spent()
    report = None if progress is None else lambda *_: progress(int(min(budget_s, speaker.heard)), int(budget_s))
    run_parts(lab, parts[: speaker.sure], shard, shards, report)
    for number in range(speaker.sure, len(parts)):  # the rest, in order, as long as nobody has to be waited for
        speaker.before = speaker.known(number)
        if speaker.before is None or speaker.before >= budget_s:
            break
        run_parts(lab, [parts[number]], progress=report)
    return speaker.spent()


class _Speaker:
    """The parts of a synthesis, and what they have come to."""

    def __init__(self, lab, name, jobs, tts, made_from, recogniser, budget_s, recorded, shard_size):
        self.lab, self.name, self.tts, self.made_from = Path(lab), name, tts, made_from
        self.recogniser, self.budget_s, self.recorded = recogniser, budget_s, recorded
        self.tts_name = "recorded" if recorded else tts.name
        self.groups = [jobs[start : start + shard_size] for start in range(0, len(jobs), shard_size)]
        self.elsewhere = dict(
            store.connect(lab)
            .execute("select synthesis_id, any_value(duration_s) from syntheses where speech <> ? group by 1", [name])
            .fetchall()
        )
        self.seconds: dict[int, dict[str, float]] = {}  # part -> synthesis -> seconds
        self.sure = len(self.groups) if budget_s is None else 0  # parts that are needed whole
        self.before = 0.0  # seconds before the part that is made in order
        self.heard = 0.0

    def id(self, job: Job) -> str:
        return synthesis_id(job.sample_id, self.tts_name, job.voice, job.seed)

    def parts(self) -> list[Part]:
        return [self._part(number, group) for number, group in enumerate(self.groups)]

    def _part(self, number: int, group: list[Job]) -> Part:
        unit = self.made_from | {"pass": "synthesise", "speech": self.name, "shard": number}

        def whole() -> bool:
            try:
                return shar.damage(self.lab, self.name, number) is None
            except SaladError:  # its cuts are not there or cannot be read
                return False

        def make(tick) -> None:
            spent = self.before

            def speech(job: Job):
                nonlocal spent
                if number >= self.sure and spent >= self.budget_s:
                    return None
                made, seconds = None, self.elsewhere.get(self.id(job))
                if seconds is None:
                    utterance, further = speak(self.tts, job, self.recorded), further_columns(self.tts, job)
                    made = shar.Speech(
                        self.id(job), job.sample_id, job.text, utterance, job.voice, self.tts_name, job.seed, further
                    )
                    seconds = utterance.duration_s
                spent += seconds
                self.heard += seconds
                return made

            cuts = shar.folder_of(self.lab, self.name) / f"cuts.{number:06d}.jsonl"
            if cuts.exists() and not whole():
                cuts.unlink()  # without it the shard does not exist
            rows = shar.write_shard(self.lab, self.name, number, group, speech, job_id=self.id, progress=tick)
            if self.recogniser is not None:
                rows = checked(self.lab, rows, {job.sample_id: job.text for job in group}, self.recogniser)
            store.publish(self.lab, "syntheses", rows, unit)
            self.seconds[number] = {row["synthesis_id"]: row["duration_s"] for row in rows}

        return Part(unit, ("syntheses",), len(group), make, whole)

    def _of(self, number: int) -> dict[str, float] | None:
        """Seconds of a part's syntheses, by whomever it was made; None where it is not there."""
        if number not in self.seconds:
            unit = self.made_from | {"pass": "synthesise", "speech": self.name, "shard": number}
            if not store.exists(self.lab, "syntheses", unit):
                return None
            path = f"speech/{self.name}/recording.{number:06d}.tar"
            self.seconds[number] = dict(
                store.connect(self.lab)
                .execute("select synthesis_id, duration_s from syntheses where audio_path = ?", [path])
                .fetchall()
            )
        return self.seconds[number]

    def known(self, number: int) -> float | None:
        """Seconds of all parts before `number`, those told by other folders with them; None where one is not done."""
        total = 0.0
        for part in range(number):
            there = self._of(part)
            if there is None:
                return None
            for job in self.groups[part]:
                total += there.get(self.id(job), self.elsewhere.get(self.id(job), 0.0))
                if self.budget_s is not None and total >= self.budget_s:
                    return total
        return total

    def spent(self) -> float:
        """Seconds up to the first part that is not done."""
        reached = 0
        while reached < len(self.groups) and self._of(reached) is not None:
            reached += 1
        return self.known(reached) or 0.0


def speak(tts: TTS, job: Job, recorded: bool) -> Utterance:
    """The utterance of a job: the text's spoken form, word times mapped back to the text."""
    from salad.speech import room
    from salad.speech.languages import of_voice
    from salad.speech.spoken import spoken_form, text_words

    form = spoken_form(job.text, of_voice(tts.name, job.voice))
    utterance = tts.speak(form.spoken, job.voice, job.seed)
    utterance.words = text_words(utterance.words, form, job.text)
    if recorded:
        seed = int(store.ids.digest([job.sample_id, job.voice, job.seed]), 16) % 2**31
        utterance = room.record(utterance, seed)
    return utterance


def further_columns(tts: TTS, job: Job) -> dict:
    """What an engine has to say of a synthesis besides, as columns of `syntheses`; {} where it has no `columns`."""
    columns = getattr(tts, "columns", None)
    if columns is None:
        return {}
    from salad.speech.languages import of_voice
    from salad.speech.spoken import spoken_form

    return columns(spoken_form(job.text, of_voice(tts.name, job.voice)).spoken, job.voice, job.seed)


def checked(lab: Path | str, rows: list[dict], texts: dict[str, str], recogniser: Recogniser) -> list[dict]:
    """The rows with what the ASR check found."""
    from salad.data.corpora import audio_of
    from salad.models.names import kept
    from salad.speech import SAMPLE_RATE
    from salad.speech.check import check_many
    from salad.speech.languages import of_voice
    from salad.speech.spoken import spoken_form

    written, languages = [texts[row["sample_id"]] for row in rows], [of_voice(row["tts"], row["voice"]) for row in rows]
    checks = check_many(
        [audio_of(lab, row, SAMPLE_RATE) for row in rows],
        written,
        recogniser,
        languages=languages,
        spoken=[spoken_form(text, code).spoken for text, code in zip(written, languages, strict=True)],
    )
    return [
        row
        | measured.columns()
        | {"asr": kept(measured.asr, lab), "flags": list(dict.fromkeys([*row["flags"], *measured.flags]))}
        for row, measured in zip(rows, checks, strict=True)
    ]
