"""The statistics agree with torch-fidelity's, with themselves when merged in any order, and with repeated sampling."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import raises, recorded
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from taugrid.eval.metrics import kernel as kernel_module
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION, Frechet, frechet_distance
from taugrid.eval.metrics.kernel import UNIT_GAUSSIAN, Term, cubic, discrepancy, kernel_distance, kid_limits
from taugrid.eval.metrics.logits import InceptionSums, inception_splits
from taugrid.eval.metrics.reference_statistics import of_features
from taugrid.eval.metrics.score import score
from taugrid.eval.metrics.statistics import (
    ROWS_AT_ONCE,
    Array,
    Moments,
    runs,
    standard_error,
    symmetric_root,
    too_few_carry,
)
from taugrid.registry.metrics import Limits, MetricSettings, Sizes

pytestmark = pytest.mark.usefixtures("one_thread")


def correlated(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    """Features whose scales range over two orders of magnitude, each direction mixed into all."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(99).standard_normal((d, d)))[0] * np.geomspace(3, 0.03, d)
    return rng.standard_normal((n, d)) @ mixing.T + shift + 2.0


def torch_fidelity_fid(a: Array, b: Array) -> float:
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


# Moments


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 6), st.randoms(), st.integers(0, 2**32 - 1))
def test_moments_merge_in_any_order_to_those_of_the_whole(sizes, d, random, seed):
    features = np.random.default_rng(seed).standard_normal((sum(sizes), d)) * 3 + 50
    parts = [Moments.of(part) for part in np.split(features, np.cumsum(sizes)[:-1])]
    random.shuffle(parts)
    found, whole = reduce(Moments.merge, parts), Moments.of(features)
    assert found.n == whole.n
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-10)
    np.testing.assert_allclose(found.scatter, whole.scatter, rtol=1e-10, atol=1e-10 * np.abs(whole.scatter).max())


def test_moments_of_float32_are_accumulated_in_float64():
    # A float32 mean of 100,000 values near 1000 is off by far more than 1e-9 of it.
    features = np.random.default_rng(0).standard_normal((100_000, 2)).astype(np.float32) + np.float32(1000)
    np.testing.assert_allclose(Moments.of(features).mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)


def test_moments_refuse_what_has_none():
    with raises(ValueError):
        Moments.of(np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match="non-empty"):
        Moments.of(np.empty((0, 4)))
    with pytest.raises(ValueError, match="at least 2"):
        _ = Moments.of(np.ones((1, 4))).covariance
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        Moments.of(np.ones((2, 3))).merge(Moments.of(np.ones((2, 4))))


def test_runs_are_views_where_a_chunk_holds_them_whole():
    """A copy of every run would cost as much as reading the features once more."""
    rows = ROWS_AT_ONCE * 2 + 100
    whole = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    for chunks in ([whole], np.split(whole, [ROWS_AT_ONCE]), np.split(whole, [0, ROWS_AT_ONCE * 2])):
        assert all(np.shares_memory(run, whole) for run in runs(chunks, rows))


# Frechet distance


@pytest.mark.parametrize(("n", "shift"), [(400, 0.0), (400, 0.4), (20, 0.4)])
def test_frechet_distance_is_torch_fidelitys(n, shift):
    a, b = correlated(n, 48, seed=1, shift=shift), correlated(500, 48, seed=2)
    samples, reference = Moments.of(a), Moments.of(b)
    found = frechet_distance(samples, reference)
    assert found == pytest.approx(torch_fidelity_fid(a, b), rel=1e-6)
    root = symmetric_root(reference.covariance)
    np.testing.assert_allclose(root @ root, reference.covariance, rtol=1e-10, atol=1e-12)
    assert frechet_distance(samples, reference, root) == found
    for kept in (None, root):
        assert Frechet.of(samples, reference, kept).distance == pytest.approx(found, rel=1e-7)


def test_a_feature_that_never_varies_adds_nothing():
    a, b = correlated(500, 12, seed=1, shift=0.3), correlated(500, 12, seed=2)
    with_dead = [np.hstack([x, np.zeros((500, 3))]) for x in (a, b)]
    expected = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(*map(Moments.of, with_dead)) == pytest.approx(expected, rel=1e-9)
    assert error_of(*with_dead) == pytest.approx(error_of(a, b))


