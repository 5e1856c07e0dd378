"""Jobs that follow the ODE of eq. 14: reconstructing images of a data set, and decoding what lies between samples."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taugrid import parquet as images
from taugrid.jobs import InterpolateJob, ReconstructJob, Result
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.diffusion import interpolation, noise
from taugrid.workers.diffusion.process import Denoiser
from taugrid.workers.samplers import ddim as sampler


def reconstruct(job: ReconstructJob, model: Denoiser, device: str) -> Result:
    """Encode and decode the job's images with the same tau, and commit what comes back with its errors (table 2).

    An image's error is the mean square over its dimensions, on pixels scaled to [0, 1]: `mse` of the floats, `mse_8bit`
    of the picture that is kept.
    """
    originals = data.load_known_images(job.data, job.data_sha256)[job.start : job.stop]
    alpha_bar, prediction = schedules.alpha_bar(job.diffusion), job.diffusion.predicts
    seconds, first_row = 0.0, job.start
    with images.PartWriter(Path(job.path), images.picture_schema(job.metadata, ("mse", "mse_8bit"))) as part:
        for start in range(0, len(originals), job.batch_size):
            batch = originals[start : start + job.batch_size]
            began = time.perf_counter()
            x0 = torch.tensor(batch, device=device).float() / 127.5 - 1
            x_T = sampler.encode(model, x0, alpha_bar, job.tau, prediction)
            rebuilt = sampler.decode(model, x_T, alpha_bar, job.tau, prediction)
            mse = ((rebuilt - x0).double() / 2).square().flatten(1).mean(dim=1).cpu().numpy()
            pixels = images.to_uint8(rebuilt.cpu().numpy())
            seconds += time.perf_counter() - began
            mse_8bit = ((pixels.astype(np.float64) - batch) / 255) ** 2
            columns = {"mse": mse, "mse_8bit": mse_8bit.reshape(len(batch), -1).mean(axis=1)}
            part.write(images.pictures(pixels, first_row) | columns)
            first_row += len(batch)
        first = part.commit(job.replace)
    return Result(seconds, len(originals), first)


def interpolate(job: InterpolateJob, model: Denoiser, device: str) -> Result:
    """Decode the job's rows and square of x_T and commit the pictures: the rows one after another, then the square."""
    x_T, alpha_bar, prediction = points(job, device), schedules.alpha_bar(job.diffusion), job.diffusion.predicts
    seconds, first_row = 0.0, 0
    with images.PartWriter(Path(job.path), images.picture_schema(job.metadata)) as part:
        for batch in torch.split(x_T, job.batch_size):
            began = time.perf_counter()
            x0 = sampler.decode(model, batch, alpha_bar, job.tau, prediction)
            pixels = images.to_uint8(x0.cpu().numpy())
            seconds += time.perf_counter() - began
            part.write(images.pictures(pixels, first_row))
            first_row += len(pixels)
        first = part.commit(replace=False)
    return Result(seconds, len(x_T), first)


def points(job: InterpolateJob, device: str) -> Tensor:
    """The job's x_T, (pairs k + k^2, C, H, W) float32 for k steps; the ends are those of the samples 0, 1, 2, ..."""
    ends = noise.normal(job.seed, torch.arange(max(4, 2 * job.pairs), device=device), 0, job.image_shape)
    rows = interpolation.rows(ends[: 2 * job.pairs], job.steps)
    square = interpolation.square(ends[:4], job.steps)
    return torch.cat([rows.flatten(0, 1), square.flatten(0, 1)])
