"""Samplers of networks that were distilled, or trained, to need few steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers.sampler import Noise, Sampler, mostly_signal, sampler

if TYPE_CHECKING:
    from torch import Tensor


def times_or(usual: Callable[[int, int], Sequence[int]], settings: Sample, process: Process) -> tuple[float, ...]:
    """The times that `settings` list or, for the default spacing, `usual` of S and T. `ValueError` for another spacing,
    too many steps, or a list that begins where x should be mostly signal."""
    S, T = settings.steps, process.timesteps
    assert T is not None, "only such a process has networks that these samplers take"
    if isinstance(settings.spacing, str) and settings.spacing != "linear":
        raise ValueError(f"{settings.sampler} has no spacing {settings.spacing}; remove it, or list the times")
    found = tau(settings.spacing, S, T)
    if settings.spacing == "linear":
        return tuple(usual(S, T))
    if (why := mostly_signal(process, found[-1])) is not None:
        raise ValueError(f"{settings.sampler} {why}; list later times, up to {T}")
    return found


@sampler(
    keys=frozenset({"spacing", "clip", "clip_range"}),
    processes=frozenset({"edm"}),
    predictions=frozenset({"consistency"}),
    tau=lambda self, settings, process: times_or(  # by default those of diffusers: T, and down by T // S each
        lambda S, T: [T - i * (T // S) for i in reversed(range(S))], settings, process
    ),
    last_sigma=lambda self, settings, process: process.at(1).sigma,  # the least, where a consistency function leads to
)
def consistency(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """Multistep consistency sampling: Song et al. 2023, "Consistency models", algorithm 1. Each call jumps to the end
    of the path, and noise is added again up to the next point, whose key the noise has."""
    x0, least = denoise(x, path[0]).x0, denoise.process.at(1).sigma
    for b in path[1:-1]:
        x = b.alpha * x0 + (b.sigma**2 - least**2) ** 0.5 * noise(b.key)
        x0 = denoise(x, b).x0
    return x0


SIGMA_DATA = 0.5


def boundary(time: float) -> tuple[float, float]:
    """c_skip and c_out at a scaled time index, for which f(x, 0) = x: Luo et al. 2023, section 4.1."""
    return SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2), time / math.hypot(time, SIGMA_DATA)


def check_lcm(self: Sampler, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless they are positive numbers, the first a whole one."""
    Sampler.check_options(self, options)
    for key, value in options.items():
        kinds, wanted = ((int,), "whole number") if key == "original_inference_steps" else ((int, float), "number")
        if type(value) not in kinds or value <= 0:
            raise ValueError(f"{key} must be a {wanted} above 0, not {value!r}")


def times_of_lcm(self: Sampler, settings: Sample, process: Process) -> tuple[float, ...]:
    """See `times_or`: by default S of the `original_inference_steps` k, 2k, ... that it learned."""

    def usual(S: int, T: int) -> Sequence[int]:
        learned: int = self.arguments(settings)["original_inference_steps"]
        if not S <= learned <= T:
            raise ValueError(
                f"{settings.sampler} takes {S} of the times of its distillation, but option original_inference_steps "
                f"is {learned}, which must be from {S} to T = {T}; set another, or steps"
            )
        passed = np.linspace(0, learned, S, endpoint=False)  # rounded as theirs: 30 i // 22 would differ
        return [(learned - int(i)) * (T // learned) for i in reversed(passed)]

    return times_or(usual, settings, process)


@sampler(
    keys=frozenset({"spacing", "clip", "clip_range"}),
    options={"original_inference_steps": 50, "timestep_scaling": 10.0},
    processes=frozenset({"ddpm"}),
    predictions=frozenset({"epsilon", "sample", "v_prediction"}),
    check_options=check_lcm,
    tau=times_of_lcm,
)
def lcm(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """Luo et al. 2023, "Latent consistency models", algorithm 3 without guidance: LCMScheduler's steps. Each call jumps
    to the image, and noise is added again up to the next time. The noise of a step has the key of the point that it
    leaves, as in `ddim`."""
    for a, b in pairwise(path):
        skip, out = boundary(settings.sampler_options["timestep_scaling"] * a.time)
        x0 = skip * x + out * denoise(x, a).x0
        x = x0 if b is path[-1] else b.alpha * x0 + b.sigma * noise(a.key)
    return x


@sampler(
    keys=frozenset({"spacing"}),
    processes=frozenset({"flow"}),
    predictions=frozenset({"average_velocity"}),
)
def flow_map(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """Geng et al. 2025, "Mean flows"; Boffi et al. 2024, "Flow map matching": along the ODE, by average velocities. x_r
    = x_t - (t - r) u(x_t, t, r), the last r being 0."""
    for t, r in pairwise(path):
        x = x - (t.sigma - r.sigma) * denoise.output(x, t._replace(toward=r.time))
    return x