# Standard error


def test_influence_is_the_derivative_of_the_distance():
    """Adds a little weight to one sample and looks at FID: a finite difference knows nothing of the formula."""
    features = correlated(200, 6, seed=1, shift=0.3)
    samples, reference = Moments.of(features), Moments.of(correlated(300, 6, seed=2))
    mean, covariance = samples.mean, samples.covariance

    def distance_with(x: Array, weight: float) -> float:
        moved = (1 - weight) * mean + weight * x
        deviation = x - mean
        spread = (1 - weight) * (covariance + weight * np.outer(deviation, deviation))
        return frechet_distance(Moments(2, moved, spread), reference)  # with n = 2 the scatter is the covariance

    weight = 1e-5
    derivatives = [(distance_with(x, weight) - distance_with(x, -weight)) / (2 * weight) for x in features[:20]]
    influence = Frechet.of(samples, reference).influence(features[:20])
    # The derivative has mean zero over the samples, phi doesn't: they differ by one constant.
    np.testing.assert_allclose(influence - influence[0], np.array(derivatives) - derivatives[0], rtol=1e-4, atol=1e-4)


def error_of(features: Array, reference: Array) -> float:
    frechet = Frechet.of(Moments.of(features), Moments.of(reference))
    assert frechet.no_standard_error is None
    return standard_error(frechet.influence(features))


def test_standard_error_is_finite_where_only_one_side_varies():
    a, b = correlated(500, 12, seed=1, shift=0.3), correlated(500, 12, seed=2)
    alive, dead = np.random.default_rng(3).standard_normal((500, 1)), np.zeros((500, 1))
    expected = error_of(a, b)
    # Dead in the samples: they say nothing of it, and the error is that of the rest.
    assert error_of(np.hstack([a, dead]), np.hstack([b, alive])) == pytest.approx(expected, rel=1e-6)
    # Dead in the reference: the samples' variance there counts in full, so the error grows.
    dead_in_reference = error_of(np.hstack([a, alive]), np.hstack([b, dead]))
    variance_error = np.square(alive - alive.mean()).std(ddof=1) / np.sqrt(500)
    assert expected < dead_in_reference < expected + variance_error * 1.5


def test_no_standard_error_without_enough_samples_for_each_feature():
    reference = Moments.of(correlated(500, 12, seed=2))
    enough = correlated(SAMPLES_PER_DIMENSION * 12, 12, seed=1)
    assert Frechet.of(Moments.of(enough), reference).no_standard_error is None
    recorded(Frechet.of(Moments.of(enough[:-1]), reference).no_standard_error)
    # Fewer samples than features: S is singular, which must not read as few varying features.
    assert Frechet.of(Moments.of(enough[:8]), reference).no_standard_error is not None
    recorded(Frechet.of(Moments.of(np.ones((200, 12))), reference).no_standard_error)


def test_directions_that_never_vary_need_no_samples():
    """12 varying directions in 16 features, mixed so that rounding fills the other 4 with eigenvalues near 1e-16."""
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((16, 16)))[0][:12]
    a, b = correlated(125, 12, seed=1, shift=0.3), correlated(500, 12, seed=2)
    assert error_of(a @ rotation, b @ rotation) == pytest.approx(error_of(a, b), rel=1e-4)


def test_what_carries_an_error_is_n_over_the_kurtosis():
    assert standard_error(np.array([1.0, 2.0, 4.0])) == pytest.approx((7 / 9) ** 0.5)
    rng = np.random.default_rng(0)
    assert too_few_carry(rng.standard_normal(30) + 5) is None
    few = "it would rest on fewer than 5 of {} samples; a larger N helps"
    assert too_few_carry(rng.standard_normal(8)).startswith(few.format(8))
    share = np.arange(1000.0) < 4
    assert too_few_carry(share).startswith(few.format("1,000"))
    assert too_few_carry(np.arange(1000.0) < 6) is None
    recorded(too_few_carry(np.arange(3.0)))
    for nothing in (np.ones(1000), np.zeros(1), share * 1e-200):
        assert too_few_carry(nothing) is not None


