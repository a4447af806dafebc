"""`marginal` selection: the allocation is the optimum that a numerical optimiser finds, and its limits are those derived."""

import numpy as np
import pytest
from scipy.optimize import minimize

from salad import SaladError
from salad.selection.draw import Pool, decide, draw
from salad.selection.marginal import Curves, allocate, one_curve, own_curves


def objective(p, curves, h):
    return float((p * curves.at(h)).sum())


@pytest.mark.parametrize("seed", range(6))
def test_the_allocation_is_what_a_numerical_optimiser_finds(seed):
    rng = np.random.default_rng(seed)
    k, hours = int(rng.integers(2, 9)), float(rng.choice([0.01, 0.5, 4.0, 100.0]))
    p = rng.dirichlet(np.ones(k))
    curves = Curves(rng.uniform(0, 0.3, k), rng.uniform(0.1, 3, k), rng.uniform(0.01, 2, k), float(rng.uniform(0.1, 1.5)))
    h = allocate(p, curves, hours)
    assert (h >= 0).all() and h.sum() == pytest.approx(hours)
    best = min(
        minimize(lambda x: objective(p, curves, x * hours), start, bounds=[(0, 1)] * k, method="SLSQP",
                  constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, options={"maxiter": 500, "ftol": 1e-14}).fun
         for start in (np.full(k, 1 / k), *np.eye(k)))  # fmt: skip
    assert objective(p, curves, h) <= best + 1e-7
    slope = p * curves.scale_K * curves.beta * (curves.hours_K + h) ** (-curves.beta - 1)  # gain of the next hour
    given = h > 1e-9
    assert np.ptp(slope[given]) <= 1e-8 * slope[given].max() and (slope[~given] <= slope[given].max() * (1 + 1e-9)).all()


def test_a_small_budget_goes_where_the_first_hour_is_worth_most():
    p, curves = np.array([0.5, 0.3, 0.2]), Curves(np.zeros(3), np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.4, 0.1]), 0.5)
    h = allocate(p, curves, 1e-6)
    assert np.argmax(h) == np.argmax(p * curves.scale_K * curves.hours_K ** (-1.5)) and (h > 0).sum() == 1


def test_its_limits_with_nothing_heard():
    p, d = np.array([0.5, 0.3, 0.2]), np.array([0.5, 1.0, 3.0])
    near_zero = allocate(p, Curves(np.zeros(3), d, np.full(3, 1e-12), 1e-6), 10.0)
    assert near_zero / near_zero.sum() == pytest.approx(p * d / (p * d).sum(), rel=1e-4)
    large = allocate(p, Curves(np.zeros(3), d, np.full(3, 1e-12), 1e6), 9.0)
    assert large == pytest.approx(np.full(3, 3.0), rel=1e-4)


def test_one_curve_passes_through_what_was_measured_and_spends_the_natural_hours():
    d = np.array([0.1, 0.4, 2.0])
    for beta in (0.05, 0.3, 1.2):
        curves = one_curve(d, 5.0, beta, 0.05)
        assert curves.hours_K.sum() == pytest.approx(5.0, rel=1e-6) and curves.at(np.zeros(3)) == pytest.approx(d, rel=1e-6)
        assert np.ptp(curves.scale_K) <= 1e-6 * curves.scale_K.max() and (np.diff(curves.hours_K) < 0).all()
    own = own_curves(d, [1.0, 0.0, 2.0], 0.3, 0.2, least_h=0.1)
    assert own.at(np.zeros(3)) == pytest.approx([0.2, 0.4, 2.0]) and own.scale_K[0] == 0  # at its floor: nothing to gain
    assert allocate([1, 1, 1], own, 1.0)[0] == 0


def test_what_cannot_be_is_one_line():
    with pytest.raises(SaladError, match="above the floor"):
        one_curve([0.1, 0.2], 1.0, 0.3, 0.5)
    with pytest.raises(SaladError, match="beta is 0"):
        one_curve([0.1], 1.0, 0.0)
    with pytest.raises(SaladError, match="no cluster gains"):
        allocate([0.0, 1.0], Curves(np.zeros(2), np.array([1.0, 0.0]), np.ones(2), 0.3), 1.0)
    with pytest.raises(SaladError, match="budget must be"):
        allocate([1.0], Curves(np.zeros(1), np.ones(1), np.ones(1), 0.3), float("nan"))


def test_it_draws_hours_as_allocated_whatever_the_length_of_a_clusters_texts():
    n = 4000
    cluster = np.repeat([0, 1], n)
    seconds = np.where(cluster == 0, 4.0, 16.0)
    pool = Pool.of([f"t{i:05d}" for i in range(2 * n)], cluster, seconds, p_web_K=[0.5, 0.5], d_cluster_K=[1.0, 1.0],
                   natural_h=1.0, beta=0.4)  # fmt: skip
    made = draw(pool, "marginal", 0.0, 4.0, 0)
    hours = np.bincount(cluster[made.rows], seconds[made.rows]) / 3600
    assert hours[0] == pytest.approx(hours[1], rel=0.1)  # equal curves and mass: equal hours
    assert not made.notes
    unmeasured = Pool.of(["a", "b"], [0, 1], [5.0, 5.0], d_cluster_K=[1.0, np.nan])
    _, target = decide(unmeasured, "marginal", 0.0)
    assert target.tolist() == [1.0, 0.0] and any("beta 0.3 is assumed" in note for note in unmeasured.notes)


def test_a_larger_budget_reaches_clusters_that_a_small_one_leaves_out():
    d = [0.2, 0.6, 2.0]
    pool = Pool.of(
        [f"t{i}" for i in range(3000)], np.arange(3000) % 3, np.full(3000, 6.0), d_cluster_K=d, natural_h=2.0, beta=0.3
    )
    small, large = (draw(pool, "marginal", 0.0, hours, 0).p_target_K for hours in (0.01, 1.0))
    assert (small > 0).sum() < (large > 0).sum()
