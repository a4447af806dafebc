"""Alternatives to KL(Q || P) for ablations: reverse KL and the Jensen-Shannon divergence, in plain torch."""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from salad.objective.checks import chunk_size, rows_with_loss
from salad.objective.projection import Head

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


def other_divergence(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor,
    vocab_size: int,
    chunk_rows: int | None,
    divergence: str,
) -> tuple[Tensor, Tensor]:
    """(reverse KL or JSD [N], NLL [N]) in nats, with gradients; 0 where a target is negative."""
    rows = rows_with_loss(targets, vocab_size)
    rows = torch.arange(targets.numel(), device=targets.device) if rows is None else rows
    widest = torch.promote_types(student_hidden.dtype, student_head.weight.dtype)
    dtype = torch.float64 if widest == torch.float64 else torch.float32

    def values(student, weight, bias, teacher, target):
        log_p = student_head._replace(weight=weight, bias=bias).logits(student, vocab_size).to(dtype).log_softmax(1)
        log_q = teacher_head.logits(teacher, vocab_size).to(dtype).log_softmax(1)
        if divergence == "reverse_kl":
            d = (log_p.exp() * (log_p - log_q)).sum(1)
        else:
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            d = ((log_p.exp() * (log_p - log_m)).sum(1) + (log_q.exp() * (log_q - log_m)).sum(1)) / 2
        return d, -log_p.gather(1, target.unsqueeze(1)).squeeze(1)

    chunks = [
        checkpoint(values, student_hidden[at], student_head.weight, student_head.bias, teacher_hidden[at], targets[at],
                   use_reentrant=False)
        for at in rows.split(chunk_size(chunk_rows, targets.device))
    ]  # fmt: skip
    empty = torch.zeros(targets.numel(), dtype=dtype, device=targets.device)
    if not chunks:
        return empty, empty
    d, nll = (empty.index_put((rows,), torch.cat(parts)) for parts in zip(*chunks, strict=True))
    return d, nll
