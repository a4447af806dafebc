"""What is done to a few rows of logits in place: log-softmax, forward KL, and the gradient of KL and NLL."""

import torch
from torch import Tensor


def log_softmax_(logits: Tensor) -> Tensor:
    return torch.ops.aten._log_softmax.out(logits, 1, False, out=logits)


def kl(log_q: Tensor, log_p: Tensor, q: Tensor, work: Tensor) -> Tensor:
    """KL(q || p) per row from log-probabilities, exactly 0 where they are equal; writes q, overwrites `work`."""
    torch.exp(log_q, out=q)
    return torch.sub(log_q, log_p, out=work).mul_(q).sum(1).clamp_min_(0.0)


def logit_gradient_(p, q, index, hit, kl_weight, nll_weight) -> Tensor:
    """(kl_weight + nll_weight) p - kl_weight q - nll_weight onehot(target), in place of p; `hit`: target among ids."""
    if isinstance(kl_weight, float):
        p.sub_(q, alpha=kl_weight)
    else:
        kl_weight, nll_weight = kl_weight.to(p.dtype).unsqueeze(1), nll_weight.to(p.dtype).unsqueeze(1)
        p.mul_(kl_weight + nll_weight).addcmul_(q, kl_weight, value=-1)
    return p.scatter_add_(1, index, torch.ones_like(index, dtype=p.dtype) * hit * -nll_weight)


def weight_at(weight, at):
    return weight if isinstance(weight, float) else weight[at]
