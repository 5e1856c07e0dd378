"""The actor that runs on each device. One process does every kind of work, because it is spare time on a device that
extraction takes: handing a device from a sampling process to an evaluating one would cost a start of torch each time.
"""

import os
import platform
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import ray
import torch

from eval import actor as evaluation
from workers import models
from workers.jobs import ExtractJob, Job, Result, SampleJob, WorkerInfo
from workers.sampling import EpsModel, sample_shard

VERSIONS = ("taugrid", "torch", "diffusers", "torch-fidelity", "pyarrow", "numpy", "pillow", "ray")


class Worker:
    """Does jobs one at a time; holds nothing but loaded networks."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1 whatever the actor's CPUs
        # TF32 is on by default for convolutions on NVIDIA GPUs; `sample.precision: float32` means float32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        self._eps_model = lru_cache(maxsize=2)(self._load_eps_model)

    def _load_eps_model(self, folder: str, modified: float) -> EpsModel:
        return models.eps_model(folder, self._device)

    def hello(self, probe: str) -> WorkerInfo:
        """Where this is, once `probe` (a file that the driver made in the run directory) has been seen from here.

        Raises:
            FileNotFoundError: if the run directory is not the driver's here.
        """
        if not Path(probe).is_file():
            raise FileNotFoundError(f"node {ray.util.get_node_ip_address()} does not see {Path(probe).parent}")
        device = torch.cuda.get_device_name() if self._device == "cuda" else f"cpu {platform.machine()}"
        return WorkerInfo(
            ray.util.get_node_ip_address(), device, os.getpid(), {name: version(name) for name in VERSIONS}
        )

    def do(self, job: Job) -> Result:
        """Do a job and commit its file."""
        if isinstance(job, SampleJob):
            modified = max(path.stat().st_mtime for path in Path(job.unet_folder).iterdir())
            return sample_shard(job, self._eps_model(job.unet_folder, modified), self._device)
        began = time.perf_counter()
        if isinstance(job, ExtractJob):
            images, first = evaluation.extract(job, self._device)
        else:
            images, first = evaluation.score(job), True
        return Result(time.perf_counter() - began, images, first)
