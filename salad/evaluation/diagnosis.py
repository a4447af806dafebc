"""Diagnose a speech LLM as it is: where does it fall behind its own text self? Nothing is trained.

A prompt goes in once as speech and once as text, and on the teacher-forced positions of what follows it (the rest of the
text, its answer, or a task's right choice) M = KL(P after text || P after speech) is measured over the model's whole
vocabulary, token by token; with a base LLM Q of the same tokenizer also D = KL(Q after text || P after speech) and
F = KL(Q after text || P after text). Two controls stand beside it: `deaf` hears another text's recording, `silent` silence
as long as the recording. M of a deaf control is what not hearing costs: a model whose M is no lower does not use its ears.

The rows are `divergences` and `token_divergences` of a run of kind `diagnose`, one for each condition, with spans of 0 units
(the whole prompt is speech), so that every view, notebook and question of the store has them.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

import store
from salad.config import LLMConfig
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation.passages import DiagnosisTexts, Piece, Sound, SpokenPrompt
from salad.evaluation.scoring import Recording
from salad.evaluation.speech_llms import CheckpointLLM, SpeechLLM
from salad.models.names import folder_sha256, resolve
from salad.models.speech_lm import load_llm, load_tokenizer
from salad.objective.logits import kl, log_softmax_
from salad.passes import Progress, report_progress, run_once, run_parts
from salad.passes.cluster import cluster as make_clusters
from salad.passes.embed import of_decoder, of_sentences
from salad.passes.embed import parts as embedding_parts
from salad.passes.score import TABLES, TOP, Spelling
from salad.runs import RunFolder, now, renewing, running
from store.ids import digest

CONDITIONS = ("speech", "deaf", "silent")
PART = 16  # texts a unit: what an interruption costs at most
TEXTS_A_CLUSTER = 12


# --- the base LLM ---


class Base:
    """The text LLM Q that a speech LLM was made from, given the very token ids that the speech LLM reads as text.

    `ids`: those that mean the same token to both, over which D and F are measured; None where that is every one. Raises
    SaladError where a token of the base's own vocabulary has another id in the speech LLM."""

    def __init__(self, name: str, model: SpeechLLM, lab: Path | str, device: str = "cpu"):
        tokenizer = load_tokenizer(name, lab)
        theirs, ours = ([*t.convert_ids_to_tokens(list(range(len(t))))] for t in (tokenizer, model.tokenizer))
        added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
        for i, token in enumerate(theirs):
            if i not in added and (i >= len(ours) or ours[i] != token):
                other = repr(ours[i]) if i < len(ours) else "none"
                raise SaladError(
                    f"--base {name}: its tokenizer is not that of {model.name}: id {i} is {token!r} in the base and {other} "
                    "in the model, so D and F have no meaning; leave --base out, and M is measured all the same"
                )
        same = [i for i in range(min(len(theirs), len(ours))) if theirs[i] == ours[i]]
        self.name, self.known = name, frozenset(same)
        self.ids = None if len(same) == len(ours) == len(theirs) else torch.tensor(same)
        self.left_out = max(len(theirs), len(ours)) - len(same)
        dtype = "float32" if device == "cpu" else "bfloat16"
        self.llm = load_llm(LLMConfig(name=name, dtype=dtype), lab).to(device)
        folder = resolve(name, lab)
        weights = folder_sha256(folder) if Path(folder).is_dir() else [name, getattr(self.llm.config, "_commit_hash", None)]
        self.fingerprint = digest({"base": weights, "dtype": dtype})

    @torch.no_grad()
    def logits(self, model: SpeechLLM, prompt: list[str], ids: list[int]) -> torch.Tensor:
        """Logits [T, V] of the answer `ids` after a text prompt, as the speech LLM lays it out."""
        whole = model.text_ids(prompt, ids)
        odd = next((i for i in whole if i not in self.known), None)
        if odd is not None:
            token = model.tokenizer.convert_ids_to_tokens([odd])[0]
            raise SaladError(f"--base {self.name} does not know the token {token!r} that {model.name}'s chat template writes")
        row = torch.tensor([whole], device=self.llm.device)
        return self.llm(input_ids=row, use_cache=False).logits[0, len(whole) - len(ids) - 1 : -1]


