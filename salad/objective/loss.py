"""The loss: alpha * KL(Q || P) + (1 - alpha) * NLL over the full vocabulary, from hidden states and heads.

The gradient is computed on the way, in the forward pass, where one is needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from salad.errors import SaladError
from salad.objective.ablations import DIVERGENCES, other_divergence
from salad.objective.checks import check_mixture, check_pair, rows_with_loss
from salad.objective.chunked import row_chunks
from salad.objective.projection import Head, Projection, as_head, without_autocast
from salad.objective.tiled import vocabulary_tiles


class DistillationLoss(NamedTuple):
    """`loss = alpha * d + (1 - alpha) * nll`, in nats; `d` is KL(Q || P), `nll` that of the targets."""

    loss: Tensor
    d: Tensor
    nll: Tensor


def distillation_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor | Head,
    teacher_hidden_NG: Tensor,
    teacher_head_VG: Tensor | Head,
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

    A head is its matrix, or a `Head` where a bias, a scale or a soft cap belong to it; a bias gets a gradient as the matrix does.
    A soft cap costs no memory.

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
    student, teacher = as_head(student_head_VH), as_head(teacher_head_VG).detach()
    vocab_size = check_pair("student", student_hidden_NH, student, vocab_size, teacher)
    check_pair("teacher", teacher_hidden_NG, teacher, vocab_size, student)
    n = student_hidden_NH.shape[0]
    if teacher_hidden_NG.shape[0] != n or targets_N.shape != (n,):
        raise SaladError(
            f"distillation_loss: {n} student positions, {teacher_hidden_NG.shape[0]} teacher positions and targets of "
            f"shape {tuple(targets_N.shape)}; all three need the same N"
        )
    check_mixture("distillation_loss", alpha, reduction)
    if vocab_tile is not None and (vocab_tile < 1 or chunk_rows is not None):
        raise SaladError("distillation_loss: vocab_tile must be at least 1 and cannot be combined with chunk_rows")
    if compile and (vocab_tile is not None or divergence != "forward_kl"):
        raise SaladError("distillation_loss: compile is for forward_kl in chunks of rows, not for vocab_tile")
    if divergence != "forward_kl":
        if divergence not in DIVERGENCES or vocab_tile is not None:
            raise SaladError(f"distillation_loss: divergence {divergence!r}; use {', '.join(DIVERGENCES)}, without vocab_tile")
        d, nll = other_divergence(
            student_hidden_NH, student, teacher_hidden_NG.detach(), teacher, targets_N, vocab_size, chunk_rows, divergence,
        )  # fmt: skip
        loss = alpha * d + (1.0 - alpha) * nll
        divisor = (targets_N >= 0).sum().clamp_min(1) if reduction == "mean" else 1
        scaled = [x if reduction == "none" else x.sum() / divisor for x in (loss, d, nll)]
        return DistillationLoss(scaled[0], *((d.detach(), nll.detach()) if per_position else scaled[1:]))
    out = _DistillationLoss.apply(
        student_hidden_NH, student.weight, student.bias, teacher_hidden_NG.detach(), teacher, targets_N, student,
        float(alpha), vocab_size, reduction, chunk_rows, vocab_tile, compile, torch.is_grad_enabled(), per_position,
    )  # fmt: skip
    return DistillationLoss(*out)


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        student_hidden,
        weight,
        bias,
        teacher_hidden,
        teacher,
        targets,
        student,
        alpha,
        vocab_size,
        reduction,
        chunk_rows,
        vocab_tile,
        compile,
        grad_enabled,
        per_position,
    ):
        ctx.rows = rows_with_loss(targets, vocab_size)
        kept = targets.numel() if ctx.rows is None else ctx.rows.numel()
        ctx.scale = 1.0 / max(kept, 1) if reduction == "mean" else 1.0
        ctx.alpha, ctx.vocab_size, ctx.chunk_rows, ctx.vocab_tile = alpha, vocab_size, chunk_rows, vocab_tile
        ctx.compile = compile
        ctx.heads = [head._replace(weight=None, bias=None) for head in (student, teacher)]  # scales and caps
        wants = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        if reduction == "none" and any(wants[1:]):
            wants = [False] * 3  # the rows' weights are known in the backward pass only
        inputs = (student_hidden, weight, bias, teacher_hidden, teacher.weight, teacher.bias, targets)
        d, nll, *gradients = _pass(ctx, inputs, alpha, 1.0 - alpha, *wants)
        results = d, nll
        if reduction != "none":
            d, nll = d.sum() * ctx.scale, nll.sum() * ctx.scale
        if per_position:
            ctx.mark_non_differentiable(*results)
        ctx.gradients = gradients if any(wants) else None
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return alpha * d + (1.0 - alpha) * nll, *(results if per_position else (d, nll))

    @staticmethod
    def backward(ctx, grad_loss, grad_d, grad_nll):
        if torch.is_grad_enabled():  # create_graph=True
            raise SaladError("distillation_loss has no double backward; call backward without create_graph")
        given = next((g for g in (grad_loss, grad_d, grad_nll) if g is not None), None)
        if given is None:
            return (None,) * 15
        if grad_d is None and grad_nll is None and ctx.gradients is not None:
            gradients, ctx.gradients = ctx.gradients, None  # scaled in place: a second backward computes them again
            weight = grad_loss * ctx.scale
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(weight if weight.dim() == 0 else weight.to(gradient.dtype).unsqueeze(1))
        else:
            grad_loss, grad_d, grad_nll = (torch.zeros_like(given) if g is None else g for g in (grad_loss, grad_d, grad_nll))
            n = ctx.saved_tensors[6].numel()
            kl_weight = ((ctx.alpha * grad_loss + grad_d) * ctx.scale).expand(n)
            nll_weight = (((1.0 - ctx.alpha) * grad_loss + grad_nll) * ctx.scale).expand(n)
            _, _, *gradients = _pass(ctx, ctx.saved_tensors, kl_weight, nll_weight, *ctx.needs_input_grad[:3])
        return (*gradients, *(None,) * 12)


def _pass(ctx, inputs, kl_weight, nll_weight, wants_hidden, wants_head, wants_bias):
    """d and nll of every row, and the gradients of sum_n(kl_weight_n * d_n + nll_weight_n * nll_n), or None.

    The weights are floats that add up to 1, or tensors [N].
    """
    student_hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, targets = inputs
    heads = [
        head._replace(weight=w, bias=b)
        for head, w, b in zip(ctx.heads, (weight, teacher_weight), (bias, teacher_bias), strict=True)
    ]
    student = Projection(student_hidden, heads[0], ctx.vocab_size)
    teacher = Projection(teacher_hidden, heads[1], ctx.vocab_size)
    wants = (wants_hidden, wants_head, wants_bias)
    with without_autocast(student_hidden.device):
        if ctx.vocab_tile is not None:
            sums = vocabulary_tiles(student, teacher, targets, ctx.rows, ctx.vocab_tile, kl_weight, nll_weight, *wants)
        else:
            sums = row_chunks(student, teacher, targets, ctx.rows, ctx.chunk_rows, kl_weight, nll_weight, *wants, ctx.compile)
    d, nll, grad_hidden, grad_head, grad_bias = sums
    if grad_bias is not None:  # of ids that only pad the head: none
        grad_bias = torch.nn.functional.pad(grad_bias, (0, len(bias) - len(grad_bias))).to(bias.dtype)
    return d, nll, grad_hidden, grad_head, grad_bias
