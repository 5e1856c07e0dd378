"""Reconstructs images of a data set: encodes and decodes them along the ODE of eq. 14.

Torch is imported when a job runs, not with this module, because the driver builds jobs without it.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taugrid import parquet
from taugrid.config import Data, Diffusion
from taugrid.images import to_uint8
from taugrid.jobs import Job, NetworkSpec, Result
from taugrid.workers import schedules
from taugrid.workers.accelerator.memory import smaller_batch
from taugrid.workers.data import load as data
from taugrid.workers.device import Device, SendHeartbeat, ignore_heartbeat, with_heartbeats
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.finite import Watched
from taugrid.workers.samplers import ddim

if TYPE_CHECKING:
    from taugrid.workers.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class ReconstructJob(Job):
    """Encode and decode images `start` to `stop` - 1 of a data set, and write the results with their errors."""

    entry_point = "taugrid.workers.reconstruct:run"

    start: int
    stop: int
    network: NetworkSpec
    data: Data
    data_sha256: str
    """SHA-256 of these images on the driver (`workers.data.load.fingerprint`)."""
    batch_size: int
    diffusion: Diffusion
    tau: tuple[float, ...]
    metadata: dict[str, Any]

    def remedy(self, device: Device) -> str:
        load = partial(device.network, self.network, self.diffusion)
        return smaller_batch(load, self.data.image_shape, self.batch_size, device.name)


def run(job: ReconstructJob, device: Device) -> Result:
    network = device.network(job.network, job.diffusion)
    return reconstruct_shard(job, network, device.name, device.heartbeat)


def reconstruct_shard(
    job: ReconstructJob, model: "Denoiser", device: str, heartbeat: SendHeartbeat = ignore_heartbeat
) -> Result:
    """Encode and decode the job's images with the same tau, and commit the results with their errors (table 2).

    An image's error is the mean square over its dimensions, with pixels scaled to [0, 1]: `mse` of the floats,
    `mse_8bit` of the picture that is kept.

    Raises:
        NotFinite: if the network returns NaN or infinity.
    """
    import torch

    originals = data.load_known_rows(job.data, job.start, job.stop, job.data_sha256)
    process = schedules.process(job.diffusion)
    points = path(process, job.tau)
    starts = range(0, len(originals), job.batch_size)
    watched = Watched(with_heartbeats(model, heartbeat, 2 * len(starts) * len(job.tau)))
    denoise = Denoise(watched, process, job.diffusion.predicts)
    seconds, first_row = 0.0, job.start
    schema = parquet.picture_schema(job.metadata, ("mse", "mse_8bit"))
    job.check_run()
    with parquet.PartWriter(Path(job.path), schema, job.storage) as part:
        for start in starts:
            batch = originals[start : start + job.batch_size]
            began = time.perf_counter()
            x0 = torch.tensor(batch, device=device).float() / 127.5 - 1
            rebuilt = ddim.decode(ddim.encode(x0, points, denoise), points, denoise)
            mse = ((rebuilt - x0).double() / 2).square().flatten(1).mean(dim=1).cpu().numpy()
            pixels = to_uint8(rebuilt.cpu().numpy())
            watched.require_finite(first_row, first_row + len(batch))
            seconds += time.perf_counter() - began
            mse_8bit = ((pixels.astype(np.float64) - batch) / 255) ** 2
            columns = {"mse": mse, "mse_8bit": mse_8bit.reshape(len(batch), -1).mean(axis=1)}
            part.write(parquet.pictures(pixels, first_row) | columns)
            first_row += len(batch)
        created = part.commit_over(job.replaces)
    return Result(seconds, len(originals), created, part=part.content)
