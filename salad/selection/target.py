"""From divergences to a target distribution over clusters, with what is uncertain and confounded about it.

Everything here is plain arithmetic on arrays; salad.selection.lab reads the arrays from a lab."""

import numpy as np
from numpy.typing import ArrayLike

from salad.errors import SaladError


def _distribution(p, name: str) -> np.ndarray:
    p = np.asarray(p, float)
    if p.ndim != 1 or not len(p):
        raise SaladError(f"{name} must be a list of one number a cluster, not of shape {p.shape}")
    odd = ~(np.isfinite(p) & (p >= 0))
    if odd.any():
        raise SaladError(f"{name} of cluster {int(odd.argmax())} is {p[odd.argmax()]:g}; a share is 0 or more")
    if p.sum() <= 0:
        raise SaladError(f"{name} is 0 in every cluster; there is nothing to draw from")
    return p / p.sum()


def check_gamma(gamma: float) -> None:
    """SaladError unless the exponent is a number from 0 on."""
    if not (np.isfinite(gamma) and gamma >= 0):
        raise SaladError(f"gamma is {gamma:g}; it must be 0 or more")


def target_distribution(p_web_K: ArrayLike, d_cluster_K: ArrayLike, gamma: float) -> np.ndarray:
    """P_target(c) ∝ P_web(c) · d_cluster(c)^gamma (METHOD.md, Stage II, 3), [K] float64 that sums to 1.

    `p_web_K`: shares of the corpus, scaled to sum to 1; an empty cluster (0) gets 0 whatever its d. `d_cluster_K`:
    nats; 0 gets 0 where gamma > 0. gamma = 0 gives P_web (0^0 = 1). Computed in log space beside the largest d, so no
    gamma overflows: a huge one leaves the clusters of the largest d alone, by their P_web.
    Raises SaladError, naming the first cluster, where a cluster with mass has d that is null, NaN, infinite or
    negative (one without a probe position: leave it out, or measure it), where gamma is negative or not finite,
    and where no cluster keeps mass."""
    p = _distribution(p_web_K, "p_web")
    d = np.asarray([np.nan if v is None else v for v in np.asarray(d_cluster_K, object).ravel()], float)
    if len(d) != len(p):
        raise SaladError(f"p_web has {len(p)} clusters and d_cluster {len(d)}")
    check_gamma(gamma)
    if gamma == 0:
        return p
    odd = (p > 0) & ~(np.isfinite(d) & (d >= 0))
    if odd.any():
        k = int(odd.argmax())
        raise SaladError(
            f"d_cluster of cluster {k} is {'missing' if np.isnan(d[k]) else f'{d[k]:g}'}; "
            "measure its probe, or set its p_web to 0"
        )
    has = (p > 0) & (d > 0)
    if not has.any():
        raise SaladError("d_cluster is 0 in every cluster: there is nothing to gain; use the strategy uniform")
    log = np.full(len(p), -np.inf)
    with np.errstate(over="ignore"):  # beside the largest d: gamma · 0 is 0 and gamma · -x at worst -inf
        log[has] = np.log(p[has]) + gamma * (np.log(d[has]) - np.log(d[has].max()))
    p = np.exp(log - log.max())
    return p / p.sum()


def entropy(p_K: ArrayLike) -> float:
    """-Σ p log p in nats; 0 log 0 is 0."""
    p = _distribution(p_K, "p")
    p = p[p > 0]
    return float(-(p * np.log(p)).sum()) + 0.0


def effective_size(weights: ArrayLike) -> float:
    """Kish's effective sample size, (Σw)² / Σw²: of a distribution over clusters, how many it really uses."""
    p = _distribution(weights, "weight")
    return float(1 / (p**2).sum())


def kl(p_K: ArrayLike, q_K: ArrayLike) -> float:
    """KL(p ‖ q) in nats; infinite where p has mass and q has none."""
    p, q = _distribution(p_K, "p"), _distribution(q_K, "q")
    if len(p) != len(q):
        raise SaladError(f"p has {len(p)} clusters and q {len(q)}")
    has = p > 0
    if (q[has] == 0).any():
        return float("inf")
    return float((p[has] * np.log(p[has] / q[has])).sum())


