"""Multistep consistency sampling: Song et al. 2023, "Consistency models", algorithm 1."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taugrid.config import Sample
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers.sampler import Noise, Sampler, mostly_signal

if TYPE_CHECKING:
    from torch import Tensor


class Consistency(Sampler):
    """Jumps to the end of the path with each call, and adds noise again up to the next point."""

    keys = frozenset({"spacing", "clip", "clip_range"})
    processes = frozenset({"edm"})
    predictions = frozenset({"consistency"})

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """A list of times or, for the default spacing, those of diffusers: T, and down by T // S each.

        Raises:
            ValueError: see `times_or`.
        """
        return times_or(lambda S, T: [T - i * (T // S) for i in reversed(range(S))], settings, process)

    def last_sigma(self, settings: Sample, process: Process) -> float:
        """The least noise level: where a consistency function leads to."""
        return process.at(1).sigma

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T. The noise of a step has the key of the point that it leads to."""
        x0, least = denoise(x, path[0]).x0, denoise.process.at(1).sigma
        for b in path[1:-1]:
            x = b.alpha * x0 + (b.sigma**2 - least**2) ** 0.5 * noise(b.key)
            x0 = denoise(x, b).x0
        return x0


def times_or(usual: Callable[[int, int], Sequence[int]], settings: Sample, process: Process) -> tuple[float, ...]:
    """The times that `settings` list or, for the default spacing, `usual` of S and T.

    Raises:
        ValueError: for another spacing, too many steps, or a list that begins where x should be mostly signal.
    """
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
