"""Spoken contexts of items: recordings of a spoken data set (voice `recorded`), else speech of the lab's voices, kept
in the lab as syntheses with their CER, so that each is made once whoever is evaluated."""

import functools
import re
from collections import Counter
from collections.abc import Set
from pathlib import Path

import numpy as np

import store
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation.items import Item
from salad.evaluation.scoring import Recording
from salad.models.names import folder_sha256, is_kept, kept, resolve

RECORDED = "recorded"
DEFAULT_TTS, BUILT_IN = "espeak", ("espeak", "kokoro")
TRANSCRIBED_AT_ONCE = 16


def context_sample(item: Item) -> tuple[str, str, str]:
    """(sample id, text, corpus) under which an item's spoken context is kept in the store."""
    task = item.task.partition("@")[0]
    return store.ids.sample_id(task, item.context), item.context, task


class SpokenItems:
    """The spoken contexts of one task by one synthesiser in one voice (None: as the lab has spoken each): what a
    contender hears. `rows`: of `syntheses`, by sample id; `only`: the samples that have no other speech in their voice."""

    def __init__(self, lab: Path | str, task: str, voice: str | None, rows: dict[str, dict], asr: str | None = None,
                 only: Set[str] = frozenset()):  # fmt: skip
        self.lab, self.task, self.voice, self._rows, self._asr, self._only = Path(lab), task, voice, rows, asr, only
        self._transcripts: dict[str, str] = {}

    def __contains__(self, text: str) -> bool:
        return store.ids.sample_id(self.task, text) in self._rows

    def row(self, text: str) -> dict:
        """The row of `syntheses` for a text; SaladError where it is not spoken."""
        row = self._rows.get(store.ids.sample_id(self.task, text))
        if row is None:
            raise SaladError(f"task {self.task}: {text[:60]!r} has no speech in voice {self.voice or 'any'}")
        return row

    def is_only(self, text: str) -> bool:
        """Whether a text has one speech alone in its voice, whatever the synthesiser and the seed."""
        return store.ids.sample_id(self.task, text) in self._only

    def recording(self, text: str, sample_rate: int) -> Recording:
        """float32 [T] at `sample_rate`."""
        row = self.row(text)
        return Recording(row["synthesis_id"], corpora.audio_of(self.lab, row, sample_rate))

    def silence(self, text: str, sample_rate: int) -> Recording:
        """Digital silence as long as the recording of a text, to a hundredth of a second."""
        length = max(1, round(100 * self.row(text)["duration_s"]))
        return Recording(f"silence-{length}", np.zeros(length * sample_rate // 100, np.float32))

    # --- transcripts ---

    def is_transcribed(self, text: str) -> bool:
        """Whether the transcript that is kept with the speech is by the recogniser that is asked for."""
        row = self.row(text)
        if row["text_asr"] is None:
            return False
        return self._asr is None or is_kept(row["asr"], self._recogniser_name or "", self.lab)

    def asr(self, text: str) -> str | None:
        """The recogniser whose transcript a cascade reads, as `evaluations` names it: `recogniser_label`."""
        if self.is_transcribed(text):
            return self._label(self.row(text)["asr"])
        return self._label(self._recogniser_name)

    @functools.cached_property
    def _recogniser_name(self) -> str | None:
        from salad.speech.check import recogniser_of

        return recogniser_of(self.lab, self._asr)[0]

    @functools.cached_property
    def _recogniser(self):
        return _recogniser(self.lab, self._asr)

    @functools.cached_property
    def _labels(self) -> dict[str | None, str | None]:
        return {}

    def _label(self, name: str | None) -> str | None:
        if name not in self._labels:  # a folder's files are hashed once
            self._labels[name] = recogniser_label(name, self.lab)
        return self._labels[name]

    def transcribe(self, texts: list[str]) -> None:
        """Transcribe what the recogniser that is asked for has not heard yet, many at a time."""
        from salad.speech import SAMPLE_RATE

        fresh = [t for t in dict.fromkeys(texts) if not self.is_transcribed(t) and t not in self._transcripts]
        for start in range(0, len(fresh), TRANSCRIBED_AT_ONCE):
            some = fresh[start : start + TRANSCRIBED_AT_ONCE]
            if self._recogniser is None:
                raise SaladError(
                    f"speech {self.row(some[0])['synthesis_id']} of {self.task} has no transcript: a cascade needs a "
                    "recogniser (lab/models/recogniser, or --asr)"
                )
            sounds = [corpora.audio_of(self.lab, self.row(text), SAMPLE_RATE) for text in some]
            self._transcripts.update(zip(some, self._recogniser.transcribe(sounds), strict=True))

    def transcript(self, text: str) -> str:
        """What a cascade hands to the LLM: what was heard, ending as the written text does. Speech that was not
        transcribed when it was made, or by another recogniser than is asked for, is transcribed now."""
        if self.is_transcribed(text):
            return as_prompt(self.row(text)["text_asr"], text)
        self.transcribe([text])
        return as_prompt(self._transcripts[text], text)


def recogniser_label(name: str | None, lab: Path | str) -> str | None:
    """A recogniser as `evaluations` names it: a folder of the lab relative to it, else a folder or hub name; of a folder
    with the beginning of its files' SHA-256, for another one may lie there tomorrow."""
    if name is None:
        return None
    for folder in (Path(lab) / name, Path(name)):
        if folder.is_dir():
            return f"{kept(str(folder), lab)}#{folder_sha256(folder)[:12]}"
    found = Path(resolve(name, lab))
    return f"{name}#{folder_sha256(found)[:12]}" if found.is_dir() else name  # one of SALAD_MODELS


def as_prompt(transcript: str, context: str) -> str:
    """What a cascade hands to the LLM: the transcript, ending in the mark that the prompt's format has there.

    The mark that ends a context is part of the prompt, not of what is said: no voice tells "?" from "."."""
    mark = context[len(context.rstrip(".,?!:; ")) :]
    return transcript.strip().rstrip(".,?!:; ") + mark


def listed(voices: str | None) -> list[str] | None:
    """The voices of a comma-separated list; a comma within a voice's own settings ("en-us@rate=150,pitch=40") is no
    border."""
    return None if not voices else [voice.strip() for voice in re.split(r",(?!\w+=)", voices)]


Speaker = tuple[str, str]  # (synthesiser, voice) as `syntheses` names them


def find(lab: Path | str, task: str, texts: list[str]) -> tuple[dict[Speaker, dict[str, dict]], set[str]]:
    """({(tts, voice): {sample id: row of `syntheses`}} of what the lab holds of `texts`, of several seeds the first; the
    samples that have no more than one speech in any voice, whoever spoke it)."""
    con = store.connect(lab)
    ids = [store.ids.sample_id(task, text) for text in texts]
    found = con.execute(
        """select * from syntheses where sample_id in (select unnest(?))
           order by tts, voice, sample_id, seed, synthesis_id""", [ids]
    )  # fmt: skip
    names = [column[0] for column in found.description]
    speakers: dict[Speaker, dict[str, dict]] = {}
    times: Counter = Counter()
    for values in found.fetchall():
        row = dict(zip(names, values, strict=True))
        voice = RECORDED if row["tts"] == RECORDED else row["voice"]
        speakers.setdefault((row["tts"], voice), {}).setdefault(row["sample_id"], row)
        times[row["sample_id"], voice] += 1
    several = {sample for (sample, _), count in times.items() if count > 1}
    return speakers, {sample for sample, _ in times} - several


def prepare(lab: Path | str, task: str, texts: list[str], voices: list[str] | None = None, tts: str | None = None,
            asr: str | None = None, recordings: list | None = None, progress=None) -> list[SpokenItems]:  # fmt: skip
    """The spoken contexts of `texts`, one `SpokenItems` a synthesiser and voice; what is missing is spoken now, and kept.

    `tts`: whose speech it is; None: whoever has spoken here already, else espeak. Without `voices`: the data set's own
    recordings (`recordings`, one a text) where it has them; else every voice in which the lab has spoken all texts; else
    the lab's speech in whatever voices; else the first voice of `tts`. Voice `recorded` is never made up: where it is
    asked for, only the texts that someone has spoken are in it, and none is a SaladError, as is a voice that several
    synthesisers here have where none is named. `asr`: the recogniser that checks, by default lab/models/recogniser.
    """
    for text in texts:
        if not text.strip():
            raise SaladError(f"task {task}: an empty context cannot be spoken")
    texts = list(dict.fromkeys(texts)) if recordings is None else texts
    if recordings is not None:
        _keep_recordings(lab, task, texts, recordings, asr)
    engine = None if tts is None else _engine(tts)
    whole = len(set(texts))
    found, only = find(lab, task, texts)
    own = {who: rows for who, rows in found.items() if engine is None or who[0] in (engine.name, RECORDED)}
    recorded = (RECORDED, RECORDED)
    if voices is not None:
        speakers = [_speaker(task, voice, own, whole, engine) for voice in voices]
    elif recordings is not None:
        speakers = [recorded]
    else:
        speakers = [who for who, rows in own.items() if len(rows) == whole]
        if recorded in speakers and len(speakers) > 1:
            speakers.remove(recorded)
        if not speakers:
            any_voice = {sample: row for who, rows in own.items() if who != recorded for sample, row in rows.items()}
            if len(any_voice) == whole:
                return [SpokenItems(lab, task, None, any_voice, asr, only)]
            engine = engine or _engine(DEFAULT_TTS)
            speakers = [(engine.name, engine.voices[0])]
    if recorded in speakers and recorded not in found:
        raise SaladError(f"task {task}: none of its contexts was recorded; name a TTS voice")
    missing = [who for who in speakers if who != recorded and len(found.get(who, {})) < whole]
    for name, voice in missing:
        if engine is None or engine.name != name:
            if name not in BUILT_IN:  # a name that only the lab's data hold is not a program to be run
                raise SaladError(f"task {task}: the rest of voice {voice} is to be spoken by {name}; name it by --tts")
            engine = _engine(name)
        _speak(lab, task, texts, voice, engine, asr, progress)
    _samples(lab, task, list(dict.fromkeys(texts)))  # after the speech: a voice that does not exist leaves nothing behind
    found, only = find(lab, task, texts) if missing else (found, only)
    return [SpokenItems(lab, task, who[1], found[who], asr, only) for who in dict.fromkeys(speakers)]


def _engine(tts: str):
    from salad.speech import load_tts

    return load_tts(tts)


def _speaker(task: str, voice: str, found: dict[Speaker, dict[str, dict]], whole: int, engine) -> Speaker:
    """Whose voice is meant: the named synthesiser's, else that of the one here who has spoken in it."""
    if voice == RECORDED:
        return RECORDED, RECORDED
    if engine is not None:
        return engine.name, voice
    here = [who for who in found if who[1] == voice]
    here = [who for who in here if len(found[who]) == whole] or here
    if len(here) > 1:
        raise SaladError(f"task {task}: voice {voice} is one of {' and of '.join(name for name, _ in here)}; name it by --tts")
    return here[0] if here else (_engine(DEFAULT_TTS).name, voice)


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


def _speak(lab, task: str, texts: list[str], voice: str, engine, asr: str | None, progress) -> None:
    from salad.passes.synthesise import jobs_of, synthesise

    jobs = jobs_of([(store.ids.sample_id(task, text), text) for text in texts], (voice,))
    made_from = {"contexts": task, "voice": voice, "tts": engine.name, "jobs": store.ids.digest([vars(j) for j in jobs])}
    name = f"{task}-{store.ids.digest(made_from)[:8]}"
    synthesise(lab, name, jobs, engine, made_from, _recogniser(lab, asr), progress=progress)


def _keep_recordings(lab, task: str, texts: list[str], recordings: list, asr: str | None) -> None:
    """Bring a spoken data set's recordings into lab/speech/<task>-recorded, once, transcribed and with their CER."""
    from salad.passes.synthesise import checked
    from salad.speech import SAMPLE_RATE, Utterance, shar

    there = find(lab, task, texts)[0].get((RECORDED, RECORDED), {})
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
