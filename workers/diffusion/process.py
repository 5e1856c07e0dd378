"""Forward processes x_t = alpha x_0 + sigma eps: their points, and the x0 and eps that a network's output implies.

The driver needs points too, so this file imports no torch.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Time = TypeVar("Time", int, float, "Tensor")

PredictionType = Literal["epsilon", "sample", "v_prediction", "consistency"]
"""What a network predicts: the noise, the image x0, or v = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x0 (Salimans & Ho
2022, appendix D); the names are diffusers'. Or F of a consistency model (`EDM.preconditioning`)."""


class Point(NamedTuple):
    """A point of a path, in float64: there, x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float
    alpha_bar: float
    """alpha^2 / (alpha^2 + sigma^2): the paper's alpha_t, which eq. 16 uses."""
    time: float
    """The time that is passed to the network. Where it is a time index, an int if it is a whole number."""
    key: int
    """The integer that names the noise drawn at this point, at least 1; the key of x_T is 0."""

    @property
    def ratio(self) -> float:
        """Sigma / alpha, the noise level of the process in which alpha is 1."""
        return self.sigma / self.alpha


class Process(Protocol):
    """A forward process."""

    @property
    def timesteps(self) -> int:
        """T, the last time."""

    @property
    def alpha_bar(self) -> NDArray[np.float64]:
        """(T + 1,) float64: alpha^2 / (alpha^2 + sigma^2) at the times 0..T."""

    @property
    def prediction(self) -> PredictionType:
        """What its networks predict."""

    def at(self, t: float) -> Point:
        """The point at the paper's time t in 0..T."""

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`."""

    def first_scale(self, first: Point) -> float:
        """What standard normals are multiplied by to be x at the first point of a path."""

    def preconditioning(self, at: Point) -> "Preconditioning | None":
        """How the network's input and output are scaled at a point; None: they are x and `prediction` themselves."""

    def __hash__(self) -> int:
        """What is known of a process is cached by its identity."""


class DiscreteVP:
    """The process of DDPM: alpha^2 + sigma^2 = 1, times 0..T."""

    def __init__(self, alpha_bar: NDArray[np.float64], prediction: PredictionType = "epsilon") -> None:
        """`alpha_bar`, (T + 1,), begins with 1, or with `alpha_bar[1]`, which makes a last step end at time 1."""
        self.alpha_bar, self.prediction = alpha_bar, prediction
        self._levels = alpha_bar.tolist()

    @property
    def timesteps(self) -> int:
        """T, the last time."""
        return len(self._levels) - 1

    def at(self, t: float) -> Point:
        """The point at the paper's time t in 0..T; between two integers log alpha is linear in t, as in DPM-Solver."""
        before = int(t)
        if t == before:
            alpha_t = self._levels[before]
            return Point(math.sqrt(alpha_t), math.sqrt(1 - alpha_t), alpha_t, network_time(before), key=before)
        low, high = (math.log(self._levels[time]) for time in (before, before + 1))
        log_alpha_t = low + (t - before) * (high - low)
        alpha_t, time = math.exp(log_alpha_t), network_time(t)
        return Point(math.exp(log_alpha_t / 2), math.sqrt(-math.expm1(log_alpha_t)), alpha_t, time, key=noise_key(time))

    def told(self, time: float) -> Point:
        """The point at which the network is told the index `time`."""
        return self.at(time + 1)

    def first_scale(self, first: Point) -> float:
        """1, wherever a path begins."""
        return 1.0

    def preconditioning(self, at: Point) -> None:
        """None: such networks take x itself."""


class Preconditioning(NamedTuple):
    """A network F as Karras et al. 2022 scale it (eq. 7): x0 = skip x + out F(into x)."""

    into: float
    skip: float
    out: float

    def predicted(self, output: "Tensor", x: "Tensor", at: Point) -> "Prediction":
        """The x0 and eps that the output of F implies at a point; shapes as of `predict_x0`."""
        x0 = self.skip * x + self.out * output
        return Prediction(x0, predict_eps(x, x0, at))


class EDM:
    """The process of EDM and of consistency models: alpha = 1, with the noise levels of Karras et al. 2022, eq. 5."""

    prediction: PredictionType = "consistency"

    def __init__(self, timesteps: int, sigma_min: float, sigma_max: float, rho: float, sigma_data: float) -> None:
        """Sigma is `sigma_min` at time 1, `sigma_max` at T = `timesteps`, and linear in t to the power 1 / `rho`.

        Raises:
            ValueError: for T = 1, or if sigma does not grow, or so little that two times have one key.
        """
        self.timesteps, self._rho, self._sigma_data = timesteps, rho, sigma_data
        self._low, self._high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        if timesteps < 2 or sigma_max <= sigma_min:
            raise ValueError("timesteps must be 2 or more, and sigma_max larger than sigma_min")
        keys = [self.at(t).key for t in range(1, timesteps + 1)]
        if len(set(keys)) < timesteps:
            raise ValueError(f"{timesteps} timesteps from sigma_min to sigma_max are too close to have noise each")

    @property
    def alpha_bar(self) -> NDArray[np.float64]:
        """(T + 1,) float64: 1 / (1 + sigma^2) at the times 0..T."""
        return np.array([self.at(t).alpha_bar for t in range(self.timesteps + 1)])

    def at(self, t: float) -> Point:
        """The point at time t in 1..T, fractions included, or that of time 0, where sigma is 0.

        The network is told 250 ln sigma, as Song et al. 2023 and diffusers' CMStochasticIterativeScheduler do.
        """
        if t == 0:
            return Point(1.0, 0.0, 1.0, -math.inf, key=0)
        sigma = (self._high + (self.timesteps - t) / (self.timesteps - 1) * (self._low - self._high)) ** self._rho
        return Point(1.0, sigma, 1 / (1 + sigma**2), 250 * math.log(sigma), log_snr_key(-2 * math.log(sigma)))

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`, with a sigma that is off by no more than rounding."""
        root = math.exp(time / 250) ** (1 / self._rho)
        return self.at(1 + (self.timesteps - 1) * (root - self._low) / (self._high - self._low))

    def first_scale(self, first: Point) -> float:
        """Sigma: beside it, the image counts for nothing."""
        return first.sigma

    def preconditioning(self, at: Point) -> Preconditioning:
        """The scalings of a consistency model, for which f(x, sigma_min) = x: Song et al. 2023, appendix C."""
        variance, above = self._sigma_data**2, at.sigma - self.at(1).sigma
        root = math.sqrt(at.sigma**2 + variance)
        return Preconditioning(1 / root, variance / (above**2 + variance), above * self._sigma_data / root)


def noise_key(time: float) -> int:
    """The key of the noise drawn at a time index of the network: round-half-even(time) + 1."""
    return round(time) + 1


def log_snr_key(log_snr: float) -> int:
    """The key of the noise drawn at a point of a process without betas: 2^31 - round(2^20 log SNR).

    log SNR is 2 ln(alpha / sigma). Keys grow with the noise, as times do, and are in 1..2^32 - 1 for any floats alpha
    and sigma > 0. The rounding absorbs that logarithms differ in the last bit between CPUs.
    """
    return 2**31 - round(2**20 * log_snr)


def path(process: Process, tau: Iterable[float]) -> tuple[Point, ...]:
    """The points that a sampler visits: those of `tau`, increasing times in 1..T, from the last down, and that of 0."""
    return tuple(process.at(t) for t in reversed([0, *tau]))


class Prediction(NamedTuple):
    """A network's estimates of the image and the noise in x = alpha x0 + sigma eps."""

    x0: "Tensor"
    eps: "Tensor"


