"""Draw texts to a budget of hours: strategies that say from where, and the draw that follows them.

A custom strategy is a function `(pool, gamma) -> Clusters | Texts`, named as `package.module:name`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from salad import parts
from salad.errors import SaladError

from .marginal import BETA, allocate, one_curve
from .target import check_gamma, shrink, target_distribution

OVERSHOOT = 1.1  # estimated hours drawn for an hour of budget
BLOCK = 4_096  # cluster draws made at a time; part of what a seed means


@dataclass(frozen=True)
class Pool:
    """What a strategy decides on: N texts in K clusters. Texts are in the order of their ids.

    `d_cluster_K` is NaN where a cluster has no probe position, `d_N` (nats) where a text was not probed, `nll_N` (the
    teacher's mean NLL, nats a token) where it is not known. `open_K`: whether a cluster may be drawn from at all
    (its speech is well synthesised); `cer_K`: the mean CER of its probe; `d_se_K`: d_cluster's standard error (nats);
    `probed_N`: whether a text is of the probe. For `marginal`: `budget_h`, the hours that
    are drawn; `natural_h`, those of natural speech that the model has heard; `beta` and `floor` (nats) of its learning curve,
    NaN where none was measured. `uncovered`: the domains without natural speech, for the oracle: what
    lab/study.json says of their coverage, else the miniature's."""

    sample_ids: list[str]
    cluster_N: np.ndarray
    seconds_N: np.ndarray
    p_web_K: np.ndarray
    d_cluster_K: np.ndarray
    d_N: np.ndarray
    nll_N: np.ndarray
    domain_N: np.ndarray
    open_K: np.ndarray
    probed_N: np.ndarray
    cer_K: np.ndarray
    d_se_K: np.ndarray
    uncovered: tuple[str, ...] = ("biology", "chemistry", "geography", "cooking", "music")
    budget_h: float = np.nan
    natural_h: float = np.nan
    beta: float = np.nan
    floor: float = 0.0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, sample_ids: Sequence[str], cluster_N: ArrayLike, seconds_N: ArrayLike, n_clusters: int | None = None, **known
    ) -> "Pool":
        """A pool from what is known; shares are the texts' own where `p_web_K` is not given."""
        cluster_N = np.asarray(cluster_N, int)
        n, k = len(sample_ids), n_clusters or int(cluster_N.max(initial=-1)) + 1
        default: dict[str, np.ndarray] = {
            "p_web_K": np.bincount(cluster_N, minlength=k) / max(n, 1),
            "d_cluster_K": np.full(k, np.nan),
            "d_N": np.full(n, np.nan),
            "nll_N": np.full(n, np.nan),
            "domain_N": np.full(n, None, object),
            "open_K": np.ones(k, bool),
            "probed_N": np.zeros(n, bool),
            "cer_K": np.full(k, np.nan),
            "d_se_K": np.full(k, np.nan),
        }
        arrays: dict[str, Any] = {name: np.asarray(known.pop(name, value)) for name, value in default.items()}
        return cls(list(sample_ids), cluster_N, np.asarray(seconds_N, float), **arrays, **known)


class Clusters(NamedTuple):
    """Mass of each cluster, [K]; texts are uniform within a cluster."""

    p_K: np.ndarray


class Texts(NamedTuple):
    """Weight of each text, [N], whatever its cluster."""

    w_N: np.ndarray


def active(pool: Pool, gamma: float) -> Clusters:
    """P_web · d_cluster^gamma (METHOD.md); a cluster without a probe position gets none."""
    return Clusters(target_distribution(_measured(pool, pool.d_cluster_K, "d_cluster"), pool.d_cluster_K, gamma))


def active_shrunk(pool: Pool, gamma: float) -> Clusters:
    """`active` with every d_cluster drawn to their mean as far as its probe's own error asks (salad.selection.shrink)."""
    probed_K = np.bincount(pool.cluster_N[pool.probed_N], minlength=len(pool.p_web_K))
    d_K = shrink(pool.d_cluster_K, pool.d_se_K, probed_K)
    return Clusters(target_distribution(_measured(pool, d_K, "d_cluster"), d_K, gamma))


def uniform(pool: Pool, gamma: float) -> Clusters:
    """P_web: the control. gamma plays no part."""
    return Clusters(pool.p_web_K * pool.open_K)


def uniform_clusters(pool: Pool, gamma: float) -> Clusters:
    """The same mass for every cluster that has a text."""
    return Clusters(((pool.p_web_K > 0) & pool.open_K).astype(float))


def teacher_nll(pool: Pool, gamma: float) -> Clusters:
    """P_web · nll_cluster^gamma, with the teacher's mean NLL in the place of d: what is merely hard as text."""
    known = np.isfinite(pool.nll_N)
    if not known.any():
        raise SaladError("teacher_nll: no text has the teacher's NLL; `salad pass embed --model teacher` measures it")
    k = len(pool.p_web_K)
    count = np.bincount(pool.cluster_N[known], minlength=k)
    mean = np.bincount(pool.cluster_N[known], pool.nll_N[known], k) / np.maximum(count, 1)
    mean[count == 0] = np.nan
    return Clusters(target_distribution(_measured(pool, mean, "NLL"), mean, gamma))


