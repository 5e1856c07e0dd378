"""Writes a trained network as a pipeline folder that diffusers reads."""

import copy
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from taugrid.config import Diffusion
from taugrid.workers.network.diffusers_unet import UNet2DModel
from taugrid.workers.network.scheduler import scheduler_config


def save_pipeline(folder: Path, unet: UNet2DModel, ema: Mapping[str, Tensor], diffusion: Diffusion) -> None:
    """Write what `diffusers.DDIMPipeline.from_pretrained(folder)` reads, in safetensors.

    unet/ holds the averaged weights. The raw ones are in unet_raw/, which is not a component of the pipeline.
    """
    raw = copy.deepcopy(unet).to(device="cpu", memory_format=torch.contiguous_format)
    averaged = copy.deepcopy(raw)
    averaged.load_state_dict({name: tensor.to("cpu") for name, tensor in ema.items()})
    scheduler = diffusers.DDIMScheduler(**scheduler_config(diffusion))
    diffusers.DDIMPipeline(unet=averaged, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
    raw.save_pretrained(folder / "unet_raw", safe_serialization=True)
