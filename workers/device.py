"""The device that a process computes on, set up in the same way for sampling, evaluation and training.

Torch is imported when a device is set up, not with this module: the driver must not import it.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, TypeVar

from taugrid.config import Diffusion
from taugrid.errors import Stopped
from taugrid.jobs import NetworkSpec
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import PLAIN, Arithmetic
from taugrid.workers.accelerator.memory import Kept, release_memory
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser

NETWORKS_KEPT = 2
"""Networks that a worker keeps in memory: where one model's jobs end and another's begin, they may alternate."""

EXTRACTORS_KEPT = 1

BEAT_SECONDS = 1.0
"""Least time between two heartbeats of a job: a job may call `Device.heartbeat` as often as it likes."""

L = TypeVar("L")

SendHeartbeat = Callable[[float, float], None]
"""Takes how much of a job is done, and how much there is, in any unit."""


def ignore_heartbeat(done: float, of: float) -> None:
    """A `SendHeartbeat` for jobs that are not watched."""


def nothing() -> None:
    """For jobs that no other waits for."""


def set_up(threads: int | None = None) -> None:
    """Give this process true float32, repeatable sums and `threads` CPU threads (None: leave the number unchanged)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable sums; read when CUDA starts
    import torch

    if threads is not None:
        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1, however many CPUs a worker has
    arithmetic.configure()


def with_heartbeats(network: "Denoiser", heartbeat: SendHeartbeat, calls: int) -> "Denoiser":
    """`network`, with a heartbeat before each call: it will be called `calls` times."""
    done = 0

    def beating(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        nonlocal done
        heartbeat(done, calls)
        done += 1
        return call(x)

    return Wrapped(network, beating)


class Turn:
    """The turn to compute, which one job has at a time. It ends with the job, or when the job says so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here = threading.local()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self) -> None:
        """Wait until no other job has the turn, unless this thread's job has it."""
        if not getattr(self._here, "has_it", False):
            self._lock.acquire()
            self._here.has_it = True

    def end(self) -> None:
        """Let the next job begin, if it is the turn of this thread's job."""
        if getattr(self._here, "has_it", False):
            self._here.has_it = False
            self._lock.release()


class Device:
    """A device, the networks that were last used on it, and the heart of the job that runs on it."""

    def __init__(self, name: str, heartbeat: SendHeartbeat = ignore_heartbeat, turn: Turn | None = None) -> None:
        self.name = name
        """As torch names it: `cpu`, `cuda` or, outside of a run, `cuda:1`."""
        self.kind = name.partition(":")[0]
        """Without its number."""
        self.hardware = name
        """What it is, for people."""
        self.turn = turn or Turn()
        """A job may end it once it only encodes and writes: the worker's next job begins then, not at its end."""
        self.stops = False
        """Whether the jobs here are to end at their next heartbeat."""
        self._send = heartbeat
        self._last_beat = -BEAT_SECONDS
        self._at = (0.0, 0.0)
        self._networks = Kept(NETWORKS_KEPT)
        self._extractors = Kept(EXTRACTORS_KEPT)

    def network(self, spec: NetworkSpec, diffusion: Diffusion, how: Arithmetic = PLAIN) -> "Denoiser":
        """The network that `spec` names, computed as `how` says; kept for the next job.

        A spec holds the hashes of what it names, so a replaced network is another spec.

        Raises:
            DeviceUnusable: if this device can't compute so.
        """
        from taugrid.workers.network.load import load_network

        arithmetic.prepare(how.precision, self.kind, self.hardware)
        key, compiles = (spec, diffusion, how.compile), how.compile != "none"
        network: Denoiser = self._networks.get(key, lambda: load_network(spec, diffusion, self.name, compiles))
        arithmetic.prepare(how.precision, self.kind, self.hardware)  # a custom network may have changed it
        return arithmetic.computed(network, how, self.kind)

    def extractor(self, spec: Hashable, load: Callable[[], L]) -> L:
        """The extractor that `load` returns; kept for the next job with an equal `spec`."""
        extractor: L = self._extractors.get(spec, load)
        return extractor

    def make_room(self) -> None:
        """Let go of everything that was kept from earlier jobs."""
        self._networks.clear()
        self._extractors.clear()
        release_memory(self.name)

    def heartbeat(self, done: float, of: float) -> None:
        """Say that the running job goes on: `done` of `of` is done, in any unit.

        A job calls it between network calls and between blocks of reading, and never from a thread of its own, which
        would go on beating while the job hangs. Without a beat for `cluster.hang_seconds` the worker is killed.
        """
        self._at = (done, of)
        self.alive()

    def begin(self) -> None:
        """A new job begins, of which nothing is done. It is first heard after `BEAT_SECONDS`; a short one never is."""
        self._at = (0.0, 0.0)
        self._last_beat = time.monotonic()

    def alive(self) -> None:
        """Beat without news of how far the job is; `taugrid.workers.heartbeat` calls it for loops that do not know.

        Raises:
            Stopped: if the job is to end.
        """
        if self.stops:
            raise Stopped
        now = time.monotonic()
        if now - self._last_beat >= BEAT_SECONDS:
            self._last_beat = now
            self._send(*self._at)
