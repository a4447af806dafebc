"""The fast pass: all ids of some rows at a time, three products a row. Its middle may be fused by torch.compile."""

import functools

import torch
from torch import Tensor

from salad.errors import SaladError
from salad.objective.checks import chunk_size
from salad.objective.logits import kl, log_softmax_, logit_gradient_, weight_at
from salad.objective.projection import Projection, project, sum_dtype, wide_tile


def row_chunks(
    student: Projection,
    teacher: Projection,
    targets: Tensor,
    rows: Tensor | None,
    chunk_rows: int | None,
    kl_weight: float | Tensor,
    nll_weight: float | Tensor,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
    compile: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The fast pass: all ids of `chunk_rows` rows at a time.

    Returns (KL [N], NLL [N], gradients of the hidden states, the head and the bias; None where not wanted). `rows`: the rows
    that carry loss, None for all; `compile`: fuse the element-wise middle with torch.compile."""
    device, vocab_size, dtype = targets.device, student.vocab_size, sum_dtype(student, teacher)
    d, nll = torch.zeros(2, targets.numel(), dtype=dtype, device=device)
    total = targets.numel() if rows is None else rows.numel()
    size = min(total, chunk_size(chunk_rows, device))
    wants, cap = wants_hidden or wants_head or wants_bias, student.soft_cap
    fused = compile and wants
    buffers = [torch.empty(size, vocab_size, dtype=dtype, device=device) for _ in range(2 if fused else 3)]
    wide = wide_tile((student, teacher), dtype)
    grad_hidden = torch.zeros_like(student.hidden) if wants_hidden else None
    one_chunk = wants_head and 0 < total <= size  # then nothing is summed over chunks
    grad_head = (
        torch.zeros(student.source.shape, dtype=student.dtype if one_chunk else dtype, device=device) if wants_head else None
    )
    grad_bias = torch.zeros(len(student.head), dtype=dtype, device=device) if wants_bias else None
    for start in range(0, total, size or 1):
        chunk = slice(start, min(start + size, total))
        at = chunk if rows is None else rows[chunk]
        log_p, log_q, *q = (buffer[: chunk.stop - start] for buffer in buffers)
        project((student, teacher), at, (log_p, log_q), wide)
        target = targets[at].unsqueeze(1)
        if fused:
            # what a wide sum over chunks multiplies stays wide
            kept = dtype if wants_head and not one_chunk and student.widens(dtype) else student.dtype
            weights = (_column(weight, at, log_p) for weight in (kl_weight, nll_weight))
            d[at], nll[at], gradient = _fused(log_p, log_q, target, *weights, kept, student.scale, cap)
        else:
            lse = log_p.gather(1, target) if wants and cap is not None else None
            log_softmax_(log_p)
            log_softmax_(log_q)
            nll[at] = -log_p.gather(1, target).squeeze(1)
            d[at] = kl(log_q, log_p, q[0], work=log_q)
            if not wants:
                continue
            slope = None
            if lse is not None:  # the logits again, from a target's logit and log-probability; `log_q` is free by now
                lse -= log_p.gather(1, target)
                slope = student.slope(torch.add(log_p, lse, out=log_q), out=log_q)
            gradient = logit_gradient_(log_p.exp_(), q[0], target, 1, weight_at(kl_weight, at), weight_at(nll_weight, at))
            if slope is not None:
                gradient.mul_(slope)
            if student.scale != 1.0:
                gradient.mul_(student.scale)
        if grad_bias is not None:  # which stands behind the scale
            grad_bias += gradient.sum(0, dtype=dtype) / student.scale
        narrow = student.narrow(gradient, spare=log_q)
        if grad_hidden is not None:
            grad_hidden[at] = torch.mm(narrow, student.head).to(grad_hidden.dtype)
        if grad_head is not None and one_chunk:
            torch.mm(narrow.t(), student.rows(at), out=grad_head[:vocab_size])
        elif grad_head is not None:
            student.add_product(grad_head[:vocab_size], gradient.t(), narrow.t(), student.rows(at))
        del gradient, narrow  # a fused one is its own memory: never two at a time
    return d, nll, grad_hidden, None if grad_head is None else grad_head.to(student.source.dtype), grad_bias


def of_logits(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    kl_weight: float,
    nll_weight: float,
    dtype: torch.dtype,
    scale: float,
    cap: float | None,
) -> tuple:
    """KL and NLL [R] of logits [R, V] in one go with the gradient in `dtype` of what the head's matrix
    gives, weights [R, 1]: for torch.compile. The same operations on both sides, so that equal logits give exactly 0."""
    log_p = student - student.logsumexp(1, keepdim=True)
    log_q = teacher - teacher.logsumexp(1, keepdim=True)
    q = log_q.exp()
    d = (q * (log_q - log_p)).sum(1).clamp_min(0.0)
    nll = -log_p.gather(1, target).squeeze(1)
    hit = torch.arange(student.shape[1], device=student.device) == target
    gradient = (kl_weight + nll_weight) * log_p.exp() - kl_weight * q - torch.where(hit, nll_weight, 0.0)
    if cap is not None:
        gradient = gradient * (1.0 - (student / cap).square())
    return d, nll, (gradient if scale == 1.0 else gradient * scale).to(dtype)


@functools.cache
def _compiled():
    return torch.compile(of_logits, fullgraph=True)


def _fused(student: Tensor, *rest):
    """`of_logits`, compiled; another number of rows compiles nothing again."""
    try:
        torch._dynamo.maybe_mark_dynamic(student, 0)
        return _compiled()(student, *rest)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SaladError(
            f"objective.compile: torch.compile could not build the loss ({reason.strip()}); it needs a C++ compiler on CPU "
            "and Triton on a GPU. Without it all is computed the same, a little slower"
        ) from error


def _column(weight, at, like: Tensor) -> Tensor:
    """A weight as a column for each row."""
    if isinstance(weight, float):
        return like.new_full((like.shape[0], 1), weight)
    return weight[at].to(like.dtype).unsqueeze(1)
