"""The nightly gate: a night of many cells has one verdict, and cries wolf no more often than it says."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from nights import empty_verdict
from proofs import proof
from scipy.stats import norm
from snapshots import raises
from threadpoolctl import threadpool_limits
from worse_networks import EXAMPLE_EFFECT_SE, WAYS, Cell, blocks_that_hide, night_of_cells, power

from taugrid.eval.gate.rule import (
    ALPHA,
    POWER,
    SCREENING,
    Change,
    DetectionPower,
    Variance,
    correlation,
    critical_value,
    judge,
    screen,
    standard_errors_for_power,
)
from taugrid.orchestrator.baseline.compared import GateSettings
from taugrid.orchestrator.nightly.judging import alpha_of_a_look
from taugrid.orchestrator.nightly.night import night_result
from taugrid.orchestrator.nightly.places import History
from taugrid.storage import write_sealed

N, CELLS, NIGHTS = 150, 20, 1_500
DRAWS = 5_000
"""They move a night's rate of false alarms by a seventh of alpha, the bounds below lie half an alpha away."""
SHARED = 0.4
"""Correlation of two cells."""


def change(influence, difference=None, margin=0.0, name="a", seed_set=0):
    found = float(np.mean(influence)) if difference is None else difference
    return Change(name, found, margin, np.asarray(influence, float), seed_set)


def night(number, by=0.0):
    """Estimates are means of correlated influences; the first cell has truly changed by `by` of its errors."""
    random = np.random.default_rng((7, number))
    common, own = random.standard_normal((N, 1)), random.standard_normal((N, CELLS))
    influences = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    changes = [change(column, name=str(i)) for i, column in enumerate(influences.T)]
    return [replace(changes[0], difference=changes[0].difference + by / np.sqrt(N)), *changes[1:]]


@pytest.fixture(scope="module")
def judged():
    """5 s: with fewer nights, a rate of false alarms half an alpha too high would pass."""
    return [judge(night(number), draws=DRAWS) for number in range(NIGHTS)]


def is_at_most_alpha(alarms, nights=NIGHTS):
    return alarms / nights <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / nights)


def test_false_alarms_of_whole_nights_are_at_most_alpha(judged):
    assert is_at_most_alpha(sum(bool(found.worse) for found in judged))
    alone = sum(any(cell.t > norm.isf(ALPHA) for cell in found.cells) for found in judged)
    assert alone / NIGHTS > 5 * ALPHA, "with the critical value of a single cell"


def test_the_detectable_change_is_seen_as_often_as_promised_where_the_error_is_constant():
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
    assert some == critical_value(0.5 * np.eye(20) + 0.5, 0.01), "the same again"


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
    shifted = correlation([a[0] + 3, b[0, :100] - 3, a[1]], ["s", "s", "other"])
    assert shifted == pytest.approx(found), "of influences about their means"


def test_screening_singles_out_more_than_the_verdict_does():
    moved = night(3, by=3.3)
    singled_out = screen(moved, draws=DRAWS)
    assert [cell.name for cell in singled_out.worse] == ["0"]
    assert singled_out.critical < judge(moved, 0.01, DRAWS).critical


def test_no_cell_is_worse_by_the_usual_seeds_without_being_singled_out():
    """Else its verdict would stay that of the usual seeds, which are the same every night."""
    for number in range(40):
        changes, alpha = night(number, by=2), (0.01, 0.3)[number % 2]
        worse = {cell.name for cell in judge(changes, alpha, DRAWS).worse}
        assert worse <= {cell.name for cell in screen(changes, alpha, DRAWS).worse}


def test_a_night_without_cells_is_no_alarm_and_cells_that_never_vary_are_refused():
    assert judge([]).worse == []
    with raises(ValueError):
        judge([change(np.zeros(50)), change(np.arange(50.0))])


@pytest.mark.long
@pytest.mark.parametrize(("far", "b"), [(True, 0.2), (False, 0.6)])
def test_a_network_that_is_really_worse_is_seen_as_often_as_promised(far, b):
    """The mean over ways in which a network gets worse.

    With the error of an equal network, as it was computed once, fewer than 60 % are seen at the change in question.
    """
    cell = Cell(far, skewed=False)
    nights = [power(cell, way, 300, b, nights=50) for way in WAYS]
    assert 0.70 < np.mean([each.one_stage for each in nights]) < 0.95
    assert np.mean([each.constant_error for each in nights]) < 0.60


