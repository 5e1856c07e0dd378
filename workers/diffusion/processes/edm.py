"""EDM's process, x = x_0 + sigma eps, in continuous time: Karras et al. 2022."""

import math
from collections.abc import Sequence

import numpy as np

from taugrid.workers.diffusion.process import (
    Point,
    Preconditioning,
    PredictionType,
    Process,
    ProcessName,
    Spaced,
    distinct_keys,
    log_snr_key,
)

END = Point(1.0, 0.0, 1.0, -math.inf, key=0)
"""The end of every path: the image."""


def point(sigma: float, time: float) -> Point:
    """The point at a noise level above 0, where the network is told `time`."""
    square = sigma**2
    key = log_snr_key(-2 * math.log(sigma))
    return Point(1.0, sigma, 1 / (1 + square), time, key, scale=math.sqrt(1 + square))


class EDM(Process):
    """Time is sigma itself. A network predicts F (`edm`) and is told ln(sigma) / 4, or x0 (`sample`) and sigma.

    With sigma_data = 1, -F is the v of DDPM's process; diffusers calls it `v_prediction` for any sigma_data.
    """

    name: ProcessName = "edm"
    timesteps: int | None = None

    def __init__(
        self, sigma_min: float, sigma_max: float, rho: float, sigma_data: float, prediction: PredictionType = "edm"
    ) -> None:
        """Paths lead from `sigma_max` to `sigma_min` and then to 0.

        Raises:
            ValueError: unless sigma_min < sigma_max.
        """
        if sigma_max <= sigma_min:
            raise ValueError("sigma_max must be larger than sigma_min")
        self.last, self.prediction = sigma_max, prediction
        self._first, self._rho, self._sigma_data = sigma_min, rho, sigma_data

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """S noise levels from sigma_min to sigma_max; for S = 1, sigma_max alone.

        - `karras`, and `linear`: sigma^(1/rho) in equal steps, eq. 5.
        - `logsnr`: ln(sigma) in equal steps.

        They have 12 digits: CPUs whose powers differ in the last bit then visit the same.

        Raises:
            ValueError: for another spacing, or if noise levels are too close.
        """
        if spacing in ("karras", "linear"):
            roots = np.linspace(self._first ** (1 / self._rho), self.last ** (1 / self._rho), steps)
            levels = roots**self._rho
        elif spacing == "logsnr":
            levels = np.exp(np.linspace(math.log(self._first), math.log(self.last), steps))
        else:
            raise ValueError(no_spacing("edm", spacing, ("linear", "karras", "logsnr")))
        below = [float(f"{level:.12g}") for level in levels[: steps - 1]]
        return distinct_keys(self, (*below, self.last))

    def at(self, t: float) -> Point:
        """The point at sigma = `t`."""
        if t == 0:
            return END
        return point(t, t if self.prediction == "sample" else math.log(t) / 4)

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


def no_spacing(process: ProcessName, spacing: Spaced, known: Sequence[str]) -> str:
    """Why a process has no such spacing, and which it has."""
    asked = f"spacing {spacing}" if isinstance(spacing, str) else "a list of times"
    return f"{asked} is not for process: {process}, which has {', '.join(known)}; choose one of these"
