"""Runs a sampler on one batch, and holds it to its word. Torch is imported when that is done, not with this module."""

from typing import TYPE_CHECKING, NamedTuple

from taugrid.config import Diffusion, Sample
from taugrid.errors import SamplerFault
from taugrid.workers import schedules
from taugrid.workers.diffusion.decoder import Decoder
from taugrid.workers.diffusion.denoiser import Denoise, Guidance
from taugrid.workers.diffusion.process import path
from taugrid.workers.samplers.sampler import find, with_defaults

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser


class SamplingSpec(NamedTuple):
    """Everything besides the network, the seed included, that determines an image."""

    decoder: Decoder
    diffusion: Diffusion
    """Resolved."""
    settings: Sample
    """Resolved: no key is null."""
    tau: tuple[float, ...]
    """Increasing times in 1..T."""
    nfe: int
    """Network evaluations per image, as the sampler promises; a guided call is two."""
    guidance: Guidance | None = None


def sample_batch(
    model: "Denoiser",
    indices: "Tensor",
    spec: SamplingSpec,
    condition: "Tensor | None" = None,
    guide: "Denoiser | None" = None,
) -> "Tensor":
    """x_0 of the samples `indices` (B,), int64, as (B, C, H, W) float32: a function of the cell, the seed and n.

    `condition`: their labels (B,), int64, if the network takes some. `guide`: the second network that `spec.guidance`
    asks for; None: the network guides itself.

    Raises:
        SamplerFault: if the sampler returns something else, or does not call the network as often as it says.
    """
    import torch

    from taugrid.workers.diffusion.noise import normal

    settings, process, shape = spec.settings, schedules.process(spec.diffusion), spec.decoder.network_shape
    seed = settings.seed
    assert seed is not None

    def noise(key: int, draw: int = 0) -> "Tensor":
        return normal(seed, indices, key, shape, domain=f"sample/{draw}" if draw else "sample")

    denoise = Denoise(
        model,
        process,
        clip=settings.clip or "none",
        clip_range=settings.clip_range or 1.0,
        condition=condition,
        guidance=spec.guidance,
        guide=guide,
    )
    x_T, sampler, visited = noise(0), find(settings.sampler), path(process, spec.tau)
    if (scale := process.first_scale(visited[0])) != 1:
        x_T = scale * x_T
    with torch.no_grad():
        x0 = sampler.sample(x_T, visited, denoise, noise, with_defaults(settings, sampler))
    _require_images(x0, x_T, settings.sampler)
    _require_calls(denoise, spec)
    return x0.detach()  # a sampler may have enabled gradients


def _require_calls(denoise: Denoise, spec: SamplingSpec) -> None:
    """Raise `SamplerFault` unless a sampler called the network, and was guided, as often as was planned."""
    sampler, planned = spec.settings.sampler, 0 if spec.guidance is None else spec.guidance.calls
    if denoise.calls != (promised := spec.nfe - planned):
        raise SamplerFault(
            f"the sampler {sampler} calls the network {denoise.calls} times for a batch, but its "
            f"`evaluations` returns {promised}; state the number with `evaluations`, a method of the class or "
            "an attribute of the function: evaluations(settings, process)"
        )
    if denoise.guided_calls != planned:
        raise SamplerFault(
            f"{denoise.guided_calls} calls of the sampler {sampler} are in sample.guidance_interval, but {planned} of "
            "the times that it was planned with: it must call the network at the same times for every batch"
        )


def _require_images(x0: object, x_T: "Tensor", sampler: str) -> None:
    """Raise `SamplerFault` unless a sampler returned a tensor like `x_T`."""
    import torch

    if not isinstance(x0, torch.Tensor):
        found = type(x0).__name__
    elif (x0.shape, x0.dtype) != (x_T.shape, x_T.dtype):
        found = f"{tuple(x0.shape)} {x0.dtype}"
    else:
        return
    raise SamplerFault(
        f"`sample` of the sampler {sampler} returns {found}, but must return images like its x: "
        f"{tuple(x_T.shape)} {x_T.dtype}"
    )
