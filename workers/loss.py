"""The loss of training: what a network's output for a batch is compared with, and how times are weighted."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import config
from workers.diffusion.objective import l_gamma, l_simple, theorem1_sigma, theorem1_weights
from workers.diffusion.process import PredictionType, predicted, velocity
from workers.diffusion.sampler import sigma_hat
from workers.diffusion.timesteps import tau
from workers.training import Hopeless


class Batch(NamedTuple):
    """One rank's part of a step's global batch."""

    x_t: Tensor
    """(B, C, H, W), the images with noise added to them."""
    t: Tensor
    """(B,) int64 in 1..T."""
    x0: Tensor
    """As `x_t`, the images in [-1, 1]."""
    eps: Tensor
    """As `x_t`, the noise."""


class Loss:
    """The loss of a network's output: L_simple on what it predicts, or L_gamma on eps with Theorem 1's weights."""

    def __init__(self, diffusion: config.Diffusion, weights: config.LossWeights | None, device: str) -> None:
        """Raises `Hopeless` where Theorem 1 has no such weights."""
        assert diffusion.prediction is not None
        self._prediction: PredictionType = diffusion.prediction
        alpha_bar = diffusion.alpha_bar
        self._alpha_bar = torch.from_numpy(alpha_bar).to(device)
        self._gamma = None if weights is None else torch.from_numpy(loss_weights(weights, alpha_bar)).to(device)

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """(B,) losses of the output (B, C, H, W)."""
        alpha_t = self._alpha_bar[batch.t]
        if self._gamma is not None:
            eps = predicted(output, batch.x_t, alpha_t, self._prediction).eps
            return l_gamma(eps, batch.eps, self._gamma[batch.t])
        if self._prediction == "epsilon":
            return l_simple(output, batch.eps)
        if self._prediction == "sample":
            return l_simple(output, batch.x0)
        return l_simple(output, velocity(batch.x0, batch.eps, alpha_t))


def loss_weights(section: config.LossWeights, alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
    """Theorem 1's gamma for t = 0..T, (T + 1,), divided by their mean over 1..T: the gradient keeps its scale, and
    with it `learning_rate` and `gradient_clip` their meaning.

    Raises:
        Hopeless: if there are no such weights.
    """
    timesteps = len(alpha_bar) - 1
    sigma_1 = section.sigma_1
    try:
        times = tau(section.spacing, section.steps or timesteps, timesteps)
        first = sigma_hat(float(alpha_bar[times[0]]), 1.0) if sigma_1 == "sigma_hat" else sigma_1
        gamma = theorem1_weights(alpha_bar, times, theorem1_sigma(alpha_bar, times, section.eta, first))
    except ValueError as error:
        raise Hopeless(f"train.loss_weights: {error}") from error
    normalised: NDArray[np.float64] = gamma / gamma[1:].mean()
    return normalised
