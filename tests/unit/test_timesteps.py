"""Properties of tau, and the values of a few that are easy to check by hand."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.diffusion.timesteps import tau

SPACINGS = st.sampled_from(["linear", "quadratic"])


@st.composite
def steps_and_timesteps(draw):
    timesteps = draw(st.integers(1, 5000))
    return draw(st.integers(1, timesteps)), timesteps


@given(SPACINGS, steps_and_timesteps())
@example("quadratic", (100, 1000))  # floor(c i^2) starts with three zeros here
@example("quadratic", (999, 1000))
@example("linear", (30, 1000))
def test_is_increasing_of_length_s_and_ends_at_t(spacing, sizes):
    steps, timesteps = sizes
    times = tau(spacing, steps, timesteps)
    assert len(times) == steps
    assert times[0] >= 1
    assert all(a < b for a, b in pairwise(times))
    assert times[-1] == timesteps


@given(SPACINGS, st.integers(1, 3000))
def test_is_the_identity_at_full_length(spacing, timesteps):
    assert tau(spacing, timesteps, timesteps) == tuple(range(1, timesteps + 1))


def test_values():
    assert tau("linear", 10, 1000) == (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    assert tau("linear", 3, 1000) == (333, 666, 1000)
    assert tau("quadratic", 10, 1000) == (10, 40, 90, 160, 250, 360, 490, 640, 810, 1000)
    # 1000 i^2 / 100^2 = i^2 / 10 lies below i up to i = 10.
    assert tau("quadratic", 100, 1000)[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=rf"^{steps} sampling steps can't be chosen out of 1000 .*$"):
        tau("linear", steps, 1000)


def test_unknown_spacing_is_named():
    with pytest.raises(ValueError, match=r"'uniform'.*linear, quadratic"):
        tau("uniform", 10, 1000)
