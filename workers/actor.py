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

from taugrid.config import Diffusion
from taugrid.jobs import (
    ExtractJob,
    InterpolateJob,
    Job,
    Network,
    ReconstructJob,
    Result,
    SampleJob,
    SavedUnet,
    WorkerInfo,
)
from taugrid.versions import versions

if TYPE_CHECKING:
    from taugrid.workers.diffusion.process import Denoiser

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
        self._network = lru_cache(maxsize=2)(self._load)

    def _load(self, network: Network, diffusion: Diffusion, modified: float) -> "Denoiser":
        from taugrid.workers.network.load import load_network

        return load_network(network, diffusion, self._device)

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
        if isinstance(job, SampleJob | ReconstructJob | InterpolateJob):
            return self._run_network(job)

        from taugrid.eval import actor as evaluation

        began = time.perf_counter()
        if isinstance(job, ExtractJob):
            images, first = evaluation.extract(job, self._device)
        else:
            images, first = evaluation.score(job), True
        return Result(time.perf_counter() - began, images, first)

    def _run_network(self, job: SampleJob | ReconstructJob | InterpolateJob) -> Result:
        from taugrid.workers import ode
        from taugrid.workers import sample as sampling

        model = self._network(job.network, job.diffusion, modified(job.network))
        if isinstance(job, SampleJob):
            return sampling.sample_shard(job, model, self._device)
        if isinstance(job, ReconstructJob):
            return ode.reconstruct(job, model, self._device)
        return ode.interpolate(job, model, self._device)


def modified(network: Network) -> float:
    """When a network's files were last written: one that was replaced must be loaded anew."""
    if isinstance(network, SavedUnet):
        return max(path.stat().st_mtime for path in Path(network.folder).iterdir())
    return 0.0
