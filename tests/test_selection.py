"""Active selection: hand-computed distributions, the draw's promises, balanced clusters, and review in a lab."""

import contextlib
import logging
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from salad import recipes, selection
from salad.errors import SaladError
from salad.selection import (
    BalancedKMeans,
    Pool,
    Texts,
    cluster_means,
    draw,
    probe_size,
    shrink,
    target_distribution,
    target_interval,
)
from salad.selection.clusters import in_blocks
from salad.selection.voicing import Voicing, note, voice_of
from salad.study.graph import plan
from salad.training import decay_start

# ------------------------------------------------------------------------------------ target distribution


def test_target_distribution_by_hand():
    # 0.5·1², 0.3·2², 0.2·3² = 0.5, 1.2, 1.8 of 3.5
    np.testing.assert_allclose(target_distribution([0.5, 0.3, 0.2], [1, 2, 3], 2), [1 / 7, 12 / 35, 18 / 35], rtol=1e-14)


def test_gamma_0_is_p_web_even_where_d_is_zero_or_unknown():
    np.testing.assert_allclose(target_distribution([2, 3, 5], [0, np.nan, 1], 0), [0.2, 0.3, 0.5])


def test_a_huge_gamma_neither_overflows_nor_underflows():
    p = target_distribution([0.5, 0.5], [1e-3, 1.001e-3], 5000)
    assert p[0] / p[1] == pytest.approx(1.001**-5000, rel=1e-9) and p.sum() == pytest.approx(1)


@pytest.mark.parametrize("gamma", [1e4, 1e300, 1e308, np.finfo(float).max])
def test_an_exponent_without_end_leaves_the_largest_d_alone_by_p_web(gamma):
    np.testing.assert_allclose(target_distribution([0.2, 0.2, 0.6], [3.0, 3.0, 2.9], gamma), [0.5, 0.5, 0.0], atol=1e-99)
    assert target_distribution([0.5, 0.5], [1e-300, 1e-308], gamma).tolist() == [1.0, 0.0]
    pool = make_pool(d=(3, 3, 2.9))
    pool.nll_N[:] = pool.d_N[:] = np.repeat([3.0, 3.0, 2.9], 40)
    for name in ("active", "sample_level", "uniform", "teacher_nll"):
        assert np.isfinite(draw(pool, name, gamma, 0.05, 0).p_target_K).all()


def test_zero_d_and_empty_clusters_get_nothing():
    assert target_distribution([0.4, 0.6, 0.0], [0.0, 1.0, np.nan], 1).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("p", "d", "gamma", "message"),
    [
        ([0.5, 0.5], [1, np.nan], 2, "d_cluster of cluster 1 is missing"),
        ([0.5, 0.5], [1, None], 2, "d_cluster of cluster 1 is missing"),
        ([0.5, 0.5], [-0.1, 1], 2, "d_cluster of cluster 0 is -0.1"),
        ([0.5, 0.5], [1, np.inf], 2, "d_cluster of cluster 1 is inf"),
        ([0.5, -0.5], [1, 1], 2, "p_web of cluster 1 is -0.5"),
        ([0, 0], [1, 1], 2, "p_web is 0 in every cluster"),
        ([0.5, 0.5], [0, 0], 2, "d_cluster is 0 in every cluster"),
        ([0.5, 0.5], [1, 1], -1, "gamma is -1"),
        ([0.5, 0.5], [1, 1, 1], 1, "2 clusters and d_cluster 3"),
    ],
)
def test_what_makes_no_distribution_is_refused_by_name(p, d, gamma, message):
    with pytest.raises(SaladError, match=message):
        target_distribution(p, d, gamma)


shares = st.lists(st.floats(1e-6, 1), min_size=2, max_size=20)


@given(shares, st.floats(0, 10), st.floats(0.01, 100), st.randoms())
def test_target_is_a_distribution_that_scales_and_leans_to_high_d(p, gamma, scale, random):
    d = [random.uniform(1e-3, 5) for _ in p]
    target = target_distribution(p, d, gamma)
    assert target.sum() == pytest.approx(1) and (target >= 0).all()
    np.testing.assert_allclose(target, target_distribution(p, np.array(d) * scale, gamma), rtol=1e-6, atol=1e-12)
    mean = np.average(d, weights=p)
    assert (target * d).sum() >= mean * (1 - 1e-9)


@given(shares)
def test_entropy_size_and_kl_agree(p):
    uniform = np.ones(len(p))
    assert selection.kl(p, uniform) == pytest.approx(math.log(len(p)) - selection.entropy(p), abs=1e-9)
    assert 1 - 1e-9 <= selection.effective_size(p) <= len(p) + 1e-9
    assert selection.kl(p, p) == pytest.approx(0, abs=1e-12)


def test_entropy_size_and_kl_by_hand():
    assert selection.entropy([0.5, 0.25, 0.25, 0]) == pytest.approx(1.5 * math.log(2))
    assert selection.effective_size([3, 1]) == pytest.approx(1.6)
    assert selection.kl([1, 0], [0.25, 0.75]) == pytest.approx(math.log(4))
    assert selection.kl([0.5, 0.5], [1, 0]) == math.inf


# ------------------------------------------------------------------------------------ measuring clusters


def test_cluster_divergence_is_token_weighted_with_the_sample_mean_beside_it():
    # cluster 0: text a has 2·10 + 1·30 over 40, text b 4 over 10; cluster 2 was not probed; d has no position
    got = selection.cluster_means([2, 1, 4, 7, np.nan], [10, 30, 10, 5, 0], [0, 0, 0, 1, 1], list("aabcd"), 3)
    np.testing.assert_allclose(got["d"], [90 / 50, 7, np.nan])
    np.testing.assert_allclose(got["d_sample_mean"], [(1.25 + 4) / 2, 7, np.nan])
    assert got["n_texts"].tolist() == [2, 1, 0] and got["n_positions"].tolist() == [50, 5, 0]
    assert got["d_low"][0] == pytest.approx(1.25) and got["d_high"][0] == pytest.approx(4)  # only a, only b
    assert np.isnan(got["d_low"][1:]).all()


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        text = rng.exponential(1, 60)
        got = selection.cluster_means(
            np.repeat(text, 2),
            np.full(120, 9),
            np.zeros(120, int),
            np.repeat(np.arange(60), 2),
            1,
            draws=300,
            seed=trial,
        )
        inside += got["d_low"][0] <= 1 <= got["d_high"][0]
    assert 175 <= inside <= 198


def noisy(seed, k=128, texts=6, spread=0.0, noise=0.5):
    """A probe of k clusters: their true d, and d, n, cluster and text of each row."""
    rng = np.random.default_rng(seed)
    truth = np.exp(spread * rng.standard_normal(k))
    cluster = np.repeat(np.arange(k), texts)
    d = np.maximum(truth[cluster] * (1 + noise * rng.standard_normal(len(cluster))), 0.01)
    return truth, d, rng.integers(20, 60, len(cluster)), cluster, np.arange(len(cluster))


