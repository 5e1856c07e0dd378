"""Forward processes x_t = alpha x_0 + sigma eps: their points, and the x0 and eps that a network's output implies.

The processes themselves are in `processes.py`. The driver needs points too, so this file imports no torch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Time = TypeVar("Time", int, float, "Tensor")

PredictionType = Literal[
    "epsilon", "sample", "v_prediction", "consistency", "edm", "velocity", "average_velocity"
]  # fmt: skip
"""What a network predicts: the noise, the image x0, or v = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x0 (Salimans & Ho
2022, appendix D); the names are diffusers'. Or F of a consistency model or of EDM (`Preconditioning`); or the velocity
dx / dt = eps - x0 of a flow (Lipman et al. 2023), or its average between two times (Geng et al. 2025, "Mean flows")."""

ProcessName = Literal["ddpm", "edm", "flow"]  # DDPM's alpha^2 + sigma^2 = 1; alpha = 1; or alpha = 1 - t and sigma = t


TOLERANCE = 1e-9
"""Relative, of the ends of an interval: a plan and a worker compute a noise level in different orders of operations."""


class Point(NamedTuple):
    """A point of a path, in float64: there, x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float
    alpha_bar: float  # alpha^2 / (alpha^2 + sigma^2): the paper's alpha_t, which eq. 16 uses
    time: float
    """The time that is passed to the network. Where it is a time index, an int if it is a whole number."""
    key: int  # the integer that names the noise drawn at this point, at least 1; the key of x_T is 0
    scale: float = 1.0  # the root of alpha^2 + sigma^2: x / scale is a point of DDPM's process with this alpha_bar
    toward: float | None = None  # the second time that a flow map is told: where its jump leads

    @property
    def ratio(self) -> float:
        """Sigma / alpha, the noise level of the process in which alpha is 1."""
        return self.sigma / self.alpha

    def is_within(self, interval: "Sequence[float]") -> bool:
        """Whether the noise level is in (low, high]; without a division, because alpha may be 0."""
        low, high = (end * (1 + TOLERANCE) * self.alpha for end in interval)
        return low < self.sigma <= high


