"""Noise schedules: the cumulative products alpha_bar of the forward process, in float64 and without torch."""

import math

import numpy as np
from numpy.typing import NDArray

MAX_BETA = 0.999
"""Nichol & Dhariwal's bound on a cosine schedule's beta: without it alpha_bar_T is 0, and eq. 9 divides by its root."""


def alpha_bar(schedule: str, timesteps: int, beta_start: float, beta_end: float) -> NDArray[np.float64]:
    """The products alpha_t = prod_{s<=t} (1 - beta_s) for t = 0..T, so that `alpha_bar[0] == 1`.

    `linear` is Ho et al. 2020, `scaled_linear` is Stable Diffusion's (linear in the root of beta), `cosine` is
    Nichol & Dhariwal 2021, eq. 17, which takes no notice of `beta_start` and `beta_end`.

    Returns:
        (T + 1,) float64, strictly decreasing.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule == "linear":
        beta = np.linspace(beta_start, beta_end, timesteps)
    elif schedule == "scaled_linear":
        beta = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), timesteps) ** 2
    elif schedule == "cosine":
        f = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = np.minimum(1 - f[1:] / f[:-1], MAX_BETA)
    else:
        raise ValueError(f"unknown schedule {schedule!r}; known: linear, scaled_linear, cosine")
    return np.concatenate([[1.0], np.cumprod(1 - beta)])
