"""Precision and recall are torch-fidelity's, whatever the blocks, and refuse what has no neighb"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from snapshots import raises
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from taugrid.eval.metrics import neighbours
from taugrid.eval.metrics.neighbours import ball_radii, covered
from taugrid.registry.metrics import Sizes

Features = NDArray[np.float32]

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Features:
    return (np.random.default_rng(seed).standard_normal((n, d)) * scale + shift).astype(np.float32)


def shares(*given):
    """Precision and recall."""
    return tuple(float(side.mean()) for side in covered(*given))


# Narrow samples have high precision and low recall, wide ones the reverse: swapped sides would show.
@pytest.mark.parametrize(("scale", "shift", "neighbourhood"), [(0.6, 0.0, 3), (1.5, 0.0, 5), (1.0, 0.3, 1)])
def test_precision_and_recall_are_torch_fidelitys(scale, shift, neighbourhood):
    features, reference = gaussian(700, 12, 1, scale, shift), gaussian(500, 12, 2)
    precision, recall = shares(features, reference, neighbourhood)
    both = torch.from_numpy(features), torch.from_numpy(reference)
    theirs = prc_features_to_metric(*both, prc_neighborhood=neighbourhood, verbose=False)
    assert precision == pytest.approx(theirs[KEY_METRIC_PRECISION], abs=1 / 700)
    assert recall == pytest.approx(theirs[KEY_METRIC_RECALL], abs=1 / 500)
    assert abs(precision - recall) > 0.05 or scale == 1.0


@pytest.mark.parametrize("blocks", [1, 10 * 700, 499 * 700])
def test_blocks_change_nothing(monkeypatch, blocks):
    """Rows of one at a time, of a few, and all but one: a block's last rows must neither be lost nor counted twice."""
    features, reference = gaussian(700, 12, 1, 0.8), gaussian(500, 12, 2)
    whole = shares(features, reference, 3)
    assert shares(features, reference, 3, ball_radii(reference, 3)) == whole, "with radii that were kept"
    monkeypatch.setattr(neighbours, "DISTANCES_AT_ONCE", blocks)
    precision, recall = shares(features, reference, 3)
    assert precision == pytest.approx(whole[0], abs=1 / 700)
    assert recall == pytest.approx(whole[1], abs=1 / 500)


def test_values_that_can_be_counted_by_hand():
    """On a line: reference 0, 1, 2, 10 with k = 1 has radii 1, 1, 1, 8; samples -1, 2.5, 30 have 3.5, 3.5, 27.5.

    -1 lies on the surface of the ball of 0 and 2.5 in that of 2, 30 in none. Of the reference all but none is within
    3.5 of -1 or 2.5, or within 27.5 of 30: 10 is 20 away from 30, so all four are.
    """
    reference = np.array([[0.0], [1.0], [2.0], [10.0]])
    samples = np.array([[-1.0], [2.5], [30.0]])
    np.testing.assert_array_equal(ball_radii(reference, 1), [1, 1, 1, 8])
    np.testing.assert_array_equal(ball_radii(samples, 1), [3.5, 3.5, 27.5])
    assert shares(samples, reference, 1) == pytest.approx((2 / 3, 1.0))
    assert shares(reference, samples, 1) == pytest.approx((1.0, 2 / 3))
    # Without the far sample's wide ball 10 is out of reach.
    assert shares(samples[:2], reference, 1) == pytest.approx((1.0, 3 / 4))


def test_sets_apart_and_sets_alike():
    reference = gaussian(60, 4, 1)
    assert shares(reference, reference, 3) == (1.0, 1.0)
    assert shares(gaussian(50, 4, 2, shift=100.0), reference, 3) == (0.0, 0.0)


def test_features_that_cannot_be_compared_are_refused():
    features, few = gaussian(50, 4, 1), gaussian(3, 4, 1)
    not_finite = features.copy()
    not_finite[7, 1] = np.nan
    for other in (few, not_finite):
        for pair in ((features, other), (other, features)):
            with raises(ValueError):
                covered(*pair, 3)
    assert covered(few, features, 2) is not None
    with raises(ValueError):
        ball_radii(features, 0)


def test_the_smaller_side_counts():
    assert [Sizes(9, reference, 2).fewest for reference in (5, 12, None)] == [5, 9, 9]


def test_which_samples_are_covered_does_not_depend_on_the_others():
    """So precision is a share of independent samples, where the reference is fixed."""
    features, reference = gaussian(300, 8, 1, 1.2), gaussian(200, 8, 2)
    whole = covered(features, reference, 3)[0]
    assert 0 < whole.sum() < 300
    assert np.array_equal(covered(features[::2].copy(), reference, 3)[0], whole[::2])