def test_equal_clusters_are_shrunk_together_and_different_ones_stay_apart():
    for spread in (0.0, 1.5):
        truth, d, n, cluster, text = noisy(0, spread=spread)
        means = cluster_means(d, n, cluster, text, 128, draws=0)
        shrunk = shrink(means["d"], means["d_se"])
        of = lambda x: target_distribution(np.full(128, 1 / 128), x, 5)  # noqa: E731
        if spread == 0:  # 128 equal clusters: five to the noise
            assert of(means["d"]).max() / of(means["d"]).min() > 100 > 10 > of(shrunk).max() / of(shrunk).min()
        else:
            assert np.corrcoef(np.log(shrunk), np.log(truth))[0, 1] > 0.9
        assert ((shrunk - truth) ** 2).mean() < ((means["d"] - truth) ** 2).mean()


def test_shrinking_by_hand_and_where_nothing_is_known():
    # log d of 1, 4, 7 with errors of variance 1: tau² = 9 - 1, and each keeps 8/9 of its distance from 4
    d, expected = np.exp([1.0, 4.0, 7.0]), np.exp([4 - 8 / 3, 4, 4 + 8 / 3])
    assert shrink(d, d) == pytest.approx(expected) and shrink(d, d / 2, [1, 1, 1]) != pytest.approx(expected)
    assert shrink([3.0, 3.1, 2.9], [5.0, 5.0, 5.0]) == pytest.approx([np.exp(np.log([3.0, 3.1, 2.9]).mean())] * 3)
    assert shrink([1.0, 2.0, 9.0], [np.nan] * 3).tolist() == [1.0, 2.0, 9.0]
    got = shrink([d[0], np.nan, d[1], d[2], 0.0], [d[0], np.nan, np.nan, d[2], 0.0])  # one text: as unsure as the others
    assert np.isnan(got[1]) and got[4] == 0 and got[[0, 2, 3]] == pytest.approx(expected)
    more = shrink(d, d, [1, 1, 100])  # many texts keep more of their own
    assert more[2] > expected[2]


def test_the_standard_error_of_d_is_what_repetition_shows():
    results = [
        cluster_means(d, n, c, t, 1, draws=0) for _, d, n, c, t in (noisy(s, k=1, texts=12, noise=0.2) for s in range(400))
    ]
    assert np.mean([f["d_se"][0] for f in results]) == pytest.approx(np.std([f["d"][0] for f in results]), rel=0.1)


@pytest.mark.parametrize("shrunk", [False, True])
def test_intervals_of_the_shares_hold_them_and_narrow_with_the_probe(shrunk):
    width = []
    for texts in (6, 60):
        _, d, n, cluster, text = noisy(1, k=8, texts=texts, spread=0.5, noise=0.3)
        means = cluster_means(d, n, cluster, text, 8, draws=0)
        used = shrink(means["d"], means["d_se"]) if shrunk else means["d"]
        p_web = np.r_[0.0, np.full(7, 1 / 7)]
        low, high = target_interval(p_web, d, n, cluster, text, 3.0, shrunk)
        p = target_distribution(p_web, used, 3.0)
        assert low[0] == high[0] == 0 and (low <= p + 1e-9).all() and (p <= high + 1e-9).all() and (high[1:] > low[1:]).all()
        width.append((high - low).sum())
    assert width[1] < 0.6 * width[0]


def test_a_probe_of_the_size_that_is_told_is_as_precise_as_was_wanted():
    truth, d, n, cluster, text = noisy(2, k=1, texts=400, noise=0.3)
    first = cluster_means(d[:20], n[:20], cluster[:20], text[:20], 1, draws=0)
    size = probe_size(first["d"][0], first["d_se"][0], 20, 5.0, 0.5)
    assert 20 < size < 400
    ratios = []
    for seed in range(200):
        _, d, n, cluster, text = noisy(100 + seed, k=1, texts=size, noise=0.3)
        ratios.append(cluster_means(d, n, cluster, text, 1, draws=0)["d"][0] ** 5)
    assert np.percentile(ratios, 97.5) / np.median(ratios) == pytest.approx(1.5, abs=0.2)
    with pytest.raises(SaladError, match="does not say how many"):
        probe_size(0.0, 0.1, 20, 5.0, 0.5)


def test_regressing_out_recovers_the_domains_own_level():
    rng = np.random.default_rng(1)
    cluster = np.repeat([0, 1, 2], 50)
    cer = np.concatenate([rng.uniform(0, 0.1, 50), rng.uniform(0.3, 0.5, 50), rng.uniform(0, 0.1, 50)])
    seconds = rng.uniform(3, 9, 150)
    d = np.array([1.0, 0.2, 0.8])[cluster] + 4 * cer + 0.1 * seconds  # cluster 1 is bad speech only
    adjusted, slope = selection.regress_out(d, np.stack([cer, seconds, np.ones(150)], 1), cluster, 4)
    np.testing.assert_allclose(slope, [4, 0.1, 0], atol=1e-9)
    np.testing.assert_allclose(adjusted[:3], np.array([1.0, 0.2, 0.8]) + 4 * cer.mean() + 0.1 * seconds.mean())
    assert np.isnan(adjusted[3]) and np.bincount(cluster, d)[1] > np.bincount(cluster, d)[0]


def test_text_and_voice_by_hand():
    # means 1 and 5; within 2·1² + 2·1² over 2; between 2·2² + 2·2² over 1; (16 - 2) / 2
    got = selection.text_and_voice([0, 2, 4, 6], ["a", "a", "b", "b"])
    assert got == {"text_variance": 7, "voice_variance": 2, "text_share": pytest.approx(7 / 9)}
    assert np.isnan(selection.text_and_voice([0, 2], ["a", "b"])["text_share"])


# ------------------------------------------------------------------------------------ the draw


def make_pool(sizes=(40, 40, 40), seconds=10.0, d=(1, 2, 3), **known) -> Pool:
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    return Pool.of(
        [f"s{i:04d}" for i in range(len(cluster))],
        cluster,
        np.full(len(cluster), seconds),
        len(sizes),
        d_cluster_K=d,
        **known,
    )


def test_the_draw_stops_at_the_first_text_that_reaches_110_percent():
    got = draw(make_pool(), "active", 2, budget_h=0.1, seed=0)  # 396 s of 10 s each
    assert len(got.rows) == 40 and got.seconds == 400 and got.wanted == pytest.approx(396) and not got.notes
    np.testing.assert_allclose(got.p_target_K, np.array([1, 4, 9]) / 14)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 9), st.floats(0.01, 0.6),
       st.sampled_from(["active", "uniform", "uniform_clusters", "sample_level"]))  # fmt: skip
def test_no_text_twice_none_dropped_and_a_larger_budget_only_goes_on(sizes, seed, budget, name):
    if not sum(sizes):
        return
    n, rng = sum(sizes), np.random.default_rng(seed)
    pool = make_pool(sizes, rng.uniform(1, 20, n), np.arange(1, len(sizes) + 1), d_N=rng.uniform(0.1, 3, n))
    dropped = [s for s in pool.sample_ids if rng.random() < 0.2]
    if len(dropped) == n:
        return
    small = draw(pool, name, 2, budget, seed, dropped)
    large = draw(pool, name, 2, 2 * budget, seed, dropped)
    assert len(set(large.rows)) == len(large.rows)
    assert not {pool.sample_ids[i] for i in large.rows} & set(dropped)
    assert large.rows[: len(small.rows)].tolist() == small.rows.tolist()
    assert (large.seconds >= large.wanted) != bool(large.notes)  # it says so when it ran dry
    if large.notes:
        assert len(large.rows) == n - len(dropped)
    else:
        assert pool.seconds_N[large.rows[:-1]].sum() < large.wanted