def sample_level(pool: Pool, gamma: float) -> Texts:
    """d^gamma of each probed text, whatever its cluster. Once all of those are drawn, unprobed ones follow, uniformly:
    the budget is in hours, and a probe is seldom as long."""
    d = np.maximum(pool.d_N, 0)
    known = np.isfinite(d)
    if not (known & (d > 0)).any():
        raise SaladError("sample_level: no text has a divergence; probe some texts first")
    weight = np.full(len(d), 1e-12)
    weight[known] = np.maximum((d[known] / d[known].max()) ** gamma, 1e-9)
    return Texts(weight)


def marginal(pool: Pool, gamma: float) -> Clusters:
    """Hours where they lower Σ P_web · D most (salad.selection.marginal, all clusters on one curve), so the mass depends on the
    budget; a cluster's mass is its hours over the length of its texts. gamma plays no part."""
    p_web = _measured(pool, pool.d_cluster_K, "d_cluster")
    natural_h = pool.natural_h if pool.natural_h > 0 else 1.0
    beta = pool.beta if pool.beta > 0 else BETA
    if not pool.natural_h > 0:
        pool.notes.append("marginal: the hours of natural speech are not known; 1 h is assumed")
    if not pool.beta > 0:
        pool.notes.append(f"marginal: no learning curve of Stage I was measured; beta {BETA:g} is assumed")
    curves = one_curve(pool.d_cluster_K, natural_h, beta, pool.floor)
    hours = allocate(p_web, curves, pool.budget_h if pool.budget_h > 0 else natural_h)
    count = np.bincount(pool.cluster_N, minlength=len(p_web))
    seconds = np.bincount(pool.cluster_N, pool.seconds_N, len(p_web)) / np.maximum(count, 1)
    return Clusters(np.where(count > 0, hours / np.maximum(seconds, 1e-9), 0.0))


def oracle(pool: Pool, gamma: float) -> Texts:
    """Texts of the domains without natural speech, uniformly: what selection could reach at best (miniature)."""
    inside = np.isin(pool.domain_N.astype(str), pool.uncovered)
    if not inside.any():
        raise SaladError(f"oracle: no text is of a domain in {', '.join(pool.uncovered)}")
    return Texts(inside.astype(float))


# active_rounds is `active` with the budget in rounds and the probe measured again after each: salad.selection.rounds,
# and select(..., parent=what the last round trained on, number=2)
STRATEGIES: dict[str, Callable[[Pool, float], Clusters | Texts]] = {
    "active": active,
    "active_shrunk": active_shrunk,
    "active_rounds": active,
    "uniform": uniform,
    "uniform_clusters": uniform_clusters,
    "teacher_nll": teacher_nll,
    "sample_level": sample_level,
    "marginal": marginal,
    "oracle": oracle,
}


def strategy(name: str | Callable) -> Callable[[Pool, float], Clusters | Texts]:
    """The strategy of this name, or `package.module:name`; a function is itself. SaladError where there is none."""
    if callable(name):
        return name
    if name in STRATEGIES:
        return STRATEGIES[name]
    if ":" not in name:
        raise SaladError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}, or package.module:name")
    try:
        return parts.load(name)
    except SaladError as error:
        raise SaladError(f"strategy {name!r} cannot be loaded: {error}") from error


def _measured(pool: Pool, d_K, what: str) -> np.ndarray:
    """P_web of the open clusters that have a value; `pool.notes` names the others."""
    lacking = np.flatnonzero((pool.p_web_K > 0) & pool.open_K & ~np.isfinite(d_K))
    if len(lacking):
        pool.notes.append(f"no {what}, so nothing drawn from cluster {', '.join(map(str, lacking))}")
    return pool.p_web_K * pool.open_K * np.isfinite(d_K)


class Draw(NamedTuple):
    """`rows` [M]: numbers of the pool's texts in draw order; `p_target_K`, `seconds` (estimated, drawn), `wanted`
    (seconds asked for), `notes`: what was left out, and whether the pool ran dry."""

    rows: np.ndarray
    p_target_K: np.ndarray
    seconds: float
    wanted: float
    notes: list[str]


