"""Ticks of the page's logarithmic axes."""

from itertools import pairwise

import pytest

from taugrid.eval.pages.charts.scales import LABEL_GAP, LogAxis

PIXELS = {"up": (272.0, 12.0), "across": (56.0, 464.0)}


def labelled(ticks):
    return [tick for tick in ticks if tick.label]


@pytest.mark.parametrize("direction", PIXELS)
@pytest.mark.parametrize(
    "values",
    [
        (293.0, 349.0),
        (300.0, 300.0),
        (0.9, 1.1),
        (4.2, 9.8),
        (3.0, 33.0),
        (1.0, 1e5),
        (2e-4, 3e-4),
        (20_000.0, 20_001.0),
    ],
)
def test_an_axis_has_at_least_three_labels_that_do_not_touch(values, direction):
    axis = LogAxis.over(values, *PIXELS[direction])
    ticks = labelled(axis.round_ticks())
    assert len(ticks) >= 3
    places = sorted(tick.at for tick in ticks)
    least = LABEL_GAP if direction == "across" else LABEL_GAP / 2
    assert min(b - a for a, b in pairwise(places)) >= least
    for tick in ticks:
        assert axis.at(float(tick.label.replace(",", ""))) == pytest.approx(tick.at)


def test_few_values_within_a_decade_have_ticks_at_even_steps():
    ticks = LogAxis.over((293.0, 349.0), *PIXELS["up"]).round_ticks()
    assert {"300", "320", "340"} <= {tick.label for tick in ticks}


@pytest.mark.parametrize(
    ("values", "labels"),
    [((7,), ["7"]), ((10, 20), ["10", "20"]), ((10, 20, 50), ["10", "20", "50"]), ((10, 99, 100), ["10", "", "100"])],
)
def test_values_of_their_own_have_the_only_ticks_and_labels_that_do_not_touch(values, labels):
    axis = LogAxis.over(values, *PIXELS["across"])
    ticks = axis.ticks_at(values)
    assert [tick.label for tick in ticks] == labels
    assert [tick.at for tick in ticks] == [axis.at(value) for value in values]