def test_clusters_are_drawn_in_proportion_to_the_target():
    got = draw(make_pool((9000, 9000, 9000)), "active", 2, budget_h=20, seed=3)
    share = np.bincount(got.rows // 9000) / len(got.rows)
    np.testing.assert_allclose(share, np.array([1, 4, 9]) / 14, atol=0.015)
    inside = got.rows[got.rows >= 18000] - 18000  # uniform within the cluster
    assert np.histogram(inside, 4, (0, 9000))[0] / len(inside) == pytest.approx(0.25, abs=0.02)


def test_a_dry_cluster_passes_its_mass_on_in_proportion():
    got = draw(make_pool((3000, 3000, 30), d=(1, 3, 900)), "active", 1, budget_h=3600 / 3960, seed=0)
    count = np.bincount(got.rows // 3000, minlength=3)
    assert count[2] == 30 and count.sum() == 360
    assert count[1] / (count[0] + count[1]) == pytest.approx(0.75, abs=0.06)


def test_dropping_a_text_leaves_the_order_of_the_others():
    pool = make_pool()
    before = draw(pool, "active", 2, 0.1, 5).rows.tolist()
    gone = before[3]
    after = draw(pool, "active", 2, 0.1, 5, [pool.sample_ids[gone]]).rows.tolist()
    assert [i for i in before if i // 40 != gone // 40] == [i for i in after if i // 40 != gone // 40]


def test_a_cluster_left_out_for_its_speech_is_never_drawn_from():
    for name in ("active", "uniform", "uniform_clusters", "sample_level"):
        pool = make_pool(open_K=[True, False, True], d_N=np.ones(120))
        got = draw(pool, name, 1, 1, 0)
        assert not (got.rows // 40 == 1).any() and got.p_target_K[1] == 0


def test_strategies():
    pool = make_pool(
        (10, 20, 70),
        d=(1, np.nan, 2),
        d_N=np.repeat([0.1, np.nan, 2], (10, 20, 70)),
        nll_N=np.repeat([1.0, 2.0, np.nan], (10, 20, 70)),
        domain_N=np.repeat(["stories", "biology", "x"], (10, 20, 70)),
    )
    share = {name: draw(pool, name, 1, 0.01, 0).p_target_K for name in selection.STRATEGIES}
    np.testing.assert_allclose(share["active"], [1 / 15, 0, 14 / 15])
    np.testing.assert_allclose(share["active_shrunk"], share["active"])  # no error is known
    np.testing.assert_allclose(share["uniform"], [0.1, 0.2, 0.7])
    np.testing.assert_allclose(share["uniform_clusters"], [1 / 3] * 3)
    np.testing.assert_allclose(share["teacher_nll"], [0.2, 0.8, 0])
    np.testing.assert_allclose(share["sample_level"], [0.5 / 70.5, 0, 70 / 70.5], atol=1e-9)
    np.testing.assert_allclose(share["oracle"], [0, 1, 0])
    assert "cluster 1" in draw(pool, "active", 1, 0.01, 0).notes[0]
    order = draw(pool, "sample_level", 1, 1, 0).rows  # unprobed texts come last
    assert set(order[-20:]) == set(range(10, 30))


def shortest(pool, gamma):
    return Texts(1 / pool.seconds_N)


def test_a_strategy_of_ones_own():
    assert len(draw(make_pool(), f"{__name__}:shortest", 0, 0.01, 0).rows) == 4
    with pytest.raises(SaladError, match="no strategy 'best'; there are active"):
        draw(make_pool(), "best", 0, 1, 0)
    with pytest.raises(SaladError, match="cannot be loaded"):
        draw(make_pool(), "nowhere.at:all", 0, 1, 0)
    with pytest.raises(SaladError, match="budget"):
        draw(make_pool(), "uniform", 0, 0, 0)


# ------------------------------------------------------------------------------------ clusters


def topics(n, k=24, d=48, seed=0):
    """Texts of k topics of very unequal mass."""
    means = np.random.default_rng(99).standard_normal((k, d))
    rng, mass = np.random.default_rng(seed), 1 / np.arange(1, k + 1)
    x = means[rng.choice(k, n, p=mass / mass.sum())] + 0.9 * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def load(labels, k):
    return np.bincount(labels, minlength=k).max() * k / len(labels)


def test_equal_mass_on_the_texts_and_on_new_ones_by_centroid_and_price_alone():
    x, new, k = topics(8_000), topics(8_000, seed=1), 8
    plain = BalancedKMeans(k, 0, largest=k, rounds=0, restarts=1).fit(x)
    assert load(plain.labels_, k) > 1.5  # or there is nothing to balance
    even = BalancedKMeans(k, 0, largest=1.0).fit(x)
    assert load(even.labels_, k) <= 1.01
    scores = new @ even.cluster_centers_.T - even.prices_
    assert (even.predict(new) == scores.argmax(1)).all() and load(even.predict(new), k) <= 1.15
    loose = BalancedKMeans(k, 0).fit(x)
    cosine = {m: (x * m.cluster_centers_[m.labels_]).sum(1).mean() for m in (plain, even, loose)}
    assert load(loose.labels_, k) <= 1.13 and cosine[even] < cosine[loose] <= cosine[plain] + 0.01
    np.testing.assert_allclose(np.linalg.norm(even.cluster_centers_, axis=1), 1, rtol=1e-5)
    assert even.prices_.min() == 0


def test_prices_give_the_optimal_transport_of_a_small_case():
    from scipy.optimize import linear_sum_assignment

    x, k = topics(80, d=12), 4
    model = BalancedKMeans(k, 0, largest=1.0, fit_per_cluster=20).fit(x)
    cosine = x @ model.cluster_centers_.T
    rows, seats = linear_sum_assignment(-np.repeat(cosine, 20, 1))
    best = cosine[rows, seats // 20].mean()
    own = cosine[np.arange(80), model.labels_].mean()
    assert np.bincount(model.labels_, minlength=k).max() <= 21 and own == pytest.approx(best, abs=2e-3)


def test_a_rerun_gives_the_same_bytes_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_selection import *;"
        "m = BalancedKMeans(8, 3).fit(topics(3000));"
        "print(__import__('hashlib').sha256(m.cluster_centers_.tobytes() + m.prices_.tobytes()).hexdigest())"
    )
    assert (
        len({subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=100).stdout for _ in range(2)})
        == 1
    )


@pytest.mark.parametrize("heights", [[5000], [1700, 3300], [600] * 8 + [200], [1] * 20 + [0, 4980]])
def test_rows_are_multiplied_in_the_same_blocks_however_they_were_divided(heights):
    x = topics(5000)
    cuts = np.cumsum([0, *heights])
    blocks = list(in_blocks((x[a:b] for a, b in zip(cuts, cuts[1:], strict=False)), 1024))
    assert [len(block) for block in blocks] == [1024] * 4 + [904]
    assert np.concatenate(blocks).tobytes() == x.tobytes()


def test_parquet_streams_to_the_same_clusters_as_an_array(tmp_path):
    x = topics(5000)
    ids = [f"s{i}" for i in range(len(x))]
    for part, rows in enumerate((slice(0, 1700), slice(1700, 5000))):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].ravel()), x.shape[1]).cast(pa.list_(pa.float32()))
        pq.write_table(pa.table({"sample_id": ids[rows], "vector": vectors}), tmp_path / f"{part}.parquet", row_group_size=600)
    of_array, of_parquet = (BalancedKMeans(8, 0, fit_per_cluster=100).fit(source) for source in (x, tmp_path))
    assert of_array.cluster_centers_.tobytes() == of_parquet.cluster_centers_.tobytes()
    assert of_array.prices_.tobytes() == of_parquet.prices_.tobytes()
    assert (of_parquet.predict(tmp_path) == of_array.labels_).all()
    rows_read = list(of_parquet.stream(tmp_path, ("sample_id",)))
    assert [s for other, _, _ in rows_read for s in other.column("sample_id").to_pylist()] == ids
    distance = np.concatenate([d for _, _, d in rows_read])
    np.testing.assert_allclose(distance, 1 - (x * of_array.cluster_centers_[of_array.labels_]).sum(1), atol=1e-5)


