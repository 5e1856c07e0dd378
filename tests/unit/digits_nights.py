"""Networks for digits, trained here in plain torch, at several steps of one training; nights of 12 cells."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

from taugrid.config import Data
from taugrid.workers.data.load import load_images
from taugrid.workers.diffusion.process import diffuse
from taugrid.workers.network.unet import ema_start, ema_update

UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [16, 16], "layers_per_block": 1,
    "norm_num_groups": 8, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip

CONFIG = {
    "name": "digits-nights",
    "data": {"name": "digits", "split": "train"},
    "sample": {"num_samples": 650, "batch_size": 325, "shard_evaluations": 10_000},
    "grid": [
        {"steps": [3, 5, 8], "eta": [0.0, 0.5, 1.0]},
        {"steps": [3, 5, 8], "eta": ["sigma_hat"], "clip": ["x0_and_eps"]},
    ],
    "evaluate": {"metrics": ["fid", "kid"]},
}
"""12 cells. FID's standard error needs 640 images for the 64 features of digits-convnet."""


class Without(NamedTuple):
    """A digit that the training does not see from a step on."""

    digit: int
    since: int


def train(
    folder: Path, steps: int, save_at: list[int], seed: int = 0, stop: int | None = None, without: Without | None = None
) -> None:
    """Train with a cosine decay to 0 over `steps` steps, and save at `save_at` the averaged weights, as `step-N`.

    The weights as they are go to `step-N-raw`. It stops after `stop` steps.
    """
    torch.manual_seed(seed)
    network = UNet2DModel(**UNET)
    ema, images = ema_start(network), torch.from_numpy(load_images(Data(name="digits", split="train")).copy())
    alpha_bar = torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))]))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, (stop or steps) + 1):
        if without is not None and step == without.since:
            images = images[torch.from_numpy(load_digits().target[: len(images)] != without.digit)]
        x0 = images[torch.randint(len(images), (128,))].float() / 127.5 - 1
        t, eps = torch.randint(1, 1001, (128,)), torch.randn(x0.shape)
        loss = (network(diffuse(x0, eps, alpha_bar[t]), t - 1).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        ema_update(ema, network, 0.99)
        if step in save_at:
            network.save_pretrained(folder / f"step-{step}-raw")
            saved = UNet2DModel(**UNET)
            saved.load_state_dict({name: tensor.clone() for name, tensor in ema.items()})
            saved.save_pretrained(folder / f"step-{step}")
