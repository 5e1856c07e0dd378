"""Transfers to the device and back while it computes, and how far the device is with what was submitted to it.

A GPU is never left with nothing to do: the work of the next batch is begun before the host waits for the last one. A
CPU has computed a batch when its call returns, so there every transfer is done at once.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_FLIGHT = 2  # batches that were submitted to a GPU and are not on the host yet

CALLS_AHEAD = 8
"""Network calls that a GPU has not finished when the host submits the next one. CUDA queues about 1,000 launches:
heartbeats would say nothing of the device. Eight calls of 2 ms outlast the 5 ms of another Python thread."""

SLOW_SECONDS = 1.0  # a call for which the host waits this long keeps a GPU busy by itself: then one is ahead, not eight


class Mark(Protocol):
    """A point in a device's queue. It is reached once all that was submitted before is finished."""

    def query(self) -> bool:
        """Whether it is reached. Raises a device's error."""

    def synchronize(self) -> None:
        """Return once it is reached. Raises a device's error."""


def mark(device: torch.device) -> Mark | None:
    """The point after all that was submitted so far. None: a call has computed when it returns, as on CPUs. Tests
    replace this function to simulate a GPU."""
    if device.type != "cuda":
        return None
    event: Mark = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waiting for it keeps no core busy
    event.record(torch.cuda.current_stream(device))  # type: ignore[attr-defined]  # that GPU need not be the current
    return event


class Submitted:
    """The calls that were submitted to a device, and how many of them it has finished."""

    def __init__(self, report: Callable[[int], None]) -> None:
        """`report` is called with what is finished, in the unit of `add`."""
        self._report = report
        self._finished, self._ahead = 0, CALLS_AHEAD
        self._pending: deque[tuple[Mark, int]] = deque()

    def add(self, end: Mark | None, amount: int = 1) -> None:
        """Note a call, which is finished when the device reaches its `end`."""
        if end is None:
            self._finished += amount
        else:
            self._pending.append((end, amount))

    def make_room(self) -> None:
        """Report what is finished, and wait until another call may be submitted, with a report after each call."""
        while self._pending and self._pending[0][0].query():
            self._finish_one()
        self._report(self._finished)
        while len(self._pending) > self._ahead:
            began = time.monotonic()
            self._pending[0][0].synchronize()
            self._ahead = CALLS_AHEAD if time.monotonic() - began < SLOW_SECONDS else 1
            self._finish_one()
            self._report(self._finished)

    def _finish_one(self) -> None:
        self._finished += self._pending.popleft()[1]


@dataclass
class Transfer:
    """Tensors on their way to the host. Read them once `wait` has returned."""

    copied: Mark | None = field(default=None, repr=False, kw_only=True)
    """The point after the copies. None: the tensors are on the host."""

    @property
    def is_done(self) -> bool:
        return self.copied is None or self.copied.query()

    def wait(self) -> None:
        """Return once the tensors are on the host."""
        if self.copied is not None:
            self.copied.synchronize()


@dataclass
class ImageTransfer(Transfer):
    start: int  # the index of the first image
    began: float  # the time at which its computation began, in seconds of `time.perf_counter`
    pixels: Tensor  # (B, C, H, W) uint8, on the host
    flags: Tensor
    """(2,) bool, on the host: whether all outputs of the network were finite, and all values of the images."""
    latents: Tensor | None = None  # (B, d) float32, on the host, where they are kept

    @property
    def images(self) -> NDArray[np.uint8]:
        """(B, C, H, W), 0..255. Where `flags` are false, some level stands for NaN and infinity."""
        return self.pixels.numpy()


def to_grey_levels(x: Tensor, rounding: str = "round") -> Tensor:
    """`images.to_uint8` on the device of x, bit for bit. NaN becomes an arbitrary level: check for it first."""
    grey = torch.add(x, 1).mul_(127.5)
    grey = grey if rounding == "truncate" else grey.round_()
    return grey.clamp_(0, 255).to(torch.uint8)


def images_to_host(
    x0: Tensor,
    network_was_finite: Tensor,
    start: int,
    began: float,
    rounding: str = "round",
    latents: Tensor | None = None,
) -> ImageTransfer:
    """The transfer of images x0, (B, C, H, W) float32; `network_was_finite` is a bool on their device."""
    flags = torch.stack([network_was_finite, x0.isfinite().all()])
    kept = [] if latents is None else [latents.flatten(1)]
    (pixels, flags, *kept), copied = to_host([to_grey_levels(x0, rounding), flags, *kept])
    return ImageTransfer(start, began, pixels, flags, kept[0] if kept else None, copied=copied)


def to_host(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Mark | None]:
    """The tensors in host memory, and the point before which a GPU may not have filled them."""
    # A copy in pinned memory is filled when the device reaches it in its queue; torch reuses such memory.
    copies = [
        torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True) if x.is_cuda else x.cpu()
        for x in tensors
    ]
    return copies, mark(next((x.device for x in tensors if x.is_cuda), tensors[0].device))


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A tensor of the host on `device`. A GPU copies it from pinned memory when it reaches the copy in its queue."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


T = TypeVar("T", bound=Transfer)


def completed(transfers: Iterable[T]) -> Iterator[T]:
    """The transfers in their order, each once it is done and, if it is not done at once, after the next was begun."""
    in_flight: deque[T] = deque()
    for transfer in transfers:
        in_flight.append(transfer)
        while in_flight and (len(in_flight) == IN_FLIGHT or in_flight[0].is_done):
            in_flight[0].wait()
            yield in_flight.popleft()
    for transfer in in_flight:
        transfer.wait()
        yield transfer


class Clock:
    """Seconds in which a batch was in flight, from the start of its computation to the end of its transfer."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = 0.0

    def completed(self, batch: ImageTransfer) -> None:
        now = time.perf_counter()
        self.seconds += now - max(batch.began, self._last)
        self._last = now