def base_of(name: str, model: SpeechLLM, lab: Path | str, device: str = "cpu") -> Base | None:
    """The base LLM for a model; SaladError for a checkpoint of ours, which knows its teacher."""
    if isinstance(model, CheckpointLLM):
        raise SaladError(f"--base {name}: {model.name} is a checkpoint of salad, which knows the LLM that it was made from")
    return Base(name, model, lab, device)


# --- measuring ---


class Measured(NamedTuple):
    """Per answer token, float32 [T] on the CPU, in nats: m, and d and f or None; likeliest ids and probabilities [T, TOP]."""

    m: torch.Tensor
    d: torch.Tensor | None
    f: torch.Tensor | None
    text_top: tuple[torch.Tensor, torch.Tensor]
    speech_top: tuple[torch.Tensor, torch.Tensor]


def compare(text: torch.Tensor, speech: torch.Tensor, base: torch.Tensor | None, vocab_size: int,
            base_ids: torch.Tensor | None = None) -> Measured:  # fmt: skip
    """M of logits [T, V] after text and after speech over the first `vocab_size` ids, with the base LLM's also D and F.

    `base_ids`: the ids over which D and F are measured, by default all; each side is normalised over them. Forward KL in
    float32. `text_top` is the base's where there is one, as it is the teacher's in a scoring."""
    log_text, log_speech = (_log_probabilities(x, vocab_size) for x in (text, speech))
    m, d, f = _kl(log_text, log_speech), None, None
    top = log_text
    if base is not None:
        top = log_q = _log_probabilities(base, vocab_size)
        log_s, log_p = log_speech, log_text
        if base_ids is not None:
            log_q, log_s, log_p = (log_softmax_(x[:, base_ids.to(x.device)]) for x in (log_q, log_speech, log_text))
        d, f = _kl(log_q, log_s), _kl(log_q, log_p)
    return Measured(m, d, f, _likeliest(top), _likeliest(log_speech))


