"""DPM-Solver++(3M), third order, multistep: the Taylor expansion of Lu et al. 2022 with x0' and x0'' from three points.

The authors' multistep code, and diffusers after it, have half of this D2, and therefore order 2: docs/mathematics.md.
"""

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING

from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.dpmpp2m import DPMpp2M
from taugrid.workers.samplers.solver import Evaluated, length

if TYPE_CHECKING:
    from torch import Tensor


class DPMpp3M(DPMpp2M):
    """Third order, one evaluation a step."""

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