def test_manners_of_scikit_learn_and_clear_refusals(tmp_path):
    from sklearn.base import clone

    model = BalancedKMeans(4, seed=2, largest=1.05)
    assert clone(model).get_params() == model.get_params() and model.set_params(n_clusters=5).n_clusters == 5
    x = topics(300)
    assert (model.fit_predict(x) == model.labels_).all() and model.transform(x).shape == (300, 5)
    with pytest.raises(SaladError, match="3 documents are fewer than 5 clusters"):
        model.fit(x[:3])
    bad = x.copy()
    bad[7] = 0
    with pytest.raises(SaladError, match="row 7 is zero or not finite"):
        model.fit(bad)
    with pytest.raises(SaladError, match="48 dimensions|12 dimensions"):
        model.predict(x[:, :12])
    with pytest.raises(SaladError, match="fit first"):
        BalancedKMeans(3).predict(x)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SaladError, match="no column 'vector'; it has a"):
        model.fit([tmp_path / "a.parquet"] * 5)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SaladError, match="cannot be read as Parquet"):
        model.fit(tmp_path)


def test_terms_are_about_the_matter_and_not_how_people_talk():
    from salad.selection.clusters import terms, words_of

    talk = "Uh, well, he said we've got to go, I don't know, you'll see, she says, yeah."
    texts = [f"{talk} The otter's river is deep.", f"{talk} Otters fish in rivers.", f"{talk} Mr. O'Brien baked bread."]
    result = terms(texts, np.array([0, 0, 1]), 2)
    assert {"otter", "river"} <= set(result[0]) | {w.removesuffix("s") for w in result[0]}
    assert {"brien", "baked", "bread"} <= set(result[1])
    talked = {"uh", "well", "said", "ve", "got", "don", "ll", "says", "yeah", "mr"}
    assert not talked & {word for cluster in result for word in cluster}
    assert words_of("We\u2019ve 2 don't I'll x Größe O'Brien's 'ere rock'n'roll") == ["größe", "brien", "ere", "rock'n'roll"]


def test_terms_tell_the_clusters_apart():
    result = selection.terms(
        ["the cell grows, and cells divide in 12 days", "the cell wall", "the song of the river", "a song", "42"],
        np.array([0, 0, 1, 1, 2]),
        4,
        3,
    )
    assert result[0][0] == "cell" and result[1][0] == "song" and result[2:] == [[], []]
    assert "cells" not in result[0] and "the" not in sum(result, [])
    assert selection.terms(["the", "12"], np.array([0, 1]), 2) == [[], []]


# ------------------------------------------------------------------------------------ in a lab

RUN, STEP, CLUSTERING = "r00000000000a", 30, "c00000000000a"


@pytest.fixture
def lab(tmp_path):
    """Three clusters of 60 texts of 100 characters: 0.1 s a character, d 1, 2, 3, and a fourth that nobody probed."""
    samples = [{"sample_id": f"s{k}{i:011d}", "text": f"{k} {i:03d} ".ljust(100, "x"), "corpus": "broad",
                "domain": "abcd"[k], "flags": ["odd"] if i == 59 else []}
               for k in range(4) for i in range(60)]  # fmt: skip
    store.publish(tmp_path, "samples", samples, {"test": 1})
    cluster = {s["sample_id"]: int(s["sample_id"][1]) for s in samples}
    store.publish(
        tmp_path,
        "clusters",
        [
            {"clustering_id": CLUSTERING, "cluster_id": k, "size": 60, "p_web": 0.25, "terms": ["word" + "abcd"[k]]}
            for k in range(4)
        ],
        {"test": 1},
    )
    store.publish(
        tmp_path,
        "assignments",
        [{"clustering_id": CLUSTERING, "sample_id": s, "cluster_id": k} for s, k in cluster.items()],
        {"test": 1},
    )
    probe = [s for s, k in cluster.items() if k < 3 and int(s[2:]) < 4]
    spoken = [{"synthesis_id": f"y{s[1:]}{v}", "sample_id": s, "tts": "espeak", "voice": "ab"[v], "duration_s": 10.0,
               "seed": v, "speech": "probe", "cer": 0.6 if cluster[s] == 2 else 0.1}
              for s in probe for v in (0, 1)]  # fmt: skip
    store.publish(tmp_path, "syntheses", spoken, {"test": 1})
    store.publish(tmp_path, "divergences", [
        {"run_id": RUN, "step": STEP, "sample_id": y["sample_id"], "synthesis_id": y["synthesis_id"], "pattern": p,
         "m": 0.1, "f": 0.1, "d": cluster[y["sample_id"]] + 1 + (0.5 if p else -0.5), "n_positions": 10,
         "n_positions_f": 12}
        for y in spoken for p in (0, 1)], {"test": 1})  # fmt: skip
    return tmp_path


def chosen(lab, name, what="sample_id"):
    return [
        r[0]
        for r in store.connect(lab)
        .execute(f"SELECT {what} FROM selected WHERE selection_id = ? ORDER BY draw", [name])
        .fetchall()
    ]


def speak(lab, texts, seconds=10.0):
    """As the synthesis pass does it, without the sound."""
    store.publish(
        lab,
        "syntheses",
        [
            {
                "synthesis_id": f"y9{s[1:]}",
                "sample_id": s,
                "tts": "espeak",
                "voice": "a",
                "seed": 7,
                "duration_s": seconds,
                "speech": "sel",
            }
            for s, _ in texts
        ],
        {"spoken": [s for s, _ in texts]},
    )


def drop(lab, name, **what):
    target = {"sample_id": "sample", "cluster_id": "cluster", "rule": "rule"}[next(iter(what))]
    return store.append(lab, "decisions", selection_id=name, target=target, verdict="drop", reviewer="me", **what)


def select(lab, **options):
    return selection.select(lab, CLUSTERING, RUN, STEP, **{"gamma": 2.0, "budget_h": 0.1, **options})


def test_d_cluster_from_a_lab_names_who_was_not_probed(lab, caplog):
    table = selection.cluster_divergence(lab, CLUSTERING, RUN, STEP)
    np.testing.assert_allclose(table.d, [1, 2, 3, np.nan])
    assert table.n_texts.tolist() == [4, 4, 4, 0] and table.n_positions.tolist() == [160, 160, 160, 0]
    assert "without a probe position: 3" in caplog.text
    with pytest.raises(SaladError, match="has scored no text"):
        selection.cluster_divergence(lab, CLUSTERING, RUN, 1)
    with pytest.raises(SaladError, match="no clustering c1"):
        selection.cluster_divergence(lab, "c1", RUN, STEP)


