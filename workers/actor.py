"""The actor that runs on each device and does every kind of work: extraction fills the gaps that sampling leaves.

Torch is imported by the health check, not with this module: the driver only names the class and must not import torch.
"""

import pickle
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

import ray

from taugrid import retries
from taugrid.errors import (
    BrokenAccelerator,
    DoesNotFit,
    WorkerRefusal,
    accelerator_error_in,
    is_out_of_memory,
    last_line,
)
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.run_id import RunId, check_run
from taugrid.storage import LOCAL, Storage
from taugrid.versions import versions
from taugrid.words import call_this_node, this_node
from taugrid.workers import heartbeat
from taugrid.workers.accelerator.hardware import BROKEN_REMEDY, libraries, processor
from taugrid.workers.heartbeat import ComputeLock
from taugrid.workers.importing import uncollected

if TYPE_CHECKING:
    from taugrid.workers.device import Device

HEARTBEAT_WAIT_SECONDS = 10.0  # how long a call of `next_heartbeat` waits before it returns the last heartbeat again

MAX_IN_FLIGHT = 2  # jobs that a worker may have: one that computes, and one that waits for it or writes its last images

CONCURRENCY_GROUPS = {"heartbeat": 1, "work": MAX_IN_FLIGHT}  # threads in each concurrency group of a `HeartbeatActor`

AFTER_SHORTAGE = "after its GPU ran out of memory a process may compute other bits, so a new one takes its place"

VERSIONS = ("taugrid", "torch", "diffusers", "torch-fidelity", "pyarrow", "numpy", "pillow", "ray")


class LastHeartbeat(NamedTuple):
    number: int  # of heartbeats since the worker started
    key: str  # of the task that began to compute last; files of an earlier one may still be written
    done: float
    of: float
    doing: str = ""  # that is no progress, such as `compiling`


class HeartbeatActor:
    """An actor whose heartbeats the driver can wait for while it runs a job. A call of `next_heartbeat` is always
    pending, so the driver learns at once when a worker dies, even an idle one."""

    def __init__(self) -> None:
        self._compute_lock = ComputeLock()
        self._changed = threading.Condition()
        self._last = LastHeartbeat(0, "", 0.0, 0.0)

    def beat(self, done: float, of: float, doing: str = "") -> None:
        """Record a heartbeat of the job in this process: `done` of `of` is done."""
        with self._changed:
            self._last = LastHeartbeat(self._last.number + 1, self._last.key, done, of, doing)
            self._changed.notify_all()

    def do(self, job: Job) -> Result:
        """Do a job, and commit its file."""
        raise NotImplementedError

    def stop(self) -> None:
        """End this worker's jobs soon, with what they can keep. Runs concurrently with them, in Ray's default group."""

    @ray.method(concurrency_group="work")  # type: ignore[untyped-decorator]
    def perform(self, work: bytes) -> Result:
        """`do` a job once no other job computes. `work` is the job and the key of its task, pickled."""
        job, key = pickle.loads(work)
        with self._compute_lock:
            with self._changed:
                self._last = self._last._replace(key=key)
            return self.do(job)

    @ray.method(concurrency_group="heartbeat")  # type: ignore[untyped-decorator]
    def locate(self) -> tuple[str, str]:
        node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""  # asking would start a Ray
        address = ray.util.get_node_ip_address()
        call_this_node(address)
        return address, node_id

    @ray.method(concurrency_group="heartbeat")  # type: ignore[untyped-decorator]
    def next_heartbeat(self, number: int, pause: float) -> LastHeartbeat:
        """Wait at least `pause` seconds for a heartbeat other than the `number`-th, and return the last one."""
        time.sleep(pause)
        with self._changed:
            self._changed.wait_for(lambda: self._last.number != number, timeout=HEARTBEAT_WAIT_SECONDS)
            return self._last


@dataclass(frozen=True)
class Probe:
    """What a worker's health check must find."""

    path: str  # a file that the driver made in the run directory
    storage: Storage = LOCAL
    run_id: RunId | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions(VERSIONS))
    """Versions of the packages on the driver."""


