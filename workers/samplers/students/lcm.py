"""Sampling of latent consistency models: Luo et al. 2023, "Latent consistency models", algorithm 3 without guidance."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process
from taugrid.workers.samplers.sampler import Noise, Sampler
from taugrid.workers.samplers.students.consistency import times_or

if TYPE_CHECKING:
    from torch import Tensor

SIGMA_DATA = 0.5


class LCM(Sampler):
    """Jumps to the image with each call, and adds noise again up to the next time: LCMScheduler's steps."""

    keys = frozenset({"spacing", "clip", "clip_range"})
    options: ClassVar[Mapping[str, Any]] = {"original_inference_steps": 50, "timestep_scaling": 10.0}
    processes = frozenset({"ddpm"})
    predictions = frozenset({"epsilon", "sample", "v_prediction"})

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless they are positive numbers, the first a whole one."""
        super().check_options(options)
        for key, value in options.items():
            kinds, wanted = ((int,), "whole number") if key == "original_inference_steps" else ((int, float), "number")
            if type(value) not in kinds or value <= 0:
                raise ValueError(f"{key} must be a {wanted} above 0, not {value!r}")

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """A list of times or, for the default spacing, S of the `original_inference_steps` k, 2k, ... that it learned.

        Raises:
            ValueError: for another spacing, too many steps, or a list that begins where x should be mostly signal.
        """

        def usual(S: int, T: int) -> Sequence[int]:
            learned: int = self.arguments(settings)["original_inference_steps"]
            if not S <= learned <= T:
                raise ValueError(
                    f"{settings.sampler} takes {S} of the times of its distillation, but option "
                    f"original_inference_steps is {learned}, which must be from {S} to T = {T}; set another, or steps"
                )
            passed = np.linspace(0, learned, S, endpoint=False)  # rounded as theirs: 30 i // 22 would differ
            return [(learned - int(i)) * (T // learned) for i in reversed(passed)]

        return times_or(usual, settings, process)

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T. The noise of a step has the key of the point that it leaves, as in `ddim`."""
        scaling: float = self.arguments(settings)["timestep_scaling"]
        for a, b in pairwise(path):
            skip, out = boundary(scaling * a.time)
            x0 = skip * x + out * denoise(x, a).x0
            x = x0 if b is path[-1] else b.alpha * x0 + b.sigma * noise(a.key)
        return x


def boundary(time: float) -> tuple[float, float]:
    """c_skip and c_out at a scaled time index, for which f(x, 0) = x: Luo et al. 2023, section 4.1."""
    return SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2), time / math.hypot(time, SIGMA_DATA)
