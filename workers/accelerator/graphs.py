"""CUDA graphs: the kernels of a full batch, recorded once and then launched together.

A small network keeps a GPU waiting for the host, which launches hundreds of kernels for each evaluation. A graph holds
these kernels with the addresses of their memory, so what differs between evaluations is copied there first: x, and the
time as an index on the device. Only the network is recorded. The sampler's coefficients are numbers, and would have to
become tensors: CUDA computes x / number as x * (1 / number), which has other bits than x / tensor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from taugrid.errors import last_line
from taugrid.workers.diffusion.process import network_time

if TYPE_CHECKING:
    from torch import Tensor


class Recording(NamedTuple):
    """What was recorded of a call."""

    output: "Tensor"
    """Where each replay puts the call's result."""
    replay: Callable[[], None]


Recorder = Callable[[Callable[[], "Tensor"]], Recording]
"""Records a call of a function."""


class CaptureFailed(Exception):
    """Raised where a recording was broken off; torch may then be unable to record again or to empty its cache."""


def recorded(call: "Callable[[], Tensor]") -> Recording:
    """Records `call` as a CUDA graph, after one call in which libraries allocate what they keep.

    What waits for the host fails in that first call, which leaves nothing behind.

    Raises:
        CaptureFailed: if only the recording fails.
    """
    here, side = torch.cuda.current_stream(), _side_stream()
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side), _waiting_is_an_error():
            call()
    finally:
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:  # the outer `stream` goes back to the caller's; `graph` does not if the recording fails
        with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = call()
    except Exception as error:
        raise CaptureFailed(f"recording failed: {last_line(error)}") from error
    return Recording(output, graph.replay)


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all recordings of this process: cuBLAS keeps a workspace for each stream that it meets."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")  # for all threads, of which no other waits for the GPU so
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Static(NamedTuple):
    """A recording, and the memory that it reads."""

    recording: Recording
    x: "Tensor"
    times: "Tensor"
    """The network's index of each image's time."""

    def __call__(self, x: "Tensor", t: int) -> "Tensor":
        self.x.copy_(x)
        self.times.fill_(network_time(t))
        self.recording.replay()
        return self.recording.output.clone()  # the next replay overwrites it


def _equal(one: "Tensor", other: "Tensor") -> bool:
    """Whether they are equal; NaN equals NaN, which is for `finite.py` to report."""
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class InGraphs:
    """A network whose full batches are replayed from a CUDA graph, if that gives the bits that the network gives.

    Each layout of x is recorded when it first comes, and that batch is computed both ways. Where recording fails or a
    bit differs, it says so once and computes as without graphs. Smaller batches, of which each shard has one at most,
    are computed as without graphs, too.
    """

    def __init__(
        self,
        network: "Callable[[Tensor, Any], Tensor]",
        batch_size: int,
        remark: Callable[[str], None],
        record: Recorder = recorded,
    ) -> None:
        """`network` takes the paper's t, or the index of each image as a tensor, (B,) int64."""
        self._network = network
        self._batch_size = batch_size
        self._remark = remark
        self._record = record
        self._layouts: dict[tuple[Any, ...], _Static] = {}
        self._usable = True

    def __call__(self, x: "Tensor", t: int) -> "Tensor":
        """The network's output for x at the time t; the caller may keep it."""
        if len(x) != self._batch_size or not self._usable:
            return self._network(x, t)
        layout = (x.shape, x.stride())
        if layout in self._layouts:
            return self._layouts[layout](x, t)
        output = self._network(x, t)
        try:
            static = self._static(x)
            self._usable = _equal(static(x, t), output)
        except Exception as error:  # whatever it is: without graphs it is met again, or does not matter
            self._give_up(last_line(error)[:200])
        else:
            self._layouts[layout] = static
            if not self._usable:
                self._give_up("a replay gave other bits")
        return output

    def _static(self, like: "Tensor") -> _Static:
        with torch.inference_mode(False):  # what is made in inference mode can't be filled outside of it
            x, index = torch.zeros_like(like), torch.zeros(len(like), dtype=torch.int64, device=like.device)
        return _Static(self._record(lambda: self._network(x, index)), x, index)

    def _give_up(self, reason: str) -> None:
        self._usable = False
        self._layouts.clear()
        self._remark(f"a network is computed without CUDA graphs, which may be slower, not wrong: {reason}")
