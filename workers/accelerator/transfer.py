"""Batches on their way to the device and back, while it computes: sampled images as 8 bits, and extracted features.

The host never waits for a GPU that has only one batch left to do: the next one is begun first. A CPU has computed a
batch when its call returns, so there nothing is on its way.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_FLIGHT = 2
"""Batches whose work a GPU has been given and which are not on the host yet."""


@dataclass
class Transfer:
    """What was sent to the host. Read it once `wait` has returned."""

    copied: Any = field(default=None, repr=False, kw_only=True)
    """The CUDA event after the copies. None: they are there."""

    @property
    def has_landed(self) -> bool:
        """Whether it is on the host."""
        return self.copied is None or bool(self.copied.query())

    def wait(self) -> None:
        """Return once it is on the host."""
        if self.copied is not None:
            self.copied.synchronize()


@dataclass
class SentImages(Transfer):
    """Images that were sent to the host, and what is to be known of them there."""

    start: int
    """The index of the first image."""
    began: float
    """When its work was begun, in seconds of `time.perf_counter`."""
    pixels: Tensor
    """(B, C, H, W) uint8, on the host."""
    flags: Tensor
    """(2,) bool, on the host: whether all outputs of the network were finite, and all values of the images."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """(B, C, H, W), 0..255. Where `flags` are false, some level stands for NaN and infinity."""
        return self.pixels.numpy()

    @property
    def network_was_finite(self) -> bool:
        """Whether all outputs of the network were finite."""
        return bool(self.flags[0])

    @property
    def images_are_finite(self) -> bool:
        """Whether the images can be shown."""
        return bool(self.flags[1])


def to_grey_levels(x: Tensor) -> Tensor:
    """`images.to_uint8` on the device of x, bit for bit. NaN becomes an arbitrary level: check for it first."""
    return torch.add(x, 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def sent(x0: Tensor, network_was_finite: Tensor, start: int, began: float) -> SentImages:
    """Images x0, (B, C, H, W) float32, on their way to the host; `network_was_finite` is a bool on their device."""
    (pixels, flags), copied = to_host([to_grey_levels(x0), torch.stack([network_was_finite, x0.isfinite().all()])])
    return SentImages(start, began, pixels, flags, copied=copied)


class OnTheHost(NamedTuple):
    """Tensors in host memory, which may not be filled yet."""

    tensors: list[Tensor]
    copied: Any
    """The CUDA event after the copies. None: they are there."""


def to_host(tensors: Sequence[Tensor]) -> OnTheHost:
    """The tensors in host memory. From a GPU the host does not wait for them."""
    on_gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if on_gpu is None:
        return OnTheHost([tensor.cpu() for tensor in tensors], None)
    found = [_copy_begun(tensor) if tensor.is_cuda else tensor for tensor in tensors]
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waiting for it keeps no core busy
    copied.record(torch.cuda.current_stream(on_gpu))  # of that GPU, which need not be the current one
    return OnTheHost(found, copied)


def _copy_begun(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, which is filled when the device gets there; torch keeps such memory for the next."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A tensor of the host on `device`. A GPU reads it from pinned memory on its own, once it gets there."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


T = TypeVar("T", bound=Transfer)


def landed(batches: Iterable[T]) -> Iterator[T]:
    """The batches in their order, each once it is on the host, and where it can be after the next was begun."""
    flying: deque[T] = deque()
    for batch in batches:
        flying.append(batch)
        while flying and (len(flying) == IN_FLIGHT or flying[0].has_landed):
            yield _waited_for(flying.popleft())
    for batch in flying:
        yield _waited_for(batch)


def _waited_for(batch: T) -> T:
    batch.wait()
    return batch


class Clock:
    """Seconds in which at least one batch was under way: its work was begun, and it had not landed.

    On a GPU the next batch is begun before one is handed on, so what its receiver waits for then, such as threads that
    encode, counts too.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = 0.0

    def landed(self, batch: SentImages) -> None:
        now = time.perf_counter()
        self.seconds += now - max(batch.began, self._last)
        self._last = now
