"""The optimal networks of known distributions.

Of DDPM's process, they predict eps, E[eps | x_t]. Those of other processes are told a time and find the noise level by
formulas of their own, so that a process which tells them a wrong one can't cancel its own fault.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.diffusion.gaussian import Classes, Gaussian, TwoPoints
from taugrid.workers.diffusion.process import Point, predict_eps


def gaussian_eps(
    data: Gaussian | Classes, alpha_bar: NDArray[np.float64], device: str, dtype: torch.dtype = torch.float32
) -> Denoiser:
    """eps(x, t) = sqrt(1 - a) (a Sigma + (1 - a) I)^-1 (x - sqrt(a) m), a = alpha_bar[t], in Sigma's eigenbasis.

    `data` are N(m, Sigma) over C * H * W pixels; or classes N(m + o, Sigma), whose eps is that of N(m, Sigma) at x -
    sqrt(a) o: the condition are then labels (B,), int64, the null label among them. The Denoiser is for the points of
    the process with these `alpha_bar`, (T + 1,) with 1 at 0, and for x on `device`; it computes in `dtype`, that of x.
    """
    base = data.base if isinstance(data, Classes) else data
    vectors = torch.tensor(base.eigenvectors, dtype=dtype, device=device)
    moved = torch.tensor(data.offsets, dtype=dtype, device=device) if isinstance(data, Classes) else None

    def line(a: NDArray[np.float64] | float) -> tuple[Tensor, Tensor]:
        slopes, means = np.sqrt(1 - a) / (a * base.eigenvalues + 1 - a), np.sqrt(a) * base.mean
        return torch.tensor(slopes, dtype=dtype, device=device), torch.tensor(means, dtype=dtype, device=device)

    every = line(alpha_bar[1:, None])

    def eps(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        if moved is not None:
            assert condition is not None, "it takes labels"
            x = x - at.alpha * moved[condition].reshape(x.shape)
        slopes, means = (of[at.time] for of in every) if isinstance(at.time, int) else line(at.alpha_bar)
        return (((x.flatten(1) - means) @ vectors * slopes) @ vectors.T).reshape(x.shape)

    return eps


def two_points_eps(data: TwoPoints, device: str, dtype: torch.dtype = torch.float32) -> Denoiser:
    """eps(x, t) = (x - sqrt(a) E[x0 | x]) / sqrt(1 - a), a = alpha_bar[t]; the rest is as in `gaussian_eps`."""
    expected = _of_points(data, device, dtype)

    def eps(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        return predict_eps(x, expected(x, math.sqrt(at.alpha_bar), 1 - at.alpha_bar), at)

    return eps


def _of_points(data: TwoPoints, device: str, dtype: torch.dtype) -> Callable[[Tensor, float, float], Tensor]:
    """E[x0 | x] = w p + (1 - w) q of x, alpha and sigma^2. w is the posterior weight of the point p: a softmax over
    two, and so a sigmoid of the log-odds log(w_p / w_q) + alpha / sigma^2 (p - q).(x - alpha (p + q) / 2), where |x|^2
    cancels."""
    p, q = torch.tensor(data.points, dtype=dtype, device=device)
    prior = math.log(data.weights[0] / data.weights[1])

    def expected(x: Tensor, alpha: float, variance: float) -> Tensor:
        log_odds = prior + alpha / variance * ((x.flatten(1) - alpha / 2 * (p + q)) @ (p - q))
        x0: Tensor = q + log_odds.sigmoid()[:, None] * (p - q)
        return x0.reshape(x.shape)

    return expected


ExpectedX0 = Callable[[Tensor, float, float, Tensor | None], Tensor]
"""E[x0 | x] of x, alpha, sigma and, for classes, labels."""


def edm(expected_x0: ExpectedX0, sigma_data: float) -> Denoiser:
    """F(c_in x, c_noise) of Karras et al. 2022, eq. 7 and table 1, with sigma = exp(4 c_noise), in 1e-13..1e13."""

    def f(scaled: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        sigma = math.exp(min(max(4 * at.time, -30), 30))
        root = math.hypot(sigma, sigma_data)
        x = root * scaled
        return (expected_x0(x, 1.0, sigma, condition) - (sigma_data / root) ** 2 * x) * (root / (sigma * sigma_data))

    return f


def flow(expected_x0: ExpectedX0, told_times: float) -> Denoiser:
    """The velocity E[eps - x0 | x] = (x - E[x0 | x]) / t of x = (1 - t) x0 + t eps, told t times `told_times`."""

    def velocity(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        t = at.time / told_times
        return (x - expected_x0(x, 1 - t, t, condition)) / t

    return velocity


def expected_x0(data: Gaussian | TwoPoints | Classes, device: str, dtype: torch.dtype = torch.float32) -> ExpectedX0:
    """E[x0 | x] for x = alpha x0 + sigma eps, x in `dtype`, where alpha may be 0. Of a Gaussian, m + alpha Sigma
    (alpha^2 Sigma + sigma^2 I)^-1 (x - alpha m), in Sigma's eigenbasis. Classes are Gaussians with other means."""
    if isinstance(data, TwoPoints):
        of_points = _of_points(data, device, dtype)
        return lambda x, alpha, sigma, labels: of_points(x, alpha, sigma**2)
    base, offsets = (data.base, data.offsets) if isinstance(data, Classes) else (data, np.zeros((1, 1)))
    vectors, mean, moved = (
        torch.tensor(values, dtype=dtype, device=device) for values in (base.eigenvectors, base.mean, offsets)
    )

    def of_gaussians(x: Tensor, alpha: float, sigma: float, labels: Tensor | None) -> Tensor:
        assert labels is not None or len(moved) == 1, "classes take labels"
        slopes = alpha * base.eigenvalues / (alpha**2 * base.eigenvalues + sigma**2)
        means = mean + (moved[0] if labels is None else moved[labels])
        around = (x.flatten(1) - alpha * means) @ vectors * torch.tensor(slopes, dtype=dtype, device=device)
        return (means + around @ vectors.T).reshape(x.shape)

    return of_gaussians
