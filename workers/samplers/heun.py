"""Euler's and Heun's methods for the probability-flow ODE, and Heun's with churn: Karras et al. 2022, algorithms 1, 2.

They are exact where the slope is constant: dx / dt = eps - x0 of a flow; else d(x / alpha) / dr = eps, eq. 14 of DDIM,
in r = sigma / alpha. DDIM's step with eta = 0 is Euler's in both.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from taugrid.config import Sample
from taugrid.errors import UserError
from taugrid.words import beside
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process, path, predict_eps
from taugrid.workers.samplers.sampler import Noise
from taugrid.workers.samplers.solver import Evaluated, Multistep, Solver, first_order

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHURN = math.sqrt(2) - 1
"""The largest gamma: a step never adds more noise than x already has."""


class Euler(Multistep):
    """First order, one evaluation a step."""

    order = points = 1

    def step(self, x: "Tensor", history: Sequence[Evaluated], b: Point) -> "Tensor":
        """`solver.first_order`: of a flow, x + (r - t) v."""
        [(a, x0)] = history
        return first_order(x, x0, a, b)


class Heun(Solver):
    """Second order, two evaluations a step, except that a step that is first-order takes one: 2 S - 1."""

    order: ClassVar[int | None] = 2

    def begin(self, a: Point, process: Process, settings: Sample) -> Point:
        """The point, at or above a, at which the step from a begins."""
        return a

    def times(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """Of each step the time where it begins and, if it has a second evaluation, the time where it ends."""
        steps = pairwise(path(process, self.tau(settings, process)))
        begun = ((self.begin(a, process, settings), b) for a, b in steps)
        return tuple(at.time for a, b in begun for at in ((a, b) if has_slope(a, b, process) else (a,)))

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T."""
        for a, b in pairwise(path):
            x = step(x, a, b, denoise)
        return x


class EdmHeun(Heun):
    """EDM's stochastic sampler, algorithm 2: before a step it adds noise, up to (1 + gamma) sigma."""

    order = None  # with churn, images do not follow the ODE
    processes = frozenset({"edm"})
    options: ClassVar[Mapping[str, Any]] = {"S_churn": 0.0, "S_min": 0.0, "S_max": None, "S_noise": 1.0}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless they are numbers that have an effect."""
        super().check_options(options)
        for name, value in options.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if not is_number and (name, value) != ("S_max", None):
                raise ValueError(f"{name}: {value} must be a number that is not negative")
        if options and "S_churn" not in options:
            raise ValueError(f"{' and '.join(options)} without S_churn has no effect; set S_churn too")

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The noise levels of the spacing.

        Raises:
            UserError: if it should churn, but none is within S_min..S_max.
        """
        found, options = super().tau(settings, process), self.arguments(settings)
        if options["S_churn"] and all(self.begin(at, process, settings) is at for at in map(process.at, found)):
            least, most = options["S_min"], math.inf if options["S_max"] is None else options["S_max"]
            raise UserError(
                f"sample.sampler_options of edm-heun: none of the noise levels {found[0]:.3g} to {found[-1]:.3g} is "
                f"within S_min {least:g} and S_max {most:g}; include the nearest, {beside(found, least, most)}"
            )
        return found

    def remark(self, settings: Sample) -> str | None:
        """That gamma is cut off, or 0."""
        asked, S = self.arguments(settings)["S_churn"], settings.steps
        if not asked:
            return "edm-heun: with S_churn 0 it adds no noise: its images are those of heun, bit for bit"
        if asked / S <= MOST_CHURN:
            return None
        return f"edm-heun: at S={S}, S_churn {asked:g} acts as {S * MOST_CHURN:.3g}: no step adds more noise than x has"

    def begin(self, a: Point, process: Process, settings: Sample) -> Point:
        """The point with (1 + gamma) of a's noise."""
        options = self.arguments(settings)
        most = math.inf if options["S_max"] is None else options["S_max"]
        churns = options["S_churn"] > 0 and options["S_min"] <= a.sigma <= most
        return process.at(a.sigma * (1 + min(options["S_churn"] / settings.steps, MOST_CHURN))) if churns else a

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T."""
        deviation = self.arguments(settings)["S_noise"]
        for a, b in pairwise(path):
            if (hat := self.begin(a, denoise.process, settings)) is not a:
                x = x + deviation * math.sqrt(hat.sigma**2 - a.sigma**2) * noise(a.key)
            x = step(x, hat, b, denoise)
        return x


def step(x: "Tensor", a: Point, b: Point, denoise: Denoise) -> "Tensor":
    """X at b, from x at a: by the mean of the slopes at both ends, or the slope at a where b has none."""
    process, x0 = denoise.process, denoise(x, a).x0
    d, x = _slope(x, x0, a, process), first_order(x, x0, a, b)  # Euler's step
    if not has_slope(a, b, process):
        return x
    d_b = _slope(x, denoise(x, b).x0, b, process)
    length = b.sigma - a.sigma if process.name == "flow" else b.alpha * (b.ratio - a.ratio)
    return x + length / 2 * (d_b - d)


def _slope(x: "Tensor", x0: "Tensor", at: Point, process: Process) -> "Tensor":
    """V of a flow, else eps, of x and the x0 predicted there."""
    eps = predict_eps(x, x0, at)
    return eps - x0 if process.name == "flow" else eps


def has_slope(a: Point, b: Point, process: Process) -> bool:
    """Whether the slope at b is known too: the network has no time 0, and r is infinite where alpha is 0."""
    return process.knows(b) and (a.alpha > 0 or process.name == "flow")
