"""The device that a process computes on: its arithmetic, its memory, and what is kept there from job to job."""

import gc
import os
import platform
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid import parquet
from taugrid.config import Diffusion, Sample
from taugrid.errors import Stopped, WorkerRefusal
from taugrid.jobs import NetworkSpec, SavedNetwork
from taugrid.storage import Storage
from taugrid.workers.accelerator import arithmetic, transfer
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.hardware import start_gpu
from taugrid.workers.accelerator.policy import PLAIN, Arithmetic, policy
from taugrid.workers.diffusion.decoder import Around, Decode, Decoder, Vae, as_function
from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.heartbeat import ComputeLock
from taugrid.workers.network.load import load_network

MAX_NETWORKS = 2
"""Networks that a worker keeps in memory: jobs of two models may alternate where one's end and the next one's begin."""

MAX_VAES, MAX_EXTRACTORS = 2, 1

COMPILE_PROCESSES = 4
"""Processes that torch's compiler starts in each worker that compiles: by itself one for each of up to 32 CPUs, and a
node has several workers."""

WAITING = "waiting for the object store"

COMPILING = "compiling"
"""What a worker does while torch compiles a network, or while it waits for another worker that does."""

MIN_HEARTBEAT_SECONDS = 1.0
"""Heartbeats that follow the last one sooner are not sent: a job may call `Device.heartbeat` as often as it likes."""

RowGroup = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Consecutive indices (B,) and their images (B, C, H, W), as `parquet.read_images` yields them of a file."""

L = TypeVar("L")

SendHeartbeat = Callable[..., None]
"""Called with how much of a job is done, how much there is in all, in any unit, and what is done if it is no progress.
"""


def set_up(threads: int | None = None) -> None:
    """Give this process true float32, repeatable sums and `threads` CPU threads (None: leave the number unchanged)."""
    workspace = "CUBLAS_WORKSPACE_CONFIG"  # 32 MiB, with which sums are repeatable (ATen's Context.cpp)
    os.environ.setdefault(workspace, ":4096:8")
    if threads is not None:  # a caller's process keeps its own
        os.environ[workspace] = ":4096:8"
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(COMPILE_PROCESSES, os.cpu_count() or 1)))
        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1, however many CPUs a worker has
    arithmetic.require_float32(torch.cuda.is_available())
    arithmetic.configure()


def usual_device() -> str:
    """`cuda` if torch can use a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def beating(heartbeat: SendHeartbeat, calls: int) -> Around:
    """A function that calls another one, with a heartbeat before each of `calls` calls that says how many the device
    has finished. The host never runs far ahead of it (`transfer.Submitted`)."""
    submitted = transfer.Submitted(lambda finished: heartbeat(finished, calls))

    def call_with_heartbeat(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        submitted.make_room()
        output = call(x)
        submitted.add(transfer.mark(x.device))
        return output

    return call_with_heartbeat


class LRUCache(OrderedDict[Hashable, Any]):
    """The most recently used values. An old value is dropped before a new one is loaded: both may not fit."""

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self._max_size = max_size

    def loaded(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """The value of `key`, which `load` returns if it is not kept."""
        if key not in self:
            while len(self) >= self._max_size:
                self.popitem(last=False)
            self[key] = load()
        self.move_to_end(key)
        return self[key]


def count_ooms(device: str) -> int:
    """How often torch has found a GPU's memory used up in this process, whoever caught its error (`num_ooms` in
    c10/cuda/CUDACachingAllocator.cpp). 0: no GPU, or CUDA's own allocator (cudaMallocAsync)."""
    if device.partition(":")[0] != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))


class OomCounter:
    """Notices that memory of a device ran out while something was computed, although nothing was raised. cuDNN does not
    fail then: torch catches the error, takes the next kernel and remembers it for as long as the process lives
    (`run_single_conv` in ATen's native/cudnn/Conv_v8.cpp). So bits would depend on what else was in memory."""

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
        """Raise `MemoryError` if there was one."""
        if self.any:
            raise MemoryError(
                "memory ran out while this was computed, and a library went on with other kernels: their bits differ"
            )


def release_memory(device: str) -> None:
    """Return unreferenced memory to the device (`cuda`, `cuda:1`, ...), for other processes too."""
    gc.collect()
    kind = device.partition(":")[0]
    if kind == "cuda":
        with torch.cuda.device(device):  # else torch would set up the first GPU for it
            torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def row_groups(start: int, counts: Sequence[int], batches: Sequence[NDArray[np.uint8]]) -> list[RowGroup]:
    """The images from number `start` on, in groups of these sizes; they come in batches of any sizes."""
    images, ends = np.concatenate(batches), np.cumsum(counts)[:-1]
    index = np.arange(start, start + len(images))
    return list(zip(np.split(index, ends), np.split(images, ends), strict=True))


