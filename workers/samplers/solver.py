"""What our deterministic solvers share: the paths they accept, the steps that are first-order, and the multistep loop.

They solve the probability-flow ODE, eq. 14 of the DDIM paper, in lambda = log(alpha / sigma). There it is linear but
for the predicted x0: with h = lambda_b - lambda_a, a step from point a to point b is exactly

    x_b = sigma_b / sigma_a x_a + alpha_b int_0^h e^(tau - h) x0(lambda_a + tau) dtau

(Lu et al. 2022, DPM-Solver++, prop. 4.1). Solvers differ in what they take for x0 between the points. Coefficients are
Python floats; tensors keep the type of x.

They take nothing but x0 from the network, and the eps that leads from it to x. So the images of clip `x0` are those of
clip `x0_and_eps`: an ODE has no other eps.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process, path, predict_eps
from taugrid.workers.samplers.sampler import Noise, Sampler

if TYPE_CHECKING:
    from torch import Tensor


class Evaluated(NamedTuple):
    """A point where the network was called, and the x0 that it predicted."""

    at: Point
    x0: "Tensor"


class Solver(Sampler):
    """A deterministic solver of the ODE. It divides by the length of a step, so it refuses steps of length 0."""

    keys = frozenset({"spacing", "steps_offset", "clip", "clip_range"})

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The times of the spacing.

        Raises:
            ValueError: if two points in a row are equal, with the nearest S below, above 1, at which none are.
        """
        found = super().tau(settings, process)
        stays = _where_it_stays(process, found)
        if stays is None:
            return found
        remedy = "set diffusion.set_alpha_to_one: true"
        for steps in range(settings.steps - 1, 1, -1) if isinstance(settings.spacing, str) else ():
            fewer = super().tau(settings.model_copy(update={"steps": steps}), process)
            if _where_it_stays(process, fewer) is None:
                remedy = f"set steps to {steps}"
                break
        raise ValueError(
            f"{settings.steps} steps of spacing {settings.spacing_name} have one of length 0 at time {stays:g}, which "
            f"{settings.sampler} can't take; {remedy}, or choose another spacing"
        )


class Multistep(Solver):
    """A solver that calls the network once in a step, and remembers the last points and their x0."""

    points: ClassVar[int]
    """How many a step uses, its own included. A step has fewer where there were no more before it."""

    def sample(
        self,
        x: "Tensor",
        path: Sequence[Point],
        denoise: Denoise,
        noise: Noise,
        settings: Sample,
    ) -> "Tensor":
        """x_0, (B, C, H, W), from x_T."""
        history: list[Evaluated] = []
        for a, b in pairwise(path):
            x0 = denoise(x, a).x0
            if is_infinite(a, b):
                x = first_order(x, x0, a, b)
            else:
                history = [Evaluated(a, x0), *history][: self.points]
                x = self.step(x, history, b)
        return x

    @abstractmethod
    def step(self, x: "Tensor", history: Sequence[Evaluated], b: Point) -> "Tensor":
        """X at b, from x at the newest point of `history`, which comes first."""


def is_infinite(a: Point, b: Point) -> bool:
    """Whether lambda is infinite at an end of the step, so that a polynomial in lambda means nothing there."""
    return a.alpha == 0 or b.sigma == 0


def length(a: Point, b: Point) -> float:
    """The length h of a step, lambda_b - lambda_a."""
    return math.log(a.ratio / b.ratio)


def first_order(x: "Tensor", x0: "Tensor", a: Point, b: Point) -> "Tensor":
    """X at b with x0 as it is at a: DDIM's step with eta = 0, which needs no lambda."""
    return b.alpha * x0 + b.sigma * predict_eps(x, x0, a)


def _where_it_stays(process: Process, tau: Sequence[float]) -> float | None:
    """The time of the first step that leads to an equal point; None if all steps lead somewhere."""
    steps = zip(reversed(tau), pairwise(path(process, tau)), strict=True)
    return next((t for t, (a, b) in steps if (a.alpha, a.sigma) == (b.alpha, b.sigma)), None)
