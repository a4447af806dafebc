"""What a speech LLM is diagnosed on: prompts of which a part is spoken, and the answers that follow them.

They come from recordings of the lab (a folder of lab/speech), from texts of it (a corpus), which are spoken where they are
not yet, or from a task of `salad evaluate`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import store
from salad.errors import SaladError
from salad.evaluation import harness, spoken
from salad.evaluation import tasks as known_tasks
from salad.evaluation.scoring import Prompt
from salad.models.prompts import turn
from salad.passes import Progress


class Sound(NamedTuple):
    """A recording up to a second of it: the row of `syntheses`, and where it is cut."""

    row: dict
    end_s: float

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from other sounds."""
        return self.row["synthesis_id"], self.end_s


class Piece(NamedTuple):
    """A piece of a prompt: its text, and where it is spoken its sound."""

    text: str
    sound: Sound | None = None


class SpokenPrompt(NamedTuple):
    """A prompt, in pieces, and the answer that follows it, with the blank before it. `start`: the character at which the
    answer begins (its blank not counted), in the text of the sample, or counting on from its end; `first`: the lowest
    character that is a token's of the answer, so that a blank that the text does not hold is none of it."""

    sample_id: str
    pieces: tuple[Piece, ...]
    answer: str
    start: int
    first: int = 0

    @property
    def synthesis_id(self) -> str:
        """The recording of the passage's own text."""
        return self.sounds[-1].row["synthesis_id"]

    @property
    def sounds(self) -> list[Sound]:
        """The recordings in the prompt, in order."""
        return [piece.sound for piece in self.pieces if piece.sound is not None]

    @property
    def text(self) -> Prompt:
        """The prompt as text."""
        return ["".join(piece.text for piece in self.pieces)]

    @property
    def speech_s(self) -> float:
        return sum(sound.end_s for sound in self.sounds)


class DiagnosisTexts(NamedTuple):
    """What a model is diagnosed on. `corpus`: whose samples these are, None where they are of several; `notes`: what was left
    out and why, a line each."""

    passages: list[SpokenPrompt]
    corpus: str | None
    notes: list[str]


def read_texts(lab: Path | str, name: str, limit: int | None = 256, seed: int = 0, voices: list[str] | None = None,
               tts: str | None = None, asr: str | None = None, instruction: str | None = None,
               progress: Progress | None = None) -> DiagnosisTexts:  # fmt: skip
    """The passages of `name`: a folder of lab/speech, a corpus of the lab, or a task.

    Of a corpus or a folder, `limit` texts that `seed` draws; of a task its first items. A text with an answer of its own
    (`samples.answer`) is spoken whole; any other is divided at the sentence nearest to its middle, the first part spoken and
    the second the answer. A task's prompt is spoken where `salad evaluate` speaks it, and its right choice is the answer.
    What is not spoken yet is spoken now, by `tts` in the first of `voices`, and kept (`salad.evaluation.spoken.prepare`).
    `instruction`: words that stand before every prompt as text. Raises SaladError where there is no such text or voice."""
    if limit is not None and limit < 1:
        raise SaladError(f"--limit {limit}: take at least one text")
    con = store.connect(lab)
    folders, there = (
        {value for (value,) in con.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall() if value}
        for column, table in (("speech", "syntheses"), ("corpus", "samples"))
    )
    before = (Piece(f"{instruction.strip()}\n"),) if instruction else ()
    if name in folders and tts is None and voices is None:
        rows = _dicts(con, "SELECT * FROM syntheses WHERE speech = ? ORDER BY synthesis_id", name)
        texts = _dicts(con, "SELECT sample_id, text, answer, corpus FROM samples WHERE sample_id IN "
                            "(SELECT sample_id FROM syntheses WHERE speech = ?)", name)  # fmt: skip
        return _of_samples(name, texts, lambda _: rows, limit, seed, before)
    if name in there and name not in known_tasks.names(lab):
        texts = _dicts(con, "SELECT sample_id, text, answer, corpus FROM samples "
                            "WHERE corpus = ? AND len(coalesce(flags, [])) = 0", name)  # fmt: skip
        if not texts:
            raise SaladError(f"corpus {name} holds no text that can be spoken: every one of them has a flag")

        def speak(chosen: list[dict]) -> list[dict]:
            written = [one["text"] for one in chosen]
            sounds = spoken.prepare(lab, name, written, voices, tts, asr, progress=progress)
            return [sound.row(text) for sound in sounds for text in written if text in sound]

        return _of_samples(name, texts, speak, limit, seed, before)
    if Path(name).exists():
        what = "speech" if Path(name).is_dir() else "text"
        raise SaladError(
            f"--texts {name} is not in the lab yet: bring it in with `salad prepare {what} {name} --name NAME`, then --texts NAME"
        )
    return _of_task(lab, name, limit, voices, tts, asr, before, sorted(folders | there))


