"""The actor that runs on each device. One process does every kind of work, because it is spare time on a device that
extraction takes: handing a device from a sampling process to an evaluating one would cost a start of torch each time.

Torch is imported when an actor starts, not with this module: the driver, which only names the class, needs none.
"""

import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from orchestrator.versions import versions
from workers.jobs import ExtractJob, Job, Result, SampleJob, WorkerInfo

if TYPE_CHECKING:
    from workers.sampling import EpsModel

VERSIONS = ("taugrid", "torch", "diffusers", "torch-fidelity", "pyarrow", "numpy", "pillow", "ray")


class Worker:
    """Does jobs one at a time; holds nothing but loaded networks."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1 whatever the actor's CPUs
        # TF32 is on by default for convolutions on NVIDIA GPUs; `sample.precision: float32` means float32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True  # the same job gives the same bytes
        on_gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        self._device = "cuda" if on_gpu else "cpu"
        cpu = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        self._device_name = torch.cuda.get_device_name() if on_gpu else cpu
        self._eps_model = lru_cache(maxsize=2)(self._load_eps_model)

    def _load_eps_model(self, folder: str, modified: float) -> "EpsModel":
        from workers import models

        return models.eps_model(folder, self._device)

    def hello(self, probe: str) -> WorkerInfo:
        """Where this is, once `probe` (a file that the driver made in the run directory) has been seen from here.

        Raises:
            FileNotFoundError: if the run directory is not the driver's here.
        """
        node = ray.util.get_node_ip_address()
        if not Path(probe).is_file():
            raise FileNotFoundError(f"node {node} does not see {Path(probe).parent}")
        return WorkerInfo(node, self._device_name, versions(VERSIONS))

    def do(self, job: Job) -> Result:
        """Do a job and commit its file."""
        if isinstance(job, SampleJob):
            from workers.sampling import sample_shard

            modified = max(path.stat().st_mtime for path in Path(job.unet_folder).iterdir())
            return sample_shard(job, self._eps_model(job.unet_folder, modified), self._device)

        from eval import actor as evaluation

        began = time.perf_counter()
        if isinstance(job, ExtractJob):
            images, first = evaluation.extract(job, self._device)
        else:
            images, first = evaluation.score(job), True
        return Result(time.perf_counter() - began, images, first)
