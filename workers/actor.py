"""The actor that runs on each device and does every kind of work.

One process does them all because extraction fills the gaps that sampling leaves on a device. Handing the device to
another process would mean starting torch again each time.

Torch is imported when an actor starts, not with this module: the driver only names the class and must not import torch.
"""

import platform
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import ray

from taugrid.errors import RunDirectoryNotSeen
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.versions import versions
from taugrid.workers.device import Device, set_up

VERSIONS = ("taugrid", "torch", "diffusers", "torch-fidelity", "pyarrow", "numpy", "pillow", "ray")


class Worker:
    """Does jobs one at a time; holds nothing but its device."""

    def __init__(self, threads: int) -> None:
        import torch

        set_up(threads)
        on_gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        self._device = Device("cuda" if on_gpu else "cpu")
        cpu = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        self._hardware = torch.cuda.get_device_name() if on_gpu else cpu

    def hello(self, probe: str) -> WorkerInfo:
        """Where this worker runs, if it sees `probe`, a file that the driver made in the run directory.

        Raises:
            RunDirectoryNotSeen: if it does not see the driver's run directory.
        """
        node = ray.util.get_node_ip_address()
        if not Path(probe).is_file():
            folder = Path(probe).parent
            raise RunDirectoryNotSeen(
                f"node {node} does not see {folder}; every worker must see the run directory at the same path"
            )
        return WorkerInfo(node, self._hardware, versions(VERSIONS))

    def do(self, job: Job) -> Result:
        """Do a job with the function that it names, and commit its file.

        Raises:
            RunDirectoryNotSeen: if it does not see the job's run directory, before the job or any more.
        """
        job.check_run()
        try:
            result: Result = resolve_name(job.runs)(job, self._device)
            return replace(result, size=job.storage.size(Path(job.path)))
        except FileNotFoundError:
            job.check_run()  # a folder that vanished meanwhile is the node's fault, not the job's
            raise
