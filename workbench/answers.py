"""Questions to a lab's models: who can answer, what a recording holds, and answers token by token, each with its
divergence from the text teacher. What the A/B app (workbench.arena) shows; knows no Gradio."""

import dataclasses
import difflib
import math
import random
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import store
from salad.errors import SaladError
from salad.evaluation.spoken import as_prompt
from salad.speech import SAMPLE_RATE

if TYPE_CHECKING:
    from salad.models.decoding import Streamed

MODALITIES = ("text", "speech", "cascade")
SHORTEST_S, LONGEST_S, LONGEST_TEXT = 0.2, 30.0, 400
ALTERNATIVES = 5
STOPPED = "stopped"
_TELLTALE = re.compile(
    r"\b(the|this|your) (audio|recording|voice|speech|sound|speaker|transcript|transcription)\b"
    r"|\bI (can )?(hear|heard|listen)|\byou (said|typed|wrote|spoke)\b|\bas written\b",
    re.IGNORECASE,
)


def gives_away(text: str) -> bool:
    """Whether an answer tells how its question was read: "the audio says", "I heard", "you typed"."""
    return _TELLTALE.search(text) is not None


# --- who can answer ---


@dataclass(frozen=True)
class Contender:
    """A checkpoint that answers. `teacher`: the original LLM that this checkpoint holds answers instead.

    run_id and step are what votes say of it; `folder` is the checkpoint's model folder."""

    name: str
    run_id: str | None
    step: int | None
    folder: Path
    teacher: bool = False

    @property
    def key(self) -> str:
        return f"{self.name}@{self.run_id or '-'}:{self.step if self.step is not None else '-'}"

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("text", "cascade") if self.teacher else MODALITIES


def contenders(lab: Path | str) -> list[Contender]:
    """The teacher, then every checkpoint of the finished Stage I and II runs, newest run and last step first.

    SaladError where no run is done."""
    from salad import lookup
    from salad.runs import RunFolder, read_json

    done = []
    for path in sorted(Path(lab).glob("runs/r*/config.json")):
        record, status = read_json(path) or {}, read_json(path.parent / "status.json") or {}
        if record.get("kind") in ("stage1", "stage2") and status.get("state") == "done":
            done.append((record["kind"], status.get("ended_at") or "", RunFolder.open(lab, record["run_id"])))
    done.sort(key=lambda found: found[:2], reverse=True)
    told = []
    for kind, _, run in done:
        name = run.config.get("contender") or kind
        told += [
            Contender(name, run.run_id, int(folder.name.split("-")[1]), folder / "model")
            for folder in reversed(run.checkpoints())
        ]
    if not told:
        raise SaladError(f"no finished Stage I or II run in {lab}: make one with `salad demo --lab {lab}`")
    stage1 = {run.run_id for kind, _, run in done if kind == "stage1"}
    holder = next((c for c in told if c.run_id in stage1), told[0])
    return [Contender("teacher", *lookup.newest_teacher(lab), holder.folder, teacher=True), *told]


