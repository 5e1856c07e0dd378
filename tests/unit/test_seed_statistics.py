"""Intervals and corrections over few seeds hold what they promise, in simulations."""

import numpy as np
import pytest

from taugrid.eval.tables.ablation.seeds import LEVEL, holm, mean_over_seeds

REPEATS = 20_000


@pytest.mark.parametrize("seeds", range(3, 11))
def test_intervals_over_trainings_cover_between_92_and_98_percent(seeds):
    """As effects are made: the differences of two values of a key over trainings, averaged over three other settings.

    What a training seed and the sampling noise do to both values is shared, and cancels. The coverage over 20,000
    repeats is known to 0.15 %. A normal interval in the place of Student's t covers 81 % at n = 3.
    """
    rng = np.random.default_rng((14, seeds))
    shape = (REPEATS, 3, seeds)
    shared = rng.normal(0, 2, (REPEATS, 1, seeds)) + rng.normal(0, 1, (REPEATS, 1, 1))
    base = 20 + shared + rng.normal(0, 0.5, shape)
    other = 21.5 + shared + rng.normal(0, 0.8, shape)
    found = mean_over_seeds((other - base).mean(axis=1))
    covered = np.mean(np.abs(found.mean - 1.5) <= found.half_width)
    assert 0.92 <= covered <= 0.98
    if seeds == 3:
        assert np.mean(np.abs(found.mean - 1.5) <= 1.96 * found.se) < 0.85


@pytest.mark.parametrize(("seeds", "true_effects"), [(3, 0), (3, 4), (10, 4)])
def test_holm_keeps_the_chance_of_any_false_alarm_below_5_percent(seeds, true_effects):
    """Nine comparisons with one base, which all share; `true_effects` of them are real, so their alarms are true."""
    rng = np.random.default_rng((15, seeds, true_effects))
    base = rng.normal(0, 1, (REPEATS, 1, seeds))
    means = np.where(np.arange(9) < true_effects, 3.0, 0.0)[:, None]
    p = mean_over_seeds(means + rng.normal(0, 1, (REPEATS, 9, seeds)) - base).p
    false = holm(p)[:, true_effects:] < LEVEL
    rate = false.any(axis=1).mean()
    assert rate <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / REPEATS)
    assert (p[:, true_effects:] < LEVEL).any(axis=1).mean() > 0.1, "uncorrected, one false alarm is likely"


def test_holm_is_the_step_down_of_the_book():
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([[0.6, 0.9], [0.001, 0.5]])), [[1.0, 1.0], [0.002, 0.5]])


def test_one_seed_has_no_spread_and_equal_differences_have_no_p():
    assert np.isnan(mean_over_seeds(np.array([2.0]))[1:]).all()
    found = mean_over_seeds(np.array([2.0, 2.0, 2.0]))
    assert (found.mean, found.sd, found.half_width) == (2, 0, 0)
    assert np.isnan(found.p)
