"""Properties of tau, its values where they are easy to check by hand, and diffusers' time steps for every S and T."""

import math
from itertools import pairwise

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from snapshots import raises, recorded

from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import SPACINGS, remarks, tau, times

PAPER = ["linear", "quadratic"]
DIFFUSERS = ["leading", "trailing", "linspace"]
REGULAR = st.sampled_from(PAPER + DIFFUSERS)


@st.composite
def steps_and_timesteps(draw):
    timesteps = draw(st.integers(1, 5000))
    return draw(st.integers(1, timesteps)), timesteps


@given(REGULAR, steps_and_timesteps())
@example("quadratic", (100, 1000))  # floor(c i^2) starts with three zeros here
@example("quadratic", (999, 1000))
def test_is_increasing_and_of_length_s(spacing, sizes):
    steps, timesteps = sizes
    times = tau(spacing, steps, timesteps)
    assert len(times) == steps
    assert all(a < b for a, b in pairwise([0, *times, timesteps + 1]))
    assert all(type(t) is int for t in times)
    assert remarks(spacing, steps, times) == []
    if spacing in {"linear", "quadratic", "trailing"} or (spacing == "linspace" and steps > 1):
        assert times[-1] == timesteps
    if spacing in {"leading", "linspace"}:
        assert times[0] == 1


@given(REGULAR, st.integers(1, 3000))
def test_is_the_identity_at_full_length(spacing, timesteps):
    assert tau(spacing, timesteps, timesteps) == tuple(range(1, timesteps + 1))


