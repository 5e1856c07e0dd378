"""Decodes points between the x_T of samples, along the ODE of eq. 14.

Torch is imported when a job runs, not with this module, because the driver builds jobs without it.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taugrid import parquet
from taugrid.config import Diffusion
from taugrid.images import to_uint8
from taugrid.jobs import Job, NetworkSpec, Result
from taugrid.workers import schedules
from taugrid.workers.accelerator.memory import smaller_batch
from taugrid.workers.device import Device, SendHeartbeat, ignore_heartbeat, with_heartbeats
from taugrid.workers.diffusion.decoder import Decoder
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.finite import Watched
from taugrid.workers.samplers import ddim

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class InterpolateJob(Job):
    """Decode points between the x_T of samples 0, 1, 2, ...: `pairs` rows, and the square of the first two pairs."""

    entry_point = "taugrid.workers.interpolate:run"

    pairs: int
    steps: int
    """Number of points from one x_T to another, both included."""
    network: NetworkSpec
    decoder: Decoder
    seed: int
    batch_size: int
    diffusion: Diffusion
    tau: tuple[float, ...]
    metadata: dict[str, Any]

    def remedy(self, device: Device) -> str:
        load = partial(device.network, self.network, self.diffusion)
        return smaller_batch(load, self.decoder.network_shape, self.batch_size, device.name)


def run(job: InterpolateJob, device: Device) -> Result:
    network = device.network(job.network, job.diffusion)
    return interpolate_cell(job, network, device.name, device.heartbeat)


def interpolate_cell(
    job: InterpolateJob, model: "Denoiser", device: str, heartbeat: SendHeartbeat = ignore_heartbeat
) -> Result:
    """Decode the job's rows and square of x_T and commit the pictures: the rows one after another, then the square.

    Raises:
        NotFinite: if the network returns NaN or infinity.
    """
    import torch

    x_T, process = points(job, device), schedules.process(job.diffusion)
    visited = path(process, job.tau)
    batches = torch.split(x_T, job.batch_size)
    watched = Watched(with_heartbeats(model, heartbeat, len(batches) * len(job.tau)))
    denoise = Denoise(watched, process, job.diffusion.predicts)
    seconds, first_row = 0.0, 0
    job.check_run()
    with parquet.PartWriter(Path(job.path), parquet.picture_schema(job.metadata), job.storage) as part:
        for batch in batches:
            began = time.perf_counter()
            x0 = ddim.decode(batch, visited, denoise)
            pixels = to_uint8(job.decoder(x0).cpu().numpy())
            watched.require_finite(first_row, first_row + len(pixels))
            seconds += time.perf_counter() - began
            part.write(parquet.pictures(pixels, first_row))
            first_row += len(pixels)
        created = part.commit(replace=False)
    return Result(seconds, len(x_T), created, part=part.content)


def points(job: InterpolateJob, device: str) -> "Tensor":
    """The job's x_T, (pairs k + k^2, C, H, W) float32 for k steps; the ends are those of the samples 0, 1, 2, ..."""
    import torch

    from taugrid.workers.diffusion import interpolation, noise

    ends = noise.normal(job.seed, torch.arange(max(4, 2 * job.pairs), device=device), 0, job.decoder.network_shape)
    rows = interpolation.rows(ends[: 2 * job.pairs], job.steps)
    square = interpolation.square(ends[:4], job.steps)
    return torch.cat([rows.flatten(0, 1), square.flatten(0, 1)])
