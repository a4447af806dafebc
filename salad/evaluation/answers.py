"""Open-ended answers, for reading and for the A/B app, and transcription as a check that a speech LM still hears."""

import time
from pathlib import Path
from typing import Any

import store
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation import items, run, spoken
from salad.evaluation.contenders import Contender
from salad.evaluation.harness import MODALITIES
from salad.evaluation.run import fingerprint
from salad.evaluation.scoring import Recording
from store import lines
from store.ids import hash_id

QUESTIONS = "questions"  # the corpus under which questions are kept and spoken
TRANSCRIPTION = "transcription"
CHUNK = 32  # answers that are published together: what an interruption costs at most


def read_questions(path: Path | str) -> list[tuple[str, str, str | None]]:
    """(question id, question, reference or None) of a file: a question a line, or JSONL with "question" (and "id",
    "reference"). Raises SaladError."""
    found = []
    for line in items.written(path):
        number, question, name, reference = line.number, (line.text or "").strip(), None, None
        if not question:
            continue
        if question.startswith("{"):
            row, fault = lines.parsed(question)
            if row is None or not isinstance(row.get("question"), str | int | float):
                wanted = 'write {"question": …}, with "id" and "reference" if you like'
                raise SaladError(f"{path} line {number}: {fault + ': ' if fault else ''}{wanted}")
            question, name, reference = str(row["question"]).strip(), row.get("id"), row.get("reference")
        if not question:
            raise SaladError(f"{path} line {number}: the question is empty")
        reference = None if reference is None else str(reference)
        found.append((str(name) if name is not None else hash_id("q", question), question, reference))
    if not found:
        raise SaladError(f"{path} holds no question")
    if len({name for name, *_ in found}) < len(found):
        raise SaladError(f"{path}: a question or an id stands there twice")
    return found


def answer(lab: Path | str, contender: Contender, questions: list[tuple[str, str, str | None]],
           modalities: tuple[str, ...] = ("text", "speech"), voice: str | None = None, tts: str | None = None,
           asr: str | None = None, max_new_tokens: int = 64, until: tuple[str, ...] | None = None, temperature: float = 0.0,
           seed: int = 0, progress=None) -> list[dict]:  # fmt: skip
    """Answer questions as text and as speech with the same seed, into the table `answers`; returns the rows.

    until: what ends an answer; by default a new line, in a chat the end of the turn.
    What was answered already with the same settings is left as it is. The same question, seed and checkpoint give the
    same answer, whatever it is asked together with."""
    wanted = run.chosen(contender, modalities, MODALITIES)
    sound: Any = None  # SpokenItems, where something is heard
    if set(wanted) - {"text"}:
        texts = [question for _, question, _ in questions]
        (sound, *_) = spoken.prepare(lab, QUESTIONS, texts, [voice] if voice else None, tts, asr)
    made_with = {"max_new_tokens": max_new_tokens, "until": until and list(until), "temperature": temperature, "seed": seed}
    key = [contender.run_id, contender.step, contender.name]
    con = store.connect(lab)
    known = dict(con.execute("select answer_id, text from answers where task = ?", [QUESTIONS]).fetchall())
    rows = []
    for name, question, reference in questions:
        for modality in wanted:
            heard = None if modality == "text" else sound.row(question)
            asr = sound.asr(question) if modality == "cascade" else None
            made_from = {"answer": [*key, QUESTIONS, name, question, modality, heard and heard["synthesis_id"]]} | made_with
            # before there were fingerprints, an answer of a run, and through the transcript that its speech has, had this id
            legacy = hash_id("a", made_from)
            owned = contender.run_id is not None and (asr is None or sound.is_transcribed(question))
            answer_id = hash_id("a", made_from | {"fingerprint": fingerprint(contender), "asr": asr})
            row = {
                "answer_id": legacy if owned and legacy in known else answer_id, "fingerprint": fingerprint(contender),
                "asr": asr, "question_id": name, "question": question, "task": QUESTIONS,
                "run_id": contender.run_id, "step": contender.step, "contender": contender.name, "modality": modality,
                "voice": heard and heard["voice"], "synthesis_id": heard and heard["synthesis_id"], "reference": reference,
                "temperature": temperature, "seed": seed,
            }  # fmt: skip
            rows.append(row)
    fresh: list[dict] = []
    for done, row in enumerate(rows, 1):
        if row["answer_id"] in known:
            row["text"] = known[row["answer_id"]]
        else:
            started = time.perf_counter()
            prompt = [_asked(str(row["modality"]), str(row["question"]), sound, contender)]
            (row["text"],) = contender.generate([prompt], max_new_tokens, until, temperature, seed)
            row["compute_s"] = time.perf_counter() - started
            fresh.append(row)
        if fresh and (len(fresh) == CHUNK or done == len(rows)):
            store.publish(lab, "answers", fresh, {"answers": store.ids.digest([row["answer_id"] for row in fresh])})
            fresh = []
        if progress is not None:
            progress(done, len(rows))
    return rows


