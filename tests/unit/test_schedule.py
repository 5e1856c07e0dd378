"""Schedules against diffusers' tables, which are float32."""

import numpy as np
import pytest
from diffusers import DDIMScheduler

from workers.diffusion.schedule import alpha_bar

DIFFUSERS_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("schedule", DIFFUSERS_NAMES)
@pytest.mark.parametrize(
    ("timesteps", "beta_start", "beta_end"), [(1000, 1e-4, 2e-2), (1000, 0.00085, 0.012), (50, 2e-3, 0.4)]
)
def test_agrees_with_diffusers(schedule, timesteps, beta_start, beta_end):
    scheduler = DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=DIFFUSERS_NAMES[schedule],
        beta_start=beta_start,
        beta_end=beta_end,
    )
    ours = alpha_bar(schedule, timesteps, beta_start, beta_end)
    # T roundings of float32 in a product. The last cosine beta, 0.999, keeps 1e-3 of its alpha: 6e-8 / 1e-3 more.
    np.testing.assert_allclose(ours[1:], scheduler.alphas_cumprod.numpy(), rtol=1e-4)


@pytest.mark.parametrize("schedule", DIFFUSERS_NAMES)
@pytest.mark.parametrize("timesteps", [1, 2, 1000])
def test_has_a_one_in_front_and_decreases(schedule, timesteps):
    ours = alpha_bar(schedule, timesteps, 1e-4, 2e-2)
    assert ours.shape == (timesteps + 1,)
    assert ours.dtype == np.float64
    assert ours[0] == 1.0
    assert np.all(np.diff(ours) < 0)
    assert ours[-1] > 0


def test_linear_schedule_of_the_paper_by_its_definition():
    ours = alpha_bar("linear", 1000, 1e-4, 2e-2)
    product = 1.0
    for s in range(1, 1001):
        product *= 1 - (1e-4 + (s - 1) / 999 * (2e-2 - 1e-4))
        assert ours[s] == pytest.approx(product, rel=1e-12)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'sigmoid'.*linear, scaled_linear, cosine"):
        alpha_bar("sigmoid", 1000, 1e-4, 2e-2)
