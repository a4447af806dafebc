"""Studies of the miniature: their cells, the runner that shares and resumes, the other divergences, and the findings."""

import pytest
import torch

from salad import SaladError
from salad.objective import distillation_loss


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_other_divergences_and_their_gradients_equal_torchs(divergence, reduction):
    torch.manual_seed(5)
    hidden, head, teacher, teacher_head = (
        torch.randn(n, 7, dtype=torch.float64, requires_grad=True) for n in (9, 13, 9, 12)
    )
    targets = torch.randint(0, 11, (9,))
    targets[[2, 6]] = -1

    def reference():
        p, q = ((h @ w[:11].T).softmax(1) for h, w in ((hidden, head), (teacher.detach(), teacher_head.detach())))
        if divergence == "reverse_kl":
            d = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
        else:
            d = sum(torch.nn.functional.kl_div(((p + q) / 2).log(), x, reduction="none").sum(1) for x in (p, q)) / 2
        nll = -p.log().gather(1, targets.clamp_min(0)[:, None])[:, 0]
        loss = torch.where(targets >= 0, 0.75 * d + 0.25 * nll, 0.0)
        return {"mean": loss.sum() / 7, "sum": loss.sum(), "none": loss}[reduction], d

    wanted, d = reference()
    made = distillation_loss(hidden, head, teacher, teacher_head, targets, 0.75, 11, reduction, chunk_rows=4,
                             divergence=divergence)  # fmt: skip
    torch.testing.assert_close(made.loss, wanted)
    if reduction == "none":
        torch.testing.assert_close(made.d[targets >= 0], d[targets >= 0])
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((x * weight).sum(), (hidden, head)) for x in (made.loss, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_unknown_divergence_is_one_clear_line():
    x = torch.zeros(1, 2)
    with pytest.raises(SaladError, match="forward_kl, reverse_kl, jsd"):
        distillation_loss(x, x, x, x, torch.zeros(1, dtype=torch.long), divergence="wasserstein")