def _log_probabilities(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    return log_softmax_(logits[:, :vocab_size].float().clone())


def _kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    return kl(log_q, log_p, torch.empty_like(log_q), torch.empty_like(log_q)).cpu()


def _likeliest(log_probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top = log_probabilities.topk(min(TOP, log_probabilities.shape[1]), dim=1)
    return top.indices.cpu(), top.values.exp().cpu()


# --- the pass ---


class Diagnosis(NamedTuple):
    """What `diagnose` has done: the run of each condition, the texts and what was noted of them."""

    runs: dict[str, str]
    step: int
    texts: DiagnosisTexts


def diagnose(lab: Path | str, model: SpeechLLM, texts: DiagnosisTexts, base: Base | None = None,
             controls: Iterable[str] = CONDITIONS[1:],
             instruction: str | None = None, seed: int = 0, progress: Progress | None = None) -> Diagnosis:  # fmt: skip
    """Publish `divergences` and `token_divergences` of a speech LLM on texts, and of its controls (`deaf`, `silent`).

    Each condition is a run of kind `diagnose`, known by the model's name, fingerprint and step, the base LLM, the instruction
    and the condition, so that the same model on further texts adds rows to the same run. PART texts are a unit; a text that
    has its rows is not measured again. `base` is for models that do not know their teacher. `seed` draws whose recording
    a deaf control hears. Texts longer than the model's `longest_s` are left out, and noted. Raises SaladError."""
    controls = [condition for condition in CONDITIONS[1:] if condition in set(controls)]
    passages, notes = list(texts.passages), list(texts.notes)
    if model.longest_s is not None:
        short = [passage for passage in passages if _longest(passage) <= model.longest_s]
        if len(short) < len(passages):
            notes.append(
                f"{len(passages) - len(short)} recordings are longer than the {model.longest_s:.0f} s that {model.name} hears: "
                "left out"
            )
        passages = short
    if not passages:
        raise SaladError(f"every recording is longer than the {model.longest_s:.0f} s that {model.name} hears")
    if len(passages) < 2 and "deaf" in controls:
        raise SaladError("with one recording there is no other for the deaf control; take more texts, or leave it out")
    runs = {c: _run(lab, model, base, c, instruction, seed) for c in ("speech", *controls)}
    work = _Work(Path(lab), model, base, runs, passages, seed)
    run = runs["speech"]
    if missing := work.missing():
        with renewing(lab), running(run, device=str(getattr(model, "device", None) or "cpu")):
            for other in runs.values():
                if other is not run:  # a control is measured in the same process, which tells of the speech's run
                    other.status(state="running", started_at=now(), ended_at=None)
            ended = "stopped"  # by a fault or by a person: the same command resumes it
            try:
                work.do(missing, report_progress(run, progress))
                ended = "done"
            finally:
                for other in runs.values():
                    if other is not run:
                        other.status(state=ended, ended_at=now())
    return Diagnosis({c: run.run_id for c, run in runs.items()}, model.step, DiagnosisTexts(passages, texts.corpus, notes))


def _longest(passage: SpokenPrompt) -> float:
    return max(sound.end_s for sound in passage.sounds)


def _run(lab: Path | str, model: SpeechLLM, base: Base | None, condition: str, instruction: str | None, seed: int) -> RunFolder:
    """The run folder of a model in a condition."""
    config: dict[str, Any] = {
        "contender": model.name if condition == "speech" else f"{model.name} ({condition})", "diagnosed": model.name,
        "condition": condition, "fingerprint": model.fingerprint, "checkpoint_step": model.step,
        "base": base and base.fingerprint, "instruction": instruction,
    }  # fmt: skip
    if condition == "deaf":
        config["seed"] = seed
    return RunFolder.get_or_create(lab, "diagnose", "diagnose", config, model.run_id)


class _Work:
    """A diagnosis of some passages in some conditions, as far as it is not in the lab yet."""

    def __init__(self, lab: Path, model: SpeechLLM, base: Base | None, runs: dict[str, RunFolder], passages: list[SpokenPrompt],
                 seed: int):  # fmt: skip
        self.lab, self.model, self.base, self.runs, self.passages = lab, model, base, runs, passages
        self.spell = Spelling(model.tokenizer, len(model.tokenizer))
        sounds: dict[str, dict[tuple[str, float], Sound]] = {}
        for sound in (sound for one in passages for sound in one.sounds):
            sounds.setdefault(sound.row["sample_id"], {})[sound.key] = sound
        names = sorted(sounds)
        order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        self.others: dict[tuple[str, float], Sound] = {}  # a random cycle through the texts: to each sound one of another text
        for a, b in zip(order, [order[-1], *order[:-1]], strict=True) if len(names) > 1 else ():
            there = [sounds[b][key] for key in sorted(sounds[b])]
            self.others |= {key: there[n % len(there)] for n, key in enumerate(sorted(sounds[a]))}

    def missing(self) -> list[tuple[SpokenPrompt, list[str]]]:
        """The passages that have no rows yet, and in which conditions. SaladError for one that has those of another answer."""
        con, known = store.connect(self.lab), {}
        for condition, run in self.runs.items():
            found = con.execute(
                """SELECT sample_id, synthesis_id, string_agg(token, '' ORDER BY position) FILTER (char_end > char_start)
                   FROM token_divergences
                   WHERE run_id = ? AND step = ? AND (sample_id, synthesis_id) IN
                        (SELECT (sample_id, synthesis_id) FROM raw.divergences WHERE run_id = ? AND step = ?) GROUP BY ALL""",
                [run.run_id, self.model.step, run.run_id, self.model.step],
            ).fetchall()
            known[condition] = {(sample, synthesis): answer for sample, synthesis, answer in found}
        out = []
        for one in self.passages:
            key = one.sample_id, one.synthesis_id
            for condition in self.runs:
                if known[condition].get(key, one.answer).strip() != one.answer.strip():
                    raise SaladError(
                        f"text {one.sample_id} was diagnosed with another answer than {one.answer.strip()[:40]!r} under the name "
                        f"{self.model.name}: give this diagnosis another with --name"
                    )
            if lacking := [condition for condition in self.runs if key not in known[condition]]:
                out.append((one, lacking))
        return out

    def do(self, missing: list[tuple[SpokenPrompt, list[str]]], progress: Progress) -> None:
        """Measure and publish them, PART at a time. A recording that cannot be read is passed over, and told at the end."""
        faults: list[str] = []
        for start in range(0, len(missing), PART):
            found: dict[str, list[tuple[pa.Table, pa.Table]]] = {condition: [] for condition in self.runs}
            for n, (one, conditions) in enumerate(missing[start : start + PART]):
                try:
                    for condition, pair in self._measure(one, conditions).items():
                        found[condition].append(pair)
                except corpora.AudioError as error:
                    faults.append(str(error))
                progress(start + n + 1, len(missing))
            for condition, pairs in found.items():
                if pairs:
                    self._publish(condition, *(pa.concat_tables(tables) for tables in zip(*pairs, strict=True)))
        if faults:
            raise SaladError(f"{len(faults)} of {len(missing)} texts could not be heard, the others are done: {faults[0]}")

    def _publish(self, condition: str, tokens: pa.Table, rows: pa.Table) -> None:
        keys = list(zip(rows["sample_id"].to_pylist(), rows["synthesis_id"].to_pylist(), strict=True))
        made_from = {"pass": "diagnose", "run_id": self.runs[condition].run_id, "step": self.model.step, "texts": digest(keys)}
        for table, found in zip(TABLES, (tokens, rows), strict=True):
            store.publish(self.lab, table, found, made_from)

    def _measure(self, one: SpokenPrompt, conditions: list[str]) -> dict[str, tuple[pa.Table, pa.Table]]:
        """condition -> (rows of `token_divergences`, the row of `divergences`) of a passage."""
        model = self.model
        ids = model.encode(one.answer)
        if not ids:
            raise SaladError(f"{one.answer!r} has no token in {model.name}'s tokenizer")
        text, q, base_ids = model.logits(one.text, ids), model.teacher_logits(one.text, ids), None
        if q is None and self.base is not None:
            q, base_ids = self.base.logits(model, one.text, ids), self.base.ids
        out = {}
        for condition in conditions:
            prompt = [self._heard(piece, condition) for piece in one.pieces]
            speech = model.logits(prompt, ids)
            for name, logits in (("text", text), (condition, speech)):
                if logits.shape[0] != len(ids) or not torch.isfinite(logits).all():
                    raise SaladError(
                        f"{model.name} gives logits of shape {tuple(logits.shape)} after {name} for {len(ids)} tokens"
                        + ("" if torch.isfinite(logits).all() else ", not all of them finite")
                    )
            found = compare(text, speech, q, len(model.tokenizer), base_ids)
            out[condition] = self._rows(one, ids, found, self.runs[condition].run_id)
        return out

    def _heard(self, piece: Piece, condition: str) -> str | Recording:
        """What stands in the prompt for a piece under a condition."""
        sound, rate = piece.sound, self.model.sample_rate
        if sound is None:
            return piece.text
        if condition == "silent":
            length = max(1, round(sound.end_s * rate))
            return Recording(f"silence-{length}", np.zeros(length, np.float32))
        if condition == "deaf":
            sound = self.others[sound.key]
        samples = corpora.audio_of(self.lab, sound.row, rate)[: max(1, round(sound.end_s * rate))]
        return Recording(f"{sound.row['synthesis_id']}-{sound.end_s}", samples)

    def _rows(self, one: SpokenPrompt, ids: list[int], found: Measured, run_id: str) -> tuple[pa.Table, pa.Table]:
        n = len(ids)
        key = {"run_id": run_id, "step": self.model.step, "sample_id": one.sample_id, "synthesis_id": one.synthesis_id,
               "pattern": 0, "span_min": 0, "span_max": 0}  # fmt: skip
        ends = _ends(self.model.tokenizer, ids, one.answer)
        blank = len(one.answer) - len(one.answer.lstrip())
        chars = np.maximum(np.asarray([0, *ends]) - blank + one.start, one.first)
        pieces = [one.answer[a:b] or self.model.tokenizer.decode([i]) for a, b, i in zip([0, *ends], ends, ids, strict=False)]

        def numbers(values: torch.Tensor | None) -> pa.Array:
            return pa.nulls(n, pa.float64()) if values is None else pa.array(values.numpy().astype(np.float64))

        tokens = pa.table({
            **{name: pa.repeat(value, n) for name, value in key.items()},
            "position": pa.array(np.arange(n, dtype=np.int32)), "token": pa.array(pieces, pa.string()),
            "char_start": pa.array(chars[:-1].astype(np.int32)), "char_end": pa.array(chars[1:].astype(np.int32)),
            **_times(one, chars), "after_speech": pa.repeat(True, n),
            "m": numbers(found.m), "f": numbers(found.f), "d": numbers(found.d),
            "teacher_top": self.spell.top(*found.text_top), "student_top": self.spell.top(*found.speech_top),
        })  # fmt: skip
        each = {"m": found.m, "f": found.f, "d": found.d}
        mean = {name: None if x is None else float(x.double().mean()) for name, x in each.items()}
        row = pa.Table.from_pylist([key | mean | {"n_positions": n, "n_positions_f": n, "speech_s": one.speech_s}])
        return tokens, row


def _times(one: SpokenPrompt, chars: np.ndarray) -> dict[str, pa.Array]:
    """start_s and end_s of an answer's tokens, where the recording goes on with it after the prompt; that part is not heard."""
    sound = one.pieces[-1].sound
    words = sound.row["words"] if one.first == 0 and sound is not None else None
    found: list[tuple[float | None, float | None]] = []
    for start, end in zip(chars[:-1], chars[1:], strict=True):
        word = next((w for w in words or () if w["char_start"] < end and start < w["char_end"]), None)
        found.append((word["start_s"], word["end_s"]) if word else (None, None))
    return {name: pa.array([pair[i] for pair in found], pa.float64()) for i, name in enumerate(("start_s", "end_s"))}


def _ends(tokenizer, ids: Sequence[int], answer: str) -> list[int]:
    """The character of `answer` at which each of its tokens ends; a token that is part of a character ends with it."""
    whole = tokenizer.decode(list(ids))
    lead = max(answer.find(whole.strip()[:20]), 0) - (len(whole) - len(whole.lstrip()))
    ends, last = [], 0
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:n])).rstrip("\N{REPLACEMENT CHARACTER}")
        last = min(max(last, lead + len(text)), len(answer))
        ends.append(last)
    ends[-1] = len(answer)
    return ends