def test_the_reference_says_how_many_samples_typically_carry_an_error():
    rng = np.random.default_rng(0)
    samples, reference = rng.standard_normal(200), rng.standard_normal(5000)
    assert too_few_carry(samples, reference) is None
    tail = reference.copy()
    tail[:50] *= 10
    few = "a few rare kinds of images would decide it, fewer than 20 of 200 samples if they are like the reference"
    assert too_few_carry(samples, tail) == f"{few}; a larger N helps"


# Inception Score


@pytest.mark.parametrize(("n", "splits", "seed"), [(1003, 10, 2020), (97, 7, 5), (50, 1, 0)])
def test_inception_score_from_shuffled_shards_is_torch_fidelitys(n, splits, seed):
    rng = np.random.default_rng(n)
    logits = (rng.standard_normal((n, 10)) * 4).astype(np.float32)
    split_of = inception_splits(n, splits, seed)
    shards = np.array_split(rng.permutation(n), 6)
    sums = reduce(InceptionSums.merge, (InceptionSums.of(logits[shard], split_of[shard], splits) for shard in shards))
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=True, rng_seed=seed)
    assert sums.scores().mean() == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert sums.scores().std() == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-9)


def test_inception_score_of_certain_and_of_useless_classifiers():
    split_of = inception_splits(100, 1, seed=0)
    # Every other p underflows to zero, and two of the classes are never seen: p log p must be 0 there.
    certain = np.eye(12)[np.arange(100) % 10] * 2000.0
    assert InceptionSums.of(certain, split_of, 1).scores().mean() == pytest.approx(10.0)
    assert InceptionSums.of(np.zeros((100, 10)), split_of, 1).scores() == pytest.approx([1.0])


def test_influences_on_the_inception_score_are_what_leaving_out_a_sample_shows():
    logits = np.random.default_rng(3).standard_normal((205, 10)) * 2
    split_of = inception_splits(205, 2, seed=0)
    sums = InceptionSums.of(logits, split_of, 2)
    influence = sums.influence(logits, split_of)
    without = np.array([
        InceptionSums.of(np.delete(logits, i, 0), np.delete(split_of, i), 2).scores().mean() for i in range(205)
    ])  # fmt: skip
    size = sums.counts[split_of]
    assert influence == pytest.approx(205 / size * (size - 1) * (sums.scores().mean() - without), rel=1e-6, abs=1e-9)
    parts = np.concatenate([sums.influence(logits[cut], split_of[cut]) for cut in (slice(0, 70), slice(70, None))])
    assert parts == pytest.approx(influence, rel=1e-12)
    alone = inception_splits(3, 2, seed=0)
    assert np.count_nonzero(InceptionSums.of(logits[:3], alone, 2).influence(logits[:3], alone)) == 2


def test_inception_score_refuses_what_it_cannot_divide():
    for count, said in ((5, "5 samples can't be divided into 10 splits"), (1, "1 sample can't be divided")):
        with pytest.raises(ValueError, match=said):
            inception_splits(count, 10, seed=0)
    with raises(ValueError):
        InceptionSums.of(np.zeros((3, 10)), np.array([0, 0, 1]), 3).scores()
    with raises(ValueError):
        InceptionSums.of(np.full((3, 10), np.nan), np.array([0, 1, 2]), 3)
    with raises(ValueError):
        InceptionSums.of(np.zeros((3, 10)), np.array([0, 1, 2, 2]), 3)


