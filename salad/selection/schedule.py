"""active_rounds: the budget of an arm in rounds, Stage II continued and the probe measured again after each.

The single-shot draw sees the student as it is after Stage I, and starves what a little speech would have mended or
unlearnt. In rounds, each draw follows what the rounds before it have left. Per round: draw (`salad.selection.select`
with `parent`), synthesise, train a child run of the round before, score the probe under it.
"""

from typing import NamedTuple

from salad.config import RunConfig
from salad.errors import SaladError


class Round(NamedTuple):
    """A round, from 1. `budget_h`: hours of selected speech in all, up to and with this round. `run`: its Stage II,
    with `parent` and `selection` still to be named."""

    number: int
    budget_h: float
    run: RunConfig


def rounds(stage2: RunConfig, budget_h: float, n: int) -> list[Round]:
    """Split an arm of `budget_h` hours and `stage2.optim.steps` steps into `n` rounds; together they are the arm.

    Hours: equal parts, so that round r ends at r/n of the budget; a round trains on all that was drawn so far. Steps:
    the last round takes the learning rate's decay (and its own warm-up), the others share evenly what lies before it,
    at the full rate: so the rounds together have the single-shot arm's steps and its warm-up, plateau and decay. Each
    starts with a new optimizer and `warmup` steps. n = 1 is the arm itself. Raises SaladError where fewer steps than
    that lie before the decay: lower `optim.decay` (of both arms, so that they compare)."""
    if n < 1:
        raise SaladError(f"rounds is {n}; it must be 1 or more")
    if n == 1:
        return [Round(1, budget_h, stage2)]
    optim = stage2.optim
    last = optim.decay + optim.warmup
    each, rest = divmod(optim.steps - last, n - 1)
    if each < max(optim.warmup, 1):
        raise SaladError(
            f"{n} rounds need {(n - 1) * max(optim.warmup, 1)} steps before the last one's {last} of warm-up and decay, "
            f"and optim.steps leaves {optim.steps - last}: lower optim.decay, or take fewer rounds"
        )
    out = []
    for number in range(1, n):
        steps = each + (rest if number == n - 1 else 0)
        plateau = optim.model_copy(update={"steps": steps, "decay": 0})
        contender = f"{stage2.contender}_round{number}"
        run = stage2.model_copy(update={"optim": plateau, "contender": contender})
        out.append(Round(number, budget_h * number / n, run))
    whole = stage2.model_copy(update={"optim": optim.model_copy(update={"steps": last})})
    return [*out, Round(n, budget_h, whole)]
