"""Flow matching's process, x = (1 - t) x_0 + t eps: Lipman et al. 2023, Liu et al. 2023, with noise at t = 1."""

import math
from collections.abc import Sequence

from taugrid.workers.diffusion.process import (
    Point,
    PredictionType,
    Process,
    ProcessName,
    Spaced,
    distinct_keys,
    log_snr_key,
)
from taugrid.workers.diffusion.processes.edm import no_spacing


class Flow(Process):
    """Times are in (0, 1]. A network predicts a velocity and is told t, times `told_times`."""

    name: ProcessName = "flow"
    timesteps: int | None = None
    last = 1.0

    def __init__(self, told_times: float = 1.0, prediction: PredictionType = "velocity") -> None:
        """`told_times`: what the network is told at t = 1; 1000 in diffusers."""
        self.prediction, self._told_times = prediction, told_times

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """S times up to 1.

        - `time_uniform`, and `linear`: 1 / S, 2 / S, ..., 1, each moved to shift t / (1 + (shift - 1) t) (Esser et al.
          2024, eq. 23).

        Raises:
            ValueError: for another spacing, or if times are too close.
        """
        if spacing == "logsnr":
            raise ValueError("spacing logsnr needs a finite log SNR at both ends, but a flow has no signal at t = 1")
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
