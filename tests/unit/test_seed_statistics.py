"""Intervals and corrections over few seeds hold what they promise, in simulations."""

from itertools import product

import numpy as np
import pytest
from proofs import proof
from repeated_samples import KINDS, effects
from scipy import stats

from taugrid.eval.tables.seeds import (
    LEVEL,
    critical_range,
    holm,
    level_against_best,
    mean_over_seeds,
    shared_error,
)

REPEATS = 20_000


@pytest.mark.parametrize("trainings", [3, 5, 10])
def test_intervals_over_trainings_that_share_their_noise_cover_and_holm_holds(trainings):
    """Nine comparisons with one base, noise as in influences.

    Without the shared noise, coverage is 71, 49 and 32 % here, and any false alarm as likely as 29, 79 and 98 %.
    """
    repeats, covered, false = 300, [], []
    drawn = effects(np.random.default_rng(16), 0.5, 0.9, KINDS["normal"], trainings, repeats)
    for shared in (drawn.shared, 0.0):
        found = mean_over_seeds(drawn.differences, shared)
        covered.append(np.mean(np.abs(found.mean) <= found.half_width))
        false.append(np.mean((holm(found.p) < LEVEL).any(axis=-1)))
        assert ((found.p < LEVEL) == (np.abs(found.mean) > found.half_width)).all(), "p is that of the interval"
    assert 0.92 <= covered[0] <= 0.985
    assert false[0] <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / repeats)
    assert covered[1] < 0.85
    assert false[1] > 0.10


BETWEEN_AND_SHARE = ((0, 0.9), (0.5, 0.9), (1, 0.9), (1, 0.5), (3, 0.9), (1, 0))
"""The standard deviation between trainings, and the share of their noise that they have in common."""


@pytest.mark.parametrize(
    ("kind", "trainings", "between", "share"),
    [proof(kind, trainings, *world) for kind, trainings, world in product(KINDS, (3, 5, 10), BETWEEN_AND_SHARE)],
)
def test_intervals_over_trainings_cover_whatever_the_trainings_share(kind, trainings, between, share):
    """2,000 repeats of nine comparisons, which know a coverage to 0.5 %."""
    random = np.random.default_rng((23, trainings))
    covered, false = [], []
    for _ in range(20):
        drawn = effects(random, between, share, KINDS[kind], trainings, 100)
        interval = mean_over_seeds(drawn.differences, drawn.shared)
        covered.append(np.abs(interval.mean) <= interval.half_width)
        false.append((holm(interval.p) < LEVEL).any(axis=-1))
    assert 0.94 <= np.mean(covered) <= 0.985
    assert np.mean(false) <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / 2_000)


def test_the_shared_error_is_the_root_of_the_trainings_mean_covariance():
    rng = np.random.default_rng(18)
    influences = rng.normal(size=(1, 200)) + rng.normal(size=(4, 200))
    covariance = np.cov(influences) / 200
    of_mean = np.sqrt(covariance.mean())
    found = shared_error(of_mean, np.sqrt(np.diag(covariance)))
    assert found**2 == pytest.approx((covariance.sum() - np.trace(covariance)) / 12)
    assert shared_error(np.float64(0.1), np.array([1.0, 1.0, 1.0])) == 0, "noise that cancels takes nothing off"


@pytest.mark.parametrize("k", [4, 20])
def test_equal_cells_are_all_marked_in_95_percent_of_columns(k):
    """Against the best of the measured values; with 1.96 for each pair, some cell has no mark in 19 and 87 %."""
    rng = np.random.default_rng((19, k))
    influences = np.linspace(1, 2, k)[:, None] * (rng.normal(size=(1, 300)) + rng.normal(size=(k, 300)))
    covariance = np.cov(influences) / 300
    values = rng.multivariate_normal(np.zeros(k), covariance, REPEATS)
    best = values.argmin(axis=1)
    variances = np.diag(covariance) + np.diag(covariance)[best][:, None] - 2 * covariance[best]
    z = (values - values.min(axis=1)[:, None]) / np.sqrt(np.where(variances > 0, variances, np.inf))
    z[np.arange(REPEATS), best] = 0
    assert 0.03 < np.mean(z.max(axis=1) >= critical_range(covariance)) <= LEVEL + 2 * np.sqrt(0.0475 / REPEATS)
    assert np.mean(z.max(axis=1) >= 1.96) > 0.15


def test_the_limit_of_a_column_is_tukeys_where_cells_are_independent():
    for k in (3, 8, 20):
        assert critical_range(np.eye(k)) == pytest.approx(
            stats.studentized_range.isf(0.05, k, np.inf) / np.sqrt(2), rel=0.01
        )
    assert critical_range(np.eye(2)) == pytest.approx(1.96, abs=1e-4)
    twins = np.ones((3, 3)) + np.diag([0.0, 0.0, 1.0])
    assert critical_range(twins) == pytest.approx(1.96, abs=0.01), "two have the same samples, so one pair is left"


@pytest.mark.parametrize(("k", "seeds"), [(4, 3), (20, 3), (8, 10)])
def test_equal_settings_are_all_marked_in_95_percent_of_columns_over_trainings(k, seeds):
    """Settings that vary alike, and such that differ tenfold in their spread."""
    rng = np.random.default_rng((20, k, seeds))
    for widest in (1, 10):
        values = np.geomspace(1, widest, k)[:, None] * rng.normal(size=(5_000, k, seeds)) + rng.normal(
            size=(5_000, 1, seeds)
        )
        best = values.mean(axis=-1).argmin(axis=-1)
        p = mean_over_seeds(values - np.take_along_axis(values, best[:, None, None], axis=1)).p
        least = np.nanmin(p, axis=-1)
        assert np.mean(least < level_against_best(k, seeds)) <= LEVEL + 2 * np.sqrt(0.0475 / 5_000)
        assert np.mean(least < LEVEL) > 0.10


def test_holm_is_the_step_down_of_the_book():
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([[0.6, 0.9], [0.001, 0.5]])), [[1.0, 1.0], [0.002, 0.5]])


def test_one_seed_has_no_spread_and_equal_differences_have_no_p():
    assert np.isnan(mean_over_seeds(np.array([2.0]))[1:]).all()
    found = mean_over_seeds(np.array([2.0, 2.0, 2.0]))
    assert (found.mean, found.sd, found.half_width) == (2, 0, 0)
    assert np.isnan(found.p)
