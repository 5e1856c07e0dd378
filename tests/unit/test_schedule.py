"""Schedules by their definitions and against diffusers' tables, which are float32."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from snapshots import raises

from taugrid.config import DIFFUSION_DEFAULTS, Diffusion
from taugrid.workers import schedules
from taugrid.workers.diffusion.schedule import SCHEDULES, alpha_bar, betas, rescaled_to_zero_snr

SETTINGS = [(1000, 1e-4, 2e-2), (1000, 0.00085, 0.012), (50, 2e-3, 0.4)]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_agrees_with_diffusers(schedule, settings):
    cls = DDPMScheduler if schedule == "sigmoid" else DDIMScheduler  # DDIMScheduler has no sigmoid
    scheduler = cls(*settings, {"cosine": "squaredcos_cap_v2"}.get(schedule, schedule))
    # Ours are exact to 1e-16; the others are differences from 1, or linspaces, in float32's 6e-8.
    np.testing.assert_allclose(betas(schedule, *settings), scheduler.betas.numpy(), rtol=1e-6, atol=1e-7)
    # T roundings of float32 in a product. The last cosine beta, 0.999, keeps 1e-3 of its alpha: 6e-8 / 1e-3 more.
    np.testing.assert_allclose(alpha_bar(schedule, *settings)[1:], scheduler.alphas_cumprod.numpy(), rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [1, 2, 3, 1000])
def test_has_a_one_in_front_and_decreases(schedule, timesteps):
    ours = alpha_bar(schedule, timesteps, 1e-4, 2e-2)
    assert ours.shape == (timesteps + 1,)
    assert ours.dtype == betas(schedule, timesteps, 1e-4, 2e-2).dtype == np.float64
    assert ours[0] == 1.0
    assert np.all(np.diff(ours) < 0)
    assert (ours[-1] == 0.0) == (schedule == "jsd")
    if schedule == "linear" and timesteps > 1:
        exact = np.cumprod([1 - (1e-4 + s / (timesteps - 1) * (2e-2 - 1e-4)) for s in range(timesteps)])
        np.testing.assert_allclose(ours[1:], exact, rtol=1e-12)


@given(st.integers(1, 5000))
def test_jsd_falls_linearly_to_exactly_zero(timesteps):
    """The product telescopes: (T-1)/T (T-2)/(T-1) ... = (T-t)/T."""
    ours = alpha_bar("jsd", timesteps, 1e-4, 2e-2)
    np.testing.assert_allclose(ours, (timesteps - np.arange(timesteps + 1)) / timesteps, rtol=0, atol=1e-12)


def test_constant_is_a_power_of_beta_end():
    np.testing.assert_allclose(alpha_bar("constant", 1000, 1e-4, 2e-2), 0.98 ** np.arange(1001), rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "ignored"), [("constant", "start"), ("cosine", "both"), ("jsd", "both"), ("sigmoid", "neither")]
)
def test_takes_no_notice_of_the_betas_it_says(schedule, ignored):
    ours = betas(schedule, 10, 1e-4, 2e-2)
    assert np.array_equal(ours, betas(schedule, 10, 2e-4, 2e-2)) == (ignored != "neither")
    assert np.array_equal(ours, betas(schedule, 10, 1e-4, 3e-2)) == (ignored == "both")
    description = Diffusion(schedule=schedule, beta_start=1e-4, beta_end=2e-2).named_betas
    assert ("0.0001" in description) == (ignored == "neither")
    assert ("0.02" in description) == (ignored != "both")


def test_unknown_schedule_is_named():
    with raises(ValueError):
        alpha_bar("quad", 1000, 1e-4, 2e-2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rescaling_by_its_definition(schedule):
    """Algorithm 1 of Lin et al. 2024: an affine map of sqrt(alpha) that keeps the first and takes the last to 0."""
    before = alpha_bar(schedule, 50, 1e-3, 0.1)
    ours = rescaled_to_zero_snr(before)
    assert (ours[0], ours[-1]) == (1.0, 0.0)
    assert ours[1] == pytest.approx(before[1], rel=1e-14)
    slopes = np.diff(np.sqrt(ours[1:])) / np.diff(np.sqrt(before[1:]))
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9)
    np.testing.assert_allclose(rescaled_to_zero_snr(ours), ours, rtol=1e-14)
    assert np.array_equal(before, alpha_bar(schedule, 50, 1e-3, 0.1)), "its argument is left as it was"


def test_one_time_can_not_be_rescaled():
    with raises(ValueError):
        rescaled_to_zero_snr(np.array([1.0, 0.9]))


def test_a_section_of_the_config_puts_its_keys_together():
    """A list of betas or a schedule, then the rescaling, then alpha_0."""
    trained = Diffusion(trained_betas=(0.1, 0.2, 0.3), timesteps=3, prediction="sample")
    np.testing.assert_allclose(schedules.alpha_bar(trained), [1, 0.9, 0.72, 0.504], rtol=1e-15)
    both = trained.model_copy(update={"rescale_betas_zero_snr": True, "set_alpha_to_one": False})
    np.testing.assert_allclose(
        schedules.alpha_bar(both), rescaled_to_zero_snr(schedules.alpha_bar(trained)) * [0.9, 1, 1, 1], rtol=1e-14
    )
    ends_at_1 = schedules.alpha_bar(DIFFUSION_DEFAULTS.model_copy(update={"set_alpha_to_one": False}))
    assert ends_at_1[0] == ends_at_1[1] == pytest.approx(1 - 1e-4)
    assert np.array_equal(ends_at_1[1:], schedules.alpha_bar(DIFFUSION_DEFAULTS)[1:])
