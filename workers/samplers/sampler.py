"""The interface of samplers, and what runs one on a batch and holds it to its word.

The driver asks taugrid's own samplers too, so torch is imported only when one samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from taugrid.config import Diffusion, Sample
from taugrid.config.sample import SAMPLER_KEYS, Spacing
from taugrid.errors import CustomCodeError, SamplerFault, UserError, last_line
from taugrid.hashing import json_sha256
from taugrid.registry import samplers
from taugrid.words import did_you_mean
from taugrid.workers import schedules
from taugrid.workers.content import require_same
from taugrid.workers.custom.describe import find as find_object
from taugrid.workers.custom.source import source_of
from taugrid.workers.diffusion.decoder import Decoder
from taugrid.workers.diffusion.denoiser import Denoise, Denoiser, Guidance
from taugrid.workers.diffusion.process import Point, PredictionType, Process, ProcessName, path

if TYPE_CHECKING:
    from torch import Tensor

KEYS_OF_A_FUNCTION = frozenset({"spacing", "steps_offset"})
"""The `Sampler.keys` of a function that has no attribute `keys`."""

MOST_SIGNAL = 0.5
"""alpha_bar at the first call, at most: x_T is noise, so a network that expects mostly signal there is misled."""


def mostly_signal(process: Process, t: float) -> str | None:
    """What is wrong with a first call at time t, as a phrase that follows a sampler's name; None if nothing."""
    at = process.at(t)
    if (signal := at.alpha_bar) <= MOST_SIGNAL:
        return None
    return (
        f"first calls the network at time {at.time:g}, where {signal:.0%} of the variance should be signal, "
        "but x_T is noise"
    )


class Noise(Protocol):
    """The noise of one batch, a function of (seed, index of the image, key, draw)."""

    def __call__(self, key: int, draw: int = 0) -> "Tensor":
        """Standard normals like x for a point's `key`; each `draw` at one key is independent of the others."""