# --- clusters ---


def cluster(lab: Path | str, model: SpeechLLM, texts: DiagnosisTexts, k: int | None = None, embedder: str | None = None,
            seed: int = 0, progress: Progress | None = None) -> list[str]:  # fmt: skip
    """See to it that diagnosed texts are in clusters; returns notes where they are not.

    Without `k`, the lab's newest clustering is left as it is, for selections and views go by it: only where the lab has none
    are the texts clustered, about TEXTS_A_CLUSTER to each. Texts are embedded by `embedder`, a sentence-transformers model, or
    by the diagnosed model's own text decoder."""
    con = store.connect(lab)
    samples = sorted({one.sample_id for one in texts.passages})
    held = con.execute(
        "SELECT count(DISTINCT sample_id) FROM current_assignments WHERE sample_id IN (SELECT unnest(?))", [samples]
    ).fetchall()[0][0]
    if k is None and con.execute("SELECT count(*) FROM clusters").fetchall()[0][0]:
        if held == len(samples):
            return []
        return [f"{len(samples) - held} of {len(samples)} texts are in no cluster of the newest clustering; --k N clusters them"]
    if texts.corpus is None:
        return ["these texts are of several corpora, and only texts of one are clustered"]
    number = k or max(2, min(32, len(samples) // TEXTS_A_CLUSTER))
    if embedder is None and model.decoder is None:
        return [f"no clusters: {model.name} has no text decoder to embed texts with; name a model with --embedder"]
    name = embedder or f"{model.name}#{model.fingerprint or ''}"
    load = partial(of_sentences, embedder, lab) if embedder else partial(of_decoder, model.decoder, model.tokenizer)
    there = {sample for (sample,) in con.execute("SELECT sample_id FROM embeddings WHERE model = ?", [name]).fetchall()}
    usable = {sample for (sample,) in con.execute(
        "SELECT sample_id FROM samples WHERE corpus = ? AND len(coalesce(flags, [])) = 0 AND sample_id IN (SELECT unnest(?))",
        [texts.corpus, samples],
    ).fetchall()}  # fmt: skip
    if len(usable | there) < number or number < 2:
        return [f"no clusters: {len(usable)} texts are too few for {number}"]
    if fresh := usable - there:
        run_parts(lab, embedding_parts(lab, load, texts.corpus, name, fresh), progress=progress)
    asked = digest(sorted(usable))
    config = {"pass": "cluster", "corpus": texts.corpus, "model": name, "k": number, "seed": seed, "texts": asked}
    corpus = texts.corpus

    def work(run: RunFolder, _: Progress) -> None:
        make_clusters(lab, run.run_id, name, corpus, number, seed)

    run_once(lab, "cluster", config, work)
    return []
