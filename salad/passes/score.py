"""Score spoken texts under a checkpoint: M, F and D per sample and per token, both patterns, into the store."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import store
from salad.data.batches import collate
from salad.data.corpora import SpokenText
from salad.data.interleaving import scoring_patterns
from salad.data.loading import Encoded
from salad.divergence import divergences
from salad.passes import Progress
from store.ids import digest

TOP = 5


def score(lab: Path | str, model, run_id: str, step: int, spoken: list[SpokenText], name: str, seed: int = 0,
          batch: int = 16, shard: int = 0, shards: int = 1, progress: Progress | None = None) -> None:  # fmt: skip
    """Publish `divergences` and `token_divergences` of `spoken` under the checkpoint (`run_id`, `step`) in `model`.

    The two patterns are a function of `seed` and the sample id. `name` says what is scored (heldout, probe, …); it and
    the synthesis ids make the unit, so the same work is done once. Shard `shard` of `shards` takes every
    `shards`-th sample. A sample without a text position after speech gets null m and d.
    """
    spoken = sorted(spoken, key=lambda s: s.synthesis_id)[shard::shards]
    made_from = {
        "pass": "score", "name": name, "run_id": run_id, "step": step, "seed": seed, "shard": [shard, shards],
        "syntheses": digest([s.synthesis_id for s in spoken]),
    }  # fmt: skip
    if not spoken or all(store.exists(lab, table, made_from) for table in ("divergences", "token_divergences")):
        return
    encoded = Encoded(lab, model.prompt, model.encoder)
    by_length = sorted(spoken, key=lambda s: (len(encoded.parts(s)[0]), s.synthesis_id))
    rows: list[dict] = []
    tokens: list[dict] = []
    for start in range(0, len(by_length), batch):
        _score_batch(model, encoded, by_length[start : start + batch], seed, rows, tokens)
        if progress is not None:
            progress(min(start + batch, len(by_length)), len(by_length))
    key = {"run_id": run_id, "step": step}
    for table, found in (("token_divergences", tokens), ("divergences", rows)):
        schema = store.schema.TABLES[table].arrow()
        names = [field.name for field in schema if found and (field.name in found[0] or field.name in key)]
        columns = [pa.array([row.get(n, key.get(n)) for row in found], schema.field(n).type) for n in names]
        store.publish(lab, table, pa.table(columns, names=names), made_from)


def _score_batch(model, encoded: Encoded, group: list[SpokenText], seed: int, rows: list, tokens: list) -> None:
    device = model.device
    parts = [encoded.parts(s) for s in group]
    patterns = [scoring_patterns(seed, s.sample_id, len(cut)) for s, (_, _, cut) in zip(group, parts, strict=True)]
    text_hidden = teacher_hidden = None
    for pattern in (0, 1):
        spans = [encoded.spans(s, both[pattern]) for s, both in zip(group, patterns, strict=True)]
        sequences = [encoded.sequence(s, sp) for s, sp in zip(group, spans, strict=True)]
        speech = [encoded.frames(s, sp) for s, sp in zip(group, spans, strict=True)]
        batch = collate(sequences, speech, [s.sample_id for s in group]).to(device)
        if text_hidden is None:
            with torch.no_grad():
                text_hidden = model.text_hidden(batch.text_ids_BS)
                teacher_hidden = model.teacher.hidden(batch.text_ids_BS)
        told = divergences(model, model.teacher, batch, TOP, text_hidden, teacher_hidden)
        summary = [x.tolist() for x in told.samples]
        for b, s in enumerate(group):
            m, f, d, n, n_f = (column[b] for column in summary)
            frames = sum(span.frame_end - span.frame_start for span in spans[b])
            rows.append({
                "sample_id": s.sample_id, "synthesis_id": s.synthesis_id, "pattern": pattern,
                "m": m if n else None, "f": f if n_f else None, "d": d if n else None,
                "n_positions": n, "n_positions_f": n_f, "speech_s": frames / model.encoder.frame_rate,
            })  # fmt: skip
        tokens += _token_rows(model, group, parts, batch, told.positions, pattern)


def _token_rows(model, group, parts, batch, told, pattern: int) -> list[dict]:
    spell = {}

    def top(ids, probabilities):
        for i in ids:
            if i not in spell:
                spell[i] = model.tokenizer.decode([i])
        return [{"token": spell[i], "p": p} for i, p in zip(ids, probabilities, strict=True)]

    m, f, d = told.m.tolist(), told.f.tolist(), told.d.tolist()
    teacher = list(zip(told.teacher_ids.tolist(), told.teacher_probabilities.tolist(), strict=True))
    student = list(zip(told.student_ids.tolist(), told.student_probabilities.tolist(), strict=True))
    after, positions = batch.after_N.tolist(), batch.positions_N.tolist()
    rows = []
    for n, b in enumerate(batch.sample_N.tolist()):
        s, (_, offsets, cut) = group[b], parts[b]
        start, end = offsets[positions[n]]
        place = int(np.searchsorted([u.token_end for u in cut], positions[n], side="right"))
        start_s, end_s = (cut[place].start_s, cut[place].end_s) if place < len(cut) else (None, None)  # a chat's answer
        heard = after[n]
        rows.append({
            "sample_id": s.sample_id, "synthesis_id": s.synthesis_id, "pattern": pattern,
            "position": positions[n], "token": s.text[start:end], "char_start": start, "char_end": end,
            "start_s": start_s, "end_s": end_s, "after_speech": heard,
            "m": m[n] if heard else None, "f": f[n], "d": d[n] if heard else None,
            "teacher_top": top(*teacher[n]), "student_top": top(*student[n]),
        })  # fmt: skip
    return rows
