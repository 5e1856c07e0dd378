"""The sampler of the DDIM paper: one update, eq. 12, which samples, decodes and encodes along tau."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid.workers.diffusion.forward import sigma, sigma_hat
from taugrid.workers.diffusion.process import Denoiser, Prediction, PredictionType, predict_eps, predict_x0, predicted

Eta = float | Literal["sigma_hat"]


class Coefficients(NamedTuple):
    """The factors of x0, eps and z in eq. 12, in float64."""

    signal: float
    """sqrt(alpha) of the time that the step leads to."""
    direction: float
    """sqrt(1 - alpha - sigma^2)."""
    noise: float
    """sigma; 0 in the last step if alpha_0 = 1 or with sigma-hat."""


def coefficients(alpha_t: float, alpha_prev: float, eta: Eta, is_last: bool = False) -> Coefficients:
    """The coefficients of eq. 12. With sigma-hat, the direction stays that of eta = 1 and the last step adds no noise.

    With an eta, eq. 16 gives the last step no noise if alpha_0 = 1. If alpha_0 = alpha_1 it can add some, as in
    diffusers.
    """
    sigma_t = sigma(alpha_t, alpha_prev, 1.0 if eta == "sigma_hat" else eta)
    direction = math.sqrt(max(0.0, 1 - alpha_prev - sigma_t**2))  # rounding can take a zero below zero
    noise = sigma_t
    if eta == "sigma_hat":
        noise = 0.0 if is_last else sigma_hat(alpha_t, alpha_prev)
    return Coefficients(math.sqrt(alpha_prev), direction, noise)


def step(at: Prediction, z: Tensor | None, c: Coefficients) -> Tensor:
    """X at the next time of the path, eq. 12.

    Args:
        at: the network's prediction at x: x0 and eps, (B, C, H, W).
        z: as x, standard normal; None if the step adds no noise.
        c: the coefficients of the step.
    """
    x_next = c.signal * at.x0 + c.direction * at.eps
    return x_next if z is None else x_next + c.noise * z


def clipped(at: Prediction, x: Tensor, alpha_t: float, clip: str, clip_range: float) -> Prediction:
    """The prediction at x after clipping.

    `none` leaves it unchanged. `x0` clips the predicted x0 to [-clip_range, clip_range] and keeps eps, as diffusers
    does by default. `x0_and_eps` also takes the eps that leads from the clipped x0 to x, as DDPM's posterior mean does.

    Raises:
        ValueError: for an unknown `clip`.
    """
    if clip == "none":
        return at
    x0 = at.x0.clamp(-clip_range, clip_range)
    if clip == "x0":
        return Prediction(x0, at.eps)
    if clip == "x0_and_eps":
        return Prediction(x0, predict_eps(x, x0, alpha_t))
    raise ValueError(f"unknown clip {clip!r}; known: none, x0, x0_and_eps")


@torch.no_grad()
def sample(
    network: Denoiser,
    noise: Callable[[int], Tensor],
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    eta: Eta,
    clip: str,
    prediction: PredictionType = "epsilon",
    clip_range: float = 1.0,
) -> Tensor:
    """Images from x_T by one step for each time in tau.

    Args:
        network: called only at the times of tau.
        noise: `noise(0)` is x_T, (B, C, H, W) float32; `noise(t)` is the z of the step that starts at time t, called
            only if that step adds noise.
        alpha_bar: (T + 1,) with `alpha_bar[0] == 1`, or `alpha_bar[1]`, which makes the last step end at time 1.
        tau: times in 1..T that never decrease. A repeated time is a step that does not move (except with clip `x0`,
            where x0 and eps no longer add up to x).
        eta: the scale of eq. 16, or `sigma_hat`.
        clip: as in `clipped`.
        prediction: what the network predicts.
        clip_range: as in `clipped`.

    Returns:
        (B, C, H, W) float32, x_0.
    """
    x = noise(0)
    for t_prev, t in reversed(list(pairwise([0, *tau]))):
        alpha_t, alpha_prev = float(alpha_bar[t]), float(alpha_bar[t_prev])
        c = coefficients(alpha_t, alpha_prev, eta, is_last=t_prev == 0)
        at = clipped(predicted(network(x, t), x, alpha_t, prediction), x, alpha_t, clip, clip_range)
        x = step(at, noise(t) if c.noise > 0 else None, c)
    return x


def decode(
    network: Denoiser,
    x_T: Tensor,
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    prediction: PredictionType = "epsilon",
) -> Tensor:
    """x_0 for a given x_T, (B, C, H, W), along the ODE of eq. 14 downwards: `sample` with eta = 0 and no clipping."""
    return sample(network, lambda _: x_T, alpha_bar, tau, 0.0, "none", prediction)


@torch.no_grad()
def encode(
    network: Denoiser,
    x0: Tensor,
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    prediction: PredictionType = "epsilon",
) -> Tensor:
    """x_T of given images along the ODE of eq. 14 upwards: Euler steps of eq. 13, with eps at the step's target time.

    With eps at the source time, as eq. 13 is printed, the first step would call the network at t = 0, for which it was
    never trained. Arguments are as in `sample`, `x0` (B, C, H, W); nothing is clipped.
    """
    x = x0
    for s, t in pairwise([0, *tau]):
        alpha_s, alpha_t = float(alpha_bar[s]), float(alpha_bar[t])
        eps = predicted(network(x, t), x, alpha_t, prediction).eps
        ahead = Coefficients(math.sqrt(alpha_t), math.sqrt(1 - alpha_t), noise=0.0)
        x = step(Prediction(predict_x0(x, eps, alpha_s), eps), None, ahead)
    return x
