"""The sampler of the DDIM paper: one update, eq. 12, which samples, decodes and encodes along a path."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.forward import sigma, sigma_hat
from taugrid.workers.diffusion.process import Point, Prediction, predict_x0
from taugrid.workers.samplers.sampler import Noise, sampler

if TYPE_CHECKING:
    from torch import Tensor

Eta = float | Literal["sigma_hat"]


class Coefficients(NamedTuple):
    """The factors of x0, eps and z in eq. 12, in float64."""

    signal: float  # sqrt(alpha) of the time that the step leads to, times its scale
    direction: float  # sqrt(1 - alpha - sigma^2)
    noise: float  # sigma; 0 in the last step if alpha_0 = 1 or with sigma-hat


def coefficients(
    alpha_t: float, alpha_prev: float, eta: Eta, is_last: bool = False, scale: float = 1.0
) -> Coefficients:
    """The coefficients of eq. 12, times the `scale` of the point that the step leads to. With sigma-hat, the direction
    stays that of eta = 1 and the last step adds no noise. With an eta, eq. 16 gives the last step no noise if alpha_0 =
    1. If alpha_0 = alpha_1 it can add some, as in diffusers."""
    sigma_t = sigma(alpha_t, alpha_prev, 1.0 if eta == "sigma_hat" else eta)
    direction = math.sqrt(max(0.0, 1 - alpha_prev - sigma_t**2))  # rounding can take a zero below zero
    noise = sigma_t
    if eta == "sigma_hat":
        noise = 0.0 if is_last else sigma_hat(alpha_t, alpha_prev)
    return Coefficients(scale * math.sqrt(alpha_prev), scale * direction, scale * noise)


def step(at: Prediction, z: "Tensor | None", c: Coefficients) -> "Tensor":
    """X at the next point of the path, eq. 12, from the prediction at x and a standard normal z, None for no noise."""
    x_next = c.signal * at.x0 + c.direction * at.eps
    return x_next if z is None else x_next + c.noise * z


@sampler(
    order=1,
    keys=frozenset({"eta", "spacing", "steps_offset", "clip", "clip_range"}),
    label=lambda self, settings: "sigma_hat" if settings["eta"] == "sigma_hat" else f"eta{settings['eta']:g}",
)
def ddim(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """DDIM, DDPM and all between: `sample` with `settings.eta`."""
    return sample(x, path, denoise, noise, settings.eta)


def sample(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, eta: Eta) -> "Tensor":
    """x_0, (B, C, H, W), from x_T by one step from each point of `path` to the next. `noise` is called only for steps
    that add noise. Times between integers can share a key, and then each draws anew. A step to an equal point does not
    change x (except with clip `x0`, where x0 and eps no longer add up to x)."""
    draws: Counter[int] = Counter()
    for t, prev in pairwise(path):
        c = coefficients(t.alpha_bar, prev.alpha_bar, eta, prev is path[-1], prev.scale)
        z = None
        if c.noise > 0:
            z = noise(t.key, draws[t.key]) if draws[t.key] else noise(t.key)
            draws[t.key] += 1
        x = step(denoise(x, t), z, c)
    return x


def decode(x_T: "Tensor", path: Sequence[Point], denoise: Denoise) -> "Tensor":
    """x_0 for a given x_T, along the ODE of eq. 14 downwards: `sample` with eta = 0."""
    return sample(x_T, path, denoise, lambda key, draw=0: x_T, 0.0)


def encode(x0: "Tensor", path: Sequence[Point], denoise: Denoise) -> "Tensor":
    """x_T of given images along the ODE of eq. 14 upwards: Euler steps of eq. 13, with eps at the step's target.

    With eps at the source, as eq. 13 is printed, the first step would call the network at t = 0, for which it was never
    trained. Where the process does not keep the variance, x is scaled to that at the target. `path` leads downwards, as
    in `decode`; `denoise` clips nothing."""
    x = x0
    for s, t in pairwise(reversed(path)):
        eps = denoise(x if t.scale == s.scale else t.scale / s.scale * x, t).eps
        x = step(Prediction(predict_x0(x, eps, s), eps), None, Coefficients(t.alpha, t.sigma, noise=0.0))
    return x
