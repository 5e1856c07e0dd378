"""Time: of a network's step, of diffusers' pipeline, of a shard, of extraction, of PNG."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor

from benchmarks.device.setting import MIDDLE, NAMES, Setting, Shape, denoiser, unet
from benchmarks.evaluation import draw_weights
from taugrid.config import DIFFUSION_DEFAULTS, Data
from taugrid.eval.features.load import Extraction, load
from taugrid.eval.features.resolve import resolve
from taugrid.images import encode_png
from taugrid.jobs import OracleNetwork
from taugrid.registry.extractors import INCEPTION, FeaturePrecision
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.accelerator.transfer import completed
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.sample import SampleJob, sample_shard
from taugrid.workers.samplers.batch import sample_batch
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler
from taugrid.workers.schedules import process

STEPS = 10
BATCHES = 4
"""How many are extracted one after another."""


def steps(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a network evaluation: precision x layout x eager or compiled, for each network and batch."""
    found = {}
    for shape in setting.shapes:
        for channels_last in (True, False):
            network = unet(shape, setting.device, channels_last)
            for precision in setting.precisions:
                for compiled in ("none",) if setting.short else ("none", "default"):
                    for batch in setting.batches:
                        model = denoiser(network, setting, precision, compiled, batch)
                        x = torch.zeros(batch, *shape, device=setting.device)
                        milliseconds = 1000 * setting.seconds(lambda model=model, x=x: model(x, MIDDLE))
                        layout = "NHWC" if channels_last else "NCHW"
                        name = f"{NAMES[shape]} batch {batch} {precision} {layout} compile={compiled}"
                        found[name] = round(milliseconds, 3)
    return {"milliseconds": found}


def pipeline(setting: Setting) -> dict[str, Any]:
    """Images a second of diffusers' DDIM pipeline, with TF32 as torch ships it and off, and of taugrid's sampler."""
    shape, batch = setting.shapes[-1], setting.batches[-1 if setting.short else 1]
    network = unet(shape, setting.device)
    pipe = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=1000))
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for tf32 in (True, False) if arithmetic.has_tf32(setting.device) else (False,):
        arithmetic.configure(policy("cuda", "tf32" if tf32 else "float32"))
        if tf32:
            torch.backends.cuda.matmul.allow_tf32 = False  # torch ships TF32 for convolutions alone
        seconds = setting.seconds(lambda: pipe(batch, num_inference_steps=STEPS, output_type="np"), 3)
        found[f"diffusers, TF32 {'as shipped' if tf32 else 'off'}"] = round(batch / seconds, 2)
    job, indices = job_of("unused", shape, batch, batch), torch.arange(batch, device=setting.device)
    for precision in setting.precisions:
        model = denoiser(network, setting, precision)
        seconds = setting.seconds(lambda model=model: sample_batch(model, indices, job.spec).cpu(), 3)
        found[f"taugrid, {precision}"] = round(batch / seconds, 2)
    return {"network": NAMES[shape], "batch": batch, "steps": STEPS, "images_per_second": found}


def shard(setting: Setting) -> dict[str, Any]:
    """A shard of four batches with noise, PNG and Parquet, over the bare network: 1 if nothing waits for anything."""
    found, batch = {}, setting.batches[-1 if setting.short else 1]
    for shape in setting.shapes:
        for precision in setting.precisions:
            model = denoiser(unet(shape, setting.device), setting, precision)
            bare = setting.seconds(lambda model=model, shape=shape: _bare(model, shape, batch, setting.device), 3)
            whole = setting.seconds(lambda model=model, shape=shape: _shard(model, shape, batch, setting.device), 3)
            found[f"{NAMES[shape]} batch {batch} {precision}"] = round(bare / whole, 3)
    return {"bare_over_shard": found}


def _bare(model: Denoiser, shape: Shape, batch: int, device: str) -> None:
    x = torch.zeros(batch, *shape, device=device)
    for _ in range(4):
        for t in tau("linear", STEPS, 1000):
            model(x, process(DIFFUSION_DEFAULTS).at(t))


def _shard(model: Denoiser, shape: Shape, batch: int, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sample_shard(job_of(str(Path(folder) / "shard.parquet"), shape, batch, 4 * batch), model, device)


def job_of(path: str, shape: Shape, batch: int, images: int, sampler: str = "ddim") -> SampleJob:
    """Samples `images` images in `path`. Its network is never loaded: callers bring their own."""
    given = {"sampler": sampler, "steps": STEPS, "eta": 1.0, "batch_size": batch}
    settings = SAMPLE_DEFAULTS.model_copy(update=given)
    described = describe_sampler(settings, DIFFUSION_DEFAULTS)
    metadata = {"cell": "benchmark", "model": "benchmark"}
    return SampleJob(
        path,
        0,
        images,
        OracleNetwork(Data(name="gaussian", shape=shape)),
        Identity(shape),
        settings,
        DIFFUSION_DEFAULTS,
        described.tau,
        described.evaluations,
        metadata,
    )


def extraction(setting: Setting) -> dict[str, Any]:
    """Images a second through Inception with weights from a seed: grey and RGB, 32 and 256 pixels, both precisions.

    Each batch waited for by itself, and as in a run, where the next one is begun before.
    """
    found: dict[str, dict[str, float]] = {"by_itself": {}, "in_flight": {}}
    waits = []
    count = 2 if setting.short else 250
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        draw_weights(weights)
        random = np.random.default_rng(0)
        for channels in (1, 3):
            for side in (32,) if setting.short else (32, 256):
                shape = (channels, side, side)
                images = torch.from_numpy(random.integers(0, 256, (count, *shape), dtype=np.uint8))
                for precision in get_args(FeaturePrecision):
                    spec = resolve(INCEPTION, "any", str(weights), shape, precision=precision)
                    extract = load(spec, setting.device)
                    name = f"{'x'.join(map(str, shape))} {precision}"
                    alone, flying = (
                        setting.seconds(lambda way=way, extract=extract, images=images: way(extract, images), 1)
                        for way in (_each_waited_for, _in_flight)
                    )
                    found["by_itself"][name] = round(BATCHES * count / alone, 1)
                    found["in_flight"][name] = round(BATCHES * count / flying, 1)
                    if setting.on_gpu and (said := _waits(extract, images)) is not None:
                        waits.append(f"{name}: {said}")
    return {"images_per_second": found, "waits_for_the_device": waits if setting.on_gpu else "skipped: this is the CPU"}


def _each_waited_for(extract: Callable[[Tensor], Extraction], images: Tensor) -> None:
    for _ in range(BATCHES):
        extract(images).wait()


def _in_flight(extract: Callable[[Tensor], Extraction], images: Tensor) -> None:
    for _ in completed(extract(images) for _ in range(BATCHES)):
        pass


def _waits(extract: Callable[[Tensor], Extraction], images: Tensor) -> str | None:
    """What makes the host wait while a batch is begun; None if nothing does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        extract(images)
    except RuntimeError as error:
        return str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def encoders(setting: Setting) -> dict[str, Any]:
    """PNGs a second of this host with 1, 2 and 4 threads, of noise, which compresses least."""
    found = {}
    random = np.random.default_rng(0)
    for side in (32,) if setting.short else (32, 64, 256):
        images = list(random.integers(0, 256, (500 if side < 256 else 50, 3, side, side), dtype=np.uint8))
        for threads in (1, 2, 4):
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                list(pool.map(encode_png, images))
                found[f"{side} pixels, {threads} threads"] = round(len(images) / (time.perf_counter() - began))
    return {"images_per_second": found}
