"""Checks of the objective's arguments before anything is computed: a SaladError says in one line what does not fit."""

import torch
from torch import Tensor

from salad.errors import SaladError
from salad.objective.projection import Head

CHUNK_ROWS = {"cpu": 256, "cuda": 1024}  # rows projected at a time


def chunk_size(chunk_rows: int | None, device: torch.device) -> int:
    """Rows to project at a time: `chunk_rows`, or the default of the device. Raises SaladError for less than 1."""
    if chunk_rows is None:
        return CHUNK_ROWS.get(device.type, CHUNK_ROWS["cuda"])
    if chunk_rows < 1:
        raise SaladError(f"objective: chunk_rows is {chunk_rows}; it must be at least 1")
    return chunk_rows


def rows_with_loss(targets: Tensor, vocab_size: int) -> Tensor | None:
    """Indices of the targets [N] that carry loss (those >= 0), int64; None where all do. Raises SaladError for a target that
    is not below `vocab_size`, or is no integer."""
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


def check_mixture(what: str, alpha: float, reduction: str) -> None:
    """Raise SaladError for an alpha outside [0, 1] or an unknown reduction; `what` names the caller."""
    if not 0.0 <= alpha <= 1.0:
        raise SaladError(f"{what}: alpha is {alpha}; it must lie in [0, 1]")
    if reduction not in ("mean", "sum", "none"):
        raise SaladError(f"{what}: reduction is {reduction!r}; use 'mean', 'sum' or 'none'")


def check_pair(name: str, hidden: Tensor, output: Head, vocab_size: int | None, other: Head) -> int:
    """The number of ids; SaladError where hidden states and heads do not fit each other or it."""
    head, other_head = output.weight, other.weight
    if output.soft_cap is not None and not output.soft_cap > 0 or output.scale == 0:
        raise SaladError(f"objective: the {name} head has soft cap {output.soft_cap} and scale {output.scale}")
    if output.bias is not None and output.bias.shape != head.shape[:1]:
        raise SaladError(f"objective: the {name} head has {head.shape[0]} rows and a bias of shape {tuple(output.bias.shape)}")
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
