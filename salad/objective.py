"""The objective: alpha * KL(Q || P) + (1 - alpha) * NLL over the full vocabulary, from hidden states and heads.

`[N, V]` logits are never held whole: rows are projected in chunks into buffers that are used again, and the gradient
is computed on the way, in the forward pass, where one is needed. `position_divergences` is the same pass for scoring.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from salad.errors import SaladError

CHUNK_ROWS = {"cpu": 256, "cuda": 1024}  # rows projected at a time
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
HEAD_TILE = 8192  # rows of a bfloat16 head that stand in float32 at a time (CPU)


class DistillationLoss(NamedTuple):
    """`loss = alpha * d + (1 - alpha) * nll`, in nats; `d` is KL(Q || P), `nll` that of the targets."""

    loss: Tensor
    d: Tensor
    nll: Tensor


class PositionDivergences(NamedTuple):
    """Per position, in nats, float32 [N]; the k most probable ids of Q(.|text) and P(.|interleaved), [N, k]."""

    m: Tensor
    f: Tensor
    d: Tensor
    teacher_ids: Tensor
    teacher_probabilities: Tensor
    student_ids: Tensor
    student_probabilities: Tensor


def distillation_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    teacher_hidden_NG: Tensor,
    teacher_head_VG: Tensor,
    targets_N: Tensor,
    alpha: float = 1.0,
    vocab_size: int | None = None,
    reduction: str = "mean",
    *,
    chunk_rows: int | None = None,
    vocab_tile: int | None = None,
    per_position: bool = False,
    divergence: str = "forward_kl",
    compile: bool = False,
) -> DistillationLoss:
    """The loss of METHOD.md, "The objective", exact over the full vocabulary.

    Row n of the hidden states (after the final norm) predicts `targets_N[n]`. A row whose target is negative carries
    no loss and is never projected; "mean" divides by the number of the others. Ids at or above `vocab_size` (a padded
    vocabulary) are ignored; it may be left out where both heads have equally many. The teacher gets no gradient; the
    student's head and hidden states get theirs where they require one. `loss`, `d` and `nll` may each be
    backpropagated (`loss` alone costs nothing further; the others, a second backward through a retained graph, and
    "none" with a trainable head project the rows again). There is no double backward: create_graph=True raises
    SaladError.

    Products are taken in the inputs' type (autocast's, inside autocast) with float32 results and sums, float64 where
    the inputs are float64. The returned values are float32 (float64), scalars, or [N] for "none". With `per_position`
    `d` and `nll` are [N] and carry no gradient, whatever the reduction of the loss.

    Peak bytes beside the inputs, bfloat16 inputs (b = 2), R = `chunk_rows` (256 on CPU, 1,024 elsewhere; at most the
    rows that carry loss): 12 R V + b N H, on CPU + 4 min(V, 8192) max(H, G), and with a trainable head + (4 + b) V H
    (where all rows fit one chunk only b V H).
    `vocab_tile=T`, instead of `chunk_rows`, is the low-memory mode: all rows and T ids at a time, five products
    instead of three. Its peak: 12 N T + (4 + b) N H, on CPU + 4 T max(H, G) + 4 N (H + G), and with a trainable head
    + b V H.

    `divergence` puts another in the place of D = KL(Q || P): "reverse_kl", KL(P || Q), or "jsd", the Jensen-Shannon
    divergence (at most log 2). Those two are for ablations: plain torch, rows in chunks that are projected again in the
    backward pass, `d` with a gradient as `loss`; no `vocab_tile`.

    `compile` fuses what is done to a chunk's logits between the products with torch.compile (Inductor: a Triton kernel on
    a GPU, C++ on CPU), for forward KL in chunks of rows. The first step takes its time to compile. Its peak has
    (8 + b) R V in the place of 12 R V; 8 R V with a trainable head and several chunks, for the peak is then at the end.

    Raises SaladError on shapes that do not fit, an alpha outside [0, 1], an unknown reduction, heads of different
    sizes without `vocab_size`, a target that the vocabulary does not have, and where torch.compile has no compiler.
    """
    vocab_size = _check_pair("student", student_hidden_NH, student_head_VH, vocab_size, teacher_head_VG)
    _check_pair("teacher", teacher_hidden_NG, teacher_head_VG, vocab_size, student_head_VH)
    n = student_hidden_NH.shape[0]
    if teacher_hidden_NG.shape[0] != n or targets_N.shape != (n,):
        raise SaladError(
            f"distillation_loss: {n} student positions, {teacher_hidden_NG.shape[0]} teacher positions and targets of "
            f"shape {tuple(targets_N.shape)}; all three need the same N"
        )
    _check_mixture("distillation_loss", alpha, reduction)
    if vocab_tile is not None and (vocab_tile < 1 or chunk_rows is not None):
        raise SaladError("distillation_loss: vocab_tile must be at least 1, and stands instead of chunk_rows")
    if compile and (vocab_tile is not None or divergence != "forward_kl"):
        raise SaladError("distillation_loss: compile is for forward_kl in chunks of rows, not for vocab_tile")
    if divergence != "forward_kl":
        if divergence not in DIVERGENCES or vocab_tile is not None:
            raise SaladError(f"distillation_loss: divergence {divergence!r}; use {', '.join(DIVERGENCES)}, without vocab_tile")
        d, nll = _other_divergence(
            student_hidden_NH, student_head_VH, teacher_hidden_NG.detach(), teacher_head_VG.detach(), targets_N,
            vocab_size, chunk_rows, divergence,
        )  # fmt: skip
        loss = alpha * d + (1.0 - alpha) * nll
        kept = {"mean": (targets_N >= 0).sum().clamp_min(1), "sum": 1, "none": None}[reduction]
        scaled = [x if kept is None else x.sum() / kept for x in (loss, d, nll)]
        return DistillationLoss(scaled[0], *((d.detach(), nll.detach()) if per_position else scaled[1:]))
    out = _DistillationLoss.apply(
        student_hidden_NH, student_head_VH, teacher_hidden_NG.detach(), teacher_head_VG.detach(), targets_N,
        float(alpha), vocab_size, reduction, chunk_rows, vocab_tile, compile, torch.is_grad_enabled(), per_position,
    )  # fmt: skip
    return DistillationLoss(*out)


def _other_divergence(student_hidden, student_head, teacher_hidden, teacher_head, targets, vocab_size, chunk_rows,
                      divergence):  # fmt: skip
    """Reverse KL or JSD, and NLL, of every row [N]; 0 where a target is negative."""
    rows = _rows_with_loss(targets, vocab_size)
    rows = torch.arange(targets.numel(), device=targets.device) if rows is None else rows
    widest = torch.promote_types(student_hidden.dtype, student_head.dtype)
    dtype = torch.float64 if widest == torch.float64 else torch.float32

    def values(student, head, teacher, teacher_head, target):
        log_p = (student @ head[:vocab_size].t()).to(dtype).log_softmax(1)
        log_q = (teacher @ teacher_head[:vocab_size].t()).to(dtype).log_softmax(1)
        if divergence == "reverse_kl":
            d = (log_p.exp() * (log_p - log_q)).sum(1)
        else:
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            d = ((log_p.exp() * (log_p - log_m)).sum(1) + (log_q.exp() * (log_q - log_m)).sum(1)) / 2
        return d, -log_p.gather(1, target.unsqueeze(1)).squeeze(1)

    told = [
        checkpoint(values, student_hidden[at], student_head, teacher_hidden[at], teacher_head, targets[at],
                   use_reentrant=False)
        for at in rows.split(_chunk_rows(chunk_rows, targets.device))
    ]  # fmt: skip
    empty = torch.zeros(targets.numel(), dtype=dtype, device=targets.device)
    if not told:
        return empty, empty
    return tuple(empty.index_put((rows,), torch.cat(parts)) for parts in zip(*told, strict=True))


@torch.no_grad()
def position_divergences(
    student_text: tuple[Tensor, Tensor],
    student_interleaved: tuple[Tensor, Tensor],
    teacher_text: tuple[Tensor, Tensor],
    vocab_size: int | None = None,
    top_k: int = 5,
    *,
    chunk_rows: int | None = None,
) -> PositionDivergences:
    """M, F and D of METHOD.md at the same N positions, without gradients and without `[N, V]` logits.

    Each argument is a pair (hidden [N, H], head [V, H]) for P(.|text), P(.|interleaved) and Q(.|text). M = KL(P text ||
    P interleaved), F = KL(Q || P text), D = KL(Q || P interleaved), in nats, forward KL over the first `vocab_size`
    ids, float32. Equal inputs give exactly 0. `top_k` ids with their probabilities come from Q(.|text) and
    P(.|interleaved), most probable first; `top_k=0` leaves them empty. Raises SaladError on shapes that do not fit.
    """
    pairs = {"student_text": student_text, "student_interleaved": student_interleaved, "teacher_text": teacher_text}
    for name, (hidden, head) in pairs.items():
        vocab_size = _check_pair(name, hidden, head, vocab_size, teacher_text[1])
        if hidden.shape[0] != teacher_text[0].shape[0]:
            raise SaladError(
                f"position_divergences: {name} has {hidden.shape[0]} positions, teacher_text "
                f"{teacher_text[0].shape[0]}; they must be the same positions"
            )
    n, device, k = teacher_text[0].shape[0], teacher_text[0].device, min(top_k, vocab_size)
    projections = [_Projection(hidden, head, vocab_size) for hidden, head in pairs.values()]
    dtype = _sum_dtype(*projections)
    values = torch.zeros(3, n, dtype=torch.float32, device=device)
    ids = torch.zeros(2, n, k, dtype=torch.int64, device=device)
    probabilities = torch.zeros(2, n, k, dtype=torch.float32, device=device)
    size = min(n, _chunk_rows(chunk_rows, device))
    buffers = [torch.empty(size, vocab_size, dtype=dtype, device=device) for _ in range(5)]
    wide = _wide_tile(projections, dtype)
    for start in range(0, n, size or 1):
        rows = slice(start, min(start + size, n))
        log_text, log_spoken, log_q, q, work = (buffer[: rows.stop - start] for buffer in buffers)
        with _without_autocast(device):
            _project(projections, rows, (log_text, log_spoken, log_q), wide)
        for log_probabilities in (log_text, log_spoken, log_q):
            _log_softmax_(log_probabilities)
        for side, log_probabilities in enumerate((log_q, log_spoken)):
            top = log_probabilities.topk(k, dim=1)
            ids[side, rows], probabilities[side, rows] = top.indices, top.values.exp()
        values[1, rows] = _kl(log_q, log_text, q, work)
        values[0, rows] = _kl(log_text, log_spoken, q, work)
        values[2, rows] = _kl(log_q, log_spoken, q, work)
    return PositionDivergences(*values, ids[0], probabilities[0], ids[1], probabilities[1])


# ---------------------------------------------------------------------------------------------------------------------


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, student_hidden, student_head, teacher_hidden, teacher_head, targets, alpha, vocab_size, reduction,
        chunk_rows, vocab_tile, compile, grad_enabled, per_position,
    ):  # fmt: skip
        ctx.rows = _rows_with_loss(targets, vocab_size)
        kept = targets.numel() if ctx.rows is None else ctx.rows.numel()
        ctx.scale = 1.0 / max(kept, 1) if reduction == "mean" else 1.0
        ctx.alpha, ctx.vocab_size, ctx.chunk_rows, ctx.vocab_tile = alpha, vocab_size, chunk_rows, vocab_tile
        ctx.compile = compile
        wants = [grad_enabled and needed for needed in ctx.needs_input_grad[:2]]
        if reduction == "none" and wants[1]:
            wants = [False, False]  # the rows' weights are known in the backward pass only
        inputs = (student_hidden, student_head, teacher_hidden, teacher_head, targets)
        d, nll, *gradients = _pass(ctx, inputs, alpha, 1.0 - alpha, *wants)
        told = d, nll
        if reduction != "none":
            d, nll = d.sum() * ctx.scale, nll.sum() * ctx.scale
        if per_position:
            ctx.mark_non_differentiable(*told)
        ctx.gradients = gradients if any(wants) else None
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return alpha * d + (1.0 - alpha) * nll, *(told if per_position else (d, nll))

    @staticmethod
    def backward(ctx, grad_loss, grad_d, grad_nll):
        if torch.is_grad_enabled():  # create_graph=True
            raise SaladError("distillation_loss has no double backward; call backward without create_graph")
        given = next((g for g in (grad_loss, grad_d, grad_nll) if g is not None), None)
        if given is None:
            return (None,) * 13
        if grad_d is None and grad_nll is None and ctx.gradients is not None:
            gradients, ctx.gradients = ctx.gradients, None  # scaled in place: a second backward computes them again
            weight = grad_loss * ctx.scale
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(weight if weight.dim() == 0 else weight.to(gradient.dtype).unsqueeze(1))
        else:
            grad_loss, grad_d, grad_nll = (
                torch.zeros_like(given) if g is None else g for g in (grad_loss, grad_d, grad_nll)
            )
            n = ctx.saved_tensors[4].numel()
            kl_weight = ((ctx.alpha * grad_loss + grad_d) * ctx.scale).expand(n)
            nll_weight = (((1.0 - ctx.alpha) * grad_loss + grad_nll) * ctx.scale).expand(n)
            _, _, *gradients = _pass(ctx, ctx.saved_tensors, kl_weight, nll_weight, *ctx.needs_input_grad[:2])
        return (*gradients, *(None,) * 11)


def _pass(ctx, inputs, kl_weight, nll_weight, wants_hidden, wants_head):
    """d and nll of every row, and the gradients of sum_n(kl_weight_n * d_n + nll_weight_n * nll_n), or None.

    The weights are floats that add up to 1, or tensors [N].
    """
    student_hidden, student_head, teacher_hidden, teacher_head, targets = inputs
    student = _Projection(student_hidden, student_head, ctx.vocab_size)
    teacher = _Projection(teacher_hidden, teacher_head, ctx.vocab_size)
    with _without_autocast(student_hidden.device):
        if ctx.vocab_tile is not None:
            return _vocabulary_tiles(student, teacher, targets, ctx.rows, ctx.vocab_tile, kl_weight, nll_weight,
                                     wants_hidden, wants_head)  # fmt: skip
        return _row_chunks(student, teacher, targets, ctx.rows, ctx.chunk_rows, kl_weight, nll_weight, wants_hidden,
                           wants_head, ctx.compile)  # fmt: skip


def _row_chunks(student, teacher, targets, rows, chunk_rows, kl_weight, nll_weight, wants_hidden, wants_head,
                compile=False):  # fmt: skip
    """The fast way: all ids of some rows at a time."""
    device, vocab_size, dtype = targets.device, student.vocab_size, _sum_dtype(student, teacher)
    d, nll = torch.zeros(2, targets.numel(), dtype=dtype, device=device)
    total = targets.numel() if rows is None else rows.numel()
    size = min(total, _chunk_rows(chunk_rows, device))
    fused = compile and (wants_hidden or wants_head)
    buffers = [torch.empty(size, vocab_size, dtype=dtype, device=device) for _ in range(2 if fused else 3)]
    wide = _wide_tile((student, teacher), dtype)
    grad_hidden = torch.zeros_like(student.hidden) if wants_hidden else None
    one_chunk = wants_head and 0 < total <= size  # then nothing is summed over chunks
    grad_head = torch.zeros(student.source.shape, dtype=student.dtype if one_chunk else dtype, device=device) \
        if wants_head else None  # fmt: skip
    for start in range(0, total, size or 1):
        chunk = slice(start, min(start + size, total))
        at = chunk if rows is None else rows[chunk]
        log_p, log_q, *q = (buffer[: chunk.stop - start] for buffer in buffers)
        _project((student, teacher), at, (log_p, log_q), wide)
        target = targets[at].unsqueeze(1)
        if fused:
            # what a wide sum over chunks multiplies stays wide
            kept = dtype if wants_head and not one_chunk and student.widens(dtype) else student.dtype
            weights = (_column(weight, at, log_p) for weight in (kl_weight, nll_weight))
            d[at], nll[at], gradient = _fused(log_p, log_q, target, *weights, kept)
        else:
            _log_softmax_(log_p)
            _log_softmax_(log_q)
            nll[at] = -log_p.gather(1, target).squeeze(1)
            d[at] = _kl(log_q, log_p, *q, work=log_q)
            if not (wants_hidden or wants_head):
                continue
            gradient = _logit_gradient_(log_p.exp_(), *q, target, 1, _at(kl_weight, at), _at(nll_weight, at))
        narrow = student.narrow(gradient, spare=log_q)
        if wants_hidden:
            grad_hidden[at] = torch.mm(narrow, student.head).to(grad_hidden.dtype)
        if one_chunk:
            torch.mm(narrow.t(), student.rows(at), out=grad_head[:vocab_size])
        elif wants_head:
            student.add_product(grad_head[:vocab_size], gradient.t(), narrow.t(), student.rows(at))
        del gradient, narrow  # a fused one is its own memory: never two at a time
    return d, nll, grad_hidden, None if grad_head is None else grad_head.to(student.source.dtype)


def _vocabulary_tiles(student, teacher, targets, rows, tile, kl_weight, nll_weight, wants_hidden, wants_head):
    """The way with little memory: all rows, some ids at a time, and each tile projected twice (sums, then gradient)."""
    device, vocab_size, dtype = targets.device, student.vocab_size, _sum_dtype(student, teacher)
    d, nll = torch.zeros(2, targets.numel(), dtype=dtype, device=device)
    grad_hidden = torch.zeros_like(student.hidden) if wants_hidden else None
    grad_head = torch.zeros_like(student.source) if wants_head else None
    at = slice(None) if rows is None else rows
    total = targets.numel() if rows is None else rows.numel()
    if total == 0:
        return d, nll, grad_hidden, grad_head
    tile = min(tile, vocab_size)
    buffers = [torch.empty(total * tile, dtype=dtype, device=device) for _ in range(3)]
    wide = _wide_tile((student, teacher), dtype, tile)
    target = targets[at].unsqueeze(1)

    def tiles():
        for start in range(0, vocab_size, tile):
            ids = slice(start, min(start + tile, vocab_size))
            width = ids.stop - start
            s, t, work = (buffer[: total * width].view(total, width) for buffer in buffers)
            _project((student, teacher), at, (s, t), wide, ids)
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
    if not (wants_hidden or wants_head):
        return d, nll, grad_hidden, grad_head

    hidden = student.rows(at)
    sums = torch.zeros(hidden.shape, dtype=dtype, device=device) if wants_hidden else None
    kl_weight, nll_weight = _at(kl_weight, at), _at(nll_weight, at)
    for ids, s, t, work, index, hit in tiles():
        gradient = _logit_gradient_(
            s.sub_(lse_s).exp_(), t.sub_(lse_t).exp_(), index, hit, kl_weight, nll_weight
        )  # fmt: skip
        narrow = student.narrow(gradient, spare=work)
        if wants_hidden:
            student.add_product(sums, gradient, narrow, student.head[ids])
        if wants_head:
            grad_head[ids] = torch.mm(narrow.t(), hidden).to(grad_head.dtype)
    if wants_hidden:
        grad_hidden[at] = sums.to(grad_hidden.dtype)
    return d, nll, grad_hidden, grad_head


class _Projection:
    """Rows of hidden states and a head, in the type in which they are multiplied (autocast's, inside autocast)."""

    def __init__(self, hidden: Tensor, head: Tensor, vocab_size: int):
        kind = hidden.device.type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(hidden.dtype, head.dtype)
        self.hidden, self.source, self.vocab_size = hidden, head, vocab_size
        self.head = head[:vocab_size].to(self.dtype)

    def rows(self, at) -> Tensor:
        return self.hidden[at].to(self.dtype)

    def widens(self, dtype: torch.dtype) -> bool:
        """Whether factors must be copied to `dtype` to get a product in it; CUDA has `out_dtype` instead."""
        return self.dtype != dtype and not (self.hidden.device.type == "cuda" and dtype == torch.float32)

    def narrow(self, gradient: Tensor, spare: Tensor) -> Tensor:
        """The gradient in the products' type, written over `spare` (a buffer of the gradient's shape and type)."""
        if self.dtype == gradient.dtype:
            return gradient
        return spare.view(self.dtype).flatten()[: gradient.numel()].view(gradient.shape).copy_(gradient)

    def add_product(self, sums: Tensor, gradient: Tensor, narrow: Tensor, factor: Tensor) -> None:
        """sums += gradient @ factor, never rounding to less than the type of `sums` on the way."""
        if self.widens(sums.dtype):
            with _bfloat16_products(self.dtype):
                sums.addmm_(gradient, factor.to(sums.dtype))
        elif self.dtype != sums.dtype:
            torch.addmm(sums, narrow, factor, out_dtype=sums.dtype, out=sums)
        else:
            sums.addmm_(gradient, factor)


def _project(projections, at, outs, wide: Tensor | None, ids: slice | None = None) -> None:
    """Logits of the rows `at` for the given ids (all) into `outs`, in their type whatever the inputs' type.

    Half precision on CUDA writes float32 (`out_dtype`). torch cannot on CPU: there the head passes through a float32
    tile, and oneDNN is told to multiply in bfloat16, which loses nothing of bfloat16 factors and sums in float32.
    """
    ids = ids or slice(0, projections[0].vocab_size)
    dtype, step = outs[0].dtype, HEAD_TILE if wide is not None else ids.stop - ids.start
    rows = [p.rows(at).to(dtype) if p.widens(dtype) else p.rows(at) for p in projections]
    for start in range(ids.start, ids.stop, step):
        stop, held = min(start + step, ids.stop), None
        for projection, hidden, out in zip(projections, rows, outs, strict=True):
            tile, out = projection.head[start:stop], out[:, start - ids.start : stop - ids.start]
            if projection.widens(dtype):
                if held is None or held[0].data_ptr() != tile.data_ptr() or held[0].shape != tile.shape:
                    held = tile, wide[: tile.numel()].view(tile.shape).copy_(tile)
                with _bfloat16_products(projection.dtype):
                    torch.mm(hidden, held[1].t(), out=out)
            elif projection.dtype != dtype:
                torch.mm(hidden, tile.t(), out_dtype=dtype, out=out)
            else:
                torch.mm(hidden, tile.t(), out=out)


def _wide_tile(projections, dtype: torch.dtype, tile: int = HEAD_TILE) -> Tensor | None:
    sizes = [min(tile, HEAD_TILE, p.vocab_size) * p.head.shape[1] for p in projections if p.widens(dtype)]
    return torch.empty(max(sizes), dtype=dtype, device=projections[0].head.device) if sizes else None


def _sum_dtype(*projections) -> torch.dtype:
    return torch.float64 if any(p.dtype == torch.float64 for p in projections) else torch.float32


# The precision of float32 products is a setting of the whole process: what another thread computes in float32 while a
# loss may be under way (the loader's encoder does) holds this, or some of its products are rounded.
whole_float32 = threading.RLock()


@contextmanager
def _bfloat16_products(dtype: torch.dtype) -> Iterator[None]:
    """On CPU, float32 products whose factors are rounded to bfloat16 (exact for factors that already were)."""
    if dtype != torch.bfloat16:
        yield
        return
    setting = torch.backends.mkldnn.matmul
    with whole_float32:
        before, setting.fp32_precision = setting.fp32_precision, "bf16"
        try:
            yield
        finally:
            setting.fp32_precision = before


def _log_softmax_(logits: Tensor) -> Tensor:
    return torch.ops.aten._log_softmax.out(logits, 1, False, out=logits)


def _kl(log_q: Tensor, log_p: Tensor, q: Tensor, work: Tensor) -> Tensor:
    """KL(q || p) per row from log-probabilities, exactly 0 where they are equal; writes q, overwrites `work`."""
    torch.exp(log_q, out=q)
    return torch.sub(log_q, log_p, out=work).mul_(q).sum(1).clamp_min_(0.0)


def _logit_gradient_(p, q, index, hit, kl_weight, nll_weight) -> Tensor:
    """(kl_weight + nll_weight) p - kl_weight q - nll_weight onehot(target), in place of p; `hit`: target among ids."""
    if isinstance(kl_weight, float):
        p.sub_(q, alpha=kl_weight)
    else:
        kl_weight, nll_weight = kl_weight.to(p.dtype).unsqueeze(1), nll_weight.to(p.dtype).unsqueeze(1)
        p.mul_(kl_weight + nll_weight).addcmul_(q, kl_weight, value=-1)
    return p.scatter_add_(1, index, torch.ones_like(index, dtype=p.dtype) * hit * -nll_weight)


def _of_logits(student, teacher, target, kl_weight, nll_weight, dtype: torch.dtype):
    """KL and NLL [R] of logits [R, V] in one go with their gradient in `dtype`, weights [R, 1]: for torch.compile. The same
    operations on both sides, so that equal logits give exactly 0."""
    log_p = student - student.logsumexp(1, keepdim=True)
    log_q = teacher - teacher.logsumexp(1, keepdim=True)
    q = log_q.exp()
    d = (q * (log_q - log_p)).sum(1).clamp_min(0.0)
    nll = -log_p.gather(1, target).squeeze(1)
    hit = torch.arange(student.shape[1], device=student.device) == target
    gradient = (kl_weight + nll_weight) * log_p.exp() - kl_weight * q - torch.where(hit, nll_weight, 0.0)
    return d, nll, gradient.to(dtype)


@functools.cache
def _compiled():
    return torch.compile(_of_logits, fullgraph=True)


def _fused(student: Tensor, *rest):
    """`_of_logits`, compiled; another number of rows compiles nothing again."""
    try:
        torch._dynamo.maybe_mark_dynamic(student, 0)
        return _compiled()(student, *rest)
    except torch._dynamo.exc.TorchDynamoException as error:
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SaladError(
            f"objective.compile: torch.compile could not build the loss ({told.strip()}); it needs a C++ compiler on CPU "
            "and Triton on a GPU. Without it all is computed the same, a little slower"
        ) from error


def _column(weight, at, like: Tensor) -> Tensor:
    """A weight as a column for each row."""
    if isinstance(weight, float):
        return like.new_full((like.shape[0], 1), weight)
    return weight[at].to(like.dtype).unsqueeze(1)


def _without_autocast(device: torch.device) -> AbstractContextManager:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _at(weight, at):
    return weight if isinstance(weight, float) else weight[at]


def _chunk_rows(chunk_rows: int | None, device: torch.device) -> int:
    if chunk_rows is None:
        return CHUNK_ROWS.get(device.type, CHUNK_ROWS["cuda"])
    if chunk_rows < 1:
        raise SaladError(f"objective: chunk_rows is {chunk_rows}; it must be at least 1")
    return chunk_rows


def _rows_with_loss(targets: Tensor, vocab_size: int) -> Tensor | None:
    if targets.numel() == 0:
        return None
    if targets.is_floating_point():
        raise SaladError(f"distillation_loss: targets are {targets.dtype}; they must be integer token ids")
    if targets.device.type == "meta":  # shapes only: there is no value to look at
        return None
    low, high = torch.stack(targets.aminmax()).tolist()
    if high >= vocab_size:
        raise SaladError(f"distillation_loss: target {high} is not among the tokenizer's {vocab_size} ids")
    return torch.nonzero(targets >= 0).squeeze(1) if low < 0 else None


def _check_mixture(what: str, alpha: float, reduction: str) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise SaladError(f"{what}: alpha is {alpha}; it must lie in [0, 1]")
    if reduction not in ("mean", "sum", "none"):
        raise SaladError(f"{what}: reduction is {reduction!r}; use 'mean', 'sum' or 'none'")


def _check_pair(name: str, hidden: Tensor, head: Tensor, vocab_size: int | None, other_head: Tensor) -> int:
    if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
        raise SaladError(
            f"objective: {name} hidden states {tuple(hidden.shape)} and head {tuple(head.shape)} do not fit; "
            "they must be [N, H] and [V, H]"
        )
    if vocab_size is None:
        if head.shape[0] != other_head.shape[0]:
            raise SaladError(
                f"objective: heads of {head.shape[0]} and {other_head.shape[0]} rows; give vocab_size, the number of "
                "ids that the tokenizer really has"
            )
        return head.shape[0]
    if not 0 < vocab_size <= head.shape[0]:
        raise SaladError(f"objective: vocab_size is {vocab_size}, the {name} head has {head.shape[0]} rows")
    return vocab_size
