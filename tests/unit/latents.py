"""Latent pipelines with random weights, small enough to sample in a test, and diffusers' own loop over their parts."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from taugrid.workers.diffusion.noise import normal

SEED = 5
STEPS = 5
"""Divides T, so that diffusers' spacing `trailing` is ours."""

SETTINGS = {"steps": STEPS, "spacing": "trailing", "seed": SEED}

VAE = {
    "block_out_channels": (8, 16), "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 4,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
"""Halves the resolution once."""

UNET = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 8),
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4,
}  # fmt: skip

DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "sample_size": 8, "num_embeds_ada_norm": 10, "norm_num_groups": 4,
}  # fmt: skip


def lively(vae):
    """`vae`, whose pictures fill the range: with fresh weights they would be grey."""
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 4
        if isinstance(vae, VQModel):  # codes so far apart that rounding takes no latent to another one
            vae.quantize.embedding.weight.normal_()
    return vae


def save_ldm(folder):
    """An `LDMPipeline`; returns its parts."""
    torch.manual_seed(0)
    vae = lively(VQModel(**VAE, latent_channels=3, num_vq_embeddings=64, scaling_factor=100.0))
    made = LDMPipeline(vqvae=vae, unet=UNet2DModel(**UNET), scheduler=DDIMScheduler(clip_sample=False))
    made.save_pretrained(folder)
    return made


def save_dit(folder):
    """A `DiTPipeline` of 10 classes with learned sigma; returns its parts."""
    torch.manual_seed(1)
    vae = lively(AutoencoderKL(**VAE, latent_channels=4, scaling_factor=0.3))
    dit = DiTTransformer2DModel(**DIT).eval()  # in training, labels are dropped
    with torch.no_grad():  # diffusers begins with zeros that would leave labels without effect
        for weight in dit.parameters():
            weight += 0.05 * torch.randn_like(weight)
    made = DiTPipeline(transformer=dit, vae=vae, scheduler=DDIMScheduler(clip_sample=False))
    made.save_pretrained(folder)
    return made


def other_vae(folder, **changes):
    """Another AutoencoderKL that fits the DiT's latents, in a folder of its own."""
    torch.manual_seed(2)
    vae = lively(AutoencoderKL(**VAE | {"latent_channels": 4, "scaling_factor": 0.3} | changes))
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def by_diffusers(predict, vae, shape, count, shift=0.0):
    """The pictures 0 to `count` - 1 in [-1, 1], by diffusers' DDIM and VAE with our noise."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    x = normal(SEED, torch.arange(count), 0, shape, domain="sample")
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t), t, x).prev_sample
    return vae.decode(x / vae.config.scaling_factor + shift).sample


def edit(file, **changes):
    """Change keys of a JSON file; None removes a key."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
