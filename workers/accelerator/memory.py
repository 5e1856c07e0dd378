"""Out of memory: frees what earlier jobs left in caches, and finds a batch size that fits by trying."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from taugrid.errors import FellBack, is_out_of_memory
from taugrid.workers.diffusion.process import Point, PredictionType

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser


FIRST = Point(alpha=1.0, sigma=0.0, alpha_bar=1.0, time=0, key=1)
"""A point whose time every network knows."""


def some_point(prediction: PredictionType) -> Point:
    """`FIRST`; with a second time for flow maps."""
    return FIRST._replace(toward=0.0) if prediction == "average_velocity" else FIRST


def some_labels(x: "Tensor") -> "Tensor":
    """A label that every network with classes knows, for each image of x: (B,) int64."""
    import torch

    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


class LRUCache:
    """The most recently used values. An old value is dropped before a new one is loaded: both may not fit."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        if key not in self._values:
            while len(self._values) >= self._max_size:
                self._values.popitem(last=False)
            self._values[key] = load()
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values


def count_shortages(device: str) -> int:
    """How often torch has found a GPU's memory used up in this process, whoever caught its error. 0: no GPU.

    It counts before it throws OutOfMemoryError (`num_ooms` in c10/cuda/CUDACachingAllocator.cpp); not with CUDA's own
    allocator (cudaMallocAsync), nor what a library reserves past torch.
    """
    if device.partition(":")[0] != "cuda":
        return 0
    import torch

    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))


class Shortages:
    """Notices that memory of a device ran out while something was computed, although nothing was raised.

    cuDNN takes its next kernel then, and remembers it for as long as the process lives (`preflight`).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.forget()

    def forget(self) -> None:
        """What happened so far does not count: nothing will be computed that it could have changed."""
        self._forgotten = count_shortages(self._device)

    @property
    def any(self) -> bool:
        return count_shortages(self._device) > self._forgotten

    def require_none(self) -> None:
        """Raise `FellBack` if there was one."""
        if self.any:
            raise FellBack(
                "memory ran out while this was computed, and a library went on with other kernels: their bits differ"
            )


def release_memory(device: str) -> None:
    """Return unreferenced memory to the device (`cuda`, `cuda:1`, ...), for other processes too."""
    import torch

    gc.collect()
    kind = device.partition(":")[0]
    if kind == "cuda":
        with torch.cuda.device(device):  # else torch would set up the first GPU for it
            torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def batch_that_fits(network: "Denoiser", image_shape: tuple[int, int, int], batch_size: int, device: str) -> int | None:
    """The first of `batch_size` / 2, / 4, ... at which a network call fits; None if not even one image fits.

    Only the network is tried, which takes by far the most memory of a step.
    """
    size = batch_size // 2
    while size and not _fits(network, (size, *image_shape), device):
        size //= 2
    return size or None


def _fits(network: "Denoiser", shape: tuple[int, ...], device: str) -> bool:
    import torch

    shortages = Shortages(device)
    try:
        with torch.no_grad():  # as the sampler does
            network(torch.zeros(shape, device=device), FIRST)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        shortages.require_none()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    release_memory(device)  # after the error, which holds what was computed so far
    return False


def smaller_slice(decode: "Denoiser", latent_shape: tuple[int, int, int], size: int, device: str) -> str | None:
    """A sentence that says what to set so that a VAE can decode; None: it can decode `size` latents at once."""
    if _fits(decode, (size, *latent_shape), device):
        return None
    if (smaller := batch_that_fits(decode, latent_shape, size, device)) is None:
        return (
            "the VAE can't decode even one image at once in this memory, beside the pictures of a batch; set a smaller "
            "sample.batch_size, which makes other cells, or use devices with more memory (cluster.label_selector)"
        )
    return (
        f"sample.decode_batch: the VAE can't decode {size} images at once in this memory, but {smaller}; set that, "
        "which makes other cells, or use devices with more memory (cluster.label_selector)"
    )


def smaller_batch(
    network: "Denoiser", image_shape: tuple[int, int, int], batch_size: int, device: str, error: Exception
) -> str:
    """A sentence that says what to set so that a job of `network` fits.

    `error` is what the job raised. It is raised again if it only may mean lack of memory, and no smaller batch works.
    """
    surely = is_out_of_memory(error, surely=True)
    if (size := batch_that_fits(network, image_shape, batch_size, device)) is not None:
        fault = "does not fit into memory" if surely else "does not work here"
        return (
            f"sample.batch_size: {batch_size} {fault}, {size} does; set that, which makes other cells, or use "
            "devices with more memory (cluster.label_selector)"
        )
    if not surely:
        raise error
    return "not even one image fits into memory; use devices with more memory (cluster.label_selector)"