def cluster_means(
    d_N: ArrayLike,
    n_N: ArrayLike,
    cluster_N: ArrayLike,
    text_N: ArrayLike,
    n_clusters: int,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, np.ndarray]:
    """Token-weighted divergence of each cluster, sum(d·n)/sum(n), with a bootstrap interval over texts.

    `d_N` nats, `n_N` its positions, `cluster_N` cluster numbers, `text_N` any id of the text: a text's rows
    (patterns, syntheses) are resampled together. Returns [K] arrays: `n_texts`, `n_positions`, `d`, `d_low`,
    `d_high` (percentiles; NaN under two texts, or with `draws` 0), `d_se` (its standard error over texts, a ratio's,
    linearised; NaN under two texts), and `d_sample_mean`, the mean of the texts' own token-weighted values. A cluster without
    a position has NaN in all of them."""
    d_N, n_N, cluster_N = np.asarray(d_N, float), np.asarray(n_N, float), np.asarray(cluster_N, int)
    use = np.isfinite(d_N) & (n_N > 0)
    _, first, text_N = np.unique(np.asarray(text_N)[use], return_index=True, return_inverse=True)
    cluster_T = cluster_N[use][first]
    weight_T = np.bincount(text_N, n_N[use], len(first))
    sum_T = np.bincount(text_N, (d_N * np.where(use, n_N, 0))[use], len(first))
    rng, out = (
        np.random.default_rng(seed),
        {name: np.full(n_clusters, np.nan) for name in ("d", "d_low", "d_high", "d_se", "d_sample_mean")},
    )
    out["n_texts"] = np.bincount(cluster_T, minlength=n_clusters)
    out["n_positions"] = np.bincount(cluster_T, weight_T, n_clusters).astype(int)
    for k in range(n_clusters):
        inside = np.flatnonzero(cluster_T == k)
        if not len(inside):
            continue
        s, w = sum_T[inside], weight_T[inside]
        out["d"][k], out["d_sample_mean"][k] = s.sum() / w.sum(), (s / w).mean()
        if len(inside) > 1:
            error = s - w * out["d"][k]
            out["d_se"][k] = np.sqrt((error**2).sum() * len(inside) / (len(inside) - 1)) / w.sum()
        if len(inside) > 1 and draws:
            times = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), draws)
            tail = 50 * (1 - level)
            out["d_low"][k], out["d_high"][k] = np.percentile((times @ s) / (times @ w), [tail, 100 - tail])
    return out


