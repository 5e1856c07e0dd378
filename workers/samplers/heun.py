"""Heun's method for the probability-flow ODE: Karras et al. 2022, algorithm 1, for x = alpha x0 + sigma eps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process, path, predict_eps
from taugrid.workers.samplers.sampler import Noise
from taugrid.workers.samplers.solver import Solver, first_order

if TYPE_CHECKING:
    from torch import Tensor


class Heun(Solver):
    """Second order, two evaluations a step, except that a step that is first-order takes one: 2 S - 1."""

    order = 2

    def times(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """Of each step the time where it begins and, if it has a second evaluation, the time where it ends."""
        steps = pairwise(path(process, self.tau(settings, process)))
        return tuple(at.time for a, b in steps for at in ((a, b) if has_slope(a, b, process) else (a,)))

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T: y = x / alpha solves dy / dr = eps in r = sigma / alpha, eq. 14 of DDIM."""
        for a, b in pairwise(path):
            x0 = denoise(x, a).x0
            d, x = predict_eps(x, x0, a), first_order(x, x0, a, b)  # Euler's step
            if has_slope(a, b, denoise.process):
                d_b = predict_eps(x, denoise(x, b).x0, b)
                x = x + b.alpha * (b.ratio - a.ratio) / 2 * (d_b - d)
        return x


def has_slope(a: Point, b: Point, process: Process) -> bool:
    """Whether the slope at b is known too: the network has no time 0, and r is infinite where alpha is 0."""
    return a.alpha > 0 and process.knows(b)
