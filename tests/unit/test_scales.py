"""Ticks of the page's logarithmic axes."""

from itertools import pairwise

import pytest

from taugrid.eval.pages.charts.scales import FEWEST_LABELS, LABEL_GAP, LogAxis

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
    assert len(ticks) >= FEWEST_LABELS
    places = sorted(tick.at for tick in ticks)
    least = LABEL_GAP if direction == "across" else LABEL_GAP / 2
    assert min(b - a for a, b in pairwise(places)) >= least
    for tick in ticks:
        assert axis.at(float(tick.label.replace(",", ""))) == pytest.approx(tick.at)


def test_few_values_within_a_decade_have_ticks_at_even_steps():
    ticks = LogAxis.over((293.0, 349.0), *PIXELS["up"]).round_ticks()
    assert {"300", "320", "340"} <= {tick.label for tick in ticks}


def test_two_values_of_their_own_keep_their_ticks_and_get_others_between():
    labels = [tick.label for tick in LogAxis.over((5, 13), *PIXELS["across"]).ticks_at((5, 13))]
    assert (labels[0], labels[-1]) == ("5", "13")
    assert len(labels) >= FEWEST_LABELS
    three = LogAxis.over((10, 50), *PIXELS["across"]).ticks_at((10, 20, 50))
    assert [tick.label for tick in three] == ["10", "20", "50"]
