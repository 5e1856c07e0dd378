"""Samples one shard, batch by batch, while other threads encode and write the batches before; and watches networks for
NaN and infinity, which clipping x0 would silently turn into black or white."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid import parquet
from taugrid.config import Sample
from taugrid.errors import DamagedFile, NotFinite, Stopped
from taugrid.images import NOT_FINITE
from taugrid.jobs import Result
from taugrid.registry.samplers import DEFAULT
from taugrid.workers.accelerator.policy import Arithmetic
from taugrid.workers.accelerator.transfer import Clock, ImageTransfer, completed, images_to_host, to_device
from taugrid.workers.device import Device, beating, row_groups
from taugrid.workers.diffusion.decoder import Decode, Decoder, Vae, as_function, pictures
from taugrid.workers.diffusion.denoiser import Denoiser, Wrapped
from taugrid.workers.jobs import SampleJob
from taugrid.workers.samplers.sampler import require_code, sample_batch

Latents = NDArray[np.float32]

PLAIN = Sample()  # of DDIM's own passes: float32

BY_VAE = "; the VAE made them: set sample.vae_precision: float32 or, if it is that, check the VAE's weights"
"""What to do about pictures of latents that are not finite."""


def run(job: SampleJob, device: Device) -> Result:
    require_code(job.settings.sampler, job.sampler_code)
    decode = device.decoder(job.decoder, job.settings)
    if (latents := kept_latents(job)) is not None:
        return replace(sample_shard(job, latents, device, decode), evaluations=0)
    specs = [job.network] if job.guide is None else [job.network, job.guide]
    networks = [device.network(spec, job.diffusion, Arithmetic.of(job.settings)) for spec in specs]
    return sample_shard(job, networks[0], device, decode, *networks[1:])


def kept_latents(job: SampleJob) -> Latents | None:
    """The latents of the job's images, from the file of another cell; None: there are none."""
    if job.latents_of is None:
        return None
    path = Path(job.latents_of)
    try:
        part = parquet.inspect(path, storage=job.storage)
        is_same = part.metadata.get("latents") == job.metadata["latents"]
        if not is_same or part.start > job.start or part.stop < job.stop:
            return None
        rows = _latents_in(path, job)
    except (DamagedFile, FileNotFoundError, NotADirectoryError):
        return None
    return rows[job.start - part.start : job.stop - part.start].reshape(-1, *job.decoder.network_shape)


def sample_shard(
    job: SampleJob,
    model: Denoiser | Latents,
    device: Device,
    decode: Decode | None = None,
    guide: Denoiser | None = None,
) -> Result:
    """Sample the job's images and commit its file. A job gives the same images wherever and whenever it runs.

    `model` is the network, or the images' latents (stop - start, C, H, W), which are only decoded then. `decode` is the
    job's decoder, loaded; None: it is a function itself. `guide` is the second network, if the job has one. If a
    heartbeat raises `Stopped`, it commits the batches so far: a shorter file, from which the next job continues.

    Raises `NotFinite` if the network returns NaN or infinity; `Stopped` if it is stopped before a batch is done."""
    labels, clock = job.labels, Clock()
    latent = math.prod(job.decoder.network_shape) if job.settings.keep_latents else None
    schema = parquet.sample_schema(job.metadata, labels is not None, latent)
    sampled: list[NDArray[np.uint8]] = []
    with (
        parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part,
        parquet.SampleWriter(
            part, _columns(job), job.start, launching=not device.name.startswith("cpu"), labels=labels
        ) as writer,
    ):
        first_new = stop = job.start + _copy_kept(job, writer)
        try:
            loaded = decode or as_function(job.decoder)
            for batch in completed(_transfers(job, first_new, labels, (model, guide), loaded, device)):
                network_was_finite, images_are_finite = batch.flags.tolist()
                if not network_was_finite:
                    raise not_finite(batch.start, batch.start + len(batch.images), job.settings)
                if not images_are_finite:
                    raise images_not_finite(job.decoder, job.settings.sampler)
                clock.completed(batch)
                writer.append(batch.images, None if batch.latents is None else batch.latents.numpy())
                shard_bytes = batch.images[0].nbytes * (job.stop - job.start)
                if first_new == job.start and shard_bytes <= device.last_sampled.max_bytes:
                    sampled.append(np.array(batch.images))  # a copy, so that no pinned memory is held for long
                stop = batch.start + len(batch.images)
        except Stopped:
            if stop == first_new:
                raise
        calls = math.ceil((stop - first_new) / job.settings.batch_size) * job.nfe
        seconds = clock.seconds
        if device.compile_seconds and calls > 1:
            # Rates, and so remaining times, come from a time as if the first call, which compiled, had taken as
            # long as others. The next job resets `compile_seconds`, so it is read before that may begin.
            seconds = (seconds - device.compile_seconds) * calls / (calls - 1)
        device.computed()
        writer.finish()
        created = part.commit_over(job.replaces)
    if sampled:
        device.last_sampled.add(job.path, part.digest, row_groups(job.start, writer.counts, sampled))
    return Result.of(part, created, seconds, stop - first_new)


