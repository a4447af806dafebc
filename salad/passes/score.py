"""Score spoken texts under a checkpoint: M, F and D per sample and per token, both patterns, into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

import store
from salad import lookup
from salad.data.batches import collate
from salad.data.corpora import SpokenText
from salad.data.frame_source import FrameSource
from salad.data.frames import Frames
from salad.data.interleaving import InterleavedSequence, scoring_patterns
from salad.data.layout import Layout
from salad.divergence import divergences
from salad.errors import SaladError
from salad.passes import Part, Progress, run_parts
from store.ids import digest

if TYPE_CHECKING:
    from salad.models.speech_lm import SpeechLM

TOP = 5
BATCH_ROWS = {"cpu": 1536, "cuda": 32_768}  # of a batch, with its padding: text tokens and frames
TABLES = ("token_divergences", "divergences")
OLD_SPANS = (1, 4)  # of every scoring before span_units; it stands in no unit's made_from


def score(
    lab: Path | str,
    model: SpeechLM,
    run_id: str,
    step: int,
    spoken: list[SpokenText],
    name: str,
    seed: int = 0,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
    span_units: tuple[int, int] | None = None,
) -> None:
    """Publish `divergences` and `token_divergences` of `spoken` under the checkpoint (`run_id`, `step`) in `model`.

    The two patterns are a function of `seed`, the sample id and `span_units`, the shortest and longest span (by default
    `salad.lookup.scoring_spans`). `name` says what is scored (heldout, probe, …). The syntheses of one audio file are a
    part, and its units. A sample without a text position after speech gets null m and d. Frames that the pass `encode` has
    written in float32 are taken, being those that the encoder would give. SaladError where recordings cannot be read: their
    parts are left out, the others done."""
    run_parts(lab, parts(lab, lambda: model, run_id, step, spoken, name, seed, span_units), shard, shards, progress)


def parts(
    lab: Path | str,
    load: Callable,
    run_id: str,
    step: int,
    spoken: list[SpokenText],
    name: str,
    seed: int = 0,
    span_units: tuple[int, int] | None = None,
) -> list[Part]:
    """The pass's parts, one for each audio file. `load` gives the SpeechLM, when it is needed."""
    low, high = span_units or lookup.scoring_spans(lab, run_id)
    if not 1 <= low <= high:
        raise SaladError(f"spans of {low} to {high} units: write the shortest, at least 1, and the longest")
    files: dict[str, list[SpokenText]] = {}
    for recording in sorted(spoken, key=lambda s: s.synthesis_id):
        files.setdefault(recording.audio_path, []).append(recording)
    loaded: list[Any] = []  # the SpeechLM and its frames on disk, once needed

    def of(path: str) -> Part:
        made_from = {
            "pass": "score", "name": name, "run_id": run_id, "step": step, "seed": seed, "audio": path,
            "syntheses": digest([s.synthesis_id for s in files[path]]),
            **({} if (low, high) == OLD_SPANS else {"span_units": [low, high]}),
        }  # fmt: skip

        def make(tick) -> None:
            if not loaded:
                loaded.append(load())
                loaded.append(Frames(lab, loaded[0].encoder, ("float32",)))
            model, cached = loaded
            encoded = FrameSource(lab, model.prompt, model.encoder, cached=cached)
            rows, tokens = score_texts(model, encoded, files[path], seed, tick, (low, high))
            for table, rows_of_table in zip(TABLES, (tokens, rows), strict=True):
                keys = {"run_id": run_id, "step": step, "span_min": low, "span_max": high}
                for column, value in keys.items():
                    rows_of_table = rows_of_table.append_column(column, pa.repeat(value, len(rows_of_table)))
                store.publish(lab, table, rows_of_table, made_from)

        return Part(made_from, TABLES, len(files[path]), make)

    return [of(path) for path in sorted(files)]


def score_texts(
    model: SpeechLM,
    encoded: FrameSource,
    spoken: list[SpokenText],
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
    span_units: tuple[int, int] = OLD_SPANS,
) -> tuple[pa.Table, pa.Table]:
    """The rows of `divergences` and of `token_divergences` for `spoken`, without the key's checkpoint and spans.

    Batches are of like length, up to BATCH_ROWS rows with their padding. The teacher and the student read a text
    once for both patterns, and a position's logits are made once, for the rows that count, in chunks."""
    laid = [_lay_out(encoded, recording, seed, span_units) for recording in spoken]
    spell = Spelling(model.tokenizer, model.vocab_size)
    rows, tokens = [], []
    size = BATCH_ROWS.get(model.device.type, BATCH_ROWS["cuda"])
    for group in batches([max(len(s.ids) for s in sequences) for _, _, sequences in laid], size):
        scored = _score_batch(model, encoded, [spoken[i] for i in group], [laid[i] for i in group], spell)
        rows.append(scored[0])
        tokens.append(scored[1])
        if tick is not None:
            tick(len(group))
    return pa.concat_tables(rows), pa.concat_tables(tokens)


def batches(lengths: list[int], rows: int) -> list[list[int]]:
    """Indices in batches of like length: as many as keep longest · number within `rows`, at least one."""
    out: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        longest = max(longest, lengths[i])
        if not out or longest * (len(out[-1]) + 1) > rows:
            out.append([])
            longest = lengths[i]
        out[-1].append(i)
    return out


