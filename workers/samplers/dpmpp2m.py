"""DPM-Solver++(2M): Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 2."""

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING

from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.solver import Evaluated, Multistep, length

if TYPE_CHECKING:
    from torch import Tensor


class DPMpp2M(Multistep):
    """Second order, one evaluation a step."""

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
