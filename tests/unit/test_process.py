"""The forward process and what a network's output means, against formulas written out in numpy and diffusers."""

from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from snapshots import raises

from taugrid.workers.diffusion.process import diffuse, predict_eps, predict_x0, predicted, velocity
from taugrid.workers.diffusion.schedule import alpha_bar


def images(seed, batch=4):
    return torch.randn(batch, 3, 5, 6, generator=torch.Generator().manual_seed(seed))


def test_diffuse_takes_each_image_to_its_own_time():
    x0, eps = images(1), images(2)
    alpha = alpha_bar("linear", 1000, 1e-4, 2e-2)[[1, 250, 999, 1000]]
    x_t = diffuse(x0, eps, torch.from_numpy(alpha))
    assert x_t.dtype == torch.float32
    for b in range(4):
        expected = np.sqrt(alpha[b]) * x0[b].double().numpy() + np.sqrt(1 - alpha[b]) * eps[b].double().numpy()
        np.testing.assert_allclose(x_t[b].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_batch_as_long_as_a_side_is_still_broadcast_by_image():
    """With B = W, a (B,) tensor multiplied without reshaping would scale columns, and no shape error would say so."""
    x0, eps = torch.ones(6, 1, 6, 6), torch.zeros(6, 1, 6, 6)
    x_t = diffuse(x0, eps, torch.linspace(0.1, 0.9, 6, dtype=torch.float64))
    np.testing.assert_allclose(x_t[:, 0, 0, 0].numpy() ** 2, np.linspace(0.1, 0.9, 6), rtol=1e-6)
    assert torch.equal(x_t, x_t[:, :1, :1, :1].expand_as(x_t))


def test_one_number_means_the_same_for_every_image():
    x, eps = images(5), images(6)
    for function in (diffuse, predict_x0, predict_eps, velocity):
        each = function(x, eps, torch.full((4,), 0.3, dtype=torch.float64))
        torch.testing.assert_close(function(x, eps, 0.3), each, rtol=1e-6, atol=1e-6)


def test_first_time_keeps_its_little_noise_in_float32():
    """1 - alpha_1 = 1e-4 would lose three digits if it were taken in float32."""
    alpha = torch.tensor([1 - 1e-4], dtype=torch.float64)
    x_t = diffuse(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), alpha)
    torch.testing.assert_close(x_t, torch.full((1, 1, 2, 2), 1e-2), rtol=1e-6, atol=0)


def test_velocity_is_diffusers():
    """DDPMScheduler.get_velocity at the same alphas, each image at its own time."""
    x0, eps, t = images(9).double(), images(10).double(), torch.tensor([1, 250, 999, 1000])
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar("linear", 1000, 1e-4, 2e-2)[1:])
    ours = velocity(x0, eps, scheduler.alphas_cumprod[t - 1])
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, eps, t - 1), rtol=1e-12, atol=1e-12)


PREDICTIONS = ["epsilon", "sample", "v_prediction"]
LEVELS = torch.tensor([0.9999, 0.5, 0.1, 4e-5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("prediction", "alpha"), [*product(PREDICTIONS, (0.3, LEVELS)), *((its, 0.0) for its in PREDICTIONS[1:])]
)
def test_each_prediction_means_x0_and_eps(prediction, alpha):
    x0, eps = images(11).double(), images(12).double()
    output = {"epsilon": eps, "sample": x0, "v_prediction": velocity(x0, eps, alpha)}[prediction]
    at = predicted(output, diffuse(x0, eps, alpha), alpha, prediction)
    torch.testing.assert_close(at.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_a_network_sees_makes_up_x_t(prediction):
    """For any output, right or wrong, x0 and eps diffuse back to x_t: the sampler counts on it."""
    output, x_t = images(13).double(), images(14).double()
    at = predicted(output, x_t, 0.3, prediction)
    torch.testing.assert_close(diffuse(at.x0, at.eps, 0.3), x_t, rtol=1e-12, atol=1e-12)


def test_unknown_prediction_is_named():
    with raises(ValueError):
        predicted(images(1), images(2), 0.5, "eps")