def _lay_out(
    encoded: FrameSource, recording: SpokenText, seed: int, span_units: tuple[int, int]
) -> tuple[Layout, list, list[InterleavedSequence]]:
    """A spoken text laid out, with (spans, sequences) of its two patterns."""
    layout = encoded.layout(recording)
    both = [layout.spans(pattern) for pattern in scoring_patterns(seed, recording.sample_id, len(layout.units), span_units)]
    return layout, both, [layout.sequence(spans) for spans in both]


def _score_batch(model, encoded: FrameSource, group: list[SpokenText], laid, spell) -> tuple[pa.Table, pa.Table]:
    device = model.device
    text_hidden = teacher_hidden = None
    rows, tokens = [], []
    for pattern in (0, 1):
        spans = [both[pattern] for _, both, _ in laid]
        speech = [encoded.frames(s, sp) for s, sp in zip(group, spans, strict=True)]
        batch = collate([pair[pattern] for _, _, pair in laid], speech, [s.sample_id for s in group]).to(device)
        if text_hidden is None:
            with torch.no_grad():
                text_hidden = model.text_hidden(batch.text_ids_BS)
                teacher_hidden = model.teacher.hidden(batch.text_ids_BS)
        measured = divergences(model, model.teacher, batch, TOP, text_hidden, teacher_hidden)
        m, f, d, n, n_f = (x.cpu().numpy() for x in measured.samples)
        frames = [sum(span.frame_end - span.frame_start for span in sp) for sp in spans]
        rows.append(pa.table({
            "sample_id": [s.sample_id for s in group], "synthesis_id": [s.synthesis_id for s in group],
            "pattern": pa.array(np.full(len(group), pattern, np.int32)),
            "m": pa.array(m, from_pandas=True), "f": pa.array(f, from_pandas=True), "d": pa.array(d, from_pandas=True),
            "n_positions": pa.array(n.astype(np.int32)), "n_positions_f": pa.array(n_f.astype(np.int32)),
            "speech_s": pa.array(np.asarray(frames) / model.encoder.frame_rate),
        }))  # fmt: skip
        tokens.append(_token_rows([layout for layout, _, _ in laid], group, batch, measured.positions, pattern, spell))
    return pa.concat_tables(rows), pa.concat_tables(tokens)


class Spelling:
    """What token ids read as, in Arrow arrays: each id is decoded once. `vocab_size`: above every id that comes."""

    def __init__(self, tokenizer, vocab_size: int):
        self.tokenizer, self.place = tokenizer, np.full(vocab_size, -1, np.int64)
        self.texts: list[str] = []

    def top(self, ids_NK: torch.Tensor, p_NK: torch.Tensor) -> pa.ListArray:
        """[N] lists of k structs (token, p)."""
        ids, k = ids_NK.cpu().numpy().ravel(), ids_NK.shape[1]
        new = np.unique(ids[self.place[ids] < 0])
        self.place[new] = len(self.texts) + np.arange(len(new))
        self.texts += [self.tokenizer.decode([i]) for i in new.tolist()]
        words = pa.array(self.texts, pa.string()).take(pa.array(self.place[ids]))
        p = pa.array(p_NK.cpu().numpy().ravel().astype(np.float64))
        pairs = pa.StructArray.from_arrays([words, p], ["token", "p"])
        return pa.ListArray.from_arrays(pa.array(np.arange(0, len(ids) + 1, k or 1, dtype=np.int32)), pairs)


def _token_rows(layouts: list[Layout], group, batch, measured, pattern: int, spell: Spelling) -> pa.Table:
    """A row a text position of the batch."""
    sample, position, after = (x.cpu().numpy() for x in (batch.sample_N, batch.positions_N, batch.after_N))
    chars, times, words = (np.zeros((len(sample), 2), dtype) for dtype in (np.int32, np.float64, object))
    for b, recording in enumerate(group):
        at = np.flatnonzero(sample == b)
        (ids, offsets), cut = layouts[b].prompt_layout[1:3], layouts[b].units
        text = recording.text + (recording.answer or "")  # whose characters count on
        where = position[at]
        chars[at] = np.asarray(offsets, np.int32).reshape(-1, 2)[where]
        unit = np.searchsorted([u.token_end for u in cut], where, side="right")
        times[at] = np.asarray([*((u.start_s, u.end_s) for u in cut), (np.nan, np.nan)])[unit]  # a chat's answer: none
        pieces = zip(where, chars[at], strict=True)
        words[at, 0] = [text[start:end] or spell.tokenizer.decode(ids[n]) for n, (start, end) in pieces]

    def after_speech(values):
        return pa.array(values.cpu().numpy().astype(np.float64), mask=~after)

    names = np.asarray([(s.sample_id, s.synthesis_id) for s in group], object).reshape(-1, 2)[sample]
    return pa.table({
        "sample_id": pa.array(names[:, 0], pa.string()), "synthesis_id": pa.array(names[:, 1], pa.string()),
        "pattern": pa.array(np.full(len(sample), pattern, np.int32)), "position": pa.array(position.astype(np.int32)),
        "token": pa.array(words[:, 0], pa.string()), "char_start": pa.array(chars[:, 0]),
        "char_end": pa.array(chars[:, 1]), "start_s": pa.array(times[:, 0], from_pandas=True),
        "end_s": pa.array(times[:, 1], from_pandas=True),
        "after_speech": pa.array(after),
        "m": after_speech(measured.m), "f": pa.array(measured.f.cpu().numpy().astype(np.float64)),
        "d": after_speech(measured.d), "teacher_top": spell.top(measured.teacher_ids, measured.teacher_probabilities),
        "student_top": spell.top(measured.student_ids, measured.student_probabilities),
    })  # fmt: skip
