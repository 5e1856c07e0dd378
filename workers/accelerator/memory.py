"""Memory of a device: what is kept there from job to job, whether it ever ran out, and its release."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from taugrid.errors import SilentFallback


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


def count_ooms(device: str) -> int:
    """How often torch has found a GPU's memory used up in this process, whoever caught its error. 0: no GPU.

    It counts before it throws OutOfMemoryError (`num_ooms` in c10/cuda/CUDACachingAllocator.cpp); not with CUDA's own
    allocator (cudaMallocAsync), nor what a library reserves past torch.
    """
    if device.partition(":")[0] != "cuda":
        return 0
    import torch

    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))


class OomCounter:
    """Notices that memory of a device ran out while something was computed, although nothing was raised.

    cuDNN does not fail then: torch catches the error, takes the next kernel and remembers it for as long as the process
    lives (`run_single_conv` in ATen's native/cudnn/Conv_v8.cpp). So bits would depend on what else was in memory.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.forget()

    def forget(self) -> None:
        """What happened so far does not count: nothing will be computed that it could have changed."""
        self._forgotten = count_ooms(self._device)

    @property
    def any(self) -> bool:
        return count_ooms(self._device) > self._forgotten

    def require_none(self) -> None:
        """Raise `SilentFallback` if there was one."""
        if self.any:
            raise SilentFallback(
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
