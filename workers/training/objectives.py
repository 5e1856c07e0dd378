"""What a network is given in training, told, and should return, for each process: tensors of a batch."""

from typing import Protocol

import torch
from torch import Tensor

from taugrid.config import Diffusion
from taugrid.workers import schedules
from taugrid.workers.diffusion.process import diffuse, network_time, velocity

LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -1.2, 1.2
"""The normal distribution of ln sigma in training `edm`: P_mean and P_std of Karras et al. 2022, table 1."""


class Objective(Protocol):
    """x0 are images in [-1, 1], (B, C, H, W), eps the noise, shaped like x0, and t (B,) times of the process."""

    timesteps: int | None = None
    """T, if times are drawn from 1..T. None: they are made of uniform numbers in (0, 1), in float64."""

    def time(self, drawn: Tensor) -> Tensor:
        """t, from what was drawn: that itself, unless a process says otherwise."""
        return drawn

    def told(self, t: Tensor) -> Tensor:
        """(B,) what the network is told at t: as `Point.time`, where it is sampled."""

    def input(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network is given, shaped like x0: the images with noise, scaled as in sampling."""

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What it should return. The loss is the squared error of that, averaged over dimensions."""


def objective(diffusion: Diffusion, device: str) -> Objective:
    """The one of a resolved section."""
    if diffusion.process == "flow":
        return FlowMatching(diffusion)
    if diffusion.process == "edm":
        return EDMLoss(diffusion)
    return OfBetas(diffusion, device)


class OfBetas(Objective):
    """DDPM's: L_simple for epsilon, and the same for x0 and v."""

    def __init__(self, diffusion: Diffusion, device: str) -> None:
        alpha_bar = schedules.alpha_bar(diffusion)
        self.timesteps = len(alpha_bar) - 1
        self._prediction = diffusion.predicts
        self.alpha_bar = torch.from_numpy(alpha_bar).to(device)

    def told(self, t: Tensor) -> Tensor:
        """The index in 0..T-1."""
        return network_time(t)

    def input(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t, eq. 4."""
        return diffuse(x0, eps, self.alpha_bar[t])

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What `diffusion.prediction` says."""
        if self._prediction == "v_prediction":
            return velocity(x0, eps, self.alpha_bar[t])
        return eps if self._prediction == "epsilon" else x0


class FlowMatching(Objective):
    """That of Lipman et al. 2023 and Liu et al. 2023: the velocity eps - x0 at t, uniform in (0, 1)."""

    def __init__(self, diffusion: Diffusion) -> None:
        assert diffusion.timesteps is not None
        self._told_times = diffusion.timesteps

    def told(self, t: Tensor) -> Tensor:
        """`diffusion.timesteps` times t, in float32."""
        return (t * self._told_times).float()

    def input(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """(1 - t) x0 + t eps."""
        t = t[:, None, None, None]
        return (1 - t).to(x0) * x0 + t.to(x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The same at every t: dx / dt."""
        return eps - x0


class EDMLoss(Objective):
    """That of Karras et al. 2022, eq. 8: weighted by lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,
    the error of x0 is the error of F without a weight.

    With images of deviation 1, x0 / sigma_data, c_in x is x_t of DDPM's process for alpha_t = sigma_data^2 / (sigma^2 +
    sigma_data^2), and F is -v. Their difference (x0 - c_skip x) / c_out would lose digits where sigma is small.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        assert diffusion.sigma_data is not None
        self._sigma_data = diffusion.sigma_data

    def time(self, drawn: Tensor) -> Tensor:
        """sigma, log-normal: the inverse of the normal distribution at a uniform number.

        ln sigma is a multiple of 2^-20, so that it does not depend on the last bits of `torch.special.ndtri`, which
        are not the same on all devices.
        """
        log_sigma: Tensor = LOG_SIGMA_MEAN + LOG_SIGMA_DEVIATION * torch.special.ndtri(drawn)
        return (log_sigma * 2**20).round().div(2**20).exp()

    def told(self, t: Tensor) -> Tensor:
        """ln(sigma) / 4, in float32."""
        return (t.log() / 4).float()

    def input(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """c_in (x0 + sigma eps)."""
        return diffuse(x0 / self._sigma_data, eps, self._alpha_bar(t))

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """F for which D is x0."""
        return -velocity(x0 / self._sigma_data, eps, self._alpha_bar(t))

    def _alpha_bar(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + (sigma / self._sigma_data) ** 2)
