"""The forward process at one time, and the x0 and eps that a network's output implies."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", int, Tensor)

PredictionType = Literal["epsilon", "sample", "v_prediction"]
"""What a network predicts: the noise, the image x0, or v = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x0 (Salimans & Ho
2022, appendix D). The names are diffusers'."""

Denoiser = Callable[[Tensor, int], Tensor]
"""What a network predicts (eps, x0 or v, in the shape of x) from x, (B, C, H, W), and the paper's t in 1..T."""


class Prediction(NamedTuple):
    """A network's estimates of the image and the noise in x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) eps."""

    x0: Tensor
    eps: Tensor


def network_time(t: Time) -> Time:
    """The index 0..T-1 that networks are trained with, from the paper's time t in 1..T: the one place of this shift."""
    return t - 1


def network_index(t: int, x: Tensor) -> Tensor:
    """The time index of each image of x: (B,) int64 on its device."""
    return torch.full((len(x),), network_time(t), device=x.device)


def diffuse(x0: Tensor, eps: Tensor, alpha_bar_t: Tensor | float) -> Tensor:
    """x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) eps, eq. 4.

    Args:
        x0: (B, ...) images, floating point.
        eps: as `x0`, standard normal.
        alpha_bar_t: (B,) one value for each image, float64 to keep 1 - alpha_t exact, or one number for all.
    """
    signal, noise = _scales(alpha_bar_t, x0)
    return signal * x0 + noise * eps


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor | float) -> Tensor:
    """f(x_t) = (x_t - sqrt(1 - alpha_t) eps) / sqrt(alpha_t), eq. 9; shapes as in `diffuse`."""
    signal, noise = _scales(alpha_bar_t, x_t)
    return (x_t - noise * eps) / signal


def predict_eps(x_t: Tensor, x0: Tensor, alpha_bar_t: Tensor | float) -> Tensor:
    """The eps for which eq. 9 gives `x0`: (x_t - sqrt(alpha_t) x0) / sqrt(1 - alpha_t); shapes as in `diffuse`."""
    signal, noise = _scales(alpha_bar_t, x_t)
    return (x_t - signal * x0) / noise


def velocity(x0: Tensor, eps: Tensor, alpha_bar_t: Tensor | float) -> Tensor:
    """V = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x0 (Salimans & Ho 2022, appendix D); shapes as in `diffuse`."""
    signal, noise = _scales(alpha_bar_t, x0)
    return signal * eps - noise * x0


def predicted(output: Tensor, x_t: Tensor, alpha_bar_t: Tensor | float, prediction: PredictionType) -> Prediction:
    """The x0 and eps that a network's `output` for `x_t` implies; shapes as in `diffuse`.

    Only `epsilon` divides by sqrt(alpha_t), so the others work if alpha_T is 0; `sample` divides by sqrt(1 - alpha_t).

    Raises:
        ValueError: for an unknown `prediction`.
    """
    if prediction == "epsilon":
        return Prediction(predict_x0(x_t, output, alpha_bar_t), output)
    if prediction == "sample":
        return Prediction(output, predict_eps(x_t, output, alpha_bar_t))
    if prediction == "v_prediction":
        signal, noise = _scales(alpha_bar_t, x_t)
        return Prediction(signal * x_t - noise * output, signal * output + noise * x_t)
    raise ValueError(f"unknown prediction {prediction!r}; known: epsilon, sample, v_prediction")


def _scales(alpha_bar_t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """sqrt(alpha_t) and sqrt(1 - alpha_t), computed in float64 and ready to multiply `x`."""
    if not isinstance(alpha_bar_t, Tensor):
        return math.sqrt(alpha_bar_t), math.sqrt(1 - alpha_bar_t)
    per_image = alpha_bar_t.to(torch.float64).reshape(-1, *[1] * (x.ndim - 1))
    return per_image.sqrt().to(x.dtype), (1 - per_image).sqrt().to(x.dtype)
