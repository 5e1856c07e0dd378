"""A GPU that this machine lacks, with the faults of one: torch computes on the CPU, and this raises what cards raise.

Within `with Card(...)`, in the thread that enters it, calls of torch's operators fail as torch reports it on a GPU.
"""

import time
from functools import partial
from weakref import ref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


NO_ENGINE = "GET was unable to find an engine to execute this computation"
STICKY = "CUDA error: an illegal memory access was encountered"
CONVOLUTIONS = ("conv2d", "convolution")


class LiveMemory:
    """The memory that tensors hold, from when they are made until the last view of it is gone."""

    def __init__(self):
        self.bytes = self.peak = 0
        self._held = {}  # id of a storage -> the reference that notices its end

    def hold(self, outputs, inputs):
        """Count memory of `outputs` that is not memory of `inputs`."""
        of_inputs = {id(tensor.untyped_storage()) for tensor in tensors(inputs)}
        for tensor in tensors(outputs):
            storage = tensor.untyped_storage()
            if id(storage) in of_inputs or id(storage) in self._held:
                continue
            self._held[id(storage)] = ref(storage, partial(self._freed, id(storage), storage.nbytes()))
            self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)

    def _freed(self, key, size, _):
        del self._held[key]
        self.bytes -= size


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Card(TorchDispatchMode):
    """Raises what a card does.

    - `room`: OutOfMemoryError once what was computed within the context holds more bytes. `shortages` counts them.
    - `hides`: none is raised: a library goes on with other kernels.
    - `engine_for`: no engine for a convolution of more images.
    - `breaks_at`: a sticky error at the convolution of this number, counted from 1, and at every later call.
    - `slow`: seconds that a convolution takes longer.
    - `hangs`: an event for which the first convolution waits.
    """

    def __init__(self, room=float("inf"), engine_for=None, breaks_at=None, slow=0.0, hangs=None, hides=False):
        super().__init__()
        self.room, self.engine_for, self.breaks_at, self.slow, self.hangs = room, engine_for, breaks_at, slow, hangs
        self.hides, self.shortages = hides, 0
        self.memory, self.convolutions, self.calls_when_broken = LiveMemory(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in CONVOLUTIONS:
            self._convolution(len(args[0]))
        if self.breaks_at is not None and self.convolutions >= self.breaks_at:
            self.calls_when_broken += 1
            raise AcceleratorError(STICKY)
        outputs = func(*args, **(kwargs or {}))
        self.memory.hold(outputs, (args, kwargs))
        if self.memory.bytes > self.room:
            self.shortages += 1
            if not self.hides:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return outputs

    def _convolution(self, images):
        self.convolutions += 1
        time.sleep(self.slow)
        if self.hangs is not None:
            self.hangs.wait()
        if self.engine_for is not None and images > self.engine_for:
            raise RuntimeError(NO_ENGINE)
