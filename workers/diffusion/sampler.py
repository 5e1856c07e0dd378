"""The sampler of the DDIM paper: eq. 12 along tau, from x_T down to x_0."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.diffusion.process import predict_eps, predict_x0


class Coefficients(NamedTuple):
    """The numbers of one step from tau_i to tau_{i-1}, in float64."""

    alpha_t: float
    alpha_prev: float
    direction: float
    """sqrt(1 - alpha_prev - sigma^2), which multiplies eps."""
    noise: float
    """What multiplies z; 0 in the last step."""


def sigma(alpha_t: float, alpha_prev: float, eta: float) -> float:
    """The standard deviation of a step's noise, eq. 16: eta = 0 is DDIM, eta = 1 is DDPM."""
    return eta * math.sqrt((1 - alpha_prev) / (1 - alpha_t)) * math.sqrt(1 - alpha_t / alpha_prev)


def sigma_hat(alpha_t: float, alpha_prev: float) -> float:
    """DDPM's larger standard deviation, the sigma-hat below eq. 16."""
    return math.sqrt(1 - alpha_t / alpha_prev)


def coefficients(alpha_t: float, alpha_prev: float, eta: float | Literal["sigma_hat"]) -> Coefficients:
    """The coefficients of eq. 12. With sigma-hat the direction stays that of eta = 1; the last step adds no noise."""
    sigma_t = sigma(alpha_t, alpha_prev, 1.0 if eta == "sigma_hat" else eta)
    direction = math.sqrt(max(0.0, 1 - alpha_prev - sigma_t**2))  # rounding can take a zero below zero
    is_last = alpha_prev == 1.0
    noise = sigma_hat(alpha_t, alpha_prev) if eta == "sigma_hat" and not is_last else sigma_t
    return Coefficients(alpha_t, alpha_prev, direction, noise)


def step(x: Tensor, eps: Tensor, z: Tensor | None, c: Coefficients, clip: str) -> Tensor:
    """x_{tau_{i-1}} from x_{tau_i}, eq. 12.

    Args:
        x: (B, C, H, W) float32, x_{tau_i}.
        eps: as `x`, eps_theta(x_{tau_i}).
        z: as `x`, standard normal; None where the step adds no noise.
        c: the coefficients of the step.
        clip: `none`; `x0`: the predicted x0 is clipped to [-1, 1], eps kept; `x0_and_eps`: eps is recomputed from it.

    Raises:
        ValueError: for an unknown `clip`.
    """
    x0 = predict_x0(x, eps, c.alpha_t)  # eq. 9
    if clip in ("x0", "x0_and_eps"):
        x0 = x0.clamp(-1, 1)
    elif clip != "none":
        raise ValueError(f"unknown clip {clip!r}; known: none, x0, x0_and_eps")
    if clip == "x0_and_eps":
        eps = predict_eps(x, x0, c.alpha_t)
    x_prev = math.sqrt(c.alpha_prev) * x0 + c.direction * eps
    return x_prev if z is None else x_prev + c.noise * z


@torch.no_grad()
def sample(
    eps_model: Callable[[Tensor, int], Tensor],
    noise: Callable[[int], Tensor],
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    eta: float | Literal["sigma_hat"],
    clip: str,
) -> Tensor:
    """Images from x_T by one step for each time in tau.

    Args:
        eps_model: eps_theta(x, t) with the paper's t in 1..T, not a network's index t - 1.
        noise: `noise(0)` is x_T, (B, C, H, W) float32; `noise(t)` the z of the step that starts at time t, asked for
            only where that step adds noise.
        alpha_bar: (T + 1,) with `alpha_bar[0] == 1`.
        tau: increasing times in 1..T.
        eta: the scale of eq. 16, or `sigma_hat`.
        clip: as in `step`.

    Returns:
        (B, C, H, W) float32, x_0.
    """
    x = noise(0)
    for t_prev, t in reversed(list(pairwise([0, *tau]))):
        c = coefficients(float(alpha_bar[t]), float(alpha_bar[t_prev]), eta)
        z = noise(t) if c.noise > 0 else None
        x = step(x, eps_model(x, t), z, c, clip)
    return x
