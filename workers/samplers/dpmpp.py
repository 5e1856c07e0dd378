"""DPM-Solver++, multistep: Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++" (arXiv 2211.01095)."""

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING

from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.solver import Evaluated, Multistep, length

if TYPE_CHECKING:
    from torch import Tensor


class DPMpp2M(Multistep):
    """DPM-Solver++(2M), the paper's algorithm 2: second order, one evaluation a step."""

    order = points = 2

    def step(self, x: "Tensor", history: Sequence[Evaluated], b: Point) -> "Tensor":
        """The second-order update of the paper's algorithm 2; the first-order one without an older point.

        D = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0_before with r = h_before / h: a line through both, taken at h / 2.
        """
        (a, x0), *before = history
        h, d = length(a, b), x0
        for older, x0_before in before:
            r = length(older, a) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        return b.sigma / a.sigma * x - b.alpha * expm1(-h) * d


class DPMpp3M(DPMpp2M):
    """DPM-Solver++(3M), one evaluation a step: the paper's Taylor expansion with x0' and x0'' from three points.

    The authors' multistep code, and diffusers after it, have half of this D2, and therefore order 2:
    docs/mathematics.md.
    """

    order = points = 3

    def step(self, x: "Tensor", history: Sequence[Evaluated], b: Point) -> "Tensor":
        """The integral of the parabola through three x0; with fewer, the step of DPM-Solver++(2M)."""
        if len(history) < self.points:
            return super().step(x, history, b)
        (a, m0), (before, m1), (first, m2) = history
        h = length(a, b)
        r0, r1 = length(before, a) / h, length(first, before) / h
        D1_0, D1_1 = (m0 - m1) / r0, (m1 - m2) / r1
        D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)  # x0' h
        D2 = 2 / (r0 + r1) * (D1_0 - D1_1)  # x0'' h^2
        phi_1 = expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 1 / 2
        return b.sigma / a.sigma * x - b.alpha * (phi_1 * m0 - phi_2 * D1 + phi_3 * D2)
