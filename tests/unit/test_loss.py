"""The loss of training: each prediction has its own target, and Theorem 1's weights act on eps in all of them."""

import numpy as np
import pytest
import torch

from taugrid import config
from taugrid.workers import schedules
from taugrid.workers.diffusion.objective import theorem1_sigma, theorem1_weights
from taugrid.workers.diffusion.process import diffuse, velocity
from taugrid.workers.training.loop import Loss, TrainingBatch

ALPHA_BAR = schedules.alpha_bar(config.DIFFUSION_DEFAULTS)
WEIGHTS = config.LossWeights(eta=0.7, sigma_1="sigma_hat", steps=20, spacing="quadratic")


def diffusion(prediction):
    return config.DIFFUSION_DEFAULTS.model_copy(update={"prediction": prediction})


def a_batch():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 1, 4, 4, generator=generator)
    t = torch.tensor([1, 10, 300, 700, 1000])
    return TrainingBatch(diffuse(x0, eps, torch.from_numpy(ALPHA_BAR)[t]), t, x0, eps, t - 1)


def outputs(batch, x0):
    """What networks of each kind say that see x0 in x_t."""
    alpha_t = torch.from_numpy(ALPHA_BAR)[batch.t].float()[:, None, None, None]
    eps = (batch.x_t - alpha_t.sqrt() * x0) / (1 - alpha_t).sqrt()
    return {"epsilon": eps, "sample": x0, "v_prediction": velocity(x0, eps, torch.from_numpy(ALPHA_BAR)[batch.t])}


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_has_no_loss_and_another_the_mean_square_of_what_it_predicts(prediction):
    batch = a_batch()
    perfect = outputs(batch, batch.x0)[prediction]
    for weights in (None, WEIGHTS):
        loss = Loss(diffusion(prediction), weights, "cpu")(perfect, batch)
        torch.testing.assert_close(loss, torch.zeros(5), rtol=0, atol=1e-6)
    loss = Loss(diffusion(prediction), None, "cpu")(perfect + 0.5, batch)
    torch.testing.assert_close(loss, torch.full((5,), 0.25), rtol=1e-3, atol=1e-5)


def test_weights_act_on_eps_whatever_is_predicted():
    batch = a_batch()
    said = outputs(batch, batch.x0 + 0.1)
    losses = [Loss(diffusion(prediction), WEIGHTS, "cpu")(said[prediction], batch) for prediction in said]
    error = (said["epsilon"] - batch.eps).square().flatten(1).mean(dim=1)
    expected = error * torch.from_numpy(schedules.gamma(WEIGHTS, ALPHA_BAR))[batch.t].float()
    for loss in losses:
        torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)


def test_weights_are_theorem_1s_over_their_mean():
    found = schedules.gamma(config.LossWeights(eta=1.0, sigma_1=0.05), ALPHA_BAR)
    times = range(1, 1001)
    exact = theorem1_weights(ALPHA_BAR, times, theorem1_sigma(ALPHA_BAR, times, 1.0, 0.05))
    np.testing.assert_allclose(found, exact / exact[1:].mean(), rtol=1e-12)
    assert found[1:].mean() == pytest.approx(1.0)
    assert found[1:].max() / found[1:].min() > 10
    by_word = schedules.gamma(config.LossWeights(sigma_1="sigma_hat"), ALPHA_BAR)
    first = (1 - ALPHA_BAR[1]) / (2 * (1 - ALPHA_BAR[1]) * ALPHA_BAR[1])  # sigma-hat_1^2 = 1 - alpha_1
    assert by_word[1] / by_word[500] == pytest.approx(first / exact[500], rel=1e-9)
