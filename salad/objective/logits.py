"""In-place operations on a few rows of logits: log-softmax, forward KL, and the gradient of KL and NLL."""

import torch
from torch import Tensor


def log_softmax_(logits: Tensor) -> Tensor:
    """Log-probabilities [R, V] of logits [R, V], in place."""
    return torch.ops.aten._log_softmax.out(logits, 1, False, out=logits)


def kl(log_q: Tensor, log_p: Tensor, q: Tensor, work: Tensor) -> Tensor:
    """KL(q || p) per row from log-probabilities, exactly 0 where they are equal; writes q, overwrites `work`."""
    torch.exp(log_q, out=q)
    return torch.sub(log_q, log_p, out=work).mul_(q).sum(1).clamp_min_(0.0)


def logit_gradient_(
    p: Tensor, q: Tensor, index: Tensor, hit: Tensor | int, kl_weight: float | Tensor, nll_weight: float | Tensor
) -> Tensor:
    """Gradient of kl_weight · KL(q || p) + nll_weight · NLL with respect to the logits of p, written over `p` [R, V].

    It is (kl_weight + nll_weight) p - kl_weight q - nll_weight onehot(target). `index` [R, 1]: the target's column; `hit`:
    whether the target is among the columns at all. The weights are both floats or both per row [R]."""
    if isinstance(kl_weight, float):
        p.sub_(q, alpha=kl_weight)
    elif isinstance(nll_weight, Tensor):
        kl_weight, nll_weight = kl_weight.to(p.dtype).unsqueeze(1), nll_weight.to(p.dtype).unsqueeze(1)
        p.mul_(kl_weight + nll_weight).addcmul_(q, kl_weight, value=-1)
    return p.scatter_add_(1, index, torch.ones_like(index, dtype=p.dtype) * hit * -nll_weight)


def weight_at(weight: float | Tensor, at: slice | Tensor) -> float | Tensor:
    """A scalar weight as it is; of per-row weights [N] those of the rows `at`."""
    return weight[at] if isinstance(weight, Tensor) else weight