def test_both_rankings_stand_side_by_side(lab):
    rng, rows = np.random.default_rng(0), []
    for k in range(3):  # cluster 1 is as easy as cluster 0, but badly spoken; two voices for every text
        for i in range(20):
            for v in (0, 1):
                s, y = f"s{k}{i:011d}", f"yy{k}{i:04d}{v}"
                cer = rng.uniform(0.4, 0.8) if k == 1 else rng.uniform(0, 0.2)
                rows.append(
                    {
                        "synthesis_id": y,
                        "sample_id": s,
                        "cer": cer,
                        "duration_s": rng.uniform(8, 12),
                        "tts": "t",
                        "speech": "again",
                        "d": (0.5, 0.5, 1.0)[k] + 2 * cer,
                    }
                )
    store.publish(lab, "syntheses", [{k: v for k, v in r.items() if k != "d"} for r in rows], {"test": 2})
    store.publish(
        lab,
        "divergences",
        [
            {
                "run_id": RUN,
                "step": 99,
                "sample_id": r["sample_id"],
                "synthesis_id": r["synthesis_id"],
                "pattern": 0,
                "d": r["d"],
                "n_positions": 10,
            }
            for r in rows
        ],
        {"test": 2},
    )
    table = selection.cluster_rankings(lab, CLUSTERING, RUN, 99, "again")
    assert table["rank"].tolist()[:3] == [3, 1, 2] and table.rank_adjusted[2] == 1
    assert table.attrs["slopes"]["cer"] == pytest.approx(2, abs=0.01)
    assert (table.text_share[:3] < 0.6).all()  # the voices differ, the texts do not


def test_select_publishes_why_each_text_is_there_and_repeats(lab):
    name = select(lab)
    assert select(lab) == name and select(lab, seed=1) != name
    con = store.connect(lab)
    assert con.execute(
        "SELECT clustering_id, run_id, step, strategy, gamma, budget_h, seed FROM selections WHERE selection_id = ?",
        [name],
    ).fetchone() == (CLUSTERING, RUN, STEP, "active", 2.0, 0.1, 0)
    assert chosen(lab, name, "draw") == list(range(40)) and set(chosen(lab, name, "estimated_s")) == {10.0}
    why = con.execute(
        "SELECT DISTINCT cluster_id, p_web, p_target, d_cluster FROM selected WHERE selection_id = ? ORDER BY 1", [name]
    )
    for k, p_web, p_target, d in why.fetchall():
        assert (p_web, d) == (0.25, k + 1) and p_target == pytest.approx((k + 1) ** 2 / 14)
    result = selection.select_with_notes(lab, CLUSTERING, RUN, STEP, budget_h=0.05, max_cer=0.5)
    assert result.notes[0].startswith("left out for a CER above 0.5: cluster 2 (0.60: wordc; ") and "cluster 3" in result.notes[1]
    assert set(chosen(lab, result.selection_id, "cluster_id")) == {0, 1}


def test_freeze_takes_the_kept_and_spoken_in_draw_order_up_to_the_budget(lab, caplog):
    name = select(lab)
    order = chosen(lab, name)
    with pytest.raises(SaladError, match="no selection l0"):
        selection.freeze(lab, "l0")
    speak(lab, selection.to_synthesise(lab, name))
    drop(lab, name, sample_id=order[1])
    child = selection.freeze(lab, name)
    wanted = [order[0], *order[2:37]]  # 36 texts of 10 s are 0.1 h
    assert chosen(lab, child) == wanted and child == store.ids.hash_id("l", name, sorted(wanted))
    assert not [r for r in caplog.records if "short" in r.message]
    assert selection.freeze(lab, name) == child == selection.freeze(lab, child) == selection.frozen(lab, child)
    drop(lab, name, rule="cluster_id = 2")  # changes no run, but the next launch
    assert chosen(lab, child) == wanted and selection.frozen(lab, child) == child
    caplog.clear()
    other = selection.frozen(lab, name)
    assert other != child and not set(chosen(lab, other, "cluster_id")) & {2}
    assert "short of its budget" in caplog.text and "refill" in caplog.text


def test_synthesis_draws_on_where_drops_leave_less_than_the_budget(lab):
    name = select(lab)
    order = chosen(lab, name)
    drop(lab, name, sample_id=order[0])
    assert [s for s, _ in selection.to_synthesise(lab, name)] == order[1:]  # the overshoot is enough
    for s in order[1:8]:
        drop(lab, name, sample_id=s)
    again = [s for s, _ in selection.to_synthesise(lab, name)]
    assert again[:32] == order[8:] and len(again) == 40 and not set(again[32:]) & set(order)
    assert chosen(lab, name) == order + again[32:] and [s for s, _ in selection.to_synthesise(lab, name)] == again


def test_refill_replaces_from_the_same_clusters_and_rules_hold(lab):
    name = select(lab, strategy="uniform_clusters")
    order, where = chosen(lab, name), chosen(lab, name, "cluster_id")
    assert selection.refill(lab, name) == name
    gone = [s for s, k in zip(order, where, strict=True) if k in (1, 3)][:9]
    for s in gone:
        drop(lab, name, sample_id=s)
    # texts 20 to 59 by rule: those in the selection go, and none comes back
    drop(lab, name, rule="regexp_extract(text, '^. (\\d+)', 1)::INT >= 20 AND cluster_id <> 0")
    undone = drop(lab, name, cluster_id=0)
    store.append(lab, "decisions", verdict="undo", undoes=undone["event_id"], selection_id=name)
    con = store.connect(lab)
    kept = [r[0] for r in con.execute("SELECT sample_id FROM kept WHERE selection_id = ? ORDER BY draw", [name]).fetchall()]
    child = selection.refill(lab, name)
    assert selection.refill(lab, name) == child
    got, clusters = chosen(lab, child), chosen(lab, child, "cluster_id")
    new = got[len(kept) :]
    assert got[: len(kept)] == kept and not set(new) & set(order) and len(got) == len(order)
    assert all(int(s[2:]) < 20 for s, k in zip(got, clusters, strict=True) if k)
    assert con.execute("SELECT parent_selection_id FROM selections WHERE selection_id = ?", [child]).fetchone() is None  # before
    store.refresh(con)
    assert con.execute("SELECT count(*) FROM kept WHERE selection_id = ?", [child]).fetchone() == (len(got),)
    # same clusters as long as they last: at most 20 texts of clusters 1 to 3 pass the rule
    lost = np.bincount([k for s, k in zip(order, where, strict=True) if s not in kept], minlength=4)
    for k in range(1, 4):
        room = 20 - sum(1 for s, c in zip(order, where, strict=True) if c == k and int(s[2:]) < 20)
        assert sum(1 for s in new if int(s[1]) == k) >= min(lost[k], room)


def test_a_cluster_dropped_whole_is_not_refilled_from(lab):
    name = select(lab, strategy="uniform")
    drop(lab, name, cluster_id=1)
    child = selection.refill(lab, name)
    assert 1 not in chosen(lab, child, "cluster_id") and len(chosen(lab, child)) == len(chosen(lab, name))


