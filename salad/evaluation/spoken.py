"""Spoken contexts of items: recordings of a spoken data set (voice `recorded`), else speech of the lab's voices, kept
in the lab as syntheses with their CER, so that each is made once whoever is evaluated."""

import re
from pathlib import Path

import numpy as np

import store
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation.items import Item
from salad.evaluation.scoring import Recording

RECORDED = "recorded"


def context_sample(item: Item) -> tuple[str, str, str]:
    """(sample id, text, corpus) under which an item's spoken context is kept in the store."""
    task = item.task.partition("@")[0]
    return store.ids.sample_id(task, item.context), item.context, task


class Spoken:
    """The spoken contexts of one task in one voice (None: as the lab has spoken each): what a contender hears."""

    def __init__(self, lab: Path | str, task: str, voice: str | None, rows: dict[str, dict], asr: str | None = None):
        self.lab, self.task, self.voice, self._rows, self._asr = Path(lab), task, voice, rows, asr
        self._recogniser = None

    def __contains__(self, text: str) -> bool:
        return store.ids.sample_id(self.task, text) in self._rows

    def row(self, text: str) -> dict:
        """The row of `syntheses` for a text; SaladError where it is not spoken."""
        row = self._rows.get(store.ids.sample_id(self.task, text))
        if row is None:
            raise SaladError(f"task {self.task}: {text[:60]!r} has no speech in voice {self.voice or 'any'}")
        return row

    def recording(self, text: str, sample_rate: int) -> Recording:
        """float32 [T] at `sample_rate`."""
        row = self.row(text)
        return Recording(row["synthesis_id"], corpora.audio_of(self.lab, row, sample_rate))

    def transcript(self, text: str) -> str:
        """What a cascade hands to the LLM: what was heard, ending as the written text does. Speech that was not
        transcribed when it was made, or by another recogniser than is asked for, is transcribed now."""
        from salad.speech import SAMPLE_RATE

        row = self.row(text)
        if row["text_asr"] is None or self._asr not in (None, row["asr"]):
            self._recogniser = self._recogniser or _recogniser(self.lab, self._asr)
            if self._recogniser is None:
                raise SaladError(
                    f"speech {row['synthesis_id']} of {self.task} has no transcript: a cascade needs a recogniser "
                    "(lab/models/recogniser, or --asr)"
                )
            row["text_asr"] = self._recogniser.transcribe([corpora.audio_of(self.lab, row, SAMPLE_RATE)])[0]
            row["asr"] = self._asr
        return as_prompt(row["text_asr"], text)


def as_prompt(transcript: str, context: str) -> str:
    """What a cascade hands to the LLM: the transcript, ending in the mark that the prompt's format has there.

    The mark that ends a context is part of the prompt, not of what is said: no voice tells "?" from "."."""
    mark = context[len(context.rstrip(".,?!:; ")) :]
    return transcript.strip().rstrip(".,?!:; ") + mark


def listed(voices: str | None) -> list[str] | None:
    """The voices of a comma-separated list; a comma within a voice's own settings ("en-us@rate=150,pitch=40") is no
    border."""
    return None if not voices else [voice.strip() for voice in re.split(r",(?!\w+=)", voices)]


def find(lab: Path | str, task: str, texts: list[str]) -> dict[str, dict[str, dict]]:
    """{voice: {sample id: row of `syntheses`}} of what the lab holds of `texts`; of several of a voice the first."""
    con = store.connect(lab)
    ids = [store.ids.sample_id(task, text) for text in texts]
    found = con.execute(
        """select * from syntheses where sample_id in (select unnest(?))
           order by voice, sample_id, seed, synthesis_id""", [ids]
    )  # fmt: skip
    names = [column[0] for column in found.description]
    voices: dict[str, dict[str, dict]] = {}
    for values in found.fetchall():
        row = dict(zip(names, values, strict=True))
        voice = RECORDED if row["tts"] == RECORDED else row["voice"]
        voices.setdefault(voice, {}).setdefault(row["sample_id"], row)
    return voices


def prepare(lab: Path | str, task: str, texts: list[str], voices: list[str] | None = None, tts: str = "espeak",
            asr: str | None = None, recordings: list | None = None, progress=None) -> list[Spoken]:  # fmt: skip
    """The spoken contexts of `texts`, one `Spoken` a voice; what is missing is spoken now, and kept.

    Without `voices`: the data set's own recordings (`recordings`, one a text) where it has them; else every voice in
    which the lab has spoken all texts; else the lab's speech in whatever voices; else the first voice of `tts`. Voice
    `recorded` is never made up: where it is asked for, only the texts that someone has spoken are in it, and none is a
    SaladError. `asr`: the recogniser that checks, by default lab/models/recogniser.
    """
    for text in texts:
        if not text.strip():
            raise SaladError(f"task {task}: an empty context cannot be spoken")
    texts = list(dict.fromkeys(texts)) if recordings is None else texts
    if recordings is not None:
        _keep_recordings(lab, task, texts, recordings, asr)
    found, whole = find(lab, task, texts), len(set(texts))
    if voices is None:
        voices = [voice for voice, rows in found.items() if len(rows) == whole]
        if recordings is not None:
            voices = [RECORDED]
        elif RECORDED in voices and len(voices) > 1:
            voices.remove(RECORDED)
        if not voices:
            any_voice = {sample: row for voice, rows in found.items() if voice != RECORDED for sample, row in rows.items()}
            if len(any_voice) == whole:
                return [Spoken(lab, task, None, any_voice, asr)]
            from salad.speech import load_tts

            voices = [load_tts(tts).voices[0]]
    if RECORDED in voices and RECORDED not in found:
        raise SaladError(f"task {task}: none of its contexts was recorded; name a TTS voice")
    missing = [v for v in voices if v != RECORDED and len(found.get(v, {})) < whole]
    for voice in missing:
        _speak(lab, task, texts, voice, tts, asr, progress)
    _samples(lab, task, list(dict.fromkeys(texts)))  # after the speech: a voice that does not exist leaves nothing behind
    found = find(lab, task, texts) if missing else found
    return [Spoken(lab, task, voice, found[voice], asr) for voice in voices]