def pick(found: list[Contender], key: str) -> Contender:
    """The contender with this key, or the newest checkpoint of this name; a SaladError that names those there are."""
    for contender in found:
        if key in (contender.key, contender.name):
            return contender
    names = list(dict.fromkeys(c.name for c in found))
    near = difflib.get_close_matches(key, [*names, *(c.key for c in found)], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise SaladError(f"no contender {key!r}; {hint}")


class Models:
    """Speech LMs of a lab, each loaded once and shared by everyone; at most `keep` stay in memory."""

    def __init__(self, lab: Path | str, device: str = "cpu", keep: int = 4):
        self.lab, self.device, self.keep = Path(lab), device, keep
        self.lock = threading.RLock()  # a device runs one model at a time, and PyTorch's peft switch is global to it
        self._loaded: OrderedDict[Path, object] = OrderedDict()

    def get(self, contender: Contender):
        """The contender's SpeechLM, on the device. SaladError where its checkpoint is gone or damaged."""
        from salad.models.speech_lm import SpeechLM
        from salad.training import checkpoints

        with self.lock:
            if contender.folder not in self._loaded:
                checkpoints.verify(contender.folder.parent)
                while len(self._loaded) >= self.keep:
                    self._loaded.popitem(last=False)
                self._loaded[contender.folder] = SpeechLM.from_pretrained(contender.folder, self.lab).to(self.device)
            self._loaded.move_to_end(contender.folder)
            return self._loaded[contender.folder]


# --- how a question is put ---


@dataclass(frozen=True)
class Prompt:
    """How a checkpoint is asked. `shots`: answered items of the lab's tasks that go before the question; `sentence`:
    the answer is its first sentence. A checkpoint says otherwise under "answering" in its speech_lm.json."""

    shots: int = 0
    sentence: bool = True
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32


# by `prompt` of speech_lm.json: plain is as items are, the question and then " Answer."; a chat ends its turn itself
PROMPTS = {"plain": Prompt(), "chat": Prompt(sentence=False, stop=(), max_new_tokens=64)}


def prompt_of(settings: dict, shots: int | None = None) -> Prompt:
    """The prompt that a checkpoint's settings (speech_lm.json) ask for; `shots` overrides their number."""
    name, own = settings.get("prompt", "plain"), dict(settings.get("answering") or {})
    if name not in PROMPTS:
        raise SaladError(f"this checkpoint wants the prompt {name!r}; known: {', '.join(PROMPTS)}")
    unknown = set(own) - {f.name for f in dataclasses.fields(Prompt)}
    if unknown:
        raise SaladError(f"speech_lm.json: answering has no {', '.join(sorted(unknown))}")
    if "stop" in own:
        own["stop"] = tuple(own["stop"])
    if shots is not None:
        own["shots"] = shots
    return dataclasses.replace(PROMPTS[name], **own)


def shots_before(items: list, question: str, count: int, seed: int) -> str:
    """`count` items with their right answers, a line each, none of them the question."""
    others = sorted((i for i in items if i.context != question), key=lambda i: (i.task, i.item_id))
    chosen = random.Random(seed).sample(others, min(count, len(others)))
    return "".join(f"{item.context} {item.choices[item.answer]}\n" for item in chosen)


def ends_sentence(text: str) -> bool:
    """Whether `text` ends with the end of a sentence: "St." and "Dr." do not, "0." may go on."""
    from salad.speech.english import ABBREVIATIONS

    told = text.rstrip().rstrip("\"')]”’")
    if not told.endswith((".", "!", "?")):
        return False
    last = told.split()[-1]
    return last not in ABBREVIATIONS and not re.fullmatch(r"[A-Z]\.", last)


def complete(text: str, following: str | None) -> bool:
    """Whether an answer is its first sentence. "3." is known to be whole only when no digit follows."""
    if re.search(r"\d\.$", text):
        return following is not None and not following[:1].isdigit()
    return following is None and ends_sentence(text)


# --- what was asked ---


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
        return len(self.samples) / SAMPLE_RATE

    @property
    def written(self) -> str:
        """What a text model reads: the text that was given, else what the recogniser heard."""
        return self.text or self.heard or ""


def clean_text(text: str | None) -> str:
    """A typed question without control characters and double spaces; SaladError where it is empty or too long."""
    told = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    if not told:
        raise SaladError("there is no question: type one, choose an item, or record or upload one")
    if len(told) > LONGEST_TEXT:
        raise SaladError(f"the question has {len(told)} characters; at most {LONGEST_TEXT} can be asked")
    return told


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
            found = con.execute(
                "SELECT tts, voice, count(*) FROM syntheses WHERE tts <> 'recorded' GROUP BY ALL ORDER BY 3 DESC, 1, 2"
            ).fetchall()
        self.tts_name = tts or (found[0][0] if found else "espeak")
        self.voices = [voice for name, voice, _ in found if name == self.tts_name]
        self._recogniser_name = recogniser
        self._tts = self._recogniser = None
        self._lock = threading.RLock()

    @property
    def tts(self):
        from salad.speech import load_tts

        with self._lock:
            self._tts = self._tts or load_tts(self.tts_name)
            return self._tts

    @property
    def recogniser(self):
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

    def item(self, item_id: str):
        found = next((item for item in self.items if item.item_id == item_id), None)
        if found is None:
            raise SaladError(f"no item {str(item_id)[:80]!r} in this lab's tasks")
        return found

    def ask(self, text: str | None = None, audio: Path | str | None = None, item_id: str | None = None,
            voice: str | None = None, source: str = "file", seed: int = 0) -> Question:  # fmt: skip
        """The question: a recording (with what was said, if `text` or `item_id` tells), an item, or typed text.

        A text that is an item's, word by word, is that item."""
        item = self.item(item_id) if item_id else self._by_context.get((text or "").strip())
        told = item.context if item else clean_text(text) if (text or "").strip() or audio is None else None
        if audio is not None:
            samples, notes = read_audio(audio)
            question = Question("", told, samples, source, "recorded", item, notes=notes)
        elif item is not None and (found := self._spoken_item(item)) is not None:
            question = Question("", told, found[0], "item", found[1], item)
        else:
            question = self._speak(told, voice, seed, item)
        if item is not None:
            question.question_id = item.item_id
        else:
            said = told if told is not None else question.samples.tobytes().hex()
            question.question_id = store.ids.hash_id("q", said)
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
        told = dict(zip(names, row, strict=True))
        return audio_of(self.lab, told, SAMPLE_RATE), told["voice"]

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
                    raise SaladError("the recogniser heard no words in this recording: ask again, or type what is said")
            else:
                spoken = spoken_form(question.text).spoken
                found = check(question.samples, question.text, self.recogniser, spoken=spoken)
                question.heard, question.cer = found.text_asr, found.cer
        return question


# --- answers ---


@dataclass
class Token:
    """A token of an answer. d: KL(Q || P) in nats, where Q is the text teacher on the written question and the same
    answer so far, P the contender at this position; ours, teachers: their likeliest tokens with probabilities."""

    text: str
    d: float | None
    ours: list[tuple[str, float]]
    teachers: list[tuple[str, float]]


class Answer:
    """One contender's answer in one modality, a token a `step`. `text`, `tokens`, `first_s` and `total_s` (its own
    computing; the teacher's, for the divergence, apart), `done`, `why` (how it ended)."""

    def __init__(self, models: Models, contender: Contender, modality: str, question: Question, items: list,
                 shots: int | None = None, temperature: float = 0.0, seed: int = 0):  # fmt: skip
        if modality not in contender.modalities:
            raise SaladError(
                f"{contender.name} does not answer {modality}; it answers {', '.join(contender.modalities)}"
            )
        if modality == "cascade" and question.heard is None:
            raise SaladError("a cascade needs a recogniser, and this lab has none; name one with --recogniser")
        self.models, self.contender, self.modality, self.question = models, contender, modality, question
        self.items, self.shots, self.temperature, self.seed = items, shots, temperature, seed
        self.tokens: list[Token] = []
        self.text, self.first_s, self.total_s, self.done, self.why = "", 0.0, 0.0, False, ""
        self._decoding = self._teacher = None

    def _begin(self) -> None:
        from salad.models.decoding import Decoding, DecodingState

        model = self.model = self.models.get(self.contender)
        self.prompt = prompt_of(model.settings, self.shots)
        before = shots_before(self.items, self.question.written, self.prompt.shots, self.seed)
        shots = [before] if before else []
        if self.modality == "speech":
            from salad.speech import SAMPLE_RATE

            samples, rate = self.question.samples, model.encoder.sample_rate
            if rate != SAMPLE_RATE:
                import soxr

                samples = soxr.resample(samples, SAMPLE_RATE, rate)
            asked = samples
        else:
            asked = self.question.written
            if self.modality == "cascade":  # the mark that ends a question is the prompt's, not the voice's
                asked = as_prompt(self.question.heard or "", asked) or " "
        self._decoding = Decoding(model, [*shots, asked], self.prompt.max_new_tokens, self.prompt.stop, self.temperature,
                                  self.seed, self.contender.teacher, complete if self.prompt.sentence else None)  # fmt: skip
        same = self.contender.teacher and self.modality == "text"
        self._teacher = None if same else DecodingState(model, [*shots, self.question.written], teacher=True)

    def step(self) -> bool:
        """Say one more token; False when the answer has ended."""
        with self.models.lock:
            if self.done:
                self._decoding = self._teacher = None
                return False
            if self._decoding is None:
                self._begin()
            found = next(self._decoding, None)
            self.total_s = self._decoding.seconds
            self.first_s = self.first_s or self.total_s
            if found is not None:
                self.tokens.append(self._shown(found))
                self.text += found.text
            if self._decoding.finished:
                self.done, self.why = True, self._decoding.ended
                self._decoding = self._teacher = None  # their caches
                return False
            if self._teacher is not None:
                self._teacher.advance(found.token)
            return True

    def stop(self) -> None:
        """End the answer where it is; waits for nothing, not even for a step that is being computed."""
        if not self.done:
            self.done, self.why = True, STOPPED
        if self.models.lock.acquire(blocking=False):
            self._decoding = self._teacher = None
            self.models.lock.release()

    def run(self) -> "Answer":
        while self.step():
            pass
        return self

    def _shown(self, found: "Streamed") -> Token:
        teacher = found.logp if self._teacher is None else self._teacher.logp
        d = float((teacher.exp() * (teacher - found.logp)).sum())
        return Token(found.text, max(0.0, d) if math.isfinite(d) else None, self._top(found.logp), self._top(teacher))

    def _top(self, logp) -> list[tuple[str, float]]:
        best = logp.topk(min(ALTERNATIVES, len(logp)))
        return [
            (self.model.tokenizer.decode([i]), p)
            for i, p in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        ]

    def facts(self) -> dict:
        """The answer as JSON-able data."""
        ds = [token.d for token in self.tokens if token.d is not None]
        return {
            "contender": self.contender.name, "run_id": self.contender.run_id, "step": self.contender.step,
            "modality": self.modality, "text": self.text.strip(), "ended": self.why,
            "first_s": round(self.first_s, 4), "total_s": round(self.total_s, 4), "n_tokens": len(self.tokens),
            "d": sum(ds) / len(ds) if ds else None, "gives_away": gives_away(self.text),
            "tokens": [dataclasses.asdict(token) for token in self.tokens],
        }  # fmt: skip


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
        raise SaladError("type what is said in the recording first: a test item needs its text")
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
    while (
        cuts := shar.folder_of(lab, "recorded") / f"cuts.{shard:06d}.jsonl"
    ).exists() and name not in cuts.read_text():
        shard = (shard + 1) % 10**6
    speech = shar.Speech(
        name, sample_id, text, Utterance(question.samples, SAMPLE_RATE, []), "recorded", "recorded",
        measured={"cer": question.cer, "text_asr": question.heard} if question.heard is not None else {},
    )  # fmt: skip
    rows = shar.write_shard(lab, "recorded", shard, [speech], lambda job: job, job_id=lambda job: job.id)
    store.publish(lab, "syntheses", rows, {"recorded": name})
    return name