def test_rounds_go_on_from_what_is_spoken_with_new_divergences(lab):
    first = select(lab, strategy="active_rounds", budget_h=0.05)
    speak(lab, selection.to_synthesise(lab, first))
    child = selection.freeze(lab, first)
    con = store.connect(lab)
    rows = con.sql("SELECT * REPLACE (31 AS step, CASE WHEN sample_id < 's1' THEN 9.0 ELSE 0.01 END AS d) FROM raw.divergences")
    store.publish(lab, "divergences", rows.to_arrow_table(), {"step": 31})
    second = selection.select(lab, CLUSTERING, RUN, 31, "active_rounds", 2.0, 0.1, parent=child, speech="probe")
    got = chosen(lab, second)
    assert got[:18] == chosen(lab, child) and len(set(got)) == len(got) == 18 + 20  # 1.1 · (360 - 180) s
    assert set(chosen(lab, second, "cluster_id")[18:]) == {0}
    with pytest.raises(SaladError, match="needs a budget above"):
        selection.select(lab, CLUSTERING, RUN, 31, "active_rounds", 2.0, 0.04, parent=child)


def test_a_round_draws_no_text_of_the_probe_and_what_a_rule_drops_stays_out_of_the_next(lab):
    probe = {s for (s,) in store.connect(lab).execute("SELECT DISTINCT sample_id FROM raw.divergences").fetchall()}
    assert set(chosen(lab, select(lab, budget_h=0.5))) & probe  # a single draw may take them
    first = select(lab, strategy="active_rounds", budget_h=0.05, number=1)
    drop(lab, first, rule="regexp_extract(text, '^. (\\d+)', 1)::INT >= 30")
    speak(lab, selection.to_synthesise(lab, first))
    child = selection.freeze(lab, first)
    second = select(lab, strategy="active_rounds", budget_h=0.2, parent=child, number=2)
    got = chosen(lab, second)
    assert not set(got) & probe and all(int(s[2:]) < 30 for s in got) and len(got) > 40
    con = store.connect(lab)
    assert con.execute("SELECT round FROM selections ORDER BY round").fetchall() == [(1,), (1,), (2,), (None,)]
    why = con.execute("SELECT sample_id, drawn_in, strategy, round, rank, p_target FROM why_selected(?)", [second]).fetchall()
    carried = chosen(lab, child)
    assert [w[0] for w in why] == got and {w[1] for w in why} == {first, second}
    assert all((w[1] == first) == (w[0] in carried) == (w[3] == 1) for w in why)  # what the budget cut off came anew
    assert all(w[4] == 3 - int(w[0][1]) and w[5] == pytest.approx((int(w[0][1]) + 1) ** 2 / 14) for w in why)


def test_what_a_draw_saw_in_each_cluster_is_in_the_store(lab):
    name = select(lab, budget_h=0.4, max_cer=0.5)  # 158 texts of the 120 in clusters 0 and 1
    rows = store.connect(lab).execute(
        """SELECT cluster_id, p_target, left_out, texts, seconds, dry, cer, rank, rank_adjusted, text_share
           FROM selection_clusters WHERE selection_id = ? ORDER BY 1""", [name]).fetchall()  # fmt: skip
    assert [r[2] for r in rows] == [None, None, "CER", "no probe"]
    assert [r[3] for r in rows] == [60, 60, 0, 0] and [r[4] for r in rows] == [600, 600, 0, 0]
    assert [r[5] for r in rows] == [True, True, False, False]
    assert [r[6] for r in rows] == [pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.6), None]
    assert [r[7] for r in rows] == [3, 2, 1, None] and rows[0][1] + rows[1][1] == pytest.approx(1)


def test_a_draw_keeps_how_sure_its_shares_are(lab):
    fields = {}
    for strategy in ("active", "active_shrunk", "uniform"):
        name = select(lab, strategy=strategy)
        fields[strategy] = store.connect(lab).execute(
            """SELECT p_target, p_target_low, p_target_high, d_se FROM selection_clusters WHERE selection_id = ?
               ORDER BY cluster_id""", [name]).fetchall()  # fmt: skip
    assert all(low <= p + 1e-12 and p <= high + 1e-12 for p, low, high, _ in fields["active"][:3])
    assert all(row[1:3] == (None, None) for row in fields["uniform"]) and fields["active"][3][1:] == (0, 0, None)
    assert all(se is not None for *_, se in fields["active"][:3])
    child = selection.refill(lab, select(lab, strategy="active_shrunk"))
    assert chosen(lab, child)


def test_a_refill_keeps_out_the_clusters_that_its_draw_left_out(lab):
    name = select(lab, budget_h=0.05, max_cer=0.5)
    for s in chosen(lab, name):
        drop(lab, name, sample_id=s)
    child = selection.refill(lab, name)
    assert set(chosen(lab, child, "cluster_id")) <= {0, 1}
    drop(lab, child, cluster_id=1)
    assert set(chosen(lab, selection.refill(lab, child), "cluster_id")) == {0}


def test_rounds_have_the_hours_and_the_steps_of_the_single_shot():
    stage2 = recipes.miniature_stage2()
    for n in (1, 2, 3, 4):
        parts = selection.rounds(stage2, 2.4, n)
        assert [p.number for p in parts] == list(range(1, n + 1)) and parts[-1].budget_h == 2.4
        assert sum(p.run.optim.steps for p in parts) == stage2.optim.steps
        np.testing.assert_allclose(np.diff([0, *(p.budget_h for p in parts)]), 2.4 / n)
        assert [p.run.optim.decay for p in parts] == [0] * (n - 1) + [stage2.optim.decay]
        assert all(p.run.optim.steps >= p.run.optim.warmup + p.run.optim.decay for p in parts)
        # what a child goes on from is its parent's end
        assert all(decay_start(p.run) == p.run.optim.steps for p in parts[:-1])
    assert selection.rounds(stage2, 2.4, 1)[0].run == stage2
    with pytest.raises(SaladError, match="lower optim.decay"):
        selection.rounds(stage2, 2.4, 20)


def with_arms(*arms: str):
    return recipes.miniature().model_copy(update={"arms": arms})


def test_a_study_names_its_arms():
    config = with_arms("active@gamma=5", "active_rounds@rounds=4,gamma=1", "uniform", f"{__name__}:shortest")
    arms = [config.arm(spec) for spec in config.arms]
    assert [a.name for a in arms] == ["active_gamma5", "active_rounds_rounds4_gamma1", "uniform", "shortest"]
    assert [(a.gamma, a.rounds) for a in arms] == [(5, 1), (1, 4), (0, 1), (2, 1)]
    with pytest.raises(SaladError, match="'k=3' is neither gamma"):
        config.arm("active@k=3")
    with pytest.raises(SaladError, match="no strategy 'best'"):
        plan("lab", with_arms("best"))
    with pytest.raises(SaladError, match="a name of its own"):
        plan("lab", with_arms("active", "active"))
    steps = {s.name: s for s in plan("lab", config)}
    assert steps["synthesis_active_rounds_rounds4_gamma1_2"].after[-1] == "draw_active_rounds_rounds4_gamma1_2"
    assert steps["results_uniform"].after == ("stage2_uniform", "spoken")
    assert {a for s in steps.values() for a in s.after} <= set(steps)