def _dicts(con, sql: str, *values: object) -> list[dict]:
    found = con.execute(sql, list(values))
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _of_samples(name: str, texts: list[dict], speak: Callable[[list[dict]], list[dict]], limit: int | None, seed: int,
                before: tuple[Piece, ...]) -> DiagnosisTexts:  # fmt: skip
    """Passages of samples, each once for every recording that it has. `speak`: rows of `syntheses` for the chosen ones."""
    left_out: Counter[str] = Counter()
    texts = sorted(texts, key=lambda one: hashlib.sha256(f"{seed} {one['sample_id']}".encode()).digest())
    divided = {one["sample_id"]: found for one in texts if (found := _divided(one)) is not None}
    usable = [one for one in texts if one["sample_id"] in divided]
    left_out["cannot be divided into a prompt and what follows it"] = len(texts) - len(usable)
    chosen = usable[:limit]
    by_id, passages = {one["sample_id"]: one for one in chosen}, []
    for row in speak(chosen) if chosen else []:
        if row["sample_id"] not in by_id:
            continue
        one = by_id[row["sample_id"]]
        prompt, answer, start = divided[row["sample_id"]]
        end_s = row["duration_s"] if one["answer"] else _end_of(row, start)
        if end_s is None:
            left_out["have no word times, so their recording cannot be divided (`salad prepare speech` aligns it)"] += 1
            continue
        first = len(one["text"]) if one["answer"] else 0
        passages.append(SpokenPrompt(row["sample_id"], (*before, Piece(prompt, Sound(row, end_s))), answer, start, first))
    transcribed = {passage.sample_id for passage in passages}
    if not passages:
        why = "; ".join(f"{n} {what}" for what, n in left_out.items() if n) or "none of its recordings has a transcript"
        raise SaladError(f"{name} has nothing to diagnose on: {why}")
    notes = [f"{n} texts of {name} {what}: left out" for what, n in left_out.items() if n]
    of = {by_id[sample]["corpus"] for sample in transcribed}
    return DiagnosisTexts(passages, of.pop() if len(of) == 1 else None, notes)


def _divided(one: dict) -> tuple[str, str, int] | None:
    """(prompt, answer with the blank before it, where it begins) of a sample; None where it has no second part."""
    text, answer = one["text"], one["answer"]
    if answer and answer.strip():
        return text.strip(), " " + answer.strip(), len(text) + len(answer) - len(answer.lstrip())
    start = turn(text)
    prompt = text[:start].rstrip()
    return (prompt.lstrip(), text[len(prompt) :].rstrip(), start) if start < len(text) and prompt.strip() else None


def _end_of(row: dict, start: int) -> float | None:
    """The second of a recording at which the words before character `start` have been said."""
    words = row["words"] or []
    first = [word for word in words if word["char_end"] <= start]
    rest = [word for word in words if word["char_start"] >= start]
    if not first or not rest:
        return None
    return min((first[-1]["end_s"] + max(rest[0]["start_s"], first[-1]["end_s"])) / 2, row["duration_s"])


def _of_task(lab: Path | str, name: str, limit: int | None, voices: list[str] | None, tts: str | None, asr: str | None,
             before: tuple[Piece, ...], there: list[str]) -> DiagnosisTexts:  # fmt: skip
    try:
        task = harness.load(lab, name)
    except SaladError as error:
        if "no task" not in str(error):
            raise
        own = f"the lab has {', '.join(there)}" if there else "the lab has no text yet; `salad prepare text` brings some in"
        raise SaladError(f"--texts {name}: there is no such corpus, speech folder or task; {own}") from None
    numbers = range(len(task.items[:limit]))
    contexts = [text for i in numbers for text in task.spoken_in(i)]
    recordings = task.audio[:limit] if task.audio is not None and not task.spec.spoken_shots else None
    passages, seen, twice = [], set(), 0
    for sound in spoken.prepare(lab, task.spec.name, contexts, voices, tts, asr, recordings):
        for i in numbers:
            if not all(text in sound for text in task.spoken_in(i)):
                continue
            item, request = task.items[i], task.requests[i]
            pieces = [*before]
            for is_spoken, text in harness.split(request[0].args[0], task.spec.spoken_shots):
                if is_spoken:
                    row = sound.row(text)
                    pieces.append(Piece(text, Sound(row, row["duration_s"])))
                else:
                    pieces.append(Piece(harness.unmarked(text)))
            answer = f" {(item.reference or '').split(';')[0].strip()}" if task.generates else request[item.answer].args[1]
            sample = spoken.context_sample(item)[0]
            passage = SpokenPrompt(sample, _blanks(pieces), answer, len(item.context), len(item.context))
            if (sample, passage.synthesis_id) in seen or not answer.strip():
                twice += 1
                continue
            seen.add((sample, passage.synthesis_id))
            passages.append(passage)
    if not passages:
        raise SaladError(f"task {name} has no item that is spoken and has an answer")
    notes = [f"{twice} items of {name} have another's spoken context, or no answer: left out"] if twice else []
    return DiagnosisTexts(passages, task.spec.name, notes)


def _blanks(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces without the blanks at the prompt's end: they belong to the answer."""
    *first, last = pieces
    return tuple([*first, last._replace(text=last.text.rstrip(" "))])
