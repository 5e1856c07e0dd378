"""Batches of images on their way to the host, as 8 bits, while the device computes the next one.

The host never waits for a GPU that has only one batch left to do: the copy of one goes on beside the steps of the next.
A CPU has computed a batch when its call returns, so there nothing is on its way.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_FLIGHT = 2
"""Batches whose work a GPU has been given and which are not on the host yet."""


@dataclass
class Transfer:
    """Images that were sent to the host, and what is to be known of them there. Read it once `wait` has returned."""

    start: int
    """The index of the first image."""
    began: float
    """When its work was begun, in seconds of `time.perf_counter`."""
    pixels: Tensor
    """(B, C, H, W) uint8, on the host."""
    flags: Tensor
    """(2,) bool, on the host: whether all outputs of the network were finite, and all values of the images."""
    copied: Any = field(default=None, repr=False)
    """The CUDA event after the copies. None: they are there."""

    @property
    def has_landed(self) -> bool:
        """Whether it is on the host."""
        return self.copied is None or bool(self.copied.query())

    def wait(self) -> None:
        """Return once it is on the host."""
        if self.copied is not None:
            self.copied.synchronize()

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


def sent(x0: Tensor, network_was_finite: Tensor, start: int, began: float) -> Transfer:
    """Images x0, (B, C, H, W) float32, on their way to the host; `network_was_finite` is a bool on their device."""
    pixels, flags = to_grey_levels(x0), torch.stack([network_was_finite, x0.isfinite().all()])
    if not x0.is_cuda:
        return Transfer(start, began, pixels, flags)
    pixels, flags = (_copy_begun(tensor) for tensor in (pixels, flags))
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waiting for it keeps no core busy
    copied.record()
    return Transfer(start, began, pixels, flags, copied)


def _copy_begun(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, which is filled when the device gets there; torch keeps such memory for the next."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def landed(batches: Iterable[Transfer]) -> Iterator[Transfer]:
    """The batches in their order, each once it is on the host, and where it can be after the next was begun."""
    flying: deque[Transfer] = deque()
    for batch in batches:
        flying.append(batch)
        while flying and (len(flying) == IN_FLIGHT or flying[0].has_landed):
            yield _waited_for(flying.popleft())
    for batch in flying:
        yield _waited_for(batch)


def _waited_for(batch: Transfer) -> Transfer:
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

    def landed(self, batch: Transfer) -> None:
        """A batch is on the host."""
        now = time.perf_counter()
        self.seconds += now - max(batch.began, self._last)
        self._last = now
