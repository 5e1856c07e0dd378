"""Out of memory: what is kept from earlier jobs makes room, and what would fit is found by trying."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from taugrid.errors import is_out_of_memory
from taugrid.workers.diffusion.process import Point

if TYPE_CHECKING:
    from taugrid.workers.diffusion.denoiser import Denoiser


FIRST = Point(alpha=1.0, sigma=0.0, alpha_bar=1.0, time=0, key=1)
"""A point whose time every network knows."""


class Kept:
    """The few values that were last asked for. An old one goes before a new one is loaded: both may not fit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        if key not in self._values:
            while len(self._values) >= self._most:
                self._values.popitem(last=False)
            self._values[key] = load()
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        self._values.clear()


def release_memory(device: str) -> None:
    """Return memory that nothing refers to any more to the device, for other processes too."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def batch_that_fits(network: "Denoiser", image_shape: tuple[int, int, int], batch_size: int, device: str) -> int | None:
    """The first of `batch_size` / 2, / 4, ... that the network takes; None if not even one image fits.

    Only the network is tried, which needs by far the most of a step.
    """
    size = batch_size // 2
    while size and not _fits(network, (size, *image_shape), device):
        size //= 2
    return size or None


def _fits(network: "Denoiser", shape: tuple[int, ...], device: str) -> bool:
    import torch

    try:
        with torch.no_grad():  # as the sampler does
            network(torch.zeros(shape, device=device), FIRST)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    release_memory(device)  # after the error, which holds what was computed so far
    return False


def smaller_batch(
    load: "Callable[[], Denoiser]", image_shape: tuple[int, int, int], batch_size: int, device: str
) -> str:
    """What to set so that a job of the network that `load` returns fits, in words."""
    size = None
    try:
        size = batch_that_fits(load(), image_shape, batch_size, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if size is None:
        return "not even one image fits into memory; use devices with more memory (cluster.label_selector)"
    return (
        f"sample.batch_size: {batch_size} does not fit into memory, {size} does; set that, which makes other cells, or "
        "use devices with more memory (cluster.label_selector)"
    )