def network_time(t: Time) -> Time:
    """The index 0..T-1 that networks are trained with, from the paper's time t in 1..T: the one place of this shift."""
    return t - 1


def diffuse(x0: "Tensor", eps: "Tensor", alpha_bar_t: "Tensor | float") -> "Tensor":
    """x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) eps, eq. 4.

    Args:
        x0: (B, ...) images, floating point.
        eps: shaped like `x0`, standard normal.
        alpha_bar_t: (B,) one value for each image, float64 to keep 1 - alpha_t exact, or one number for all.
    """
    signal, noise = _scales(alpha_bar_t, x0)
    return signal * x0 + noise * eps


def predict_x0(x_t: "Tensor", eps: "Tensor", at: "Tensor | float | Point") -> "Tensor":
    """f(x_t) = (x_t - sqrt(1 - alpha_t) eps) / sqrt(alpha_t), eq. 9.

    Shapes are as in `diffuse`; `at` is the paper's alpha_t, as there, or a point.
    """
    signal, noise = _scales(at, x_t)
    return (x_t - noise * eps) / signal


def predict_eps(x_t: "Tensor", x0: "Tensor", at: "Tensor | float | Point") -> "Tensor":
    """The eps for which eq. 9 gives `x0`: (x_t - sqrt(alpha_t) x0) / sqrt(1 - alpha_t); like `predict_x0`."""
    signal, noise = _scales(at, x_t)
    return (x_t - signal * x0) / noise


