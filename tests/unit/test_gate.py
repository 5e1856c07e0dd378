"""The nightly gate: a night of many cells has one verdict, and cries wolf no more often than it says."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from taugrid.eval.gate.critical import correlation, critical_value
from taugrid.eval.gate.power import POWER
from taugrid.eval.gate.rule import ALPHA, Change, judge, screen

N, CELLS, NIGHTS = 150, 20, 1_500
DRAWS = 5_000
"""They move a night's rate of false alarms by a seventh of alpha, the bounds below lie half an alpha away."""
SHARED = 0.4
"""Correlation of two cells."""


def change(influence, difference=None, margin=0.0, name="a", block=0):
    found = float(np.mean(influence)) if difference is None else difference
    return Change(name, found, margin, np.asarray(influence, float), block)


def night(number, by=0.0):
    """Estimates are means of correlated influences; the first cell has truly changed by `by` of its errors."""
    random = np.random.default_rng((7, number))
    common, own = random.standard_normal((N, 1)), random.standard_normal((N, CELLS))
    influences = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    changes = [change(column, name=str(i)) for i, column in enumerate(influences.T)]
    return [replace(changes[0], difference=changes[0].difference + by / np.sqrt(N)), *changes[1:]]


@pytest.fixture(scope="module")
def judged():
    return [judge(night(number), draws=DRAWS) for number in range(NIGHTS)]


def is_at_most_alpha(alarms):
    """Of `NIGHTS`, within two standard errors."""
    return alarms / NIGHTS <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / NIGHTS)


def test_false_alarms_of_whole_nights_are_at_most_alpha(judged):
    assert is_at_most_alpha(sum(bool(found.worse) for found in judged))


def test_a_critical_value_of_a_single_cell_would_not_pass_that_test(judged):
    """The same nights, each cell tested alone: many times alpha."""
    alone = sum(any(cell.t > norm.isf(ALPHA) for cell in found.cells) for found in judged)
    assert not is_at_most_alpha(alone)
    assert alone / NIGHTS > 5 * ALPHA


def test_the_detectable_change_is_seen_as_often_as_promised():
    first = judge(night(0), draws=DRAWS).cells[0]
    by = first.detectable / first.se
    seen = np.mean([judge(night(number, by), draws=DRAWS).cells[0].verdict == "worse" for number in range(400)])
    assert seen == pytest.approx(POWER, abs=0.06)  # three standard errors over 400 nights


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.9, "worse"), (0.62, "undecided"), (0.5, "undecided"), (0.1, "not worse")]
)
def test_a_cell_has_one_of_three_verdicts_about_its_margin(difference, verdict):
    """One cell, se 0.1: the critical value is 2.33, so worse is above 0.733 and not worse below 0.267."""
    signs = np.where(np.arange(400) % 2, 1.0, -1.0) * 0.1 * np.sqrt(399)
    (found,) = judge([change(signs, difference, margin=0.5)]).cells
    assert found.se == pytest.approx(0.1)
    assert found.t == pytest.approx((difference - 0.5) / 0.1)
    assert found.verdict == verdict
    assert found.upper == pytest.approx(difference + 0.2326, abs=1e-4)
    assert found.detectable == pytest.approx(0.5 + (2.3263 + 0.8416) * 0.1, abs=1e-4)


def test_the_quantile_of_independent_cells_is_sidaks_and_of_equal_cells_that_of_one():
    sidak = norm.isf(1 - (1 - 0.01) ** (1 / 20))
    assert critical_value(np.eye(20), 0.01) == pytest.approx(sidak, abs=0.03)
    assert critical_value(np.ones((20, 20)), 0.01) == pytest.approx(norm.isf(0.01), abs=0.03)
    some = critical_value(0.5 * np.eye(20) + 0.5, 0.01)
    assert norm.isf(0.01) + 0.2 < some < sidak - 0.05


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.1])
def test_the_quantile_lies_between_one_cell_and_bonferroni_and_is_the_same_again(alpha):
    found = critical_value(np.eye(5), alpha)
    assert norm.isf(alpha) <= found <= norm.isf(alpha / 5)
    assert critical_value(np.eye(5), alpha) == found


def test_correlations_are_of_means_whose_cells_share_their_first_samples():
    """By simulation: two cells of one noise with N = 300 and 100, and a third of another seed."""
    random = np.random.default_rng(1)
    z, own = random.standard_normal((4000, 300)), random.standard_normal((4000, 300))
    a, b = z, 0.8 * z + 0.6 * own
    found = correlation([a[0], b[0, :100], a[1]], ["s", "s", "other"])
    means = np.corrcoef(a.mean(axis=1), b[:, :100].mean(axis=1))[0, 1]
    assert means == pytest.approx(0.8 * np.sqrt(100 / 300), abs=0.04)
    assert found[0, 1] == pytest.approx(means, abs=0.12)  # from 100 samples
    assert found[0, 2] == found[1, 2] == 0
    assert np.linalg.eigvalsh(found).min() >= -1e-12


def test_screening_singles_out_more_than_the_verdict_does():
    moved = night(3, by=3.3)
    singled_out = screen(moved, draws=DRAWS)
    assert [cell.name for cell in singled_out.worse] == ["0"]
    assert singled_out.critical < judge(moved, 0.01, DRAWS).critical


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_no_cell_is_worse_by_the_usual_seeds_without_being_singled_out(alpha):
    """Else its verdict would stay that of the usual seeds, which are the same every night."""
    for number in range(40):
        changes = night(number, by=2)
        worse = {cell.name for cell in judge(changes, alpha, DRAWS).worse}
        assert worse <= {cell.name for cell in screen(changes, alpha, DRAWS).worse}


def test_a_night_without_cells_is_no_alarm_and_cells_that_never_vary_are_refused():
    assert judge([]).worse == []
    with pytest.raises(ValueError, match="do not vary"):
        judge([change(np.zeros(50)), change(np.arange(50.0))])
