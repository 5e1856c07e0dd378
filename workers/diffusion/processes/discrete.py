"""DDPM's process, from betas."""

import math

import numpy as np
from numpy.typing import NDArray

from taugrid.workers.diffusion.process import (
    Point,
    PredictionType,
    Process,
    ProcessName,
    Spaced,
    network_time,
    noise_key,
)
from taugrid.workers.diffusion.timesteps import times


class DiscreteVP(Process):
    """The process of DDPM: alpha^2 + sigma^2 = 1, times 0..T."""

    name: ProcessName = "ddpm"
    timesteps: int

    def __init__(self, alpha_bar: NDArray[np.float64], prediction: PredictionType = "epsilon") -> None:
        """`alpha_bar`, (T + 1,), begins with 1, or with `alpha_bar[1]`, which makes a last step end at time 1."""
        self.alpha_bar, self.prediction = alpha_bar, prediction
        self._levels = alpha_bar.tolist()
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
        """Whether it is at time 1 or later."""
        return at.time >= 0

    def first_scale(self, first: Point) -> float:
        """1, wherever a path begins."""
        return 1.0