class Process(ABC):
    """A forward process. A path leads from high times to low ones, and ends at time 0. What is known of one is cached
    by its identity."""

    name: ProcessName
    prediction: PredictionType  # what its networks predict
    timesteps: int | None
    """T, where times count 1..T. None: time is continuous."""
    last: float
    """The largest time: T, or sigma_max, or 1."""

    @abstractmethod
    def spaced(self, spacing: "Spaced", steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """The times to visit in S = `steps` steps, increasing, without time 0; `ValueError` if there are none such."""

    @abstractmethod
    def at(self, t: float) -> Point:
        """The point at a time, 0 included."""

    @abstractmethod
    def told(self, time: float) -> Point:
        """The point at which the network is told `time`."""

    def told_within(self, interval: Sequence[float]) -> list[float]:
        """The first and last time that the network can be told within an interval of noise levels; empty if none."""
        times = [at.time for at in map(self.at, range(1, (self.timesteps or 0) + 1)) if at.is_within(interval)]
        return [min(times), max(times)] if times else []

    def knows(self, at: Point) -> bool:
        """Whether the network can be called at a point: not at time 0."""
        return at.sigma > 0

    def first_scale(self, first: Point) -> float:
        """What standard normals are multiplied by to be x at the first point of a path."""
        return first.sigma

    def preconditioning(self, at: Point) -> "Preconditioning | None":
        """How the network's input and output are scaled at a point; None: they are x and `prediction` themselves."""
        return None

    def predicted(self, output: "Tensor", x: "Tensor", at: Point) -> "Prediction":
        """The x0 and eps that a network's `output` for x, (B, ...), implies at a point: nothing else converts one."""
        if (scaling := self.preconditioning(at)) is None:
            return predicted(output, x, at, self.prediction)
        x0 = scaling.skip * x + scaling.out * output
        return Prediction(x0, predict_eps(x, x0, at))

    # In training: x0 are images in [-1, 1], (B, C, H, W), eps the noise, shaped like x0, and t (B,) times.

    def drawn_time(self, drawn: "Tensor") -> "Tensor":
        """t, from integers in 1..T or, without T, from float64 numbers that are uniform in (0, 1): they themselves."""
        return drawn

    @abstractmethod
    def told_at(self, t: "Tensor") -> "Tensor":
        """(B,) what the network is told at t: as `Point.time`, where it is sampled."""

    @abstractmethod
    def noised(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network is given, shaped like x0: the images with noise, scaled as in sampling."""

    @abstractmethod
    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What it should return. The loss is the squared error of that, averaged over dimensions."""


Spaced = str | Sequence[int]  # a spacing: its name, or the times themselves


class Preconditioning(NamedTuple):
    """A network F as Karras et al. 2022 scale it (eq. 7): x0 = skip x + out F(into x)."""

    into: float
    skip: float
    out: float


def noise_key(time: float) -> int:
    """The key of the noise drawn at a time index of the network: round-half-even(time) + 1."""
    return round(time) + 1


def log_snr_key(log_snr: float) -> int:
    """The key of the noise drawn at a point of a process without betas: 2^31 - round(2^20 log SNR).

    log SNR is 2 ln(alpha / sigma). Keys grow with the noise, as times do, and are in 1..2^32 - 1 for any floats alpha
    and sigma > 0. The rounding absorbs that logarithms differ in the last bit between CPUs. Without signal log SNR is
    -inf, and the key 2^32 - 1.
    """
    return 2**32 - 1 if log_snr == -math.inf else 2**31 - round(2**20 * log_snr)


def distinct_keys(process: Process, times: tuple[float, ...]) -> tuple[float, ...]:
    """`times`; `ValueError` if two of their points share a noise key: they would have the same noise."""
    keys = [process.at(t).key for t in times]
    for (before, key), (after, next_key) in pairwise(zip(times, keys, strict=True)):
        if key >= next_key:
            raise ValueError(f"times {before:g} and {after:g} are too close to have noise each; take fewer of them")
    return times


def path(process: Process, tau: Iterable[float]) -> tuple[Point, ...]:
    """The points that a sampler visits: those of `tau`, increasing times, from the last down, and that of 0."""
    return tuple(process.at(t) for t in reversed([0, *tau]))


class Prediction(NamedTuple):
    """A network's estimates of the image and the noise in x = alpha x0 + sigma eps."""

    x0: "Tensor"
    eps: "Tensor"


def network_time(t: Time) -> Time:
    """The index 0..T-1 that networks are trained with, from the paper's time t in 1..T: the one place of this shift."""
    return t - 1


def diffuse(x0: "Tensor", eps: "Tensor", alpha_bar_t: "Tensor | float") -> "Tensor":
    """x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) eps, eq. 4, of `x0` and `eps`, (B, ...) floating point. `alpha_bar_t`
    is (B,), in float64 to keep 1 - alpha_t exact, or one number for all."""
    signal, noise = _scales(alpha_bar_t, x0)
    return signal * x0 + noise * eps


def predict_x0(x_t: "Tensor", eps: "Tensor", at: "Tensor | float | Point") -> "Tensor":
    """f(x_t) = (x_t - sqrt(1 - alpha_t) eps) / sqrt(alpha_t), eq. 9; `at` is alpha_t as in `diffuse`, or a point."""
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
    """The x0 and eps that a network's `output` for `x_t` implies; shapes and `at` as in `predict_x0`. Only `epsilon`
    divides by sqrt(alpha_t), so the others work if alpha_T is 0; `sample` divides by sqrt(1 - alpha_t). A `velocity` is
    that of alpha = 1 - t, sigma = t. `ValueError` for an unknown `prediction`."""
    if prediction == "epsilon":
        return Prediction(predict_x0(x_t, output, at), output)
    if prediction == "sample":
        return Prediction(output, predict_eps(x_t, output, at))
    if prediction == "v_prediction":
        signal, noise = _scales(at, x_t)
        return Prediction(signal * x_t - noise * output, signal * output + noise * x_t)
    if prediction == "velocity":
        signal, noise = _scales(at, x_t)
        return Prediction(x_t - noise * output, x_t + signal * output)
    raise ValueError(f"unknown prediction {prediction!r}; known: epsilon, sample, v_prediction, velocity")


def clipped(prediction: Prediction, x: "Tensor", at: Point, clip: str, clip_range: float = 1.0) -> Prediction:
    """The prediction for x at a point, after clipping. `none` leaves it unchanged. `x0` clips the predicted x0 to
    [-clip_range, clip_range] and keeps eps, as diffusers does by default. `x0_and_eps` also takes the eps that leads
    from the clipped x0 to x, as DDPM's posterior mean does. `ValueError` for an unknown `clip`."""
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