@pytest.mark.parametrize(("options", "message"), [
    ({"gamma": float("nan")}, "gamma is nan"), ({"gamma": float("inf")}, "gamma is inf"), ({"gamma": -1.0}, "gamma is -1"),
    ({"strategy": "uniform", "gamma": float("nan")}, "gamma is nan"), ({"budget_h": float("nan")}, "budget is nan h"),
    ({"budget_h": float("inf")}, "budget is inf h"), ({"budget_h": 0.0}, "budget is 0.0 h"),
    ({"max_cer": float("nan")}, "max_cer is nan"), ({"max_cer": -0.1}, "max_cer is -0.1"),
])  # fmt: skip
def test_a_number_that_compares_with_nothing_is_refused_before_anything_is_published(lab, options, message):
    with pytest.raises(SaladError, match=message):
        select(lab, **options)
    assert store.connect(lab).execute("SELECT count(*) FROM selections").fetchone() == (0,)


@pytest.mark.parametrize("speech", [None, "probe"])
def test_a_selection_that_was_reviewed_is_not_drawn_anew_when_its_texts_are_spoken(lab, speech):
    name = select(lab, budget_h=0.3, speech=speech)
    order, rows = chosen(lab, name), chosen(lab, name, "estimated_s")
    drop(lab, name, sample_id=order[3])
    speak(lab, [(s, "") for s in order], seconds=31.0)  # three times as slow as the probe
    result = selection.select_with_notes(lab, CLUSTERING, RUN, STEP, gamma=2.0, budget_h=0.3, speech=speech)
    assert result.selection_id == name and "stays as it is" in result.notes[0]
    assert result.hours == pytest.approx(sum(rows) / 3600)
    assert chosen(lab, name) == order and chosen(lab, name, "estimated_s") == rows
    other = select(lab, budget_h=0.31, speech=speech)  # and what is drawn later rests on the probe alone, too
    assert chosen(lab, other)[: len(order)] == order and chosen(lab, other, "estimated_s")[0] == rows[0]


def test_a_refill_that_was_reviewed_is_not_drawn_anew(lab):
    name = select(lab, strategy="uniform")
    drop(lab, name, cluster_id=1)
    child = selection.refill(lab, name)
    order = chosen(lab, child)
    drop(lab, child, cluster_id=0)
    speak(lab, [(s, "") for s in order], seconds=31.0)
    assert selection.refill(lab, name) == child and chosen(lab, child) == order


def test_a_bound_on_the_cer_leaves_out_what_has_none(lab):
    rows = store.connect(lab).sql("SELECT * REPLACE (NULL AS cer) FROM syntheses").to_arrow_table().to_pylist()
    store.publish(lab, "syntheses", [r for r in rows if r["sample_id"] > "s1"], {"test": 2})
    store.publish(lab, "syntheses", [r | {"cer": 0.1} for r in rows if r["sample_id"] < "s1"], {"test": 1})
    result = selection.select_with_notes(lab, CLUSTERING, RUN, STEP, "active", 2.0, 0.05, max_cer=0.5)
    assert set(chosen(lab, result.selection_id, "cluster_id")) == {0}
    assert any("no recording of them has a CER: cluster 1, 2" in note for note in result.notes)
    why = store.connect(lab).execute("SELECT left_out FROM selection_clusters ORDER BY cluster_id").fetchall()
    assert why == [(None,), ("CER unknown",), ("CER unknown",), ("no probe",)]
    store.publish(lab, "syntheses", [r for r in rows if r["sample_id"] < "s1"], {"test": 1})
    with pytest.raises(SaladError, match="no recording of the probe has a CER; check them first"):
        select(lab, max_cer=0.5)
    assert chosen(lab, select(lab))  # without a bound nothing is asked


def test_texts_that_might_be_drawn_are_decided_as_those_that_are(lab):
    """The same rule for both: whatever is decided on a selection, `dropped` says of every text beforehand what
    current_decisions says once all of them are drawn."""
    from store.rules import dropped

    rng, first = np.random.default_rng(5), select(lab, strategy="uniform_clusters", budget_h=0.2)
    con = store.connect(lab)
    everything = con.execute("SELECT sample_id, cluster_id FROM assignments ORDER BY 1").fetchall()
    child = {"clustering_id": CLUSTERING, "run_id": RUN, "step": STEP}
    store.publish(lab, "selections", [{"selection_id": "l1", "parent_selection_id": first, **child}], {"l": 1})
    store.publish(lab, "selected", [
        {"selection_id": "l1", "sample_id": s, "cluster_id": k, "draw": n, "p_web": 0.25, "d_cluster": float(k),
         "estimated_s": 10.0} for n, (s, k) in enumerate(everything)], {"l": 1})  # fmt: skip
    candidates = pa.table({
        "selection_id": [first] * len(everything), "sample_id": [s for s, _ in everything],
        "cluster_id": pa.array([k for _, k in everything], pa.int32()), "p_web": [0.25] * len(everything),
        "d_cluster": [float(k) for _, k in everything], "estimated_s": [10.0] * len(everything),
        **{name: [value] * len(everything) for name, value in child.items()},
    })  # fmt: skip
    rules = ["d > 2", "domain = 'b'", "text LIKE '% 01%'", "cer > 0.3", "d_cluster >= 2", "'odd' IN flags", "no_column > 1"]
    messages = []
    for _ in range(60):
        what = rng.choice(["sample", "rule", "cluster", "undo"], p=[0.5, 0.2, 0.2, 0.1])
        about = {
            "sample": {"sample_id": everything[rng.integers(len(everything))][0]},
            "rule": {"rule": str(rng.choice(rules))},
            "cluster": {"cluster_id": int(rng.integers(4))},
        }.get(what)
        fields = {"selection_id": first, "reviewer": str(rng.choice(["a", "b"]))}
        if what == "undo":
            if messages:
                store.append(lab, "decisions", verdict="undo", undoes=messages[rng.integers(len(messages))], **fields)
            continue
        verdict = str(rng.choice(["drop", "keep"]))
        with contextlib.suppress(store.StoreError):  # the rule about no column
            messages.append(store.append(lab, "decisions", target=what, verdict=verdict, **about, **fields)["event_id"])
    store.refresh(con)
    drawn = con.execute(
        "SELECT DISTINCT sample_id FROM current_decisions WHERE selection_id = 'l1' AND verdict = 'drop' ORDER BY 1"
    ).fetchall()
    # of single texts the view speaks where they are drawn: what is said of others holds for the selection it was said of
    assert 0 < len(drawn) < len(everything) and dropped(con, candidates) == [s for (s,) in drawn]


