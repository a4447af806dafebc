"""M, F and D per position, for scoring: the same projections as the loss, without gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from salad.errors import SaladError
from salad.objective.checks import check_pair, chunk_size
from salad.objective.logits import kl, log_softmax_
from salad.objective.projection import Head, Projection, as_head, project, sum_dtype, wide_tile, without_autocast


class PositionDivergences(NamedTuple):
    """Per position, in nats, float32 [N]; the k most probable ids of Q(.|text) and P(.|interleaved), [N, k]."""

    m: Tensor
    f: Tensor
    d: Tensor
    teacher_ids: Tensor
    teacher_probabilities: Tensor
    student_ids: Tensor
    student_probabilities: Tensor


@torch.no_grad()
def position_divergences(
    student_text: tuple[Tensor, Tensor | Head],
    student_interleaved: tuple[Tensor, Tensor | Head],
    teacher_text: tuple[Tensor, Tensor | Head],
    vocab_size: int | None = None,
    top_k: int = 5,
    *,
    chunk_rows: int | None = None,
) -> PositionDivergences:
    """M, F and D of METHOD.md at the same N positions, without gradients and without `[N, V]` logits.

    Each argument is a pair (hidden [N, H], head [V, H] or `Head`) for P(.|text), P(.|interleaved), Q(.|text). M = KL(P text ||
    P interleaved), F = KL(Q || P text), D = KL(Q || P interleaved), in nats, forward KL over the first `vocab_size`
    ids, float32. Equal inputs give exactly 0. `top_k` ids with their probabilities come from Q(.|text) and
    P(.|interleaved), most probable first; `top_k=0` leaves them empty. Raises SaladError on shapes that do not fit.
    """
    given = {"student_text": student_text, "student_interleaved": student_interleaved, "teacher_text": teacher_text}
    pairs = {name: (hidden, as_head(head)) for name, (hidden, head) in given.items()}
    vocab = 0
    for name, (hidden, head) in pairs.items():
        vocab = check_pair(name, hidden, head, vocab_size, pairs["teacher_text"][1])
        if hidden.shape[0] != teacher_text[0].shape[0]:
            raise SaladError(
                f"position_divergences: {name} has {hidden.shape[0]} positions, teacher_text "
                f"{teacher_text[0].shape[0]}; they must be the same positions"
            )
    n, device, k = teacher_text[0].shape[0], teacher_text[0].device, min(top_k, vocab)
    projections = [Projection(hidden, head, vocab) for hidden, head in pairs.values()]
    dtype = sum_dtype(*projections)
    values = torch.zeros(3, n, dtype=torch.float32, device=device)
    ids = torch.zeros(2, n, k, dtype=torch.int64, device=device)
    probabilities = torch.zeros(2, n, k, dtype=torch.float32, device=device)
    size = min(n, chunk_size(chunk_rows, device))
    buffers = [torch.empty(size, vocab, dtype=dtype, device=device) for _ in range(5)]
    wide = wide_tile(projections, dtype)
    for start in range(0, n, size or 1):
        rows = slice(start, min(start + size, n))
        log_text, log_spoken, log_q, q, work = (buffer[: rows.stop - start] for buffer in buffers)
        with without_autocast(device):
            project(projections, rows, (log_text, log_spoken, log_q), wide)
        for log_probabilities in (log_text, log_spoken, log_q):
            log_softmax_(log_probabilities)
        for side, log_probabilities in enumerate((log_q, log_spoken)):
            top = log_probabilities.topk(k, dim=1)
            ids[side, rows], probabilities[side, rows] = top.indices, top.values.exp()
        values[1, rows] = kl(log_q, log_text, q, work)
        values[0, rows] = kl(log_text, log_spoken, q, work)
        values[2, rows] = kl(log_q, log_spoken, q, work)
    m, f, d = values
    return PositionDivergences(m, f, d, ids[0], probabilities[0], ids[1], probabilities[1])
