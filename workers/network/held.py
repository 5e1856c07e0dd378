"""A network that the caller holds in memory, as a function of x and t. The caller's object is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taugrid.errors import CustomCodeError
from taugrid.workers.diffusion.denoiser import Denoiser, from_times
from taugrid.workers.network.custom import checked


@contextmanager
def held_network(made: Any) -> Iterator[Denoiser]:
    """`made`, an `nn.Module` or a function of x and time indices, for inference within the context, where it is.

    A module is in evaluation mode meanwhile. diffusers' outputs are asked for their `.sample`. Every output is
    `custom.checked`.

    Raises:
        CustomCodeError: if `made` is not callable; calling it can raise the same.
    """
    if not callable(made) or isinstance(made, type):
        raise CustomCodeError(f"a model is a folder, a mapping, or a network to be called, not {made!r}")
    name = type(made).__name__

    @torch.inference_mode()
    def network(x: Tensor, t: Tensor) -> Tensor:
        output = made(x, t)
        return checked(getattr(output, "sample", output), x, name)

    modes = [(part, part.training) for part in made.modules()] if isinstance(made, nn.Module) else []
    if modes:
        made.eval()
    try:
        yield from_times(network)
    finally:
        for part, mode in modes:  # each its own: `train` would set those that the caller has frozen, too
            part.training = mode


def place_of(made: Any) -> str | None:
    """The device of a module's parameters, as torch names it; None: it has none."""
    first = next(made.parameters(), None) if isinstance(made, nn.Module) else None
    return None if first is None else str(first.device)


def shape_of(made: Any) -> tuple[int, int, int] | None:
    """(channels, height, width) that the config of a diffusers network names; None: it names none."""
    config = getattr(made, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if not isinstance(channels, int) or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
