"""Forward processes: DDPM's, EDM's, that of consistency models, and flow matching's. Imports no torch."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taugrid.workers.diffusion.process import (
    Point,
    Preconditioning,
    PredictionType,
    Process,
    ProcessName,
    Spaced,
    diffuse,
    distinct_keys,
    log_snr_key,
    network_time,
    noise_key,
    velocity,
)
from taugrid.workers.diffusion.timesteps import tau, times

if TYPE_CHECKING:
    from torch import Tensor


class DiscreteVP(Process):
    """The process of DDPM: alpha^2 + sigma^2 = 1, times 0..T."""

    name: ProcessName = "ddpm"
    timesteps: int

    def __init__(self, alpha_bar: NDArray[np.float64], prediction: PredictionType = "epsilon") -> None:
        """`alpha_bar`, (T + 1,), begins with 1, or with `alpha_bar[1]`, which makes a last step end at time 1."""
        self.alpha_bar, self.prediction = alpha_bar, prediction
        self._levels = alpha_bar.tolist()
        self._on_device: dict[object, Tensor] = {}
        self.timesteps = self.last = len(self._levels) - 1

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """`timesteps.times`; `shift` is a flow's."""
        return times(spacing, steps, self.alpha_bar, steps_offset)

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

    def knows(self, at: Point) -> bool:
        """Whether it is at time 1 or later: sigma is not 0 at time 0 if alpha_0 is alpha_1."""
        return at.time >= 0

    def first_scale(self, first: Point) -> float:
        """1, wherever a path begins."""
        return 1.0

    def alpha_bar_at(self, t: "Tensor") -> "Tensor":
        """(B,) float64, on the device of t, which keeps all of them: a copy for each step would make a GPU wait."""
        import torch

        if t.device not in self._on_device:
            self._on_device[t.device] = torch.from_numpy(self.alpha_bar).to(t.device)
        return self._on_device[t.device][t]

    def told_at(self, t: "Tensor") -> "Tensor":
        """The index in 0..T-1."""
        return network_time(t)

    def noised(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """x_t, eq. 4."""
        return diffuse(x0, eps, self.alpha_bar_at(t))

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network predicts: the loss is L_simple for epsilon, and the same for x0 and v."""
        if self.prediction == "v_prediction":
            return velocity(x0, eps, self.alpha_bar_at(t))
        return eps if self.prediction == "epsilon" else x0


LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -1.2, 1.2
"""The normal distribution of ln sigma in training `edm`: P_mean and P_std of Karras et al. 2022, table 1."""

END = Point(1.0, 0.0, 1.0, -math.inf, key=0)  # the end of every path of EDM's process: the image


def point(sigma: float, time: float) -> Point:
    """The point of EDM's process at a noise level above 0, where the network is told `time`."""
    square = sigma**2
    key = log_snr_key(-2 * math.log(sigma))
    return Point(1.0, sigma, 1 / (1 + square), time, key, scale=math.sqrt(1 + square))


class EDM(Process):
    """x = x_0 + sigma eps in continuous time (Karras et al. 2022): time is sigma itself. A network predicts F (`edm`)
    and is told ln(sigma) / 4, or x0 (`sample`) and sigma. With sigma_data = 1, -F is the v of DDPM's process; diffusers
    calls it `v_prediction` for any sigma_data."""

    name: ProcessName = "edm"
    timesteps: int | None = None

    def __init__(
        self, sigma_min: float, sigma_max: float, rho: float, sigma_data: float, prediction: PredictionType = "edm"
    ) -> None:
        """Paths lead from `sigma_max` to `sigma_min` and then to 0; `ValueError` unless sigma_min < sigma_max."""
        if sigma_max <= sigma_min:
            raise ValueError("sigma_max must be larger than sigma_min")
        self.last, self.prediction = sigma_max, prediction
        self._first, self._rho, self._sigma_data = sigma_min, rho, sigma_data

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """S noise levels from sigma_min to sigma_max; for S = 1, sigma_max alone. `karras`, and `linear`: sigma^(1/rho)
        in equal steps, eq. 5; `logsnr`: ln(sigma) in equal steps. They have 12 digits: CPUs whose powers differ in the
        last bit then visit the same."""
        if spacing in ("karras", "linear"):
            levels = np.linspace(self._first ** (1 / self._rho), self.last ** (1 / self._rho), steps) ** self._rho
        elif spacing == "logsnr":
            levels = np.exp(np.linspace(math.log(self._first), math.log(self.last), steps))
        else:
            raise ValueError(no_spacing("edm", spacing, ("linear", "karras", "logsnr")))
        below = [float(f"{level:.12g}") for level in levels[: steps - 1]]
        return distinct_keys(self, (*below, self.last))

    def at(self, t: float) -> Point:
        """The point at sigma = `t`."""
        return END if t == 0 else point(t, t if self.prediction == "sample" else math.log(t) / 4)

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`, with a sigma that is off by no more than rounding."""
        return self.at(time if self.prediction == "sample" else math.exp(4 * time))

    def told_within(self, interval: Sequence[float]) -> list[float]:
        """What the network is told at the ends of an interval of noise levels, within sigma_min..sigma_max."""
        if interval[1] < self._first or interval[0] >= self.last:
            return []
        return [self.at(min(max(end, self._first), self.last)).time for end in interval]

    def preconditioning(self, at: Point) -> Preconditioning | None:
        """EDM's scalings of F, Karras et al. 2022, table 1; None for a network that predicts x0."""
        if self.prediction == "sample":
            return None
        variance = self._sigma_data**2
        total = at.sigma**2 + variance
        root = math.sqrt(total)
        out = at.sigma * self._sigma_data / root
        return Preconditioning(1 / root, variance / total, -out if self.prediction == "v_prediction" else out)

    # Training is that of Karras et al. 2022, eq. 8: weighted by lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma
    # sigma_data)^2, the error of x0 is the error of F without a weight. With images of deviation 1, x0 / sigma_data,
    # c_in x is x_t of DDPM's process for alpha_t = sigma_data^2 / (sigma^2 + sigma_data^2), and F is -v. Their
    # difference (x0 - c_skip x) / c_out would lose digits where sigma is small.

    def drawn_time(self, drawn: "Tensor") -> "Tensor":
        """sigma, log-normal, by the inverse of the normal distribution. ln sigma is a multiple of 2^-20: the last bits
        of `torch.special.ndtri` are not the same on all devices."""
        import torch

        log_sigma: Tensor = LOG_SIGMA_MEAN + LOG_SIGMA_DEVIATION * torch.special.ndtri(drawn)
        return (log_sigma * 2**20).round().div(2**20).exp()

    def told_at(self, t: "Tensor") -> "Tensor":
        """ln(sigma) / 4, in float32."""
        return (t.log() / 4).float()

    def noised(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """c_in (x0 + sigma eps)."""
        return diffuse(x0 / self._sigma_data, eps, self._alpha_bar(t))

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """F for which D is x0."""
        return -velocity(x0 / self._sigma_data, eps, self._alpha_bar(t))

    def _alpha_bar(self, sigma: "Tensor") -> "Tensor":
        return 1 / (1 + (sigma / self._sigma_data) ** 2)


class DiscreteEDM(EDM):
    """The process of consistency models: EDM's, at T noise levels as in Karras et al. 2022, eq. 5."""

    timesteps: int

    def __init__(self, timesteps: int, sigma_min: float, sigma_max: float, rho: float, sigma_data: float) -> None:
        """Sigma^(1 / `rho`) is linear in t, from `sigma_min` at time 1 to `sigma_max` at T = `timesteps`. `ValueError`
        for T = 1, or if sigma does not grow, or so little that two times have one key."""
        super().__init__(sigma_min, sigma_max, rho, sigma_data, "consistency")
        if timesteps < 2:
            raise ValueError("timesteps must be 2 or more")
        self.timesteps = self.last = timesteps
        self._low, self._high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        distinct_keys(self, tuple(range(1, timesteps + 1)))

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """Whole times, by `timesteps.tau`."""
        return tau(spacing, steps, self.timesteps, steps_offset)

    def at(self, t: float) -> Point:
        """The point at time t in 1..T, fractions included, or that of time 0, where sigma is 0. The network is told 250
        ln sigma, as Song et al. 2023 and diffusers' CMStochasticIterativeScheduler do."""
        if t == 0:
            return END
        sigma = (self._high + (self.timesteps - t) / (self.timesteps - 1) * (self._low - self._high)) ** self._rho
        return point(sigma, 250 * math.log(sigma))

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`, with a sigma that is off by no more than rounding."""
        root = math.exp(time / 250) ** (1 / self._rho)
        return self.at(1 + (self.timesteps - 1) * (root - self._low) / (self._high - self._low))

    told_within = Process.told_within

    def knows(self, at: Point) -> bool:
        """Whether it is at time 1 or later."""
        return at.time >= self.at(1).time

    def preconditioning(self, at: Point) -> Preconditioning:
        """The scalings of a consistency model, for which f(x, sigma_min) = x: Song et al. 2023, appendix C."""
        variance, above = self._sigma_data**2, at.sigma - self.at(1).sigma
        root = math.sqrt(at.sigma**2 + variance)
        return Preconditioning(1 / root, variance / (above**2 + variance), above * self._sigma_data / root)


class Flow(Process):
    """x = (1 - t) x_0 + t eps, with noise at t = 1: Lipman et al. 2023, Liu et al. 2023. A network predicts a velocity,
    or x0, and is told t, times `told_times`."""

    name: ProcessName = "flow"
    timesteps: int | None = None
    last = 1.0

    def __init__(self, told_times: float = 1.0, prediction: PredictionType = "velocity") -> None:
        """`told_times`: what the network is told at t = 1; 1000 in diffusers."""
        self.prediction, self._told_times = prediction, told_times

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """`time_uniform`, and `linear`: 1 / S, 2 / S, ..., 1, each moved to shift t / (1 + (shift - 1) t). The shift is
        that of Esser et al. 2024, eq. 23."""
        if spacing not in ("time_uniform", "linear"):
            raise ValueError(no_spacing("flow", spacing, ("linear", "time_uniform")))
        uniform = (i / steps for i in range(1, steps))
        return distinct_keys(self, (*(shift * t / (1 + (shift - 1) * t) for t in uniform), self.last))

    def at(self, t: float) -> Point:
        """The point at `t` in 0..1."""
        alpha, time = 1 - t, t * self._told_times
        total = alpha**2 + t**2
        if t == 0:
            return Point(1.0, 0.0, 1.0, 0.0, key=0)
        log_snr = 2 * math.log(alpha / t) if alpha > 0 else -math.inf
        return Point(alpha, t, alpha**2 / total, time, log_snr_key(log_snr), scale=math.sqrt(total))

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`."""
        return self.at(time / self._told_times)

    def told_within(self, interval: Sequence[float]) -> list[float]:
        """What the network is told at the ends of an interval of noise levels t / (1 - t)."""
        return [self.at(end / (1 + end)).time for end in interval]

    def told_at(self, t: "Tensor") -> "Tensor":
        """`told_times` times t, in float32."""
        return (t * self._told_times).float()

    def noised(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """(1 - t) x0 + t eps."""
        t = t[:, None, None, None]
        return (1 - t).to(x0) * x0 + t.to(x0) * eps

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """The velocity, which is the same at every t: dx / dt."""
        return eps - x0


def no_spacing(process: ProcessName, spacing: Spaced, known: Sequence[str]) -> str:
    """Why a process has no such spacing, and which it has."""
    asked = f"spacing {spacing}" if isinstance(spacing, str) else "a list of times"
    return f"{asked} is not for process: {process}, which has {', '.join(known)}; choose one of these"
