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
from taugrid.workers.samplers.sampler import Noise, Sampler, mostly_signal

if TYPE_CHECKING:
    from torch import Tensor


class Evaluated(NamedTuple):
    """A point where the network was called, and the x0 that it predicted."""

    at: Point
    x0: "Tensor"


class Solver(Sampler):
    """A deterministic solver of the ODE. It refuses steps of length 0, and to begin where x should be mostly signal."""

    keys = frozenset({"spacing", "steps_offset", "clip", "clip_range"})

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The times of the spacing.

        Raises:
            ValueError: if two points in a row are equal or the first is mostly signal, with the S nearest below (but
                not 1), or else above, at which neither is so.
        """
        found, T = super().tau(settings, process), process.timesteps or 0
        if (why := _objection(process, found)) is None:
            return found
        more_noise = "set a larger diffusion.sigma_max, or " if process.name == "edm" else ""
        remedy = more_noise if mostly_signal(process, found[-1]) else "set diffusion.set_alpha_to_one: true, or "
        others = [*range(settings.steps - 1, 1, -1), *range(settings.steps + 1, T + 1)]
        for steps in others if isinstance(settings.spacing, str) else ():
            tau = super().tau(settings.model_copy(update={"steps": steps}), process)
            # The last step is looked at first: where set_alpha_to_one is false, it rules out hundreds of S.
            if _stays(process, tau[:1]) is None and _objection(process, tau) is None:
                remedy = f"set steps to {steps}, or "
                break
        raise ValueError(
            f"{settings.sampler} with steps {settings.steps} and spacing {settings.spacing_name} {why}; {remedy}choose "
            "another spacing"
        )


class Multistep(Solver):
    """A solver that calls the network once in a step, and remembers the last points and their x0."""

    points: ClassVar[int]
    """How many a step uses, its own included. A step has fewer where there were no more before it."""

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
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


def _objection(process: Process, tau: Sequence[float]) -> str | None:
    """Why a solver can't visit these times, as a phrase that follows its name; None if it can."""
    return mostly_signal(process, tau[-1]) or _stays(process, tau)


def _stays(process: Process, tau: Sequence[float]) -> str | None:
    """Where a step has length 0, as such a phrase; None if none has."""
    steps = zip(reversed(tau), pairwise(path(process, tau)), strict=True)
    stays = (f"has a step of length 0 at time {t:g}" for t, (a, b) in steps if (a.alpha, a.sigma) == (b.alpha, b.sigma))
    return next(stays, None)