# KID


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kernel_distance_is_torch_fidelitys(shift):
    a = correlated(300, 32, seed=1, shift=shift).astype(np.float32)
    b = correlated(260, 32, seed=2).astype(np.float32)
    ours = kernel_distance(a, b, subsets=20, subset_size=200, seed=2020)
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=20, kid_subset_size=200, rng_seed=2020, verbose=False
    )
    assert abs(ours.of_subsets["kid_std"] - theirs[KEY_METRIC_KID_STD]) < 1e-6 + 1e-4 * ours.of_subsets["kid_std"]
    in_float64 = kid_features_to_metric(
        *(torch.from_numpy(x).double() for x in (a, b)),
        kid_subsets=20, kid_subset_size=200, rng_seed=2020, verbose=False,
    )  # fmt: skip
    assert ours.of_subsets["kid_mean"] == pytest.approx(in_float64[KEY_METRIC_KID_MEAN], rel=2e-6), (
        "inner products are in float32"
    )
    exact = kernel_distance(a.astype(np.float64), b.astype(np.float64), subsets=20, subset_size=200, seed=2020)
    assert exact.of_subsets["kid_mean"] == pytest.approx(in_float64[KEY_METRIC_KID_MEAN], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("num_samples", "num_reference", "size"), [(300, 1797, 300), (50_000, 1797, 1000), (50, 9, 9)])
def test_subsets_become_as_small_as_the_smaller_side(num_samples, num_reference, size):
    limits = kid_limits(MetricSettings(("kid",)), Sizes(num_samples, num_reference, 4))
    assert limits == Limits(changes={"kid_subset_size": size}), "no reason, and no remark on a number without a table"


def test_kernel_distance_refuses_subsets_of_other_sizes_and_features_that_are_not_finite():
    a, b = correlated(30, 4, seed=1), correlated(30, 4, seed=2)
    for size in (1, 31):
        with raises(ValueError):
            kernel_distance(a, a, subsets=3, subset_size=size, seed=0)
    a[3, 2] = np.inf
    with raises(ValueError):
        kernel_distance(a, b, subsets=3, subset_size=10, seed=0)


