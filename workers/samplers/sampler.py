"""What a sampler is. The driver asks it too, so neither this file nor a sampler's imports torch before it samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from taugrid.config import Sample
from taugrid.errors import CustomCodeError, UserError, last_line
from taugrid.hashing import json_sha256
from taugrid.registry import samplers
from taugrid.workers.content import require_same
from taugrid.workers.custom.source import source_of
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process
from taugrid.workers.diffusion.timesteps import tau

if TYPE_CHECKING:
    from torch import Tensor


class Sampler(ABC):
    """How images are made from noise along a path. A sampler is one class, made without arguments."""

    keys: ClassVar[frozenset[str]] = frozenset()
    """Which of `config.sample.SAMPLER_KEYS` it honours. The others have their defaults in its cells."""

    def tau(self, settings: Sample, process: Process) -> tuple[int, ...]:
        """The times in 1..T that it visits, increasing; `ValueError` if `settings` give none."""
        return tau(settings.spacing, settings.steps, process.timesteps, settings.steps_offset or 0)

    def evaluations(self, settings: Sample, process: Process) -> int:
        """How often it calls the network for an image."""
        return len(self.tau(settings, process))

    def label(self, settings: Mapping[str, Any]) -> str:
        """What names of cells say of it and its own `settings` (of `sample`): of other samplers than DDIM, its name."""
        return str(settings["sampler"])

    @abstractmethod
    def sample(
        self,
        x: "Tensor",
        path: Sequence[Point],
        denoise: Denoise,
        noise: Callable[[int], "Tensor"],
        settings: Sample,
    ) -> "Tensor":
        """x_0, (B, C, H, W).

        Args:
            x: x_T, (B, C, H, W) float32.
            path: the points of `tau` from T down, and that of time 0.
            denoise: the network's x0 and eps for x at a point, clipped as `settings` say; no gradients are kept.
            noise: standard normals, as x, for the key of a point: the only source of randomness.
            settings: resolved, no key is null.
        """


@cache
def find(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        UserError: if there is none, or its class can't be loaded.
    """
    try:
        found = samplers.entry(name).load()()
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"sample.sampler: {name}: {last_line(error)}") from error
    if not isinstance(found, Sampler):
        raise UserError(f"sample.sampler: {name} is {type(found).__name__}, not a taugrid.workers.samplers Sampler")
    return found


@cache
def code(name: str) -> str | None:
    """SHA-256 of another package's sampler: its package's name and version, and its module's source; None for ours."""
    if name in samplers.SAMPLERS:
        return None
    try:
        found = samplers.entry(name)
        version = [] if found.dist is None else [found.dist.name, found.dist.version]
        return json_sha256([*version, source_of([found.module]).sha256])
    except (ValueError, CustomCodeError) as error:
        raise UserError(f"sample.sampler: {name}: {error}") from error


def require_code(name: str, expected: str | None) -> None:
    """Raise `OtherContent` unless this node's sampler of that name is the driver's; `expected` is its `code` there."""
    if expected is not None:
        try:
            found = code(name)
        except UserError:
            found = None
        require_same(f"the code of the sampler {name}", found or "none", expected)