def shrink(d_K: ArrayLike, se_K: ArrayLike, n_K: ArrayLike | None = None) -> np.ndarray:
    """Each cluster's d drawn to the clusters' mean as far as a probe's error asks, [K] nats: what is raised to γ is else
    mostly the noise of a small probe.

    Empirical Bayes, normal, on x = log d, which γ multiplies: x_k = θ_k + error of variance v_k, θ_k ~ N(μ, τ²); returns
    exp(μ + τ²/(τ² + v_k)·(x_k − μ)), τ² by the moments of DerSimonian and Laird (1986), μ weighted by 1/(τ² + v_k). The error
    of six texts is itself hardly known, so (se/d)² is pooled: its mean over the clusters, per text, divided by the cluster's
    `n_K` texts (without it the same for all). NaN and 0 stay what they are; without any se, or under three clusters, d
    comes back as it is."""
    d, se = np.array(d_K, float), np.asarray(se_K, float)
    n = np.ones(len(d)) if n_K is None else np.maximum(np.asarray(n_K, float), 1)
    use, measured = np.isfinite(d) & (d > 0), np.isfinite(d) & (d > 0) & np.isfinite(se)
    if use.sum() < 3 or not measured.any():
        return d
    pooled = ((se[measured] / d[measured]) ** 2 * n[measured]).mean()
    x, v = np.log(d[use]), np.maximum(pooled / n[use], 1e-12)
    w = 1 / v
    spread = (w * (x - (w * x).sum() / w.sum()) ** 2).sum()
    tau2 = max(0.0, (spread - (len(x) - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    w = 1 / (tau2 + v)
    mean = (w * x).sum() / w.sum()
    d[use] = np.exp(mean + tau2 / (tau2 + v) * (x - mean))
    return d


def probe_size(d: float, se: float, n_texts: int, gamma: float, within: float, level: float = 0.95) -> int:
    """Texts that a cluster's probe needs so that P_web·d^γ is known within a factor of 1 ± `within` at `level`.

    `d`, `se`, `n_texts`: of a first probe. By the delta method log d^γ has the standard error γ·se/d, which falls with the
    root of the texts. SaladError where d is 0 or the first probe tells no error."""
    from statistics import NormalDist

    if not (d > 0 and se >= 0 and n_texts > 1 and 0 < within):
        raise SaladError(f"a probe of {n_texts} texts with d {d:g} and error {se:g} does not say how many are needed")
    wanted = np.log1p(within) / NormalDist().inv_cdf((1 + level) / 2)
    return max(2, int(np.ceil(n_texts * (gamma * se / d / wanted) ** 2)))


def target_interval(
    p_web_K: ArrayLike,
    d_N: ArrayLike,
    n_N: ArrayLike,
    cluster_N: ArrayLike,
    text_N: ArrayLike,
    gamma: float,
    shrunk: bool = False,
    draws: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """(low [K], high [K]) of every P_target, from a bootstrap over the probe's texts within each cluster.

    Arguments as of `cluster_means`; `shrunk` draws each resample's d together as `shrink` does. A cluster without a probe
    position, or without mass, has 0 and 0."""
    d_N, n_N, cluster_N = np.asarray(d_N, float), np.asarray(n_N, float), np.asarray(cluster_N, int)
    use = np.isfinite(d_N) & (n_N > 0)
    _, first, text_N = np.unique(np.asarray(text_N)[use], return_index=True, return_inverse=True)
    cluster_T, weight_T = cluster_N[use][first], np.bincount(text_N, n_N[use], len(first))
    sum_T, p_web = np.bincount(text_N, (d_N * n_N)[use], len(first)), np.asarray(p_web_K, float)
    rng, d_BK, se_BK = np.random.default_rng(seed), *np.full((2, draws, len(p_web)), np.nan)
    for k in range(len(p_web)):
        inside = np.flatnonzero(cluster_T == k)
        if not len(inside):
            continue
        s, w = sum_T[inside], weight_T[inside]
        times = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), draws)
        d_BK[:, k] = (times @ s) / (times @ w)
        if len(inside) > 1:
            error = (times * (s - w * d_BK[:, k, None]) ** 2).sum(1) * len(inside) / (len(inside) - 1)
            se_BK[:, k] = np.sqrt(error) / (times @ w)
    if shrunk:
        n_K = np.bincount(cluster_T, minlength=len(p_web))
        d_BK = np.stack([shrink(d, se, n_K) for d, se in zip(d_BK, se_BK, strict=True)])
    has = np.isfinite(d_BK).all(0) & (p_web > 0)
    out = np.zeros((2, len(p_web)))
    p_BK = [target_distribution(p_web * has, np.where(has, d, 0.0), gamma) for d in d_BK if (d[has] > 0).any()]
    if p_BK:
        out[:] = np.percentile(p_BK, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return out[0], out[1]


def regress_out(
    d_N: ArrayLike, covariates_NC: ArrayLike, cluster_N: ArrayLike, n_clusters: int, n_N: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster means of d [K] with the covariates held at their overall mean, and the slopes [C].

    Least squares of d = a_cluster + covariates · slope, weighted by `n_N`: the slopes are learnt within clusters, so
    that a cluster's own level is not taken for an effect of its covariates. Rows with a missing value are left out;
    a covariate that doesn't vary within clusters gets slope 0; a cluster without a row gets NaN."""
    d, z, c = np.asarray(d_N, float), np.asarray(covariates_NC, float), np.asarray(cluster_N, int)
    n = np.ones(len(d)) if n_N is None else np.asarray(n_N, float)
    use = np.isfinite(d) & np.isfinite(z).all(1) & (n > 0)
    d, z, c, n = d[use], z[use], c[use], n[use]
    if not len(d):
        return np.full(n_clusters, np.nan), np.zeros(z.shape[1])
    mass_K = np.bincount(c, n, n_clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_d = np.bincount(c, n * d, n_clusters) / mass_K
        mean_z = np.stack([np.bincount(c, n * column, n_clusters) / mass_K for column in z.T], 1)
    inside_z, root = z - mean_z[c], np.sqrt(n)[:, None]
    scale = np.sqrt((n[:, None] * (z - (n @ z) / n.sum()) ** 2).sum(0) / n.sum())
    varies = np.sqrt((n[:, None] * inside_z**2).sum(0) / n.sum()) > 1e-9 * np.maximum(scale, 1e-300)
    slope = np.zeros(z.shape[1])
    if varies.any():
        a = inside_z[:, varies] / scale[varies] * root
        slope[varies] = np.linalg.lstsq(a, (d - mean_d[c]) * root[:, 0], rcond=None)[0] / scale[varies]
    return mean_d - (mean_z - (n @ z) / n.sum()) @ slope, slope


def text_and_voice(d_N: ArrayLike, text_N: ArrayLike) -> dict[str, float]:
    """What of the variance of d lies between texts, and what between syntheses of one text.

    One-way random effects by the method of moments: `d_N` has a value a synthesis, `text_N` its text. Returns
    `text_variance`, `voice_variance` and `text_share` of their sum; NaN where no text was spoken twice."""
    d, text = np.asarray(d_N, float), np.unique(np.asarray(text_N), return_inverse=True)[1]
    use = np.isfinite(d)
    d, text = d[use], np.unique(text[use], return_inverse=True)[1]
    size = np.bincount(text)
    texts, rows = len(size), len(d)
    if texts < 2 or rows <= texts:
        return {"text_variance": np.nan, "voice_variance": np.nan, "text_share": np.nan}
    mean = np.bincount(text, d) / size
    within = ((d - mean[text]) ** 2).sum() / (rows - texts)
    between = (size * (mean - d.mean()) ** 2).sum() / (texts - 1)
    usual = (rows - (size**2).sum() / rows) / (texts - 1)
    of_text = max(0.0, (between - within) / usual)
    both = of_text + within
    return {"text_variance": of_text, "voice_variance": within, "text_share": of_text / both if both > 0 else np.nan}