def _recogniser(lab: Path | str, asr: str | None):
    """The recogniser called `asr`, by default the lab's own; None where there is none."""
    from salad.speech.check import recogniser_of

    name, load = recogniser_of(lab, asr)
    return load() if name else None


def _samples(lab, task: str, texts: list[str]) -> None:
    """Rows of `samples` for the texts that have none."""
    from salad.speech.speakability import speakability
    from salad.speech.spoken import spoken_form

    ids = {store.ids.sample_id(task, text): text for text in texts}
    known = store.connect(lab).execute(
        "select sample_id from samples where sample_id in (select unnest(?))", [list(ids)]
    ).fetchall()  # fmt: skip
    for (sample,) in known:
        ids.pop(sample, None)
    if ids:
        rows = [
            {"sample_id": sample, "text": text, "spoken": spoken_form(text).spoken, "corpus": task, "domain": task,
             "flags": sorted(speakability(text))}
            for sample, text in ids.items()
        ]  # fmt: skip
        store.publish(lab, "samples", rows, {"task": task, "contexts": store.ids.digest(sorted(ids))})


def _speak(lab, task: str, texts: list[str], voice: str, tts: str, asr: str | None, progress) -> None:
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    jobs = jobs_of([(store.ids.sample_id(task, text), text) for text in texts], (voice,))
    engine = load_tts(tts)
    made_from = {"contexts": task, "voice": voice, "tts": engine.name, "jobs": store.ids.digest([vars(j) for j in jobs])}
    name = f"{task}-{store.ids.digest(made_from)[:8]}"
    synthesise(lab, name, jobs, engine, made_from, _recogniser(lab, asr), progress=progress)


def _keep_recordings(lab, task: str, texts: list[str], recordings: list, asr: str | None) -> None:
    """Bring a spoken data set's recordings into lab/speech/<task>-recorded, once, transcribed and with their CER."""
    from salad.passes.synthesise import checked
    from salad.speech import SAMPLE_RATE, Utterance, shar

    there = find(lab, task, texts).get(RECORDED, {})
    first = dict(reversed(list(zip(texts, recordings, strict=True))))  # of several of a text the first
    first = {text: sound for text, sound in first.items() if store.ids.sample_id(task, text) not in there}
    ids = {text: store.ids.synthesis_id(store.ids.sample_id(task, text), RECORDED, RECORDED, 0) for text in first}
    work = sorted(first, key=ids.__getitem__)
    if not work:
        return
    made_from = {"recorded": task, "texts": store.ids.digest(sorted(ids.values()))}
    name = f"{task}-recorded-{made_from['texts'][:8]}"
    jobs = [(ids[text], text) for text in work]

    def make(job):
        samples = shar.to_rate(*decode(first[job[1]], Path(lab) / "tasks", f"task {task}, {job[1][:40]!r}"))
        return shar.Speech(job[0], store.ids.sample_id(task, job[1]), job[1], Utterance(samples, SAMPLE_RATE, []), RECORDED)

    rows = shar.write_shard(lab, name, 0, jobs, make, job_id=lambda job: job[0])
    recogniser = _recogniser(lab, asr)
    if recogniser is not None:
        rows = checked(lab, rows, {store.ids.sample_id(task, text): text for text in work}, recogniser)
    store.publish(lab, "syntheses", rows, made_from)


def decode(recording, folder: Path, where: str) -> tuple[np.ndarray, int]:
    """(float32 [T], Hz) of a data set's recording: a path (relative to `folder`), or `datasets`' undecoded audio."""
    from salad.speech import audio

    if isinstance(recording, dict):
        source = recording["bytes"] if recording.get("bytes") else folder / str(recording.get("path"))
    elif isinstance(recording, str):
        source = folder / recording
    else:
        raise SaladError(f"{where}: its recording is missing")
    try:
        samples, rate = audio.decode(source)
    except audio.Unusable as error:
        raise SaladError(f"{where}: its recording cannot be read ({error.args[0]}: {error.args[1]})") from None
    if not len(samples):
        raise SaladError(f"{where}: its recording is empty")
    return samples, rate