def diffusers_times(cls, spacing, steps, timesteps):
    """diffusers' time steps as the paper's times, without the index -1 that `trailing` has for some S."""
    scheduler = cls(num_train_timesteps=timesteps, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    times = sorted(index + 1 for index in scheduler.timesteps.tolist())
    if len(times) > steps:
        assert (spacing, times[0]) == ("trailing", 0)  # no time of the model's: index -1 would be its last
    return tuple(times[-steps:])


@given(st.sampled_from(DIFFUSERS), steps_and_timesteps(), st.sampled_from([DDIMScheduler, DDPMScheduler]))
@example("trailing", (16, 1000), DDIMScheduler)  # 1000 - i 62.5: every second value lies between two integers
@example("trailing", (48, 1000), DDPMScheduler)
@example("linspace", (7, 10), DDPMScheduler)  # 1.5 i
@example("trailing", (61, 1000), DDIMScheduler)  # diffusers has 62 here
def test_is_diffusers_index_plus_one(spacing, sizes, cls):
    assert tau(spacing, *sizes) == diffusers_times(cls, spacing, *sizes)


@pytest.mark.parametrize("spacing", DIFFUSERS)
def test_is_diffusers_index_plus_one_for_every_s_of_the_papers_t(spacing):
    for steps in range(1, 1001):
        assert tau(spacing, steps, 1000) == diffusers_times(DDIMScheduler, spacing, steps, 1000)


def test_values():
    assert tau("linear", 10, 1000) == (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    assert tau("linear", 3, 1000) == (333, 666, 1000)
    assert tau("quadratic", 10, 1000) == (10, 40, 90, 160, 250, 360, 490, 640, 810, 1000)
    # 1000 i^2 / 100^2 = i^2 / 10 lies below i up to i = 10.
    assert tau("quadratic", 100, 1000)[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14)
    assert tau("leading", 3, 1000) == (1, 334, 667)
    assert tau("trailing", 3, 1000) == (333, 667, 1000)
    assert tau("linspace", 3, 1000) == (1, 501, 1000)  # index 499.5, half to even
    assert tau("linspace", 1, 1000) == (1,)


def test_ermongroup_uniform_is_a_range():
    """range(0, T, T // S) in indices: it ends before T, and 33 does not fit into 1000 thirty times but 31."""
    assert tau("ermongroup-uniform", 10, 1000) == (1, 101, 201, 301, 401, 501, 601, 701, 801, 901)
    times = tau("ermongroup-uniform", 30, 1000)
    assert times == tuple(1 + 33 * i for i in range(31))
    assert remarks("ermongroup-uniform", 10, tau("ermongroup-uniform", 10, 1000)) == []
    recorded("\n".join(remarks("ermongroup-uniform", 30, times)))


def test_ermongroup_quad_repeats_times_and_ends_at_four_fifths():
    """int(s)^2 steps of linspace(0, sqrt(800), S): with S = 10 they are 9.876 i^2, with S = 100 0.0816 i^2."""
    assert tau("ermongroup-quad", 10, 1000) == (1, 10, 40, 89, 159, 247, 356, 484, 633, 801)
    assert remarks("ermongroup-quad", 10, tau("ermongroup-quad", 10, 1000)) == []
    times = tau("ermongroup-quad", 100, 1000)
    assert times[:9] == (1, 1, 1, 1, 2, 3, 3, 4, 6)
    assert times[-1] == 801
    recorded("\n".join(remarks("ermongroup-quad", 100, times)))


@given(steps_and_timesteps())
def test_ermongroup_times_never_fall_and_stay_inside(sizes):
    steps, timesteps = sizes
    for spacing in ("ermongroup-uniform", "ermongroup-quad"):
        times = tau(spacing, steps, timesteps)
        assert len(times) >= steps
        assert times[0] == 1
        assert all(a <= b for a, b in pairwise([*times, timesteps]))
        assert all(type(t) is int for t in times)
        assert len(remarks(spacing, steps, times)) == (len(times) != steps) + (len(set(times)) != len(times))


@given(st.sets(st.integers(1, 1000), min_size=1))
def test_a_list_of_times_is_taken_as_it_is(times):
    assert tau(sorted(times), len(times), 1000) == tuple(sorted(times))


@pytest.mark.parametrize(
    ("spacing", "steps"),
    [
        ([1, 500, 1000], 4), ([0, 500], 2), ([500, 1001], 2), ([1, 1, 3], 3), ([1000, 1], 2), ("uniform", 10),
        *((spacing, steps) for spacing in [*SPACINGS, []] for steps in (0, 1001)),
    ],
)  # fmt: skip
def test_what_is_no_tau_is_refused(spacing, steps):
    with raises(ValueError):
        tau(spacing, steps, 1000)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_log_snr_spacings_divide_it_equally(schedule):
    process = DiscreteVP(alpha_bar(schedule, 1000, 1e-4, 2e-2))
    found = times("logsnr", 20, process.alpha_bar)
    levels = np.log([1 / process.at(t).ratio for t in found])
    assert (found[0], found[-1], len(found)) == (1, 1000, 20)
    np.testing.assert_allclose(np.diff(levels), (levels[-1] - levels[0]) / 19, rtol=1e-6)
    assert times("logsnr-int", 20, process.alpha_bar) == tuple(round(t) for t in found)
    assert times("logsnr", 1, process.alpha_bar) == (1000,)
    assert times("quadratic", 20, process.alpha_bar) == tau("quadratic", 20, 1000)


def test_log_snr_times_are_the_same_where_logarithms_differ_in_the_last_bit(monkeypatch):
    process = DiscreteVP(alpha_bar("linear", 1000, 1e-4, 2e-2))
    before, log = times("logsnr", 100, process.alpha_bar), np.log
    monkeypatch.setattr(np, "log", lambda x: np.nextafter(log(x), -np.inf))
    assert times("logsnr", 100, process.alpha_bar) == before


@pytest.mark.parametrize(("schedule", "steps"), [("jsd", 10), ("linear", 1001)])
def test_log_snr_needs_signal_at_the_last_time_and_no_more_steps_than_times(schedule, steps):
    with raises(ValueError):
        times("logsnr", steps, alpha_bar(schedule, 1000, 1e-4, 2e-2))


def test_between_two_times_log_alpha_is_linear():
    process = DiscreteVP(alpha_bar("linear", 1000, 1e-4, 2e-2))
    before, between, after = (process.at(t) for t in (500, 500.25, 501))
    assert math.log(between.alpha) == pytest.approx(0.75 * math.log(before.alpha) + 0.25 * math.log(after.alpha))
    assert between.alpha**2 + between.sigma**2 == pytest.approx(1)
    assert between.alpha_bar == pytest.approx(between.alpha**2)
    assert (between.time, between.key) == (499.25, 500)
    assert [process.at(t).key for t in (500.5, 501.5, 500.75)] == [501, 501, 501], "halves go to the even time index"
    assert process.at(500.0) == before
