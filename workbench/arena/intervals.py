"""The interval of a mean of votes that depend on each other, through their question and through their voter."""

import math

import numpy as np
from scipy import stats

MARGIN, DRAWS = 0.1, 2000  # parity is 0.5 ± the margin; bootstrap draws


def _clusters(score: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, score), np.bincount(index)


def bootstrap_variance(score: np.ndarray, labels: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """Variance of the mean of `score` when whole clusters are drawn anew, with the G/(G-1) correction; NaN for one."""
    total, count = _clusters(score, labels)
    size = len(total)
    if size < 2:
        return math.nan
    weights = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    means = (weights @ total) / (weights @ count)
    return float(means.var(ddof=1) * size / (size - 1))


def mean_interval(
    score: np.ndarray, question: np.ndarray, voter: np.ndarray, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float, float, float]:
    """(mean, low, high, standard error, degrees of freedom), clustered by question and by voter.

    With a single voter the interval is clustered by question alone and speaks of that voter only (and the other way
    round). Where every score is the same, the interval is Clopper and Pearson's for the share of others, at the smaller
    number of clusters."""
    score = np.asarray(score, dtype=float)
    question, voter = np.asarray(question, dtype=str), np.asarray(voter, dtype=str)
    mean, rng = float(score.mean()), np.random.default_rng(seed)
    both = np.char.add(np.char.add(question, "\0"), voter)
    by = [bootstrap_variance(score, labels, draws, rng) for labels in (question, voter, both)]
    sizes = [len(set(labels)) for labels in (question, voter)]
    usable = [size for size in sizes if size > 1]
    if not usable:
        return mean, 0.0, 1.0, math.nan, 0
    freedom = min(usable) - 1
    if np.ptp(score) == 0:  # no spread to resample: how rare may another score be that never came up?
        other = 1 - ((1 - level) / 2) ** (1 / min(usable))
        return mean, mean - other * mean, mean + other * (1 - mean), 0.0, freedom
    if len(usable) == 2:
        variance = by[0] + by[1] - by[2]
        variance = variance if variance > 0 else max(by[0], by[1])
    else:
        variance = by[0] if sizes[0] > 1 else by[1]
    error = math.sqrt(variance)
    half = error * float(stats.t.ppf(0.5 + level / 2, freedom))
    return mean, max(0.0, mean - half), min(1.0, mean + half), error, freedom