@pytest.mark.parametrize(
    ("far", "skewed", "b"), [proof(*case) for case in product((True, False), (False, True), (0.6, 0.2))]
)
def test_the_detectable_change_is_seen_in_about_4_of_5_nights_however_a_network_gets_worse(far, skewed, b):
    """The mean over four ways, 400 nights each. The least is that of two near networks far from a skewed reference."""
    cell = Cell(far, skewed)
    with threadpool_limits(limits=1):
        nights = [power(cell, way, 300, b, nights=400) for way in WAYS]
    least = 0.66 if (far, skewed, b) == (True, True, 0.2) else 0.74
    assert least < np.mean([each.one_stage for each in nights]) < 0.9
    assert least + 0.05 < np.mean([each.two_stages for each in nights]) < 0.97


@pytest.mark.parametrize("blocks", [proof(4_000)])
def test_a_larger_n_halves_what_frozen_seeds_hide(blocks):
    """What a change of 3 standard errors has to exceed in the screening test stays, and the errors shrink."""
    critical = night_of_cells(SCREENING)
    with threadpool_limits(limits=1):
        hidden = blocks_that_hide(critical, 600, (600, 800), blocks)
    assert hidden[600] == pytest.approx(norm.cdf(critical - EXAMPLE_EFFECT_SE), abs=0.02)
    assert hidden[800] == pytest.approx(hidden[600] / 2, abs=0.02)


REACH = DetectionPower(0.5, 4.0, Variance(0.09, 0.02))


def test_the_detectable_change_exceeds_the_margin_by_its_own_errors():
    assert REACH.detectable == pytest.approx(0.5 + 4 * np.sqrt(0.09 + 0.02 * REACH.detectable))
    assert replace(REACH, sampling=Variance(0.09)).detectable == pytest.approx(0.5 + 4 * 0.3)


def test_with_the_samples_needed_a_loss_is_just_detectable():
    share = 1_000 / REACH.samples_needed(1_000, regression=1.2)
    there = replace(REACH, sampling=Variance(0.09 * share, 0.02 * share))
    assert there.detectable == pytest.approx(1.2, rel=0.03)  # rounded up to two digits
    assert there.detectable <= 1.2
    assert REACH.samples_needed(1_000, regression=0.5) is None, "a loss within the margin"


def test_with_the_samples_to_decide_an_equal_network_is_just_not_worse():
    share = 1_000 / REACH.samples_to_decide(1_000)
    assert 4 * np.sqrt(0.09 * share) == pytest.approx(0.5, rel=0.03)
    assert 4 * np.sqrt(0.09 * share) <= 0.5
    assert replace(REACH, margin=0.0).samples_to_decide(1_000) is None
    # FID +0.10 ± 0.05 with a margin of 0.2: an equal network would be not worse with 680 images, so N is not too small.
    enough = DetectionPower(0.2, 3.3, Variance(0.05**2))
    assert enough.samples_to_decide(1_000) is None


def test_a_shift_by_the_errors_for_power_is_seen_in_4_of_5_nights():
    t = np.random.default_rng(2).standard_normal(40_000) + standard_errors_for_power(3.5)
    assert np.mean(t > 3.5) == pytest.approx(POWER, abs=0.01)


def test_looks_at_fresh_samples_share_alpha():
    gate = GateSettings(alpha=0.01)
    assert [alpha_of_a_look(gate, grow_to) for grow_to in (None, 400)] == [0.01, 0.005]


def test_a_cell_that_failed_has_collapsed_without_a_baseline_too():
    assert night_result(None, None, has_failed=False) == "no baseline"
    assert night_result(None, None, has_failed=True) == "collapsed"


def test_nights_are_in_the_order_of_their_verdicts(tmp_path):
    history = History(tmp_path)
    for name, time in (("b", "2026-11-01"), ("a", "2026-11-02")):
        write_sealed(history.night(name).verdict_file, empty_verdict(name, time))
    assert [night.id for night in history.complete_nights()] == ["b", "a"]
