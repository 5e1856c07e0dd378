"""Loads the VAE of a latent network, and decodes with it."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from taugrid.jobs import SavedNetwork
from taugrid.workers.accelerator.arithmetic import Policy, without_tf32
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network.unet import read_saved

if TYPE_CHECKING:
    from taugrid.workers.diffusion.decoder import Decode


def load_vae(saved: SavedNetwork, device: str, how: Policy) -> nn.Module:
    """The half of a saved VAE that decodes, on `device`; raises the errors of `unet.load_unet`."""
    vae = read_saved(saved)
    for name in ("encoder", "quant_conv"):
        setattr(vae, name, None)
    module: nn.Module = vae.to(device=device, memory_format=getattr(torch, how.layout)).eval()
    return module


def decoding(module: nn.Module, vae: Vae, how: Policy, size: int) -> "Decode":
    """A function that decodes at most `size` latents, (B, C, H, W) float32, computing as `how` says.

    Where `how.pads`, zeros fill up fewer, so that libraries choose the same kernels for them.
    """

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        z = latents / vae.scaling_factor + vae.shift_factor
        if how.pads and len(z) < size:
            z = torch.cat([z, z.new_zeros(size - len(z), *z.shape[1:])])
        half = nullcontext() if how.autocast is None else torch.autocast(z.device.type, getattr(torch, how.autocast))
        with without_tf32(), half:
            pictures: Tensor = module.decode(z, return_dict=False)[0]  # type: ignore[operator]
        return pictures[: len(latents)].float()

    return decode
