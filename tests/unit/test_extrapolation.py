"""FID extrapolated to infinite N loses its bias, depends on its seed alone, and refuses too few samples."""

import numpy as np
import pytest
from snapshots import raises

from taugrid.eval.metrics.frechet import (
    POINTS,
    fid_infinity,
    fid_infinity_limits,
    frechet_distance,
    no_extrapolation,
    subset_sizes,
)
from taugrid.eval.metrics.statistics import Array, Moments, symmetric_root
from taugrid.registry.metrics import MetricSettings, Sizes

D = 8
SCALES = np.geomspace(2, 0.5, D)

pytestmark = pytest.mark.usefixtures("one_thread")


def exact_reference() -> Moments:
    """The moments of a Gaussian itself, as of very many samples."""
    n = 10**9
    return Moments(n, np.zeros(D), np.diag(SCALES**2) * (n - 1))


def samples(n: int, seed: int) -> Array:
    return (np.random.default_rng(seed).standard_normal((n, D)) * 1.2 + 0.1) * SCALES


# Of two Gaussians with the same axes: the sum of (s - r)^2 over means and standard deviations.
TRUE_FID = float(np.square(0.1 * SCALES).sum() + np.square(0.2 * SCALES).sum())


def test_bias_falls_far_below_that_of_plain_fid():
    """Means over 300 draws: plain FID at N = 400 is over 8 standard errors too high, extrapolated it is within 3.

    A line in N for 1 / N, a slope for an intercept or a constant fit leaves a bias of the order of plain FID's.
    """
    reference, root = exact_reference(), symmetric_root(exact_reference().covariance)
    draws = [samples(400, seed) for seed in range(300)]
    plain = np.array([frechet_distance(Moments.of(x), reference, root) for x in draws]) - TRUE_FID
    extrapolated = np.array([fid_infinity(x, reference, root, seed=i) for i, x in enumerate(draws)]) - TRUE_FID
    error = extrapolated.std(ddof=1) / np.sqrt(len(draws))
    assert plain.mean() > 8 * error
    assert abs(extrapolated.mean()) < 3 * error


def test_result_depends_on_the_seed_and_on_nothing_else():
    x, reference = samples(300, 1), exact_reference()
    first = fid_infinity(x, reference, seed=5)
    assert fid_infinity(x, reference, symmetric_root(reference.covariance), seed=5) == first
    assert abs(fid_infinity(x, reference, seed=6) - first) > 1e-6


def test_subset_sizes_are_the_papers():
    sizes = subset_sizes(50_000, 2048)
    np.testing.assert_array_equal(sizes, np.linspace(5000, 50_000, 15).astype(int))
    # Fewer than 20 samples for each feature: the smallest subset is 2 for each.
    assert subset_sizes(10_000, 2048)[[0, -1]].tolist() == [4096, 10_000]


@pytest.mark.parametrize(("n", "d"), [(30, 1), (30, 7), (192, 48), (1000, 3)])
def test_every_number_that_is_allowed_gives_distinct_subsets_with_a_covariance(n, d):
    sizes = subset_sizes(n, d)
    assert len(set(sizes.tolist())) == len(sizes) == POINTS
    assert (sizes[0], sizes[-1]) == (max(n // 10, 2 * d), n)


def test_too_few_samples_and_features_that_are_not_finite_are_refused():
    assert no_extrapolation(32, 8) is None
    assert "2.2 times" in fid_infinity_limits(MetricSettings(("fid_infinity",)), Sizes(320, None, D)).remark
    not_finite = np.vstack([samples(99, 0), np.full((1, D), np.nan)])
    for x in (samples(31, 0), not_finite):
        with raises(ValueError):
            fid_infinity(x, exact_reference(), seed=0)
    with raises(ValueError):
        subset_sizes(29, 1)
