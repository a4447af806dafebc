"""The three divergences of METHOD.md, per text position and per sample: misalignment M, forgetting F, and D.

M = KL(P text ‖ P interleaved), F = KL(Q text ‖ P text), D = KL(Q text ‖ P interleaved): nats per text position,
forward KL over the tokenizer's whole vocabulary, float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from salad.objective import PositionDivergences, position_divergences

if TYPE_CHECKING:
    from salad.data.batches import Batch
    from salad.models.speech_lm import SpeechLM, Teacher


class SampleDivergences(NamedTuple):
    """Means over a sample's positions, float64 [B]; NaN where a sample has no such position (null in the store)."""

    m: torch.Tensor
    f: torch.Tensor
    d: torch.Tensor
    n_positions: torch.Tensor
    n_positions_f: torch.Tensor


class Divergences(NamedTuple):
    positions: PositionDivergences
    samples: SampleDivergences


@torch.no_grad()
def divergences(
    student: SpeechLM,
    teacher: Teacher,
    batch: Batch,
    top_k: int = 0,
    text_hidden: torch.Tensor | None = None,
    teacher_hidden: torch.Tensor | None = None,
) -> Divergences:
    """M, F and D of `student` (a SpeechLM) against `teacher` (its Teacher) on a Batch of B samples, N positions.

    Per position [N] in the batch's order, with the `top_k` likeliest ids of both sides; per sample [B]: m and d over
    the positions after the first speech span, f over all. `text_hidden`, `teacher_hidden` [B, S, ·] save their
    forward pass where several patterns share a text.
    """
    if text_hidden is None:
        text_hidden = student.text_hidden(batch.text_ids_BS, batch.text_place_BS)
    if teacher_hidden is None:
        teacher_hidden = teacher.hidden(batch.text_ids_BS, batch.text_place_BS)
    positions = position_divergences(
        (text_hidden.flatten(0, 1)[batch.text_rows_N], student.output_head),
        (student.hidden(batch).flatten(0, 1)[batch.rows_N], student.output_head),
        (teacher_hidden.flatten(0, 1)[batch.text_rows_N], teacher.output_head),
        vocab_size=student.vocab_size,
        top_k=top_k,
    )
    size = len(batch.sample_ids)
    after = batch.after_N.double()

    def total(values_N):
        return values_N.new_zeros(size, dtype=torch.float64).index_add_(0, batch.sample_N, values_N.double())

    n, n_f = total(after), total(torch.ones_like(after))
    samples = SampleDivergences(
        m=total(positions.m * after) / n,
        f=total(positions.f) / n_f,
        d=total(positions.d * after) / n,
        n_positions=n.long(),
        n_positions_f=n_f.long(),
    )
    return Divergences(positions, samples)
