"""UniPC-3: Zhao et al. 2023, "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models".

UniP-3 predicts and UniC-3 corrects, multistep, from predicted x0. The paper solves R_p(h) a_p = phi_p(h) / B(h)
and multiplies a_p by B(h), which cancels: `weights` solves the same conditions without it. (The released code takes 1/2
for a_1 of UniP-2 and UniC-1 instead, so that B(h) = h and B(h) = e^h - 1 differ there.)
"""

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, factorial
from typing import TYPE_CHECKING

import numpy as np

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.sampler import Noise
from taugrid.workers.samplers.solver import Evaluated, Solver, first_order, is_infinite, length

if TYPE_CHECKING:
    from torch import Tensor

ORDER = 3
"""p of UniPC-p: the paper's choice for unconditional sampling. The corrector makes the order p + 1."""

SMALL = 0.5
"""The h below which the differences in the recursion of `moments` cancel. It uses a power series there: with 16 terms,
both are exact to 1e-15 at this h, while the recursion is off by 4e-10 at h = 0.01."""


class UniPC(Solver):
    """Fourth order, one evaluation a step: the corrector uses the one that the next step needs anyway."""

    order = 4

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T."""
        history: list[Evaluated] = []  # newest first
        source = x  # x at the newest point, corrected
        for a, b in pairwise(path):
            new = Evaluated(a, denoise(x, a).x0)
            if is_infinite(a, b):
                x = first_order(x, new.x0, a, b)
                continue
            source = integrated(source, history[0].at, a, [new, *history]) if history else x  # UniC
            history = [new, *history][:ORDER]
            x = integrated(source, a, b, history)  # UniP
        return x


def integrated(x: "Tensor", a: Point, b: Point, known: Sequence[Evaluated]) -> "Tensor":
    """X at b, from x at a, with the polynomial through the `known` x0 in place of the network's."""
    h = length(a, b)
    w = weights(h, [length(a, at) / h for at, _ in known])
    x = b.sigma / a.sigma * x
    for weight, (_, x0) in zip(w, known, strict=True):
        x = x + b.alpha * weight * x0
    return x


def weights(h: float, r: Sequence[float]) -> list[float]:
    """The weights w of values at r, in units of h, with sum_m w_m f(r_m) = h int_0^1 e^(h (u - 1)) f(u) du.

    They are exact for the polynomials f of a degree below len(r): sum_m w_m r_m^k is the integral of u^k.
    """
    solved: list[float] = np.linalg.solve(np.vander(r, increasing=True).T, moments(h, len(r))).tolist()
    return solved


def moments(h: float, count: int) -> list[float]:
    """The integrals h int_0^1 e^(h (u - 1)) u^k du, for k in 0..`count` - 1."""
    if h < SMALL:
        return [
            sum((-1) ** j * h ** (j + 1) * factorial(k) / factorial(k + j + 1) for j in range(16)) for k in range(count)
        ]
    found = [-expm1(-h)]
    for k in range(1, count):
        found.append(1 - k * found[-1] / h)
    return found