def test_a_verdict_on_a_cluster_of_one_clustering_says_nothing_of_another(lab):
    rows = store.connect(lab).sql("FROM assignments").to_arrow_table().to_pylist()
    other = [row | {"clustering_id": "c2", "cluster_id": 3 - row["cluster_id"]} for row in rows]
    store.publish(lab, "assignments", other, {"other": 1})
    store.publish(
        lab,
        "clusters",
        [{"clustering_id": "c2", "cluster_id": k, "size": 60, "p_web": 0.25, "terms": ["x"]} for k in range(4)],
        {"other": 1},
    )
    first = select(lab, strategy="uniform_clusters", budget_h=0.02)
    drop(lab, first, cluster_id=1)  # domain b: cluster 2 of the other clustering
    speak(lab, selection.to_synthesise(lab, first))
    child = selection.freeze(lab, first)
    second = selection.select(lab, "c2", RUN, STEP, "uniform_clusters", 2.0, 0.3, parent=child)
    con = store.connect(lab)
    new = con.execute(
        "SELECT cluster_id, count(*) FROM selected WHERE selection_id = ? AND draw >= ? GROUP BY 1 ORDER BY 1",
        [second, len(chosen(lab, child))],
    ).fetchall()
    assert [k for k, _ in new] == [0, 1, 2, 3]
    assert con.execute(
        "SELECT count(*) FROM current_decisions WHERE selection_id = ? AND target = 'cluster' AND verdict = 'drop'", [second]
    ).fetchone() == (0,)


def test_what_a_draw_left_out_is_logged(lab, caplog):
    with caplog.at_level(logging.WARNING, "salad.selection"):
        select(lab, budget_h=5)
    assert "ran dry" in caplog.text and "nothing drawn from cluster 3" in caplog.text


# ------------------------------------------------------------------------------------ whose speech


def said(lab, texts, folder, voices, seed=0, tts="espeak", seconds=10.0, **told):
    """Texts spoken into a folder, each in its voice of `voices`, without the sound."""
    rows = [
        {"sample_id": s, "tts": tts, "voice": v, "seed": seed, "duration_s": seconds, "speech": folder, **told,
         "synthesis_id": store.ids.synthesis_id(s, tts, v, seed)}
        for s, v in ((s, voice_of(s, voices, seed)) for s in texts)
    ]  # fmt: skip
    store.publish(lab, "syntheses", rows, {"said": folder})
    return rows


def heard_by(lab, name):
    """What training hears of a selection: text, tts, voice, seed in draw order."""
    return store.connect(lab).execute(
        """SELECT l.sample_id, y.tts, y.voice, y.seed FROM selected l JOIN syntheses y ON y.synthesis_id = l.own_synthesis_id
        WHERE selection_id = ? ORDER BY draw""", [name]).fetchall()  # fmt: skip


@pytest.mark.parametrize("noted", [True, False])
def test_a_frozen_selection_is_heard_as_it_was_spoken_and_not_as_its_texts_were_elsewhere(lab, noted):
    name = select(lab, strategy="uniform_clusters", budget_h=0.1)
    texts = chosen(lab, name)
    said(lab, texts[::2], "another-arm", ("a",))
    said(lab, texts, f"{name}-123456", ("f3",))
    if noted:
        note(lab, f"{name}-123456", name, Voicing("espeak", ("f3",), 0))
    child = selection.freeze(lab, name)
    got = heard_by(lab, child)
    assert len(got) == 36 and {row[1:] for row in got} == {("espeak", "f3", 0)}
    assert selection.is_frozen(store.connect(lab), child) and selection.freeze(lab, name) == child
    assert selection.freeze(lab, child) == selection.frozen(lab, child) == child
    spoken = store.connect(lab).execute(f"SELECT synthesis_id {corpora_tail(child)}").fetchall()
    assert len(spoken) == 36 and {row for row in spoken} == {(store.ids.synthesis_id(s, "espeak", "f3", 0),) for s, *_ in got}


def corpora_tail(name):
    from salad.data import corpora

    return "FROM (SELECT y.*, draw FROM syntheses y " + corpora._OF_SELECTION.replace("?", f"'{name}'") + ")"


def test_two_arms_with_one_text_in_two_voices_each_hear_their_own(lab):
    arms = {voice: select(lab, strategy="uniform", budget_h=0.3, seed=seed) for seed, voice in enumerate(("f3", "m1"))}
    assert len(set(chosen(lab, arms["f3"])) & set(chosen(lab, arms["m1"]))) > 3
    for voice, name in arms.items():
        said(lab, chosen(lab, name), name, (voice,), seconds=10.0 if voice == "f3" else 7.0)
    for voice, name in arms.items():
        assert {row[2] for row in heard_by(lab, selection.freeze(lab, name))} == {voice}
        # and hours are of the arm's own speech, not of whoever spoke the text first
        kept = (
            store.connect(lab)
            .execute("SELECT sum(seconds) FROM selected_speech WHERE selection_id = ?", [selection.freeze(lab, name)])
            .fetchone()[0]
        )
        assert kept % (10 if voice == "f3" else 7) == 0


def test_of_several_voices_each_text_has_the_one_that_it_was_given(lab):
    name = select(lab, strategy="uniform", budget_h=0.1)
    texts, voices = chosen(lab, name), ("b", "a", "c")
    for voice in voices:
        said(lab, texts, f"probe-{voice}", (voice,))  # all of them in all voices, and nothing anew for the selection
    note(lab, name, name, Voicing("espeak", voices, 0))
    got = heard_by(lab, selection.freeze(lab, name))
    assert got and all(voice == voice_of(s, voices, 0) for s, _, voice, _ in got) and len({v for *_, v, _ in got}) == 3


def test_another_speech_of_the_same_texts_is_another_frozen_selection(lab, caplog):
    name = select(lab, strategy="uniform", budget_h=0.1)
    texts = chosen(lab, name)
    said(lab, texts, f"{name}-1", ("a",), seed=-1)
    first = selection.freeze(lab, name)
    assert first == store.ids.hash_id("l", name, sorted(chosen(lab, first)))  # METHOD.md's own
    said(lab, texts, f"{name}-2", ("f3",), seed=6, seconds=10.5)
    with caplog.at_level(logging.WARNING, "salad.selection"):
        second = selection.freeze(lab, name)
    assert "spoken in 2 ways; its speech is that of espeak in f3, seed 6" in caplog.text
    assert second != first and {row[2:] for row in heard_by(lab, second)} == {("f3", 6)}
    assert {row[2:] for row in heard_by(lab, first)} == {("a", -1)}  # a run may stand on it
    con = store.connect(lab)
    assert selection.is_frozen(con, first) and selection.is_frozen(con, second)


def test_a_refilled_selection_has_the_speech_of_the_one_it_came_from_until_it_has_its_own(lab):
    name = select(lab, strategy="uniform", budget_h=0.1)
    texts = chosen(lab, name)
    said(lab, texts, "elsewhere", ("a",), seed=0)
    said(lab, texts, name, ("f3",), seed=1)
    drop(lab, name, sample_id=texts[0])
    child = selection.refill(lab, name)
    assert {row[2] for row in heard_by(lab, selection.freeze(lab, child))} == {"f3"}
    said(lab, chosen(lab, child), child, ("m1",), seed=2)
    got = heard_by(lab, selection.freeze(lab, child))
    assert {row[2] for row in got} == {"m1"} and len(got) == 36


def test_a_frozen_selection_that_a_run_stands_on_keeps_its_budget(lab):
    name = select(lab, strategy="uniform", budget_h=0.02)
    said(lab, chosen(lab, name), name, ("a",), seed=3)
    short = selection.freeze(lab, name, budget_h=5.0)
    assert selection.freeze(lab, name, budget_h=7.0) == short
    assert store.connect(lab).execute("SELECT budget_h FROM selections WHERE selection_id = ?", [short]).fetchone() == (5.0,)
