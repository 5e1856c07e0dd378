"""Labels: a pure function of (rule, seed, n), held against what a network takes, passed to it, kept in the files."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taugrid.workers.conditions import LabelRule

PINNED = {"balanced": [7, 8, 5, 0, 3, 9, 6, 1, 4, 2, 5, 1, 9], "random": [5, 9, 9, 6, 9, 4, 8, 1, 3, 8, 4, 1, 6]}


def test_labels_are_pinned():
    """Runs on disk depend on them."""
    for said, labels in [*PINNED.items(), (3, [3] * 13), ([3, 1], [3, 1] * 6 + [3])]:
        found = LabelRule(said, 0, 10).at(np.arange(13))
        assert (found.tolist(), found.dtype) == (labels, np.int32)


@given(st.sampled_from(["balanced", "random"]), st.integers(1, 13), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_a_label_depends_on_the_seed_and_its_number_alone(said, classes, seed, start):
    rule = LabelRule(said, seed, classes)
    whole = rule.at(np.arange(start, start + 40))
    assert set(whole) <= set(range(classes))
    picked = np.array([31, 0, 7, 31])
    assert (rule.at(start + picked) == whole[picked]).all()


@given(st.integers(1, 9), st.integers(0, 99), st.integers(1, 60))
def test_each_prefix_is_balanced_up_to_one(classes, seed, n):
    counts = np.bincount(LabelRule("balanced", seed, classes).at(np.arange(n)), minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_random_labels_are_uniform_and_seeds_differ():
    labels = [LabelRule("random", seed, 7).at(np.arange(70_000)) for seed in (0, 1)]
    assert np.abs(np.bincount(labels[0]) - 10_000).max() < 4.5 * np.sqrt(10_000 * 6 / 7)
    assert 0.1 < (labels[0] == labels[1]).mean() < 0.19
    orders = {tuple(LabelRule("balanced", seed, 7).at(np.arange(7))) for seed in range(20)}
    assert len(orders) > 15
