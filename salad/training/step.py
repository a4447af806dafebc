"""One step: forward and backward on each of its batches, then one update."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from salad.config import RunConfig
from salad.data.batches import Batch
from salad.data.loading import StepBatches
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM
from salad.training.distributed import Processes, whole
from salad.training.schedule import learning_rate

if TYPE_CHECKING:
    from salad.objective.teacher_cache import TeacherCache
    from salad.runs import RunFolder


class StepResult(NamedTuple):
    """What a step found, over all processes: means in nats per text position, `d` by corpus; the gradient's norm before
    clipping."""

    loss: float
    nll: float
    d: dict[str, float]
    d_all: float
    grad_norm: float


def one_step(
    model: SpeechLM,
    optimizer: torch.optim.Optimizer,
    taken: StepBatches,
    config: RunConfig,
    step: int,
    names: list[str],
    processes: Processes,
    run: RunFolder,
    cache: TeacherCache | None = None,
) -> StepResult | None:
    """Forward, backward and update on one step's batches; None, with nothing changed, if asked to end in between.

    Losses are summed and divided by the positions of the whole step, over processes and forward passes. A loss or
    gradient that is not finite is a SaladError that names the samples."""
    optim, device = config.optim, processes.device
    factor = learning_rate(config, step)
    for group, lr in zip(optimizer.param_groups, (optim.lr_adapter, optim.lr_llm), strict=True):
        group["lr"] = lr * factor
    torch.manual_seed(hash((config.seed, step, processes.rank)))  # dropout, the same again in a resumed run
    objective = {name: getattr(config.objective, name) for name in ("alpha", "divergence", "compile")}
    positions = max(taken.positions, 1)
    sums = torch.zeros(2 + 2 * len(names), dtype=torch.float64, device=device)  # loss, nll; D and positions by corpus
    losses = []
    for number, batch in enumerate(taken.batches):
        if number and processes.any(run.should_stop() is not None):
            optimizer.zero_grad(set_to_none=True)
            return None
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            out = model(batch, **objective, teacher_cache=cache, reduction="sum", per_position=True)
        (out.loss * (processes.world / positions)).backward()  # FSDP2 takes the mean over the processes
        losses.append(out.loss.detach())
        _add(sums, out, batch, names)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    norm = whole(torch.nn.utils.clip_grad_norm_(weights, optim.clip)).item()
    loss, nll, *by_corpus = processes.sum(sums).tolist()
    if not math.isfinite(loss) or not math.isfinite(norm):  # before the update: the weights stay what they were
        _not_finite(taken, losses, loss, norm, step, processes)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    d, n = by_corpus[: len(names)], by_corpus[len(names) :]
    return StepResult(
        loss / positions,
        nll / positions,
        {name: d[i] / n[i] for i, name in enumerate(names) if n[i]},
        sum(d) / positions,
        norm,
    )


def _add(sums: torch.Tensor, out, batch: Batch, names: list[str]) -> None:
    """Add a forward pass to the step's sums: loss, NLL, and D and positions of each corpus."""
    corpus = torch.tensor([names.index(source) for source in batch.sources], device=sums.device)[batch.sample_N]
    sums[0] += out.loss.detach().double()
    sums[1] += out.nll.double().sum()
    sums[2 : 2 + len(names)].index_add_(0, corpus, out.d.double())
    sums[2 + len(names) :].index_add_(0, corpus, torch.ones_like(out.d, dtype=torch.float64))


def _not_finite(taken: StepBatches, losses: list, loss: float, norm: float, step: int, processes: Processes):
    """Name the samples of the forward passes whose loss is not finite, or of all where only the gradient is not."""
    sample_ids = [b.sample_ids for b, value in zip(taken.batches, losses, strict=True) if not math.isfinite(value.item())]
    if math.isfinite(loss):
        sample_ids = [b.sample_ids for b in taken.batches]
    ids = dict.fromkeys(i for part in processes.gather(sample_ids) for batch in part for i in batch)
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    raise SaladError(f"{what} at step {step + 1}; samples: {', '.join(ids)}")