def _transfers(
    job: SampleJob,
    first_new: int,
    labels: NDArray[np.int32] | None,
    networks: tuple[Denoiser | Latents, Denoiser | None],
    decode: Decode,
    device: Device,
) -> Iterator[ImageTransfer]:
    """The job's batches from image `first_new` on, each being copied to the host as soon as its steps are enqueued."""
    size, settings = job.settings.batch_size, job.settings
    condition = None if labels is None else to_device(torch.from_numpy(labels).long(), device.name)
    starts = range(first_new, job.stop, size)
    slices = math.ceil(size / settings.decode_batch) if isinstance(job.decoder, Vae) else 0
    model, guide = networks
    latents = model if isinstance(model, np.ndarray) else None
    around = beating(device.heartbeat, len(starts) * (slices + (job.nfe if latents is None else 0)))
    watched = None if isinstance(model, np.ndarray) else Watched(Wrapped(model, around))
    guide = guide and watched and watched.also(Wrapped(guide, around))
    finite = torch.ones((), dtype=torch.bool, device=device.name)
    for start in starts:
        began = time.perf_counter()
        stop = min(start + size, job.stop)
        indices = torch.arange(start, stop, device=device.name)
        asked = None if condition is None else condition[start - job.start : stop - job.start]
        if latents is not None:
            x0 = to_device(torch.from_numpy(latents[start - job.start : stop - job.start]), device.name)
        elif watched is not None:
            x0 = sample_batch(watched, indices, job.spec, asked, guide)
            finite = watched.answer()
        images = pictures(job.decoder, decode, x0, settings.decode_batch, around)
        kept = x0 if settings.keep_latents else None
        yield images_to_host(images, finite, start, began, settings.rounding, kept)


def _copy_kept(job: SampleJob, writer: parquet.SampleWriter) -> int:
    """Copy the images to keep from the file that the job replaces; returns how many: all or, if it is damaged, none."""
    if job.replaces is None or not job.kept:
        return 0
    try:
        part = parquet.inspect(Path(job.path), storage=job.storage)
    except (DamagedFile, FileNotFoundError):
        return 0
    is_same_cell = all(part.metadata.get(key) == job.metadata[key] for key in ("cell", "model", "weights_sha256"))
    if not is_same_cell or part.start != job.start or part.stop < job.start + job.kept:
        return 0
    groups = parquet.read_encoded(Path(job.path), job.start + job.kept, job.storage)
    try:
        digests = parquet.read_digests(Path(job.path), job.storage)
        latents = _latents_in(Path(job.path), job) if job.settings.keep_latents else None
    except DamagedFile:  # it was begun without them
        return 0
    copied = 0
    for _, pngs in groups:
        rows = slice(copied, copied + len(pngs))
        writer.append_encoded(pngs, digests[rows], None if latents is None else latents[rows])
        copied += len(pngs)
    return job.kept


def _latents_in(path: Path, job: SampleJob) -> Latents:
    """All latents of a file, (n, C * H * W); `DamagedFile` if it has none."""
    return np.concatenate([rows for _, rows in parquet.read_features(path, "latent", job.storage)])


def _columns(job: SampleJob) -> dict[str, object]:
    settings = job.settings
    return {
        "seed": settings.seed,
        "steps": settings.steps,
        "eta": settings.eta_number,
        "sigma": settings.sigma,
        "spacing": settings.spacing_name,
        "sampler": settings.sampler,
        "clip": settings.clip,
        "cell": job.metadata["cell"],
        "model": job.metadata["model"],
        **({} if job.label_rule is None else {"guidance": settings.guidance}),
    }


class Watched(Wrapped):
    """A network that records whether all its outputs were finite, on the device until it is read: no step waits."""

    def __init__(self, network: Denoiser) -> None:
        super().__init__(network, self._noting)
        self._finite: Tensor | None = None

    def also(self, network: Denoiser) -> Denoiser:
        """Another network, whose outputs count too."""
        return Wrapped(network, self._noting)

    def _noting(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        output = call(x)
        finite = output.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return output

    def answer(self) -> Tensor:
        """Whether all outputs since the last answer were finite: a bool, on the network's device."""
        finite, self._finite = self._finite, None
        assert finite is not None, "the network was not called"
        return finite

    def require_finite(self, first: int, stop: int, settings: Sample = PLAIN) -> None:
        """Raise `NotFinite` if an output since the last answer was not; it was for images `first` to `stop` - 1."""
        if not bool(self.answer()):
            raise not_finite(first, stop, settings)


def not_finite(first: int, stop: int, settings: Sample = PLAIN) -> NotFinite:
    """The error of a network whose output for images `first` to `stop` - 1 was not finite."""
    remedy = {
        "fp16": "fp16 holds no number above 65,504: set sample.precision: bf16 or float32",
        "float32": "check that its weights are finite and that its schedule is the one that it was trained with",
    }.get(settings.precision, "set sample.precision: float32 or, if that changes nothing, check its weights")
    return NotFinite(
        f"the network returned nan or infinity for images {first} to {stop - 1}; its images would be meaningless, and "
        f"trying again would change nothing; {remedy}{blame(settings.sampler)}"
    )


def images_not_finite(decoder: Decoder, sampler: str) -> NotFinite:
    """The error of images that are not finite although the network's outputs were."""
    by = BY_VAE if isinstance(decoder, Vae) else ""
    return NotFinite(NOT_FINITE + by + blame(sampler))


def blame(sampler: str) -> str:
    """A custom sampler's share in NaN and infinity, as the end of a message."""
    return "" if sampler == DEFAULT else f"; or the arithmetic of the sampler {sampler} makes them: check its divisions"
