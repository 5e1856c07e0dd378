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
    wanted = f"{tuple(x_T.shape)} {x_T.dtype}"
    found = f"{tuple(x0.shape)} {x0.dtype}" if isinstance(x0, torch.Tensor) else type(x0).__name__
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
