"""The device that a process computes on, set up in the same way for sampling, evaluation and training.

Torch is imported when a device is set up, not with this module: the driver must not import it.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from taugrid.config import Diffusion, Sample
from taugrid.errors import NotEnoughMemory, Stopped, is_out_of_memory, last_line
from taugrid.jobs import NetworkSpec, SavedNetwork
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import PLAIN, Arithmetic
from taugrid.workers.accelerator.memory import LRUCache, Shortages, release_memory, some_labels, some_point
from taugrid.workers.accelerator.policy import kind_of, policy
from taugrid.workers.diffusion.decoder import Decoder, Vae, as_function
from taugrid.workers.pixels import LastSampled

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from taugrid.workers.accelerator.preflight import BatchShape
    from taugrid.workers.diffusion.decoder import Around, Decode
    from taugrid.workers.diffusion.denoiser import Denoiser
    from taugrid.workers.diffusion.process import Point

MAX_NETWORKS = 2
"""Networks that a worker keeps in memory: jobs of two models may alternate where one's end and the next one's begin."""

MAX_VAES = 2

MAX_EXTRACTORS = 1

COMPILE_PROCESSES = 4
"""Processes that torch's compiler starts in each worker that compiles: by itself one for each of up to 32 CPUs, and a
node has several workers."""

WAITING = "waiting for the object store"

COMPILING = "compiling"
"""What a worker does while torch compiles a network, or while it waits for another worker that does."""

MIN_HEARTBEAT_SECONDS = 1.0
"""Heartbeats that follow the last one sooner are not sent: a job may call `Device.heartbeat` as often as it likes."""

L = TypeVar("L")

SendHeartbeat = Callable[..., None]
"""Called with how much of a job is done, how much there is in all, in any unit, and what is done if it is no progress.
"""


def ignore_heartbeat(done: float, of: float, doing: str = "") -> None:
    """A `SendHeartbeat` that sends nothing."""


def set_up(threads: int | None = None) -> None:
    """Give this process true float32, repeatable sums and `threads` CPU threads (None: leave the number unchanged).

    Raises:
        DeviceUnusable: if its environment makes libraries compute float32 differently.
    """
    workspace = "CUBLAS_WORKSPACE_CONFIG"  # 32 MiB, with which sums are repeatable (ATen's Context.cpp)
    os.environ.setdefault(workspace, ":4096:8")
    if threads is not None:  # a caller's process keeps its own
        os.environ[workspace] = ":4096:8"
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(COMPILE_PROCESSES, os.cpu_count() or 1)))
    import torch

    if threads is not None:
        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1, however many CPUs a worker has
    arithmetic.require_float32(torch.cuda.is_available())
    arithmetic.configure()


def usual_device() -> str:
    """`cuda` if torch can use a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def beating(heartbeat: SendHeartbeat, calls: int) -> "Around":
    """A function that calls another one, with a heartbeat before each of `calls` calls.

    Heartbeats count the calls that the device has finished, and the host never runs far ahead of it
    (`transfer.Submitted`).
    """
    from taugrid.workers.accelerator import transfer

    submitted = transfer.Submitted(lambda finished: heartbeat(finished, calls))

    def call_with_heartbeat(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        submitted.make_room()
        output = call(x)
        submitted.add(transfer.mark(x.device))
        return output

    return call_with_heartbeat


class ComputeLock:
    """Held by the one job of a worker that computes. A job's thread may acquire or release it more than once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Wait until no other thread holds the lock. No effect if this thread holds it."""
        if not getattr(self._thread, "holds_it", False):
            self._lock.acquire()
            self._thread.holds_it = True

    def release(self) -> None:
        """Let the next job compute. No effect if this thread does not hold the lock."""
        if getattr(self._thread, "holds_it", False):
            self._thread.holds_it = False
            self._lock.release()


class Device:
    """A device, caches of the networks and extractors that were last used on it, and the heartbeats of its jobs."""

    def __init__(
        self, name: str, heartbeat: SendHeartbeat = ignore_heartbeat, compute_lock: ComputeLock | None = None
    ) -> None:
        self.name = name
        """Torch's name of the device: `cpu`, `cuda` or, outside of a run, `cuda:1`."""
        self.kind = name.partition(":")[0]
        """`cpu` or `cuda`."""
        self.hardware = name
        """The model of the device, for messages and records."""
        self.compute_lock = compute_lock or ComputeLock()
        """A job may release it once it only encodes and writes, so that the worker's next job begins to compute."""
        self.stop_requested = False
        """Whether jobs on this device must end at their next heartbeat."""
        self.compile_seconds = 0.0
        """How long the job's first call of a network took, in which torch compiled it; 0 if it did not."""
        self.shortages = Shortages(name)
        self.most_to_extract: int | None = None
        """Images of which features may be extracted at once in this process; None: as many as a job says."""
        self._send = heartbeat
        self._last_heartbeat = -MIN_HEARTBEAT_SECONDS
        self._progress = (0.0, 0.0)
        self.held_networks = LRUCache(MAX_NETWORKS)
        self._vaes = LRUCache(MAX_VAES)
        self._extractors = LRUCache(MAX_EXTRACTORS)
        self._needed: dict[Hashable, int | None] = {}
        self._compiled: set[tuple[Hashable, Arithmetic]] = set()
        """Kept networks, and how, whose first call has returned. torch may compile at any other."""
        self.last_sampled = LastSampled()

    def network(
        self,
        spec: NetworkSpec,
        diffusion: Diffusion,
        how: Arithmetic = PLAIN,
        batch: "BatchShape | None" = None,
    ) -> "Denoiser":
        """The network that `spec` names, computed as `how` says; kept for the next job.

        A spec holds the hashes of the network's files, so a replaced network has a different spec. `batch`: what it
        will be called with, for which memory must be free.

        Raises:
            DeviceUnusable: if this device can't compute so.
            NotEnoughMemory: if memory for a batch is not free, beside all that this device keeps.
        """
        from taugrid.workers.network.load import load_network

        decided = arithmetic.prepare(how.precision, self.name, self.hardware, how.compile)
        key = (spec, diffusion, decided.layout, decided.weights, decided.compile)

        def load() -> "Denoiser":
            self._compiled = {known for known in self._compiled if known[0] in self.held_networks}
            return load_network(spec, diffusion, self.name, decided)

        network: Denoiser = self._kept(self.held_networks, key, load)
        arithmetic.configure(decided)  # a custom network may have changed it
        if batch is not None:
            self._require_room(key, network, how, batch, spec.conditions is not None, some_point(diffusion.predicts))
        first_call = nullcontext if (key, how) in self._compiled else partial(self._first_call, spec, key, how)
        return arithmetic.adapted(network, how, self.kind, first_call)

    @contextmanager
    def _first_call(self, spec: NetworkSpec, key: tuple[Hashable, ...], how: Arithmetic) -> Iterator[None]:
        """The context of the first call of a compiled network, which is when torch compiles it."""
        from taugrid.workers.accelerator.compiled import once_on_a_node

        code = spec.config_sha256 if isinstance(spec, SavedNetwork) else getattr(spec, "source_sha256", "")
        began = time.perf_counter()
        with once_on_a_node((code, self.hardware, *key[2:], how), self.compiling):
            yield
        self.compile_seconds += time.perf_counter() - began
        self._compiled.add((key, how))

    def networks(
        self, specs: Sequence[NetworkSpec], diffusion: Diffusion, how: Arithmetic, batch: "BatchShape"
    ) -> "list[Denoiser]":
        """The networks that `specs` name, `MAX_NETWORKS` at most, as by `network`: `batch` fits beside all of them."""
        for spec in specs[1:]:
            self.network(spec, diffusion, how)
        return [self.network(spec, diffusion, how, batch) for spec in specs]

    def load_decoder(self, decoder: Decoder, settings: Sample) -> "Module | None":
        """The module of a `Vae`, kept for the next job: with its weights here, `networks` requires memory beside them.

        Raises:
            DeviceUnusable: if this device can't compute so.
        """
        if not isinstance(decoder, Vae):
            return None
        from taugrid.workers.network.vae import load_vae

        arithmetic.require(settings.vae_precision, self.name, self.hardware, key="vae_precision")
        how = policy(kind_of(self.name), settings.vae_precision)
        key = decoder.saved, how.layout
        return self._kept(self._vaes, key, lambda: load_vae(decoder.saved, self.name, how))

    def decoder(self, decoder: Decoder, settings: Sample) -> "Decode":
        """What makes pictures of samples: at most `settings.decode_batch` at once, if `decoder` is a `Vae`.

        Raises:
            DeviceUnusable: if this device can't compute so.
            NotEnoughMemory: if memory to decode a batch is not free, beside all that this device keeps.
        """
        vae = self.load_decoder(decoder, settings)
        if vae is None or not isinstance(decoder, Vae):
            return as_function(decoder)
        from taugrid.workers.accelerator import preflight
        from taugrid.workers.accelerator.counting import without_data
        from taugrid.workers.network.vae import decoding

        how = policy(kind_of(self.name), settings.vae_precision)
        size = min(settings.decode_batch, settings.batch_size)
        if (free := preflight.free_bytes(self.name)) is not None:
            key = decoder, how, size, settings.batch_size
            if key not in self._needed:
                traced = decoding(without_data(vae), decoder, how._replace(autocast=None), size)
                needed = preflight.needed_to_decode(traced, decoder, size, settings.batch_size, how.autocast)
                self._needed[key] = needed
            preflight.require(self._needed[key], free, (size, *decoder.network_shape), decoding=True)
        return decoding(vae, decoder, how, size)

    def decoding(self, decoder: Vae, settings: Sample) -> "Denoiser":
        """A Denoiser that only decodes, and requires memory for as many latents as it is called with at once, and for
        the pictures of a whole batch."""

        def called(x: "Tensor", at: "Point", condition: "Tensor | None" = None, /) -> "Tensor":
            as_many = settings.model_copy(update={"decode_batch": max(len(x), 1)})
            return self.decoder(decoder, as_many)(x)

        return called

    def loading(self, specs: Sequence[NetworkSpec], diffusion: Diffusion, how: Arithmetic = PLAIN) -> "Denoiser":
        """A Denoiser that loads its networks when it is called, and requires memory for what they are called with.

        A network that takes labels, or a second time, is called with some if it gets none.
        """

        def called(x: "Tensor", at: "Point", condition: "Tensor | None" = None, /) -> "Tensor":
            loaded = self.networks(specs, diffusion, how, tuple(x.shape))  # type: ignore[arg-type]
            at = at._replace(toward=at.toward or some_point(diffusion.predicts).toward)
            asked = [some_labels(x) if condition is None and spec.conditions else condition for spec in specs]
            first, *_ = [network(x, at, labels) for network, labels in zip(loaded, asked, strict=True)]
            return first

        return called

    def _require_room(
        self,
        key: Hashable,
        network: "Denoiser",
        how: Arithmetic,
        batch: "BatchShape",
        conditional: bool,
        at: "Point",
    ) -> None:
        """Raise `NotEnoughMemory` unless a batch fits. It is counted once; what is free differs from job to job."""
        from taugrid.workers.accelerator import preflight

        key = key, how.precision, batch
        if (free := preflight.free_bytes(self.name)) is None:
            return
        if key not in self._needed:
            self._needed[key] = preflight.needed_bytes(network, how, batch, self.kind, conditional, at)
        preflight.require(self._needed[key], free, batch)

    def extractor(self, spec: Hashable, load: Callable[[], L]) -> L:
        """The extractor that `load` returns; kept for the next job with an equal `spec`."""
        return self._kept(self._extractors, spec, load)

    def _kept(self, cache: LRUCache, key: Hashable, load: Callable[[], L]) -> L:
        """What `cache` has, or `load` returns.

        If memory does not suffice for weights, nothing was computed with them: `NotEnoughMemory`, as for a batch.
        """
        try:
            loaded: L = cache.get(key, load)
        except Exception as error:
            if self.kind != "cuda" or not is_out_of_memory(error, surely=True):
                raise
            self.shortages.forget()
            raise NotEnoughMemory(last_line(error)) from error
        return loaded

    def computed(self) -> None:
        """Note that a job has computed all that it will commit: another job may begin to compute.

        Raises:
            FellBack: if it must not be committed.
        """
        self.shortages.require_none()
        self.compute_lock.release()

    def clear_caches(self) -> None:
        """Free the memory of all networks, extractors and images of earlier jobs."""
        self.last_sampled.clear()
        self._extractors.clear()
        self.clear_networks()

    def clear_networks(self) -> bool:
        """Free the memory of all networks of earlier jobs; returns whether there were any."""
        had_any = bool(self.held_networks)
        self.held_networks.clear()
        self._vaes.clear()
        self._compiled.clear()
        release_memory(self.name)
        return had_any

    def heartbeat(self, done: float, of: float) -> None:
        """Report that the running job makes progress: `done` of `of` is done, in any unit.

        A job calls it between network calls and between blocks of reading, and never from a separate thread, which
        would go on reporting while the job hangs. A worker that sends no heartbeat for `cluster.hang_seconds` is
        killed.
        """
        self._progress = (done, of)
        self.alive()

    def compiling(self) -> None:
        """Report that torch compiles a network, which takes minutes without progress."""
        self._send(*self._progress, COMPILING)

    def waiting(self) -> None:
        """Report that a request to an object store has failed and is tried again."""
        self._send(*self._progress, WAITING)

    def start_job(self) -> None:
        """Reset the progress for a new job. Its first heartbeat is sent after `MIN_HEARTBEAT_SECONDS`, if it lasts."""
        self._progress = (0.0, 0.0)
        self.compile_seconds = 0.0
        self._last_heartbeat = time.monotonic()

    def alive(self) -> None:
        """Send a heartbeat with unchanged progress; for loops that do not know it (`taugrid.workers.heartbeat`).

        Raises:
            Stopped: if the job must end.
        """
        if self.stop_requested:
            raise Stopped
        now = time.monotonic()
        if now - self._last_heartbeat >= MIN_HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._send(*self._progress)
