"""Noise schedules: the betas of the forward process and their cumulative products, in float64 and without torch."""

import math

import numpy as np
from numpy.typing import NDArray

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "constant", "jsd")  # the names that `betas` knows

MAX_BETA = 0.999
"""Nichol & Dhariwal's bound on a cosine schedule's beta. Without it alpha_bar_T is 0, and eq. 9 divides by its root."""


def betas(schedule: str, timesteps: int, beta_start: float, beta_end: float) -> NDArray[np.float64]:
    """The variances beta_1..beta_T that the forward process adds step by step.

    - `linear`: from `beta_start` to `beta_end`, Ho et al. 2020.
    - `scaled_linear`: linear in the root of beta, as in Stable Diffusion.
    - `cosine`: Nichol & Dhariwal 2021, eq. 17; ignores `beta_start` and `beta_end`.
    - `sigmoid`: a logistic curve from -6 to 6, scaled to lie between `beta_start` and `beta_end`, from GeoDiff (Xu et
      al. 2022); also in diffusers' DDPMScheduler.
    - `constant`: `beta_end` in each step, `const` in Ho et al.'s code; ignores `beta_start`.
    - `jsd`: 1/T, 1/(T-1), ..., 1 (Sohl-Dickstein et al. 2015), so that alpha_t falls linearly, to exactly 0 at T;
      ignores `beta_start` and `beta_end`.

    Entry i, of (T,) float64, is beta at time i + 1. `ValueError` for an unknown schedule.
    """
    T = timesteps
    if schedule == "linear":
        return np.linspace(beta_start, beta_end, T)
    if schedule == "scaled_linear":
        return np.square(np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T))
    if schedule == "cosine":
        f = np.square(np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2))
        return np.minimum(1 - f[1:] / f[:-1], MAX_BETA)
    if schedule == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, T)))
    if schedule == "constant":
        return np.full(T, beta_end, dtype=np.float64)
    if schedule == "jsd":
        return 1 / np.arange(T, 0, -1)
    raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")


def alpha_bar(schedule: str, timesteps: int, beta_start: float, beta_end: float) -> NDArray[np.float64]:
    """The products alpha_t = prod_{s<=t} (1 - beta_s) for t = 0..T, so that `alpha_bar[0] == 1`; see `betas`. (T + 1,)
    float64, strictly decreasing and positive, except that `jsd` ends at exactly 0."""
    return products(betas(schedule, timesteps, beta_start, beta_end))


def products(betas: NDArray[np.float64]) -> NDArray[np.float64]:
    """The products alpha_t = prod_{s<=t} (1 - beta_s) for t = 0..T, (T + 1,) float64, of betas (T,)."""
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def rescaled_to_zero_snr(alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
    """`alpha_bar` with no signal left at T: Lin et al. 2024, algorithm 1. sqrt(alpha_t), t = 1..T, is shifted to be 0
    at T and scaled to keep its value at t = 1. (T + 1,) float64; 1 at t = 0, and exactly 0 at T. `ValueError` for T =
    1, where both can't hold."""
    root = np.sqrt(alpha_bar[1:])
    if len(root) < 2:
        raise ValueError("one time step can't be rescaled to zero SNR (rescale_betas_zero_snr): set more timesteps")
    rescaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return np.concatenate([[1.0], np.square(rescaled)])