def draw(
    pool: Pool,
    strategy_name: str | Callable,
    gamma: float,
    budget_h: float,
    seed: int,
    dropped: Iterable[str] = (),
    overshoot: float = OVERSHOOT,
    first: list[int] | tuple = (),
) -> Draw:
    """Draw texts until their estimated seconds reach `overshoot` · `budget_h`: a cluster from P_target, then one of
    its texts uniformly, without replacement. A cluster that runs dry passes its mass on to the others in proportion.

    Deterministic by `seed`; a larger budget only goes on where a smaller one ended. `dropped` sample ids are
    skipped: the others of their cluster keep their order. `first` clusters are drawn from before P_target is asked,
    one text each (a refill). Raises SaladError where the strategy or the budget makes no sense."""
    if not (np.isfinite(budget_h) and budget_h > 0):
        raise SaladError(f"budget is {budget_h} h; it must be more than 0")
    start = len(pool.notes)
    pool = replace(pool, budget_h=budget_h) if np.isnan(pool.budget_h) else pool  # a refill's own is a part of it
    decided, p_target = decide(pool, strategy_name, gamma)
    skip = set(dropped)
    usable = pool.open_K[pool.cluster_N] & np.array([s not in skip for s in pool.sample_ids], bool)
    rng, wanted = np.random.default_rng(seed), budget_h * 3600 * overshoot
    if isinstance(decided, Texts):
        # weighted sampling without replacement: the order of log w + Gumbel noise (Efraimidis and Spirakis 2006)
        with np.errstate(divide="ignore"):
            key = np.where(usable, np.log(decided.w_N), -np.inf) + rng.gumbel(size=len(usable))
        order = np.argsort(-key, kind="stable")
        rows = _until(order[np.isfinite(key[order])], pool.seconds_N, wanted)
    else:
        shuffled = rng.permutation(len(pool.sample_ids))
        shuffled = shuffled[usable[shuffled]]
        rows = _by_cluster(shuffled, pool.cluster_N, pool.seconds_N, p_target, wanted, rng, first)
    seconds = float(pool.seconds_N[rows].sum())
    notes = pool.notes[start:] + ([f"ran dry at {seconds / 3600:.3g} h of {wanted / 3600:.3g} h"] if seconds < wanted else [])
    return Draw(rows, p_target, seconds, wanted, notes)


def decide(pool: Pool, strategy_name: str | Callable, gamma: float) -> tuple[Clusters | Texts, np.ndarray]:
    """What a strategy says, without the clusters that are left out, and the clusters' shares of it, P_target [K]."""
    check_gamma(gamma)
    if not pool.open_K.any():
        raise SaladError("every cluster is left out for its character error rate; raise max_cer, or repair the speech")
    decided = strategy(strategy_name)(pool, gamma)
    if isinstance(decided, Texts):
        weight = np.asarray(decided.w_N, float)
        _check(weight, len(pool.sample_ids), strategy_name, "text")
        weight = weight * pool.open_K[pool.cluster_N]
        shares = np.bincount(pool.cluster_N, weight, len(pool.p_web_K))
        decided = Texts(weight)
    elif isinstance(decided, Clusters):
        shares = np.asarray(decided.p_K, float)
        _check(shares, len(pool.p_web_K), strategy_name, "cluster")
        shares = shares * pool.open_K
    else:
        raise SaladError(f"strategy {strategy_name!r} must return Clusters or Texts, not {type(decided).__name__}")
    if shares.sum() <= 0:
        raise SaladError(f"strategy {strategy_name!r} gave no weight to anything that may be drawn")
    return decided, shares / shares.sum()


def _check(weight: np.ndarray, length: int, name: str | Callable, what: str) -> None:
    if weight.shape != (length,):
        raise SaladError(f"strategy {name!r} gave {weight.shape} weights for {length} {what}s")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise SaladError(
            f"strategy {name!r} gave a negative or infinite weight for {what} "
            f"{int((~(np.isfinite(weight) & (weight >= 0))).argmax())}"
        )


def _until(rows: np.ndarray, seconds_N: np.ndarray, wanted: float) -> np.ndarray:
    """`rows` up to and including the first at which `wanted` seconds are reached."""
    return rows[: int(np.searchsorted(np.cumsum(seconds_N[rows]), wanted)) + 1]


def _by_cluster(shuffled, cluster_N, seconds_N, p_K, wanted, rng, first) -> np.ndarray:
    grouped = shuffled[np.argsort(cluster_N[shuffled], kind="stable")]
    size = np.bincount(cluster_N[grouped], minlength=len(p_K))
    start, taken = np.concatenate([[0], np.cumsum(size)[:-1]]), np.zeros(len(p_K), int)
    drawn, total = [], 0.0
    for k in first:
        if taken[k] < size[k] and total < wanted:
            drawn.append(grouped[start[k] + taken[k] :][:1])
            taken[k] += 1
            total += float(seconds_N[drawn[-1][0]])
    while total < wanted:
        share = np.cumsum(p_K * (taken < size))
        if share[-1] <= 0:
            break
        asked = np.searchsorted(share / share[-1], rng.random(BLOCK), side="right")
        # how often each cluster was asked before within the block
        order = np.argsort(asked, kind="stable")
        begin = np.searchsorted(asked[order], np.arange(len(p_K)))
        before = np.empty(BLOCK, int)
        before[order] = np.arange(BLOCK) - begin[asked[order]]
        place = taken[asked] + before
        dry = place >= size[asked]
        if dry.any():  # the rest of the block is drawn anew, with the mass passed on
            asked, place = asked[: dry.argmax()], place[: dry.argmax()]
        block = _until(grouped[start[asked] + place], seconds_N, wanted - total)
        taken += np.bincount(asked[: len(block)], minlength=len(p_K))
        drawn.append(block)
        total += float(seconds_N[block].sum())
    return np.concatenate(drawn) if drawn else np.zeros(0, int)