class LastSampled:
    """The last shards that a worker sampled, by path, as far as they fit into `max_bytes`: their features need no
    file to be read and no PNG decoded. May be used by threads."""

    max_bytes = 64 * 2**20
    """In host memory: 21,000 images of 3 x 32 x 32. A node may have a hundred workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, tuple[bytes, list[RowGroup]]] = OrderedDict()

    def add(self, path: str, digest: bytes, groups: list[RowGroup]) -> None:
        """Keep what a committed file holds. `digest`: the SHA-256 of its seal."""
        with self._lock:
            self._shards[path] = digest, groups
            self._shards.move_to_end(path)
            while sum(images.nbytes for _, groups in self._shards.values() for _, images in groups) > self.max_bytes:
                self._shards.popitem(last=False)

    def take(self, path: str, storage: Storage) -> list[RowGroup] | None:
        """Remove and return a shard, if the file in place is the one that was written here, by its seal; else None."""
        with self._lock:
            sampled = self._shards.pop(path, None)
        is_same = sampled is not None and parquet.file_end(Path(path), storage)[0].digest == sampled[0]
        return sampled[1] if sampled is not None and is_same else None

    def clear(self) -> None:
        with self._lock:
            self._shards.clear()


class Device:
    """A device, caches of the networks and extractors that were last used on it, and the heartbeats of its jobs."""

    def __init__(
        self, name: str, heartbeat: SendHeartbeat = lambda *_: None, compute_lock: ComputeLock | None = None
    ) -> None:
        self.name = name
        """Torch's name of the device: `cpu`, `cuda` or, outside of a run, `cuda:1`."""
        self.kind = name.partition(":")[0]  # `cpu` or `cuda`
        self.platform = kind_of(name)  # the same, but `rocm` for AMD's GPUs
        self.hardware = name  # the model of the device, for messages and records
        self.compute_lock = compute_lock or ComputeLock()
        """A job may release it once it only encodes and writes, so that the worker's next job begins to compute."""
        self.stop_requested = False  # whether jobs on this device must end at their next heartbeat
        self.compile_seconds = 0.0
        """How long the job's first call of a network took, in which torch compiled it; 0 if it did not."""
        self.shortages = OomCounter(name)
        self.most_to_extract: int | None = None
        """Images of which features may be extracted at once in this process; None: as many as a job says."""
        self._send = heartbeat
        self._last_heartbeat = -MIN_HEARTBEAT_SECONDS
        self._progress = (0.0, 0.0)
        self.held_networks = LRUCache(MAX_NETWORKS)
        self._vaes = LRUCache(MAX_VAES)
        self._extractors = LRUCache(MAX_EXTRACTORS)
        self._compiled: set[tuple[Hashable, Arithmetic]] = set()
        """Kept networks, and how, whose first call has returned. torch may compile at any other."""
        self.last_sampled = LastSampled()

    def check(self, node: str) -> None:
        """Compute a sum; raise `WorkerRefusal` if it is wrong."""
        if (total := float(torch.arange(8.0, device=self.name).square().sum())) != 140.0:
            raise WorkerRefusal(f"node {node}: its device {self.name} computes 0 + 1 + 4 + ... + 49 = {total}, not 140")

    def network(self, spec: NetworkSpec, diffusion: Diffusion, how: Arithmetic = PLAIN) -> Denoiser:
        """The network that `spec` names, computed as `how` says; kept for the next job. Raises `WorkerRefusal` if this
        device can't compute so."""
        decided = arithmetic.prepare(how.precision, self.name, self.hardware, how.compile)
        key = (spec, diffusion, decided.layout, decided.weights, decided.compile)

        def load() -> Denoiser:
            self._compiled = {known for known in self._compiled if known[0] in self.held_networks}
            return load_network(spec, diffusion, self.name, decided)

        network: Denoiser = self.held_networks.loaded(key, load)
        arithmetic.configure(decided)  # a custom network may have changed it
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

    def decoder(self, decoder: Decoder, settings: Sample) -> Decode:
        """What makes pictures of samples. A `Vae` is kept for the next job; `WorkerRefusal` as `network`."""
        if not isinstance(decoder, Vae):
            return as_function(decoder)
        from taugrid.workers.network.unet import decoding, load_vae

        arithmetic.require(settings.vae_precision, self.name, self.hardware, key="vae_precision")
        how = policy(kind_of(self.name), settings.vae_precision)
        vae = self._vaes.loaded((decoder.saved, how.layout), lambda: load_vae(decoder.saved, self.name, how))
        return decoding(vae, decoder, how, min(settings.decode_batch, settings.batch_size))

    def extractor(self, spec: Hashable, load: Callable[[], L]) -> L:
        """The extractor that `load` returns; kept for the next job with an equal `spec`."""
        loaded: L = self._extractors.loaded(spec, load)
        return loaded

    def computed(self) -> None:
        """Note that a job has computed all that it will commit: another may begin to compute. Raises `MemoryError`
        if it must not be committed."""
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
        release_memory(self.name)
        return had_any

    def heartbeat(self, done: float, of: float) -> None:
        """Report that the running job makes progress: `done` of `of` is done, in any unit. Never from a thread of its
        own, which would go on while the job hangs: a worker that sends no heartbeat for `cluster.hang_seconds` is
        killed."""
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
        """Send a heartbeat with unchanged progress (`workers.heartbeat`). Raises `Stopped` if the job must end."""
        if self.stop_requested:
            raise Stopped
        now = time.monotonic()
        if now - self._last_heartbeat >= MIN_HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._send(*self._progress)


def start_device(has_gpu: bool, heartbeat: SendHeartbeat, compute_lock: ComputeLock) -> Device:
    """The device of a worker: the GPU that Ray gave it, which is started, or the CPU."""
    hardware = start_gpu() if has_gpu else f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    device = Device("cuda" if has_gpu else "cpu", heartbeat, compute_lock)
    device.hardware = hardware
    return device
