"""The loss of training: what a network's output for a batch is compared with, and how times are weighted."""

from typing import NamedTuple

import torch
from torch import Tensor

from taugrid import config
from taugrid.workers import schedules
from taugrid.workers.diffusion.objective import l_gamma, mean_square
from taugrid.workers.diffusion.process import predicted, velocity


class TrainingBatch(NamedTuple):
    """One rank's part of a step's global batch."""

    x_t: Tensor
    """(B, C, H, W), the images with noise added to them."""
    t: Tensor
    """(B,) int64 in 1..T."""
    x0: Tensor
    """Shaped like `x_t`: the images in [-1, 1]."""
    eps: Tensor
    """Shaped like `x_t`: the noise."""


class Loss:
    """The loss of a network's output: the mean square error of its prediction (L_simple for epsilon), or L_gamma on eps
    with Theorem 1's weights."""

    def __init__(self, diffusion: config.Diffusion, weights: config.LossWeights | None, device: str) -> None:
        """Raises ValueError if Theorem 1 has no such weights."""
        self._prediction = diffusion.predicts
        alpha_bar = schedules.alpha_bar(diffusion)
        self._alpha_bar = torch.from_numpy(alpha_bar).to(device)
        self._gamma = None if weights is None else torch.from_numpy(schedules.gamma(weights, alpha_bar)).to(device)

    def __call__(self, output: Tensor, batch: TrainingBatch) -> Tensor:
        """(B,) losses of the output (B, C, H, W)."""
        alpha_t = self._alpha_bar[batch.t]
        if self._gamma is not None:
            eps = predicted(output, batch.x_t, alpha_t, self._prediction).eps
            return l_gamma(eps, batch.eps, self._gamma[batch.t])
        if self._prediction == "epsilon":
            return mean_square(output, batch.eps)
        if self._prediction == "sample":
            return mean_square(output, batch.x0)
        return mean_square(output, velocity(batch.x0, batch.eps, alpha_t))