def velocity(x0: "Tensor", eps: "Tensor", alpha_bar_t: "Tensor | float") -> "Tensor":
    """V = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x0 (Salimans & Ho 2022, appendix D); shapes as in `diffuse`."""
    signal, noise = _scales(alpha_bar_t, x0)
    return signal * eps - noise * x0


def predicted(output: "Tensor", x_t: "Tensor", at: "Tensor | float | Point", prediction: PredictionType) -> Prediction:
    """The x0 and eps that a network's `output` for `x_t` implies; shapes and `at` as in `predict_x0`.

    Only `epsilon` divides by sqrt(alpha_t), so the others work if alpha_T is 0; `sample` divides by sqrt(1 - alpha_t).

    Raises:
        ValueError: for an unknown `prediction`.
    """
    if prediction == "epsilon":
        return Prediction(predict_x0(x_t, output, at), output)
    if prediction == "sample":
        return Prediction(output, predict_eps(x_t, output, at))
    if prediction == "v_prediction":
        signal, noise = _scales(at, x_t)
        return Prediction(signal * x_t - noise * output, signal * output + noise * x_t)
    raise ValueError(f"unknown prediction {prediction!r}; known: epsilon, sample, v_prediction")


def clipped(prediction: Prediction, x: "Tensor", at: Point, clip: str, clip_range: float = 1.0) -> Prediction:
    """The prediction for x at a point, after clipping.

    `none` leaves it unchanged. `x0` clips the predicted x0 to [-clip_range, clip_range] and keeps eps, as diffusers
    does by default. `x0_and_eps` also takes the eps that leads from the clipped x0 to x, as DDPM's posterior mean does.

    Raises:
        ValueError: for an unknown `clip`.
    """
    if clip == "none":
        return prediction
    x0 = prediction.x0.clamp(-clip_range, clip_range)
    if clip == "x0":
        return Prediction(x0, prediction.eps)
    if clip == "x0_and_eps":
        return Prediction(x0, predict_eps(x, x0, at))
    raise ValueError(f"unknown clip {clip!r}; known: none, x0, x0_and_eps")


def _scales(at: "Tensor | float | Point", x: "Tensor") -> "tuple[Tensor, Tensor] | tuple[float, float]":
    """sqrt(alpha_t) and sqrt(1 - alpha_t), computed in float64 and ready to multiply `x`."""
    if isinstance(at, Point):
        return at.alpha, at.sigma
    if isinstance(at, int | float):
        return math.sqrt(at), math.sqrt(1 - at)
    from taugrid.workers.diffusion.noise import in_float64

    per_image = in_float64(at).reshape(-1, *[1] * (x.ndim - 1))
    return per_image.sqrt().to(x), (1 - per_image).sqrt().to(x)
