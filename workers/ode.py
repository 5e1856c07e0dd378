"""Reconstructs images of a data set, and interpolates between samples, along the ODE of eq. 14."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taugrid import parquet
from taugrid.images import to_uint8
from taugrid.jobs import Result
from taugrid.workers import schedules
from taugrid.workers.accelerator.policy import Arithmetic
from taugrid.workers.data import load as data
from taugrid.workers.device import Device, beating
from taugrid.workers.diffusion import interpolation, noise
from taugrid.workers.diffusion.decoder import as_function
from taugrid.workers.diffusion.denoiser import Denoise, Denoiser, Wrapped
from taugrid.workers.diffusion.process import path
from taugrid.workers.jobs import InterpolateJob, ReconstructJob
from taugrid.workers.sample import Watched
from taugrid.workers.samplers import ddim


def run(job: ReconstructJob | InterpolateJob, device: Device) -> Result:
    network = device.network(job.network, job.diffusion, Arithmetic(batch_size=job.batch_size))
    if isinstance(job, ReconstructJob):
        return reconstruct_shard(job, network, device)
    return interpolate_cell(job, network, device)


def reconstruct_shard(job: ReconstructJob, model: Denoiser, device: Device) -> Result:
    """Encode and decode the job's images with the same tau, and commit the results with their errors (table 2). An
    image's error is the mean square over its dimensions, with pixels scaled to [0, 1]: `mse` of the floats, `mse_8bit`
    of the picture that is kept. Raises `NotFinite` if the network returns NaN or infinity."""
    originals = data.load_known_rows(job.data, job.start, job.stop, job.data_sha256)
    process = schedules.process(job.diffusion)
    visited = path(process, job.tau)
    starts = range(0, len(originals), job.batch_size)
    watched = Watched(Wrapped(model, beating(device.heartbeat, 2 * len(starts) * len(job.tau))))
    denoise = Denoise(watched, process)
    seconds, first_row = 0.0, job.start
    schema = parquet.picture_schema(job.metadata, ("mse", "mse_8bit"))
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        for start in starts:
            batch = originals[start : start + job.batch_size]
            began = time.perf_counter()
            x0 = torch.tensor(batch, device=device.name).float() / 127.5 - 1
            rebuilt = ddim.decode(ddim.encode(x0, visited, denoise), visited, denoise)
            mse = (noise.in_float64(rebuilt - x0) / 2).square().flatten(1).mean(dim=1).cpu().numpy()
            watched.require_finite(first_row, first_row + len(batch))
            pixels = to_uint8(rebuilt.cpu().numpy())
            seconds += time.perf_counter() - began
            mse_8bit = ((pixels.astype(np.float64) - batch) / 255) ** 2
            columns = {"mse": mse, "mse_8bit": mse_8bit.reshape(len(batch), -1).mean(axis=1)}
            part.write(parquet.pictures(pixels, first_row) | columns)
            first_row += len(batch)
        device.computed()
        created = part.commit_over(job.replaces)
    return Result.of(part, created, seconds, len(originals))


def interpolate_cell(job: InterpolateJob, model: Denoiser, device: Device) -> Result:
    """Decode the job's rows and square of x_T and commit the pictures: the rows one after another, then the square."""
    process = schedules.process(job.diffusion)
    visited = path(process, job.tau)
    x_T = process.first_scale(visited[0]) * points(job, device.name)
    batches = torch.split(x_T, job.batch_size)
    watched = Watched(Wrapped(model, beating(device.heartbeat, len(batches) * len(job.tau))))
    denoise = Denoise(watched, process)
    seconds, first_row = 0.0, 0
    schema = parquet.picture_schema(job.metadata)
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        for batch in batches:
            began = time.perf_counter()
            x0 = ddim.decode(batch, visited, denoise)
            watched.require_finite(first_row, first_row + len(batch))
            pixels = to_uint8(as_function(job.decoder)(x0).cpu().numpy())
            seconds += time.perf_counter() - began
            part.write(parquet.pictures(pixels, first_row))
            first_row += len(pixels)
        device.computed()
        created = part.commit(replace=False)
    return Result.of(part, created, seconds, len(x_T))


def points(job: InterpolateJob, device: str) -> Tensor:
    """The job's points between the x_T of samples 0, 1, 2, ...: (pairs k + k^2, C, H, W) float32 for k steps."""
    ends = noise.normal(job.seed, torch.arange(max(4, 2 * job.pairs), device=device), 0, job.decoder.network_shape)
    rows = interpolation.rows(ends[: 2 * job.pairs], job.steps)
    square = interpolation.square(ends[:4], job.steps)
    return torch.cat([rows.flatten(0, 1), square.flatten(0, 1)])
