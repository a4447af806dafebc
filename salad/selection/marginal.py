"""Where an hour of speech lowers the divergence over all domains most: the strategy `marginal`.

The model: cluster c, which has heard h0_c hours so far and is given h_c more, has the divergence
D_c(h) = E_c + B_c · (h0_c + h_c)^(−β), in nats. The allocation minimises Σ_c P_web(c) · D_c(h_c) over Σ_c h_c = H, h_c ≥ 0. It is
the paper's premise (choose by divergence) under a stated model of what an hour is worth, and is not in the paper.

One d_cluster cannot identify E_c, B_c and h0_c. Two closures are offered: `one_curve` (all clusters on one curve, at different
places of it) and `own_curves` (each its own curve, at a known place). docs/selection.md derives them."""

from typing import NamedTuple

import numpy as np

from salad.errors import SaladError

BETA = 0.3  # where no curve of Stage I has been measured


class Curves(NamedTuple):
    """E, B and h0 of every cluster, [K]: nats, nats · hours^β, hours; and β."""

    floor_K: np.ndarray
    scale_K: np.ndarray
    hours_K: np.ndarray
    beta: float

    def at(self, more_K) -> np.ndarray:
        """D [K] in nats after `more_K` further hours in each cluster."""
        return self.floor_K + self.scale_K * (self.hours_K + np.asarray(more_K, float)) ** -self.beta


def one_curve(d_K, natural_h: float, beta: float = BETA, floor: float = 0.0) -> Curves:
    """All clusters on one curve: h0_c = ((d_c − E) / B)^(−1/β), B such that Σ h0_c is the natural hours that were heard.

    d_K: nats above `floor` (what is not gets as many hours as the best heard one); `natural_h` > 0. SaladError where no
    cluster is above the floor."""
    d = np.asarray(d_K, float)
    _check(beta, natural_h)
    above = d - floor
    use = np.isfinite(above) & (above > 0)
    if not use.any():
        raise SaladError(f"marginal: no cluster's divergence is above the floor of {floor:g} nats, so no hour lowers anything")
    above = np.where(use, above, above[use].min())
    # B^(1/β) · Σ (d − E)^(−1/β) = H; in logs, for a small β makes the powers huge
    log_h = -np.log(above) / beta
    log_total = log_h.max() + np.log(np.exp(log_h - log_h.max()).sum())
    hours = np.exp(log_h - log_total) * natural_h
    scale = above * hours**beta
    return Curves(np.full(len(d), float(floor)), scale, np.maximum(hours, 1e-200), beta)


def own_curves(d_K, hours_K, beta: float = BETA, floor_K=0.0, least_h: float = 1e-3) -> Curves:
    """Each cluster its own curve through its d at the natural hours `hours_K` that were assigned to it, at least `least_h`:
    B_c = max(d_c − E_c, 0) · h0_c^β. `floor_K`: nats, a number or [K] (cascade divergence estimates it)."""
    d, floor = np.asarray(d_K, float), np.broadcast_to(np.asarray(floor_K, float), np.shape(d_K)).copy()
    _check(beta, least_h)
    hours = np.maximum(np.asarray(hours_K, float), least_h)
    return Curves(floor, np.maximum(np.where(np.isfinite(d), d, 0.0) - floor, 0.0) * hours**beta, hours, beta)


def allocate(p_web_K, curves: Curves, hours: float) -> np.ndarray:
    """Hours [K] of each cluster, together `hours`, that lower Σ P_web · D most under the model.

    The condition of Karush, Kuhn and Tucker gives h0_c + h_c = λ · (P_web(c) · B_c)^(1/(1+β)) wherever h_c > 0; clusters that
    would be given less than nothing get 0 and the rest is solved again, from the largest first derivative on. A cluster without
    mass or with B_c = 0 gets nothing. SaladError where none can gain."""
    p = np.asarray(p_web_K, float)
    if not (np.isfinite(hours) and hours > 0):
        raise SaladError(f"marginal: {hours:g} hours cannot be divided; the budget must be more than 0")
    gain = p * curves.scale_K
    if not (np.isfinite(gain).all() and (gain >= 0).all()):
        raise SaladError("marginal: P_web and B must be 0 or more in every cluster")
    if not (gain > 0).any():
        raise SaladError("marginal: no cluster gains by more speech under the model")
    root = np.where(gain > 0, gain, 1.0) ** (1 / (1 + curves.beta))
    # a cluster joins once λ exceeds h0_c / root_c: in that order, until the budget is spent before the next one would join
    entry = np.where(gain > 0, curves.hours_K / root, np.inf)
    order = np.argsort(entry, kind="stable")
    order = order[np.isfinite(entry[order])]
    level = (hours + np.cumsum(curves.hours_K[order])) / np.cumsum(root[order])
    joined = int(np.flatnonzero(level > entry[order])[-1]) + 1
    given = np.zeros(len(p))
    given[order[:joined]] = level[joined - 1] * root[order[:joined]] - curves.hours_K[order[:joined]]
    return np.maximum(given, 0.0)


def _check(beta: float, hours: float) -> None:
    if not (np.isfinite(beta) and beta > 0):
        raise SaladError(f"marginal: beta is {beta:g}; it must be more than 0")
    if not (np.isfinite(hours) and hours > 0):
        raise SaladError(f"marginal: {hours:g} natural hours; there must be more than 0")
