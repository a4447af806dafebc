"""From hidden states and heads to logits: rows of `[N, V]` at a time, in float32 whatever the inputs' type."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEAD_TILE = 8192  # rows of a bfloat16 head that stand in float32 at a time (CPU)
# The precision of float32 products is a setting of the whole process: what another thread computes in float32 while a
# loss may be under way (the loader's encoder does) holds this, or some of its products are rounded.
whole_float32 = threading.RLock()


class Head(NamedTuple):
    """An output head: logits = bend(scale * (weight @ h) + bias), where bend(x) is `soft_cap` * tanh(x / `soft_cap`) if there
    is one. `weight` [V, H], `bias` [V]."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def detach(self) -> "Head":
        """A copy of the head whose weight and bias carry no gradient."""
        return self._replace(weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Tensor, vocab_size: int | None = None) -> Tensor:
        """Logits [..., V] of hidden states [..., H], float32 (float64 where one of them is): the plain way, all at once."""
        product = hidden @ self.weight[:vocab_size].t()
        wide = product.to(torch.promote_types(product.dtype, torch.float32))
        wide = wide if self.scale == 1.0 else wide * self.scale
        wide = wide if self.bias is None else wide + self.bias[:vocab_size].to(wide.dtype)
        return wide if self.soft_cap is None else self.soft_cap * torch.tanh(wide / self.soft_cap)


def as_head(head: Tensor | Head) -> Head:
    """A matrix [V, H] is a head without anything else."""
    return head if isinstance(head, Head) else Head(head)


class Projection:
    """Rows of hidden states and a head, in the type in which they are multiplied (autocast's, inside autocast)."""

    def __init__(self, hidden: Tensor, output: Head, vocab_size: int):
        kind, head = hidden.device.type, output.weight
        self.scale, self.soft_cap = output.scale, output.soft_cap
        self.bias = None if output.bias is None else output.bias[:vocab_size]
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(hidden.dtype, head.dtype)
        self.hidden, self.source, self.vocab_size = hidden, head, vocab_size
        self.head = head[:vocab_size].to(self.dtype)

    def rows(self, at: slice | Tensor) -> Tensor:
        """The hidden states [R, H] of the rows `at`, in the type of the products."""
        return self.hidden[at].to(self.dtype)

    def widens(self, dtype: torch.dtype) -> bool:
        """Whether factors must be copied to `dtype` to get a product in it; CUDA has `out_dtype` instead."""
        return self.dtype != dtype and not (self.hidden.device.type == "cuda" and dtype == torch.float32)

    def narrow(self, gradient: Tensor, spare: Tensor) -> Tensor:
        """The gradient in the products' type, written over `spare` (a buffer of the gradient's shape and type)."""
        if self.dtype == gradient.dtype:
            return gradient
        return spare.view(self.dtype).flatten()[: gradient.numel()].view(gradient.shape).copy_(gradient)

    def finish(self, product: Tensor, ids: slice) -> None:
        """Products with the head's rows `ids` become logits, in place."""
        if self.scale != 1.0:
            product.mul_(self.scale)
        if self.bias is not None:
            product.add_(self.bias[ids].to(product.dtype))
        if self.soft_cap is not None:
            product.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def slope(self, logits: Tensor, out: Tensor) -> Tensor:
        """How much a logit moves with what was bent: 1 - (logit / soft_cap)^2, into `out`."""
        assert self.soft_cap is not None
        return torch.div(logits, self.soft_cap, out=out).square_().neg_().add_(1.0)

    def add_product(self, sums: Tensor, gradient: Tensor, narrow: Tensor, factor: Tensor) -> None:
        """sums += gradient @ factor, never rounding to less than the type of `sums` on the way."""
        if self.widens(sums.dtype):
            with bfloat16_products(self.dtype):
                sums.addmm_(gradient, factor.to(sums.dtype))
        elif self.dtype != sums.dtype:
            torch.addmm(sums, narrow, factor, out_dtype=sums.dtype, out=sums)
        else:
            sums.addmm_(gradient, factor)


def project(
    projections: Sequence[Projection], at: slice | Tensor, outs: Sequence[Tensor], wide: Tensor | None, ids: slice | None = None
) -> None:
    """Logits of the rows `at` for the given ids (all) into `outs`, in their type whatever the inputs' type.

    Half precision on CUDA writes float32 (`out_dtype`). torch cannot on CPU: there the head passes through a float32
    tile, and oneDNN multiplies in bfloat16, which loses nothing of bfloat16 factors and sums in float32.
    """
    ids = ids or slice(0, projections[0].vocab_size)
    dtype, step = outs[0].dtype, HEAD_TILE if wide is not None else ids.stop - ids.start
    rows = [p.rows(at).to(dtype) if p.widens(dtype) else p.rows(at) for p in projections]
    for start in range(ids.start, ids.stop, step):
        stop, held = min(start + step, ids.stop), None
        for projection, hidden, out in zip(projections, rows, outs, strict=True):
            tile, out = projection.head[start:stop], out[:, start - ids.start : stop - ids.start]
            if projection.widens(dtype):
                assert wide is not None
                if held is None or held[0].data_ptr() != tile.data_ptr() or held[0].shape != tile.shape:
                    held = tile, wide[: tile.numel()].view(tile.shape).copy_(tile)
                with bfloat16_products(projection.dtype):
                    torch.mm(hidden, held[1].t(), out=out)
            elif projection.dtype != dtype:
                torch.mm(hidden, tile.t(), out_dtype=dtype, out=out)
            else:
                torch.mm(hidden, tile.t(), out=out)
            projection.finish(out, slice(start, stop))


def wide_tile(projections: Sequence[Projection], dtype: torch.dtype, tile: int = HEAD_TILE) -> Tensor | None:
    """A buffer for one float32 tile of the widest head; None if no head has to be widened."""
    sizes = [min(tile, HEAD_TILE, p.vocab_size) * p.head.shape[1] for p in projections if p.widens(dtype)]
    return torch.empty(max(sizes), dtype=dtype, device=projections[0].head.device) if sizes else None


def sum_dtype(*projections) -> torch.dtype:
    """The type in which results are summed: float64 if any projection is, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in projections) else torch.float32


@contextmanager
def bfloat16_products(dtype: torch.dtype) -> Iterator[None]:
    """On CPU, float32 products whose factors are rounded to bfloat16 (exact for factors that already were)."""
    if dtype != torch.bfloat16:
        yield
        return
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with whole_float32:
        before, setting.fp32_precision = setting.fp32_precision, "bf16"
        try:
            yield
        finally:
            setting.fp32_precision = before


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context without autocast on `device`."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