class Sampler(ABC):
    """Makes images from noise along a path of points (a trajectory). The class is instantiated without arguments."""

    keys: ClassVar[frozenset[str]] = frozenset()
    """The keys of `config.sample.SAMPLER_KEYS` that it honours. The others keep their defaults in its cells."""

    options: ClassVar[Mapping[str, Any]] = {}  # the names that `sample.sampler_options` may have, with their defaults

    order: ClassVar[int | None] = None
    """Of convergence, for a solver of the ODE: how fast the error falls with the number of steps."""

    processes: ClassVar[frozenset[ProcessName]] = frozenset({"ddpm", "edm", "flow"})
    """The processes whose paths it follows."""

    predictions: ClassVar[frozenset[PredictionType]] = frozenset(
        {"epsilon", "sample", "v_prediction", "edm", "velocity"}
    )
    """What the networks may predict that it samples."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The packages whose code computes its steps; their versions are part of the protocol."""

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The times that it visits, increasing, in 1..T or above 0; the last need not be the process's. `ValueError` if
        `settings` allow no such times."""
        asked = settings.steps, settings.steps_offset or 0, settings.shift or 1.0
        spacing = settings.spacing
        return _spaced(process, spacing, *asked) if isinstance(spacing, str) else process.spaced(spacing, *asked)

    def times(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The network's times in the order of its calls: by default one call at each time of tau, from the last."""
        tau = self.tau(settings, process)
        return _told(process, tau, tuple(map(type, tau)))  # 1 and 1.0 are equal, but not in JSON

    def evaluations(self, settings: Sample, process: Process) -> int:
        """Network evaluations per image."""
        return len(self.times(settings, process))

    def last_sigma(self, settings: Sample, process: Process) -> float:
        """The noise level (sigma) of the image that it returns; 0 if it is fully denoised."""
        return process.at(0).sigma

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if `sample.sampler_options` can't be used."""
        if unknown := sorted(options.keys() - self.options.keys()):
            hint = did_you_mean(unknown[0], self.options, f"known: {', '.join(self.options) or 'none'}")
            raise ValueError(f"it has no option {unknown[0]} ({hint})")

    def remark(self, settings: Sample) -> str | None:
        """What a plan should say of these settings."""
        return None

    def arguments(self, settings: Sample) -> dict[str, Any]:
        """All options with their values, those left open included: what a cell's files record."""
        return {**self.options, **settings.sampler_options}

    def label(self, settings: Mapping[str, Any]) -> str:
        """How cells' names show it, given the keys of `sample`: by default the sampler's name; for DDIM eta."""
        return str(settings["sampler"])

    @abstractmethod
    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W).

        Args:
            x: x_T, (B, C, H, W) float32.
            path: the points of `tau`, from its last time down, and then the point of time 0, at which x is the result.
                The alpha of time 0 is 1 if `diffusion.set_alpha_to_one` is true, else it is the alpha of time 1.
            denoise: called with x and a point, returns the network's x0 and eps, clipped as `settings` say, without
                gradients.
            noise: called with `key`, the integer that names a point's noise, returns standard normals shaped like x,
                and with `draw` = 1, 2, ... further ones at this point. It is the only source of randomness.
            settings: the resolved section `sample`; no key is null.
        """


def sampler(**description: Any) -> Callable[[Callable[..., "Tensor"]], Sampler]:
    """Makes the decorated function a sampler: its `sample`, with the attributes and methods of `description`."""

    def described(function: Callable[..., "Tensor"]) -> Sampler:
        its = {"sample": staticmethod(function), "__doc__": function.__doc__, **description}
        made: Sampler = type(getattr(function, "__name__", "function"), (Sampler,), its)()
        return made

    return described


@cache
def find(name: str) -> Sampler:
    """The sampler of that name, imported; errors of a custom one's own code pass through. `UserError` if there is none,
    or it is not a sampler."""
    try:
        entry = samplers.entry(name)
        found = find_object(f"{entry.module}:{entry.attr}")
    except (ValueError, CustomCodeError) as error:
        raise UserError(f"sample.sampler: {name}: {last_line(error)}") from error
    its = found() if isinstance(found, type) else _of_function(found)
    if not isinstance(its, Sampler):
        raise UserError(f"sample.sampler: {name} is {type(its).__name__}, not a taugrid.workers.samplers Sampler")
    if unknown := sorted(map(str, set(its.keys) - set(SAMPLER_KEYS))):
        raise UserError(
            f"sample.sampler: {name} declares unknown keys: {', '.join(unknown)}; known: {', '.join(SAMPLER_KEYS)}"
        )
    return its


def _of_function(function: Any) -> Any:
    """A `Sampler` whose `sample` is a function; its attributes `keys`, `options` and `evaluations` count."""
    if not callable(function):
        return function
    attributes = {key: getattr(function, key) for key in ("keys", "options") if hasattr(function, key)}
    if hasattr(function, "evaluations"):
        attributes["evaluations"] = staticmethod(function.evaluations)
    return sampler(**{"keys": KEYS_OF_A_FUNCTION, **attributes})(function)


def with_defaults(settings: Sample, its: Sampler) -> Sample:
    """`settings` as samplers get them: the options that they leave open have their defaults, but for diffusers'."""
    if settings.sampler.startswith(samplers.DIFFUSERS):
        return settings
    return settings.model_copy(update={"sampler_options": its.arguments(settings)})


@cache
def code_hash(name: str) -> str | None:
    """SHA-256 of a custom sampler's source and, in a package, its name and version. None for taugrid's own."""
    if not samplers.is_custom(name):
        return None
    try:
        entry = samplers.entry(name)
        version = [] if entry.dist is None else [entry.dist.name, entry.dist.version]
        return json_sha256([*version, source_of([entry.module]).sha256])
    except (ValueError, CustomCodeError) as error:
        raise UserError(f"sample.sampler: {name}: {error}") from error