def _asked(modality: str, question: str, sound, contender) -> str | Recording:
    if modality == "text":
        return question
    return sound.recording(question, contender.sample_rate) if modality == "speech" else sound.transcript(question)


def transcribe(lab: Path | str, contender: Contender, speech: str = "heldout", count: int = 32, shots: int = 2,
               progress=None) -> float:  # fmt: skip
    """Word error rate of a speech LM that is asked, by examples, to write down what it hears: a check for regressions
    between checkpoints, on the first `count` recordings of lab/speech/<speech>. Rows go to `answers`.

    The prompt is `shots` other recordings, each followed by its text, then the recording in question."""
    import jiwer

    from salad.speech.check import normalise

    con = store.connect(lab)
    found = corpora.of_speech(con, [speech])
    if len(found) <= shots:
        raise SaladError(f"lab/speech/{speech} holds {len(found)} recordings: too few for {shots} examples and one more")
    examples, asked = found[:shots], found[shots : shots + count]

    def sound(one) -> Recording:
        return Recording(one.synthesis_id, corpora.audio(lab, one, contender.sample_rate))

    head = [part for one in examples for part in (sound(one), f"\nText: {one.text}\n\n")]
    voices = dict(con.execute("select synthesis_id, voice from syntheses where speech = ?", [speech]).fetchall())
    examples_are = [one.synthesis_id for one in examples]
    known = dict(con.execute("select answer_id, text from answers where task = ?", [TRANSCRIPTION]).fetchall())
    wanted = {}
    for one in asked:
        key = [contender.run_id, contender.step, contender.name, TRANSCRIPTION, shots, one.synthesis_id]
        legacy = hash_id("a", *key)  # of a run, before there were fingerprints
        name = hash_id("a", *key, fingerprint(contender), examples_are)
        wanted[legacy if contender.run_id is not None and legacy in known else name] = one
    rows = []
    for done, (name, one) in enumerate(wanted.items()):
        if name not in known:
            started = time.perf_counter()
            longest = 8 + 2 * len(one.text.split())
            (text,) = contender.generate([[*head, sound(one), "\nText:"]], longest)
            said, heard = normalise(one.text), normalise(text)
            rows.append({
                "answer_id": name, "fingerprint": fingerprint(contender), "question_id": one.sample_id,
                "question": one.text, "task": TRANSCRIPTION,
                "run_id": contender.run_id, "step": contender.step, "contender": contender.name, "modality": "speech",
                "voice": voices.get(one.synthesis_id), "synthesis_id": one.synthesis_id, "text": text,
                "reference": one.text, "wer": jiwer.wer(said, heard), "temperature": 0.0, "seed": 0,
                "compute_s": time.perf_counter() - started,
            })  # fmt: skip
            known[name] = text
        if progress is not None:
            progress(done + 1, len(wanted))
    if rows:
        store.publish(lab, "answers", rows, {"transcription": store.ids.digest([row["answer_id"] for row in rows])})
    return jiwer.wer([normalise(one.text) for one in asked], [normalise(known[name]) for name in wanted])