class Worker(HeartbeatActor):
    """Does jobs, one at a time on its device."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._thread = threading.local()
        self._device: Device | None = None
        self._broken: str | None = None  # the accelerator's error

    def check_health(self, probe: Probe) -> WorkerInfo:
        """The worker's node, device and versions; `WorkerRefusal` if it lacks a file or version that the driver has."""
        node, node_id = self.locate()
        check_run_directory(probe, node)
        installed = versions(VERSIONS)
        for name, theirs in probe.versions.items():  # the build after a + may differ (CPU or GPU)
            if (own := installed.get(name, "none")).partition("+")[0] != theirs.partition("+")[0]:
                raise WorkerRefusal(
                    f"node {node} has {name} {own}, but the driver has {theirs}; install the same there"
                )
        with self._guard_accelerator():
            device = self._set_up()
            device.check(node)
            kind = device.platform
        accelerator, model = ({}, processor()) if kind == "cpu" else ({"kind": kind, **libraries(kind)}, "")
        return WorkerInfo(node, device.hardware, installed, node_id, self._threads, accelerator, model)

    def do(self, job: Job) -> Result:
        """Do a job with the function that it names, and commit its file.

        Raises `WorkerRefusal` if this node does not have the job's run directory, or loses it during the job;
        `DoesNotFit` if the job does not fit into memory, even with empty caches; `BrokenAccelerator` if this process
        can't use its accelerator any more; the driver replaces it."""
        device = self._set_up()
        device.start_job()
        try:
            with heartbeat.forwarded_to(device.alive), self._guard_accelerator():
                result = run_in_memory(job, device)
            if result.size is None and job.storage.on_disk:  # a bucket is the same from everywhere
                return replace(result, size=job.storage.stat(Path(job.path)).size)
            return result
        except FileNotFoundError:
            job.check_run()  # a folder that vanished meanwhile is the node's fault, not the job's
            raise

    def stop(self) -> None:
        """End this worker's jobs at their next heartbeat, with what they can keep: it gets no others."""
        if self._device is not None:
            self._device.stop_requested = True

    @contextmanager
    def _guard_accelerator(self) -> Iterator[None]:
        """Raise `BrokenAccelerator` for an accelerator's error within the block, or if there was one before: after a
        CUDA error every later call fails too."""
        if self._broken is not None:
            raise BrokenAccelerator(self._broken)
        try:
            yield
        except BrokenAccelerator as error:
            self._broken = str(error)
            raise
        except Exception as error:
            if (fault := accelerator_error_in(error)) is None:
                raise
            self._broken = f"node {this_node()}: {type(fault).__name__}: {last_line(fault)}; {BROKEN_REMEDY}"
            raise BrokenAccelerator(self._broken) from error
        finally:
            if self._broken is None and self._device is not None and self._device.shortages.any:
                self._broken = f"node {this_node()}: {AFTER_SHORTAGE}"

    def _set_up(self) -> "Device":
        """Set up torch: its arithmetic for each job, and its number of threads once in each thread, as OpenMP needs."""
        is_set_up = getattr(self._thread, "is_set_up", False)
        with nullcontext() if is_set_up else uncollected():
            from taugrid.workers import device  # with torch

            device.set_up(None if is_set_up else self._threads)
        self._thread.is_set_up = True
        if self._device is None:
            has_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())
            self._device = device.start_device(has_gpu, self.beat, self._compute_lock)
            retries.waits = self._device.waiting
        return self._device


def run_in_memory(job: Job, device: "Device") -> Result:
    """Run a job. If it runs out of memory, clear the caches and run it once more.

    If a GPU has begun to compute the job, only another process may run it again: cuDNN keeps the kernels that it took
    while memory was short (docs/decisions.md, "Memory of a GPU").

    Raises `DoesNotFit` if it runs out of memory again, here or, on a GPU, in a later process; it says what to change;
    `BrokenAccelerator` if it is to be run again in a process whose GPU never ran out of memory."""

    def in_kernels(done: Result | Exception) -> bool:
        return device.kind == "cuda" and not isinstance(done, MemoryError | Result)

    if job.failed_before and device.kind == "cuda":
        device.clear_caches()
    done = _result_or_shortage(job, device)
    if not isinstance(done, Result) and not in_kernels(done):
        done = _result_or_shortage(job, device)
    if isinstance(done, Result):
        return done
    if in_kernels(done) and not job.failed_before:
        raise BrokenAccelerator(f"node {this_node()}: {AFTER_SHORTAGE} ({last_line(done)})")
    fault = DoesNotFit(f"{job.remedy} ({device.hardware}: {last_line(done)})")
    fault.add_note(done.__notes__[-1])  # where it was raised, for the log
    raise fault


def _result_or_shortage(job: Job, device: "Device") -> Result | Exception:
    """The job's result, or its out-of-memory error without the frames that hold memory; then the caches are empty."""
    try:
        result: Result = resolve_name(job.entry_point)(job, device)
        return result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        error.add_note(traceback.format_exc())
        error.__cause__ = error.__context__ = None
        shortage = error.with_traceback(None)
    device.compute_lock.acquire()  # the job may have released it before it ran out of memory
    device.clear_caches()  # not in the handler, where the error's frames still hold tensors
    return shortage


def check_run_directory(probe: Probe, node: str) -> None:
    """Check that the driver's file exists; then write a file beside it, link it, read it back and remove it."""
    path, storage = Path(probe.path), probe.storage
    if not storage.exists(path):
        raise WorkerRefusal(
            f"node {node} does not see {path.parent}; every worker must see the run directory at the same path"
        )
    if probe.run_id is not None:
        check_run(probe.run_id, storage)
    number = uuid.uuid4().hex
    own, data = path.with_name(f".hello.{number[:12]}.tmp"), number.encode()
    try:
        with storage.temporary(own) as temporary:
            temporary.write_bytes(data)
            named = storage.commit(own, temporary)
        if not named or storage.read(own) != data:
            raise WorkerRefusal(f"node {node}: a file written to {path.parent} does not read back as it was written")
    finally:
        storage.delete(own)
