"""What is asked: a typed question in the study's voice, a recording, or an item of the study, with what the recogniser
makes of it; and a recording that is kept as a test item."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import store
from salad.errors import SaladError
from salad.speech import SAMPLE_RATE

if TYPE_CHECKING:
    from salad.evaluation.items import Item
    from salad.speech import TTS
    from salad.speech.check import Recogniser

SHORTEST_S, LONGEST_S, LONGEST_TEXT = 0.2, 30.0, 400


@dataclass
class Question:
    """text: what was asked where it is known, else None. samples: float32 [T] at 16 kHz. source: typed, file,
    microphone or item. heard: the recogniser's transcript (None without a recogniser), cer against `text`."""

    question_id: str
    text: str | None
    samples: np.ndarray
    source: str
    voice: str
    item: object = None
    heard: str | None = None
    cer: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def written(self) -> str:
        """What a text model reads: the text that was given, else what the recogniser heard."""
        return self.text or self.heard or ""


def clean_text(text: str | None) -> str:
    """A typed question without control characters and double spaces; SaladError where it is empty or too long."""
    cleaned = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    if not cleaned:
        raise SaladError("no question: type one, choose an item, or record or upload a recording")
    if len(cleaned) > LONGEST_TEXT:
        raise SaladError(f"the question has {len(cleaned)} characters; at most {LONGEST_TEXT} can be asked")
    return cleaned


