"""Learning rates over a run: warm-up, stable, decay."""

from salad.config import RunConfig


def decay_start(config: RunConfig) -> int:
    """The step before the learning rate's decay, whose checkpoint Stage II starts from."""
    return config.optim.steps - config.optim.decay


def learning_rate(config: RunConfig, step: int) -> float:
    """Warm-up–stable–decay: the factor on the learning rates at `step` (from 0), in [0, 1]."""
    optim = config.optim
    up = (step + 1) / optim.warmup if step < optim.warmup else 1.0
    down = (optim.steps - step) / optim.decay if step >= decay_start(config) else 1.0
    return min(up, down, 1.0)
