"""The exponential moving average of a network's parameters."""

import torch
from torch import Tensor


def ema_start(unet: torch.nn.Module) -> dict[str, Tensor]:
    """The average before the first step: a copy of the network's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """The decay at `step` = 0, 1, ...: `decay`, but with `warmup` at most (1 + step) / (10 + step)."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@torch.no_grad()
def ema_update(ema: dict[str, Tensor], unet: torch.nn.Module, decay: float) -> None:
    """Update the average in place: decay times the old value, plus (1 - decay) times the parameters."""
    torch._foreach_lerp_(list(ema.values()), list(unet.parameters()), 1 - decay)
