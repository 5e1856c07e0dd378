"""The process of consistency models: EDM's, at T noise levels."""

import math

from taugrid.workers.diffusion.process import Point, Preconditioning, PredictionType, Process, ProcessName, Spaced
from taugrid.workers.diffusion.processes.edm import END, point
from taugrid.workers.diffusion.timesteps import tau


class DiscreteEDM(Process):
    """The process of consistency models: alpha = 1, with T noise levels as in Karras et al. 2022, eq. 5."""

    name: ProcessName = "edm"
    timesteps: int
    prediction: PredictionType = "consistency"

    def __init__(self, timesteps: int, sigma_min: float, sigma_max: float, rho: float, sigma_data: float) -> None:
        """Sigma is `sigma_min` at time 1, `sigma_max` at T = `timesteps`, and linear in t to the power 1 / `rho`.

        Raises:
            ValueError: for T = 1, or if sigma does not grow, or so little that two times have one key.
        """
        self.timesteps = self.last = timesteps
        self._rho, self._sigma_data = rho, sigma_data
        self._low, self._high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        if timesteps < 2 or sigma_max <= sigma_min:
            raise ValueError("timesteps must be 2 or more, and sigma_max larger than sigma_min")
        keys = [self.at(t).key for t in range(1, timesteps + 1)]
        if len(set(keys)) < timesteps:
            raise ValueError(f"{timesteps} timesteps from sigma_min to sigma_max are too close to have noise each")

    def spaced(self, spacing: Spaced, steps: int, steps_offset: int = 0, shift: float = 1.0) -> tuple[float, ...]:
        """Whole times, by `timesteps.tau`."""
        return tau(spacing, steps, self.timesteps, steps_offset)

    def at(self, t: float) -> Point:
        """The point at time t in 1..T, fractions included, or that of time 0, where sigma is 0.

        The network is told 250 ln sigma, as Song et al. 2023 and diffusers' CMStochasticIterativeScheduler do.
        """
        if t == 0:
            return END
        sigma = (self._high + (self.timesteps - t) / (self.timesteps - 1) * (self._low - self._high)) ** self._rho
        return point(sigma, 250 * math.log(sigma))

    def told(self, time: float) -> Point:
        """The point at which the network is told `time`, with a sigma that is off by no more than rounding."""
        root = math.exp(time / 250) ** (1 / self._rho)
        return self.at(1 + (self.timesteps - 1) * (root - self._low) / (self._high - self._low))

    def knows(self, at: Point) -> bool:
        """Whether it is at time 1 or later."""
        return at.time >= self.at(1).time

    def preconditioning(self, at: Point) -> Preconditioning:
        """The scalings of a consistency model, for which f(x, sigma_min) = x: Song et al. 2023, appendix C."""
        variance, above = self._sigma_data**2, at.sigma - self.at(1).sigma
        root = math.sqrt(at.sigma**2 + variance)
        return Preconditioning(1 / root, variance / (above**2 + variance), above * self._sigma_data / root)
