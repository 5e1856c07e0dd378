"""The interface of samplers. The driver calls them too, so torch is imported only in `Sampler.sample`."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from taugrid.config import Sample
from taugrid.config.sample import SAMPLER_KEYS
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
    """Makes images from noise along a path of points. The class is instantiated without arguments."""

    keys: ClassVar[frozenset[str]] = frozenset()
    """The keys of `config.sample.SAMPLER_KEYS` that it honours. The others keep their defaults in its cells."""

    def tau(self, settings: Sample, process: Process) -> tuple[int, ...]:
        """The times in 1..T that it visits, in increasing order. The last one need not be T.

        Raises:
            ValueError: if `settings` allow no such times.
        """
        return tau(settings.spacing, settings.steps, process.timesteps, settings.steps_offset or 0)

    def evaluations(self, settings: Sample, process: Process) -> int:
        """Network evaluations per image."""
        return len(self.tau(settings, process))

    def label(self, settings: Mapping[str, Any]) -> str:
        """How cells' names show it, given the keys of `sample`: by default the sampler's name; for DDIM eta."""
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
            path: the points of `tau`, from its last time down, and then the point of time 0, at which x is the result.
                The alpha of time 0 is 1 if `diffusion.set_alpha_to_one` is true, else it is the alpha of time 1.
            denoise: called with x and a point, returns the network's x0 and eps, clipped as `settings` say, without
                gradients.
            noise: called with `key`, the integer that names a point's noise, returns standard normals shaped like x.
                It is the only source of randomness.
            settings: the resolved section `sample`; no key is null.
        """


@cache
def find(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        UserError: if there is none, or its class can't be loaded.
    """
    try:
        sampler = samplers.entry(name).load()()
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"sample.sampler: {name}: {last_line(error)}") from error
    if not isinstance(sampler, Sampler):
        raise UserError(f"sample.sampler: {name} is {type(sampler).__name__}, not a taugrid.workers.samplers Sampler")
    if unknown := sorted(map(str, set(sampler.keys) - set(SAMPLER_KEYS))):
        raise UserError(
            f"sample.sampler: the keys of {name} have {', '.join(unknown)}; they can be {', '.join(SAMPLER_KEYS)}"
        )
    return sampler


def times_of(name: str, settings: Sample, process: Process) -> tuple[int, ...]:
    """The sampler's tau. Times may repeat.

    Raises:
        ValueError: if the settings allow none.
        UserError: if it is not what the interface says.
    """
    found, T = tuple(find(name).tau(settings, process)), process.timesteps
    integers = set(map(type, found)) == {int}  # none at all are no tau either
    if not integers or list(found) != sorted(found) or found[0] < 1 or found[-1] > T:
        said = f"`tau` of {name} must return increasing integers in 1..{T}, not {reprlib.repr(found)}"
        raise UserError(f"sample.sampler: {said}")
    return found


def evaluations_of(name: str, settings: Sample, process: Process) -> int:
    """The sampler's network evaluations per image; `UserError` unless they are a positive integer."""
    found = find(name).evaluations(settings, process)
    if type(found) is not int or found < 1:
        raise UserError(f"sample.sampler: `evaluations` of {name} must return a positive integer, not {found!r}")
    return found


@cache
def code_hash(name: str) -> str | None:
    """SHA-256 of a custom sampler's package name, package version and module source. None for built-ins."""
    if name in samplers.SAMPLERS:
        return None
    try:
        entry = samplers.entry(name)
        version = [] if entry.dist is None else [entry.dist.name, entry.dist.version]
        return json_sha256([*version, source_of([entry.module]).sha256])
    except (ValueError, CustomCodeError) as error:
        raise UserError(f"sample.sampler: {name}: {error}") from error


def require_code(name: str, expected: str | None) -> None:
    """Raise `OtherContent` unless this node's sampler has the driver's `code_hash`, which is `expected`."""
    if expected is not None:
        try:
            actual = code_hash(name)
        except UserError:
            actual = None
        require_same(f"the code of the sampler {name}", actual or "none", expected)