@pytest.mark.parametrize(("size", "block"), [(5, 7), (12, 1000), (30, 7), (30, 1000)])
def test_pairs_are_counted_alike_one_by_one_and_in_subsets(size, block, monkeypatch):
    """30 of 40 in 10 subsets: each pair is computed once; 5 or 12 of 40: subset by subset. All against plain loops."""
    monkeypatch.setattr(kernel_module, "BLOCK", block)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 6))
    of_x, of_y = ([rng.choice(40, size, replace=False) for _ in range(10)] for _ in range(2))
    kernel, own = (x @ y.T / 6 + 1) ** 3, (x @ x.T / 6 + 1) ** 3
    np.fill_diagonal(own, 0)
    between, within = Term.of(cubic(6), x, y, (of_x, of_y)), Term.of(cubic(6), x, x, (of_x, of_x))
    expected = [kernel[np.ix_(a, b)].sum() for a, b in zip(of_x, of_y, strict=True)]
    np.testing.assert_allclose(between.by_subset, expected, rtol=1e-12)
    np.testing.assert_allclose(within.by_subset, [own[np.ix_(a, a)].sum() for a in of_x], rtol=1e-12)
    np.testing.assert_allclose(between.of_x, kernel.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(between.of_y, kernel.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(within.of_x, own.sum(axis=1) / 38, rtol=1e-12)
    assert (between.mean, within.mean) == pytest.approx((kernel.mean(), own.sum() / (40 * 39)), rel=1e-12)


def test_what_is_kept_of_the_reference_changes_nothing():
    rng = np.random.default_rng(4)
    a, b, reference = (rng.normal(size=(50, 4)) for _ in range(3))
    kept = {}
    for samples in (a, b, a[:40], a):
        with_kept = kernel_distance(samples, reference, subsets=5, subset_size=20, seed=1, kept=kept)
        afresh = kernel_distance(samples, reference, subsets=5, subset_size=20, seed=1)
        assert with_kept.of_subsets == afresh.of_subsets
        assert with_kept.whole.value == afresh.whole.value
        assert np.array_equal(with_kept.whole.reference_influence, afresh.whole.reference_influence)
    assert len(kept) == 2, "one for each N: draws depend on it"


def unit_gaussian_matrix(x, y):
    """CMMD's, from the squared lengths and products of unit vectors, as google-research/cmmd/distance.py has it."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return 1000 * np.exp(-squares / (2 * 10**2))


def unbiased(matrix, x, y):
    n, m = len(x), len(y)
    own, others = (matrix(side, side) - np.diag(np.diag(matrix(side, side))) for side in (x, y))
    return own.sum() / (n * (n - 1)) + others.sum() / (m * (m - 1)) - 2 * matrix(x, y).mean()


KERNELS = {"kid": (None, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3), "cmmd": (UNIT_GAUSSIAN, unit_gaussian_matrix)}


@pytest.mark.parametrize(("kernel", "matrix"), KERNELS.values(), ids=KERNELS)
def test_a_discrepancy_is_the_definition_and_its_influences_leave_one_out(kernel, matrix):
    x, y = correlated(12, 5, seed=1, shift=0.5), correlated(9, 5, seed=2)
    found = discrepancy(x, y, {}, kernel)
    assert found.value == pytest.approx(unbiased(matrix, x, y), rel=1e-10)
    others = matrix(y, y) - np.diag(np.diag(matrix(y, y)))
    np.testing.assert_allclose(found.typical / found.typical.sum(), others.sum(axis=1) / others.sum())
    for influence, left_out in (
        (found.influence, [unbiased(matrix, np.delete(x, i, axis=0), y) for i in range(12)]),
        (found.reference_influence, [unbiased(matrix, x, np.delete(y, j, axis=0)) for j in range(9)]),
    ):
        n = len(left_out)
        pseudo_values = n * found.value - (n - 1) * np.array(left_out)
        np.testing.assert_allclose(influence - influence.mean(), pseudo_values - pseudo_values.mean(), atol=1e-9)
        jackknife = np.sqrt((n - 1) * np.var(left_out))
        assert standard_error(influence) == pytest.approx(jackknife, rel=1e-8)


def test_cmmd_biased_is_the_reference_codes():
    """Means of all pairs, a vector with itself too; of embeddings that already have unit length."""
    x, y = (correlated(count, 16, seed=count, shift=0.2).astype(np.float32) for count in (60, 80))
    statistics = of_features(lambda: iter([y]), 80, None, "", lambda: y)
    values = score(lambda: iter([x]), None, 60, statistics, MetricSettings(("cmmd",))).values
    own, others, between = (unit_gaussian_matrix(*(side.astype(float) for side in sides)).mean()
                            for sides in ((x, x), (y, y), (x, y)))  # fmt: skip
    assert values["cmmd_biased"] == pytest.approx(own + others - 2 * between, abs=1e-6)
    assert values["cmmd"] < values["cmmd_biased"], "a vector is nearest to itself"


def test_a_vector_of_length_0_has_no_direction_and_stays_at_the_origin():
    x, y = correlated(5, 3, seed=1), correlated(6, 3, seed=2)
    x[0] = 0
    found = Term.of(UNIT_GAUSSIAN, x, y)
    assert found.of_x[0] == pytest.approx(1000 * np.exp(-1 / 200)), "at a distance of 1 from all unit vectors"


def test_parts_leave_kid_unbiased_with_an_influence_of_each_sample(monkeypatch):
    """Of 600 against 500 in 3 random parts: the mean over cuts is the whole set's; the error grows by the cut's."""
    x, y = correlated(600, 6, seed=1, shift=0.3), correlated(500, 6, seed=2)
    whole = discrepancy(x, y, {})
    monkeypatch.setattr(kernel_module, "ALL_PAIRS", 100_001)
    monkeypatch.setattr(kernel_module, "BLOCK", 64)
    cut = [kernel_distance(x, y, subsets=1, subset_size=10, seed=seed).whole for seed in range(40)]
    values = np.array([found.value for found in cut])
    assert values.std() > 0
    assert abs(values.mean() - whole.value) < 4 * values.std() / np.sqrt(40)
    for name in ("influence", "reference_influence"):
        expected = standard_error(getattr(whole, name))
        squared = np.mean([standard_error(getattr(found, name)) ** 2 for found in cut])
        assert expected**2 < squared < expected**2 + 3 * values.var(), "the jackknife's share of the cut is too large"
        assert np.corrcoef(getattr(cut[0], name), getattr(whole, name))[0, 1] > 0.8
    again = kernel_distance(x, y, subsets=1, subset_size=10, seed=0).whole
    assert np.array_equal(again.influence, cut[0].influence)
