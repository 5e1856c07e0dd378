"""The actor that runs on each device and does every kind of work.

One process does them all because extraction fills the gaps that sampling leaves on a device. Handing the device to
another process would mean starting torch again each time.

Torch is imported when an actor says hello, not with this module: the driver only names the class and must not import
torch.
"""

import platform
import threading
import time
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import ray

from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.words import call_this_node
from taugrid.workers import heartbeat
from taugrid.workers.device import Device, set_up
from taugrid.workers.hello import Probe, check_device, check_run_directory, check_versions

WATCH_SECONDS = 10.0
"""How long a call of `watch` waits for a heartbeat before it answers that there was none."""


class Pulse(NamedTuple):
    """What a worker's job has last said."""

    beats: int
    """Heartbeats since the worker started."""
    done: float
    of: float


class Audible:
    """An actor whose heartbeats the driver can wait for while it runs a job.

    `watch` runs in a thread of its own, in the concurrency group "watch"; it only passes on what the job's thread says.
    Such a call is always pending, so the driver hears of the death of an idle worker at once, too.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pulse = Pulse(0, 0.0, 0.0)

    def beat(self, done: float, of: float) -> None:
        """The job in this process goes on: `done` of `of` is done."""
        with self._changed:
            self._pulse = Pulse(self._pulse.beats + 1, done, of)
            self._changed.notify_all()

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def where(self) -> tuple[str, str]:
        """Address and id of this worker's node."""
        node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""  # asking would start a Ray
        address = ray.util.get_node_ip_address()
        call_this_node(address)
        return address, node_id

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def watch(self, beats: int, pause: float) -> Pulse:
        """The last heartbeat, as soon as there have been others than `beats` in all, but not before `pause` seconds.

        Call it again only once it has answered: its concurrency group has one thread.
        """
        time.sleep(pause)
        with self._changed:
            self._changed.wait_for(lambda: self._pulse.beats != beats, timeout=WATCH_SECONDS)
            return self._pulse


class Worker(Audible):
    """Does jobs one at a time; holds nothing but its device."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._thread: int | None = None  # the one that was set up

    def hello(self, probe: Probe) -> WorkerInfo:
        """Where this worker runs, if it can do what jobs need.

        Raises:
            WorkerRefusal: if its node lacks what the driver has.
            OSError: if it can't write to the run directory.
        """
        node, node_id = self.where()
        check_run_directory(probe, node)
        installed = check_versions(probe, node)
        self._set_up()
        check_device(self._device.name, self._given_gpu, node)
        return WorkerInfo(node, self._hardware, installed, node_id, self._threads)

    def do(self, job: Job) -> Result:
        """Do a job with the function that it names, and commit its file.

        Raises:
            RunDirectoryNotSeen: if it does not see the job's run directory, before the job or any more.
        """
        self._set_up()
        job.check_run()
        self._device.begin()
        try:
            with heartbeat.heard_by(self._device.alive):
                result: Result = resolve_name(job.runs)(job, self._device)
            return replace(result, size=job.storage.size(Path(job.path)))
        except FileNotFoundError:
            job.check_run()  # a folder that vanished meanwhile is the node's fault, not the job's
            raise

    def _set_up(self) -> None:
        """Set up torch for the thread that runs jobs: OpenMP keeps a number of threads for each thread that asks."""
        if self._thread == threading.get_ident():
            return
        import torch

        set_up(self._threads)
        self._given_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())
        on_gpu = torch.cuda.is_available() and self._given_gpu
        self._device = Device("cuda" if on_gpu else "cpu", self.beat)
        cpu = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        self._hardware = torch.cuda.get_device_name() if on_gpu else cpu
        self._thread = threading.get_ident()
