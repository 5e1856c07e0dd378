"""Sampling of flow maps: Geng et al. 2025, "Mean flows"; Boffi et al. 2024, "Flow map matching"."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.sampler import Noise, Sampler

if TYPE_CHECKING:
    from torch import Tensor


class FlowMap(Sampler):
    """Jumps from each time of a flow to the next along the ODE, by the average velocity between them."""

    keys = frozenset({"spacing"})
    processes = frozenset({"flow"})
    predictions = frozenset({"average_velocity"})

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T: x_r = x_t - (t - r) u(x_t, t, r), the last r being 0."""
        for t, r in pairwise(path):
            x = x - (t.sigma - r.sigma) * denoise.output(x, t._replace(toward=r.time))
        return x