def require_code(name: str, expected: str | None) -> None:
    """Raise `WorkerRefusal` unless this node's sampler has the driver's `code_hash`, which is `expected`."""
    if expected is not None:
        try:
            actual = code_hash(name)
        except UserError:
            actual = None
        require_same(f"the code of the sampler {name}", actual or "none", expected)


@lru_cache(maxsize=2048)
def _spaced(process: Process, spacing: Spacing, steps: int, steps_offset: int, shift: float) -> tuple[float, ...]:
    """`Process.spaced`, kept because the cells of a grid share their times: a million in a plan of 10,000 cells."""
    return process.spaced(spacing, steps, steps_offset, shift)


@lru_cache(maxsize=2048)
def _told(process: Process, tau: tuple[float, ...], types: tuple[type, ...]) -> tuple[float, ...]:
    """The network's times at `tau`, from the last."""
    return tuple(process.at(t).time for t in reversed(tau))


class SamplingSpec(NamedTuple):
    """Everything besides the network, the seed included, that determines an image."""

    decoder: Decoder
    diffusion: Diffusion  # resolved
    settings: Sample  # resolved: no key is null
    tau: tuple[float, ...]  # increasing times in 1..T
    nfe: int  # network evaluations per image, as the sampler promises; a guided call is two
    guidance: Guidance | None = None


def sample_batch(
    model: Denoiser,
    indices: "Tensor",
    spec: SamplingSpec,
    condition: "Tensor | None" = None,
    guide: Denoiser | None = None,
) -> "Tensor":
    """x_0 of the samples `indices` (B,), int64, as (B, C, H, W) float32: a function of the cell, the seed and n.

    `condition`: their labels (B,), int64, if the network takes some. `guide`: the second network that `spec.guidance`
    asks for; None: the network guides itself. `SamplerFault` if the sampler returns something else, or does not call
    the network as often as it says."""
    import torch

    from taugrid.workers.diffusion.noise import normal

    settings, process, shape = spec.settings, schedules.process(spec.diffusion), spec.decoder.network_shape
    seed = settings.seed
    assert seed is not None

    def noise(key: int, draw: int = 0) -> "Tensor":
        return normal(seed, indices, key, shape, domain=f"sample/{draw}" if draw else "sample")

    clip, clip_range = settings.clip or "none", settings.clip_range or 1.0
    denoise = Denoise(
        model, process, clip=clip, clip_range=clip_range, condition=condition, guidance=spec.guidance, guide=guide
    )
    name = settings.sampler
    x_T, sampler, visited = noise(0), find(name), path(process, spec.tau)
    if (scale := process.first_scale(visited[0])) != 1:
        x_T = scale * x_T
    with torch.no_grad():
        x0 = sampler.sample(x_T, visited, denoise, noise, with_defaults(settings, sampler))
    wanted = f"{tuple(x_T.shape)} {x_T.dtype} on {x_T.device}"
    found = type(x0).__name__
    if isinstance(x0, torch.Tensor):
        found = f"{tuple(x0.shape)} {x0.dtype} on {x0.device}"
    if found != wanted:
        raise SamplerFault(
            f"`sample` of the sampler {name} returns {found}, but must return images like its x: {wanted}"
        )
    guided = 0 if spec.guidance is None else spec.guidance.calls
    if denoise.calls != (promised := spec.nfe - guided):
        raise SamplerFault(
            f"the sampler {name} calls the network {denoise.calls} times for a batch, but its `evaluations` returns "
            f"{promised}; state the number with `evaluations`, a method of the class or an attribute of the function: "
            "evaluations(settings, process)"
        )
    if denoise.guided_calls != guided:
        raise SamplerFault(
            f"{denoise.guided_calls} calls of the sampler {name} are in sample.guidance_interval, but {guided} of "
            "the times that it was planned with: it must call the network at the same times for every batch"
        )
    return x0.detach()  # a sampler may have enabled gradients
