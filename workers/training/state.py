"""The state of training: the network, its average and the optimizer, at the start and after any step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrid.config import Train
from taugrid.workers.network.diffusers_unet import UNet2DModel
from taugrid.workers.network.ema import ema_start
from taugrid.workers.network.unet import build_unet
from taugrid.workers.training.log import Record
from taugrid.workers.training.spec import Hopeless, TrainingSpec


@dataclass
class State:
    """The content of a checkpoint."""

    unet: UNet2DModel
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them, over all attempts."""


def new_state(spec: TrainingSpec, device: str) -> State:
    """The state before the first step, a function of `train.seed` alone.

    Raises:
        Hopeless: if `model.unet` does not work for these images.
    """
    assert spec.train.seed is not None
    shape = spec.data.image_shape
    torch.manual_seed(spec.train.seed)
    try:
        unet = build_unet(spec.unet, shape)  # on the CPU, whose random numbers are the same anywhere
        unet(torch.zeros(1, *shape), 0)
    except (ValueError, RuntimeError, TypeError) as error:
        raise Hopeless(f"model.unet does not work for images of shape {shape}: {error}") from error
    memory_format = torch.channels_last if spec.train.channels_last else torch.contiguous_format
    unet = unet.to(device=device, memory_format=memory_format).train()
    return State(unet, ema_start(unet), _optimizer(spec.train, unet))


def _optimizer(settings: Train, unet: UNet2DModel) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        decay = settings.weight_decay
        return torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(unet.parameters(), lr=settings.learning_rate, fused=True)


def not_finite(record: Record, to_be_kept: State | None) -> str | None:
    """What contains NaN or infinity, if anything does. A step's loss can be finite while its weights are not."""
    if not math.isfinite(record.loss):
        return f"the loss of step {record.step} is"
    if not math.isfinite(record.gradient_norm):
        return f"the gradient of step {record.step} is"
    if to_be_kept is not None:
        moments = [value for values in to_be_kept.optimizer.state.values() for value in values.values()]
        kept = [*to_be_kept.unet.parameters(), *to_be_kept.ema.values(), *moments]
        if not torch.stack([tensor.isfinite().all() for tensor in kept]).all():
            return f"the weights after step {record.step} are"
    return None
