"""The forward process, its inversions and L_simple, against the formulas written out in numpy."""

import numpy as np
import torch

from workers.diffusion.objective import l_simple
from workers.diffusion.process import diffuse, predict_eps, predict_x0
from workers.diffusion.schedule import alpha_bar


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


def test_predictions_invert_diffuse():
    x0, eps = images(3).double(), images(4).double()
    alpha = torch.from_numpy(alpha_bar("cosine", 100, 1e-4, 2e-2)[[1, 30, 70, 99]])
    x_t = diffuse(x0, eps, alpha)
    torch.testing.assert_close(predict_x0(x_t, eps, alpha), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predict_eps(x_t, x0, alpha), eps, rtol=1e-9, atol=1e-9)


def test_one_number_means_the_same_for_every_image():
    x, eps = images(5), images(6)
    for function in (diffuse, predict_x0, predict_eps):
        each = function(x, eps, torch.full((4,), 0.3, dtype=torch.float64))
        torch.testing.assert_close(function(x, eps, 0.3), each, rtol=1e-6, atol=1e-6)


def test_first_time_keeps_its_little_noise_in_float32():
    """1 - alpha_1 = 1e-4 would lose three digits if it were taken in float32."""
    alpha = torch.tensor([1 - 1e-4], dtype=torch.float64)
    x_t = diffuse(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), alpha)
    torch.testing.assert_close(x_t, torch.full((1, 1, 2, 2), 1e-2), rtol=1e-6, atol=0)


def test_l_simple_is_the_mean_square_of_each_image():
    a, b = images(7), images(8)
    loss = l_simple(a, b)
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss.numpy(), [((a[i] - b[i]) ** 2).mean().item() for i in range(4)], rtol=1e-5)
