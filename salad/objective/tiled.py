"""The pass with little memory: all rows and some ids at a time, each tile projected twice, five products a row."""

import torch
from torch import Tensor

from salad.objective.logits import logit_gradient_, weight_at
from salad.objective.projection import Projection, project, sum_dtype, wide_tile


def vocabulary_tiles(
    student: Projection,
    teacher: Projection,
    targets: Tensor,
    rows: Tensor | None,
    tile: int,
    kl_weight: float | Tensor,
    nll_weight: float | Tensor,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The low-memory pass: all rows and `tile` ids at a time; each tile is projected twice, for the sums and for the gradient.

    Returns (KL [N], NLL [N], gradients of the hidden states, the head and the bias; None where not wanted). `rows`: the rows
    that carry loss, None for all."""
    device, vocab_size, dtype = targets.device, student.vocab_size, sum_dtype(student, teacher)
    d, nll = torch.zeros(2, targets.numel(), dtype=dtype, device=device)
    grad_hidden = torch.zeros_like(student.hidden) if wants_hidden else None
    grad_head = torch.zeros_like(student.source) if wants_head else None
    grad_bias = torch.zeros(len(student.head), dtype=dtype, device=device) if wants_bias else None
    at = slice(None) if rows is None else rows
    total = targets.numel() if rows is None else rows.numel()
    if total == 0:
        return d, nll, grad_hidden, grad_head, grad_bias
    tile = min(tile, vocab_size)
    buffers = [torch.empty(total * tile, dtype=dtype, device=device) for _ in range(3)]
    wide = wide_tile((student, teacher), dtype, tile)
    target = targets[at].unsqueeze(1)

    def tiles():
        for start in range(0, vocab_size, tile):
            ids = slice(start, min(start + tile, vocab_size))
            width = ids.stop - start
            s, t, work = (buffer[: total * width].view(total, width) for buffer in buffers)
            project((student, teacher), at, (s, t), wide, ids)
            index = (target - start).clamp(0, width - 1)
            hit = (target >= start) & (target < ids.stop)
            yield ids, s, t, work, index, hit

    largest_s, largest_t = torch.full((2, total, 1), -torch.inf, dtype=dtype, device=device)
    sum_s, sum_t, gap, target_logit = torch.zeros(4, total, 1, dtype=dtype, device=device)
    for _, s, t, work, index, hit in tiles():
        target_logit += torch.where(hit, s.gather(1, index), 0)
        torch.sub(t, s, out=work)
        before, largest_t = largest_t, torch.maximum(largest_t, t.amax(1, keepdim=True))
        rescale = (before - largest_t).exp_()
        t.sub_(largest_t).exp_()
        sum_t = sum_t * rescale + t.sum(1, keepdim=True)
        gap = gap * rescale + work.mul_(t).sum(1, keepdim=True)
        before, largest_s = largest_s, torch.maximum(largest_s, s.amax(1, keepdim=True))
        sum_s = sum_s * (before - largest_s).exp_() + s.sub_(largest_s).exp_().sum(1, keepdim=True)
    lse_s, lse_t = largest_s + sum_s.log(), largest_t + sum_t.log()
    d[at] = (gap / sum_t - (lse_t - lse_s)).clamp_min_(0.0).squeeze(1)
    nll[at] = (lse_s - target_logit).squeeze(1)
    if not (wants_hidden or wants_head or wants_bias):
        return d, nll, grad_hidden, grad_head, grad_bias

    hidden = student.rows(at)
    sums = torch.zeros(hidden.shape, dtype=dtype, device=device) if wants_hidden else None
    weights = weight_at(kl_weight, at), weight_at(nll_weight, at)
    for ids, s, t, work, index, hit in tiles():
        slope = None if student.soft_cap is None else student.slope(s, out=work)
        gradient = logit_gradient_(s.sub_(lse_s).exp_(), t.sub_(lse_t).exp_(), index, hit, *weights)
        if slope is not None:
            gradient.mul_(slope)
        if student.scale != 1.0:
            gradient.mul_(student.scale)
        if grad_bias is not None:
            grad_bias[ids] = gradient.sum(0) / student.scale
        narrow = student.narrow(gradient, spare=work)
        if sums is not None:
            student.add_product(sums, gradient, narrow, student.head[ids])
        if grad_head is not None:
            grad_head[ids] = torch.mm(narrow.t(), hidden).to(grad_head.dtype)
    if grad_hidden is not None and sums is not None:
        grad_hidden[at] = sums.to(grad_hidden.dtype)
    return d, nll, grad_hidden, grad_head, grad_bias