def read_audio(path: Path | str) -> tuple[np.ndarray, list[str]]:
    """An audio file as float32 [T] at 16 kHz, and what was done to it; a SaladError where it cannot be a question.

    Any format that `salad.speech.audio` reads, rate and number of channels; 0.2 to 30 s in which something can be heard."""
    from salad.speech.audio import Unusable, decode_channels
    from salad.speech.shar import to_rate

    try:
        samples, rate = decode_channels(Path(path), longest_s=LONGEST_S)
    except Unusable as error:
        reason, detail = error.args
        if reason == "too long":
            raise SaladError(f"this recording lasts {detail}; a question may last {LONGEST_S:.0f} s at most") from None
        if reason == "truncated":
            raise SaladError(f"this recording is cut short ({detail}): record or upload it again") from None
        raise SaladError(f"this file is not audio that can be read ({detail}); WAV, FLAC, OGG and MP3 can") from None
    seconds, channels = len(samples) / rate, samples.shape[1]
    if seconds < SHORTEST_S or not len(samples):
        raise SaladError(f"this recording lasts {seconds:.2f} s: too short to hold a question")
    notes = [f"{channels} channels were mixed into one"] if channels > 1 else []
    if rate != SAMPLE_RATE:
        notes.append(f"{rate / 1000:g} kHz was converted to {SAMPLE_RATE / 1000:g} kHz")
    samples = to_rate(np.nan_to_num(samples.mean(1), posinf=0.0, neginf=0.0), rate)
    frame = SAMPLE_RATE // 50
    level = np.sqrt((samples[: len(samples) // frame * frame].reshape(-1, frame) ** 2).mean(1))
    if float(np.quantile(level, 0.95)) < 1e-3:
        raise SaladError("nothing can be heard in this recording: check the microphone and ask again")
    return samples, notes


class Listener:
    """Turns what was asked into a `Question`: speaks typed text, reads files, finds items, transcribes all of it."""

    def __init__(self, lab: Path | str, device: str = "cpu", tts: str | None = None, recogniser: str | None = None):
        from salad.evaluation import tasks

        self.lab, self.device = Path(lab), device
        self.items = [item for task in tasks.names(lab) for item in tasks.load(lab, task)]
        self._by_context = {item.context: item for item in reversed(self.items)}
        with store.connect(lab) as con:
            row = con.execute(
                "SELECT tts, voice, count(*) FROM syntheses WHERE tts <> 'recorded' GROUP BY ALL ORDER BY 3 DESC, 1, 2"
            ).fetchall()
        self._named_by_lab = tts is None
        self.tts_name = tts or (row[0][0] if row else "espeak")
        self.voices = [voice for name, voice, _ in row if name == self.tts_name]
        self._recogniser_name = recogniser
        self._tts = self._recogniser = None
        self._lock = threading.RLock()

    @property
    def tts(self) -> TTS:
        """The synthesiser of typed questions, loaded when first needed."""
        from salad import parts
        from salad.speech import load_tts

        with self._lock:
            if self._named_by_lab:
                parts.check(self.tts_name, f"{self.lab}, in syntheses.tts,")
            self._tts = self._tts or load_tts(self.tts_name)
            return self._tts

    @property
    def recogniser(self) -> Recogniser | None:
        """The lab's recogniser (or the one that was named), loaded when it is first needed; None without one."""
        from salad.speech.check import load_recogniser

        with self._lock:
            if self._recogniser is None:
                here = self.lab / "models" / "recogniser"
                name = self._recogniser_name or (str(here) if here.is_dir() else None)
                if name is None:
                    return None
                self._recogniser = load_recogniser(name, self.device)
            return self._recogniser

    def item(self, item_id: str) -> Item | None:
        """The test item with this id; None if there is none."""
        match = next((item for item in self.items if item.item_id == item_id), None)
        if match is None:
            raise SaladError(f"no item {str(item_id)[:80]!r} in this lab's tasks")
        return match

    def ask(
        self,
        text: str | None = None,
        audio: Path | str | None = None,
        item_id: str | None = None,
        voice: str | None = None,
        source: str = "file",
        seed: int = 0,
    ) -> Question:
        """The question: a recording (with what was said, if `text` or `item_id` tells), an item, or typed text.

        A text that is an item's, word by word, is that item."""
        item = self.item(item_id) if item_id else self._by_context.get((text or "").strip())
        text_shown = item.context if item else clean_text(text) if (text or "").strip() or audio is None else None
        if audio is not None:
            samples, notes = read_audio(audio)
            question = Question("", text_shown, samples, source, "recorded", item, notes=notes)
        elif item is not None and (recording := self._spoken_item(item)) is not None:
            question = Question("", text_shown, recording[0], "item", recording[1], item)
        else:
            question = self._speak(text_shown, voice, seed, item)
        if item is not None:
            question.question_id = item.item_id
        else:
            key = text_shown if text_shown is not None else question.samples.tobytes().hex()
            question.question_id = store.ids.hash_id("q", key)
        return self._transcribed(question)

    def _speak(self, text: str, voice: str | None, seed: int, item) -> Question:
        from salad.passes.synthesise import Job, speak
        from salad.speech.shar import to_rate

        voice = voice or (self.voices[0] if self.voices else self.tts.voices[0])
        utterance = speak(self.tts, Job("", text, voice, seed), recorded=False)
        samples = to_rate(utterance.samples, utterance.sample_rate)
        if len(samples) < SHORTEST_S * SAMPLE_RATE:
            raise SaladError(f"the voice says nothing for {text[:60]!r}: ask in words")
        if len(samples) > LONGEST_S * SAMPLE_RATE:
            raise SaladError(f"spoken, this question lasts over {LONGEST_S:.0f} s: ask a shorter one")
        return Question("", text, samples, "item" if item else "typed", voice, item, notes=list(utterance.flags))

    def _spoken_item(self, item) -> tuple[np.ndarray, str] | None:
        """An item's spoken context in the study's own synthesis, and its voice; None where it has none."""
        from salad.data.corpora import audio_of
        from salad.evaluation.spoken import context_sample

        with store.connect(self.lab) as con:
            rows = con.execute(
                "SELECT * FROM syntheses WHERE sample_id = ? AND tts <> 'recorded' ORDER BY seed, synthesis_id LIMIT 1",
                [context_sample(item)[0]],
            )
            names = [column[0] for column in rows.description]
            row = rows.fetchone()
        if row is None:
            return None
        recording = dict(zip(names, row, strict=True))
        return audio_of(self.lab, recording, SAMPLE_RATE), recording["voice"]

    def _transcribed(self, question: Question) -> Question:
        from salad.speech.check import check
        from salad.speech.spoken import spoken_form

        if self.recogniser is None:
            if question.text is None:
                raise SaladError("say in words what is asked: this lab has no recogniser that could write it down")
            return question
        with self._lock:
            if question.text is None:
                question.heard = self.recogniser.transcribe([question.samples])[0].strip()
                if not question.heard:
                    raise SaladError("the recogniser found no words in this recording; record it again, or type its words")
            else:
                spoken = spoken_form(question.text).spoken
                checked = check(question.samples, question.text, self.recogniser, spoken=spoken)
                question.heard, question.cer = checked.text_asr, checked.cer
        return question


def keep_recording(lab: Path | str, question: Question) -> str:
    """Keep a question that was really spoken as a natural-speech test item: a recording in lab/speech/recorded with
    its rows in `syntheses` (tts and voice `recorded`), under the item's own text where it was one. Returns its
    synthesis id. Only with the speaker's consent."""
    from salad.evaluation.spoken import context_sample
    from salad.speech import Utterance, shar
    from salad.speech.speakability import speakability
    from salad.speech.spoken import spoken_form

    if question.source not in ("file", "microphone"):
        raise SaladError("only a question that was recorded or uploaded can become a recorded test item")
    if question.text is None:
        raise SaladError("type the words of the recording first; a test item needs its text")
    if question.item is not None:
        sample_id, text, corpus = context_sample(question.item)
    else:
        text, corpus = question.text, "asked"
        sample_id = store.ids.sample_id(corpus, text)
        made_from = {"asked": sample_id}
        if not store.exists(lab, "samples", made_from):
            row = {
                "sample_id": sample_id, "text": text, "spoken": spoken_form(text).spoken, "corpus": corpus,
                "domain": None, "licence": "kept with the speaker's consent", "flags": sorted(speakability(text)),
            }  # fmt: skip
            store.publish(lab, "samples", [row], made_from)
    name = store.ids.hash_id("y", sample_id, "recorded", question.samples.tobytes().hex())
    shard = int(name[1:], 16) % 10**6  # a shard of its own, as two apps may keep at once
    while (cuts := shar.folder_of(lab, "recorded") / f"cuts.{shard:06d}.jsonl").exists() and name not in cuts.read_text():
        shard = (shard + 1) % 10**6
    speech = shar.Speech(
        name, sample_id, text, Utterance(question.samples, SAMPLE_RATE, []), "recorded", "recorded",
        measured={"cer": question.cer, "text_asr": question.heard} if question.heard is not None else {},
    )  # fmt: skip
    rows = shar.write_shard(lab, "recorded", shard, [speech], lambda job: job, job_id=lambda job: job.id)
    store.publish(lab, "syntheses", rows, {"recorded": name})
    return name
