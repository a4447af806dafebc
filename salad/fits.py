"""Least squares with leave-one-out R², and the power law of misalignment over tokens: numbers in, numbers out."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from salad.errors import SaladError

EXTRAPOLATE = 10.0  # times the most tokens that a fit has seen: further is refused unless it is asked for


@dataclass(frozen=True)
class Regression:
    """Least squares of y on predictors. `coefficients`: intercept first. `r2_loo`: 1 - (sum of squared leave-one-out
    errors) / (sum of squares about the mean). `partial`: of each predictor, the share of what the others leave
    unexplained that it explains."""

    names: tuple[str, ...]
    coefficients: np.ndarray
    n: int
    r2: float
    r2_loo: float
    partial: dict[str, float]


def regression(y_N: ArrayLike, x_NC: ArrayLike, names: Iterable[str], leave_out_N: ArrayLike | None = None) -> Regression:
    """Regress `y_N` on the columns of `x_NC`. `leave_out_N`: labels that are left out together (a seed's points share
    their teacher and speech), by default each point by itself. Rows with a value missing are dropped. Raises SaladError
    where fewer than two points more than coefficients are left, or a predictor does not vary by itself."""
    names = tuple(names)
    y = np.asarray(y_N, float)
    x = np.asarray(x_NC, float).reshape(len(y), -1)
    use = np.isfinite(y) & np.isfinite(x).all(1)
    labels = np.arange(len(y)) if leave_out_N is None else np.asarray(leave_out_N)
    y, x, labels = y[use], x[use], labels[use]
    n, wide = len(y), x.shape[1] + 1
    if n < wide + 2:
        raise SaladError(f"{n} checkpoints are too few to regress on {', '.join(names)}; {wide + 2} are needed")
    full = np.column_stack([np.ones(n), x])
    if np.linalg.matrix_rank(full) < wide:
        raise SaladError(f"{', '.join(names)} do not vary independently over these checkpoints")
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        raise SaladError("the accuracy is the same at every checkpoint: there is nothing to explain")

    def errors(columns):
        return y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]

    left = float((errors(full) ** 2).sum())
    out = 0.0
    for label in np.unique(labels):
        inside = labels == label
        beta = np.linalg.lstsq(full[~inside], y[~inside], rcond=None)[0]
        out += float(((y[inside] - full[inside] @ beta) ** 2).sum())
    partial = {}
    for c, name in enumerate(names):
        without = float((errors(np.delete(full, c + 1, axis=1)) ** 2).sum())
        partial[name] = (without - left) / without if without > 0 else 0.0
    beta = np.linalg.lstsq(full, y, rcond=None)[0]
    return Regression(names, beta, n, 1 - left / total, 1 - out / total, partial)


@dataclass(frozen=True)
class PowerLaw:
    """M = e + b · N^(-beta), fitted between n_min and n_max tokens. `low` and `high`: 95 % bootstrap intervals of
    e, b and beta. `trend`, `trend_low`, `trend_high`: slope of log M over log N, which tells where M grows with N.
    `draws` [B, 3]: e, b, beta of each resample."""

    e: float
    b: float
    beta: float
    n_min: float
    n_max: float
    low: dict[str, float]
    high: dict[str, float]
    trend: float
    trend_low: float
    trend_high: float
    draws: np.ndarray

    def at(self, n: float, extrapolate: bool = False) -> tuple[float, float, float]:
        """M at `n` tokens with a 95 % interval. Beyond ten times the tokens that were seen it raises SaladError unless
        `extrapolate` says that this is meant; what it returns then rests on the form of the law alone."""
        if n > EXTRAPOLATE * self.n_max and not extrapolate:
            raise SaladError(
                f"{n:.3g} tokens are {n / self.n_max:.3g} times the most that were fitted ({self.n_max:.3g}); ask for "
                "extrapolate=True, and say so beside the figure"
            )
        values = self.draws[:, 0] + self.draws[:, 1] * float(n) ** -self.draws[:, 2]
        return self.e + self.b * float(n) ** -self.beta, *map(float, np.percentile(values, [2.5, 97.5]))


def fit_power_law(n_T: ArrayLike, m_T: ArrayLike, weight_T=None) -> tuple[float, float, float]:
    """(E, B, beta) of M = E + B · N^(-beta) with E, B >= 0 and 0.01 <= beta <= 4, by weighted least squares.

    For a given beta the rest is linear; beta is found on a grid and refined. M that grows with N gives B = 0. Raises
    SaladError with fewer than four points."""
    from scipy.optimize import minimize_scalar

    n, m = np.asarray(n_T, float), np.asarray(m_T, float)
    w = np.ones(len(n)) if weight_T is None else np.asarray(weight_T, float)
    use = np.isfinite(n) & np.isfinite(m) & (n > 0) & np.isfinite(w) & (w > 0)
    n, m, w = n[use], m[use], w[use]
    if len(np.unique(n)) < 4:
        raise SaladError(f"a power law has three parameters; {len(np.unique(n))} checkpoints are too few, 4 are needed")
    scale = float(np.exp(np.log(n).mean()))

    def solved(beta):
        x = (n / scale) ** -beta
        mean_x, mean_m = (w * x).sum() / w.sum(), (w * m).sum() / w.sum()
        spread = (w * (x - mean_x) ** 2).sum()
        b = (w * (x - mean_x) * (m - mean_m)).sum() / spread if spread > 0 else 0.0
        e = mean_m - b * mean_x
        if b < 0:
            e, b = mean_m, 0.0
        elif e < 0:
            e, b = 0.0, (w * x * m).sum() / (w * x * x).sum()
        return e, b, float((w * (m - e - b * x) ** 2).sum())

    grid = np.geomspace(0.01, 4.0, 60)
    best = int(np.argmin([solved(beta)[2] for beta in grid]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    beta = float(minimize_scalar(lambda x: solved(x)[2], bounds=(low, high), method="bounded").x)
    beta = min((beta, float(grid[best])), key=lambda x: solved(x)[2])
    e, b, _ = solved(beta)
    return float(e), float(b * scale**beta), beta
