"""The objective: alpha * KL(Q || P) + (1 - alpha) * NLL over the full vocabulary, from hidden states and heads.

`[N, V]` logits are never held whole: rows are projected in chunks into buffers that are used again. loss: what is minimised;
positions: the same for scoring; chunked and tiled: the two ways over a vocabulary; projection: from hidden states to
logits; teacher_cache: the teacher kept on disk.
"""

from salad.objective.checks import CHUNK_ROWS
from salad.objective.loss import DistillationLoss, distillation_loss
from salad.objective.positions import PositionDivergences, position_divergences
from salad.objective.projection import HEAD_TILE, Head, whole_float32

__all__ = ["CHUNK_ROWS", "HEAD_TILE", "DistillationLoss", "Head", "PositionDivergences", "distillation_loss",
           "position_divergences", "whole_float32"]  # fmt: skip
