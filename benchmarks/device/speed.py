"""Time: of sampling beside diffusers' pipeline and bare networks, of waiting, of training, of extraction."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor

from benchmarks.device.setting import ETA, STEPS, Setting
from benchmarks.evaluation import draw_weights
from taugrid.config import DIFFUSION_DEFAULTS, Data, Train
from taugrid.config.sample import Compilation, Precision
from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.jobs import TrainingSpec
from taugrid.registry.extractors import INCEPTION, FeaturePrecision
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.transfer import ImageTransfer, completed, images_to_host
from taugrid.workers.device import Device
from taugrid.workers.diffusion.denoiser import Denoiser, Wrapped
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.sample import sample_shard
from taugrid.workers.samplers.sampler import sample_batch
from taugrid.workers.training import loop
from taugrid.workers.training.checkpoints import new_state
from taugrid.workers.training.loop import Loss, TrainingBatch

BATCHES = 4
"""How many a shard has, and how many are extracted one after another."""

SHIPPED = "diffusers, float32 as shipped (TF32 for convolutions)"

OF_BARE = {("float32", "none"): "at least 0.97", ("bf16-weights", "default"): "at least 0.95"}


def side_by_side(setting: Setting) -> None:
    """Images a second from noise to the host, at one eta: diffusers' DDIM pipeline and taugrid's sampler, eager."""
    _shipped(setting)
    for precision in setting.precisions:
        speed = setting.batch / setting.seconds(_sampling(setting, setting.network(precision), 1))
        setting.say(f"images/s: taugrid, {precision}", speed)
        setting.say(f"taugrid, {precision}, over diffusers as shipped", speed / setting.known[SHIPPED])
    for name, dtype in (("float32, TF32 off", torch.float32), ("bf16", torch.bfloat16)):
        arithmetic.configure()
        speed = setting.batch / setting.seconds(_pipeline(setting, dtype))
        setting.say(f"images/s: diffusers, {name}", speed)


def _shipped(setting: Setting) -> None:
    """Measure diffusers with torch's own defaults, which later figures are compared with."""
    arithmetic.configure()
    backends: Any = torch.backends
    backends.cudnn.allow_tf32 = True  # torch ships TF32 for convolutions alone
    backends.cudnn.conv.fp32_precision = "tf32"
    setting.known[SHIPPED] = setting.batch / setting.seconds(_pipeline(setting, torch.float32))
    arithmetic.configure()
    setting.say(f"images/s: {SHIPPED}", setting.known[SHIPPED])


def _pipeline(setting: Setting, dtype: torch.dtype, compile: bool = False) -> Callable[[], object]:
    unet: Any = setting.unet().to(setting.device)
    if dtype != torch.float32:
        unet.to(dtype)
    pipe = DDIMPipeline(torch.compile(unet) if compile else unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    # To arrays it takes no bf16: NumPy has none.
    return lambda: pipe(setting.batch, eta=ETA, num_inference_steps=STEPS, output_type="pt").images.float().cpu()


def _sampling(setting: Setting, model: Denoiser, batches: int) -> Callable[[], None]:
    """Samples whole batches and copies them to the host, as a shard does, without PNG and files."""
    job = setting.job(setting.batch)

    def transfers() -> Iterator[ImageTransfer]:
        finite = torch.ones((), dtype=torch.bool, device=setting.device)
        for start in range(0, batches * setting.batch, setting.batch):
            indices = torch.arange(start, start + setting.batch, device=setting.device)
            yield images_to_host(sample_batch(model, indices, job.spec), finite, start, time.perf_counter())

    def sample() -> None:
        for _ in completed(transfers()):
            pass

    return sample


def idle(setting: Setting) -> None:
    """How much of the time of a sampled shard the device waits, and how far the shard is from a bare network.

    The device is busy for the time between two CUDA events around the same batches, when the host only submits them.
    A shard's time lasts until it only has to be encoded and written: then the worker's next job computes. What its time
    is longer by is idle time. Gaps between the kernels of one call are in both times; if launching them is too slow,
    the device is found with nothing to do when a call is submitted, and that is counted.
    """
    batch = torch.arange(setting.batch, device=setting.device)
    noise = setting.seconds(lambda: normal(0, batch, 1, setting.shape))
    setting.say("ms: noise of a step", 1000 * noise)
    for precision in ("bf16-weights", "float32", "bf16"):
        if precision in setting.precisions:
            _shard(setting, precision)


def _shard(setting: Setting, precision: Precision, compile: Compilation = "none") -> None:
    """Say how a shard compares with its bare network and, on a GPU, how long that idles."""
    name = precision if compile == "none" else f"{precision}, compile: {compile}"
    model = setting.network(precision, compile)
    took, starved, worker = list[float](), list[bool](), Device(setting.device)

    def call(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if setting.on_gpu:
            starved.append(torch.cuda.current_stream().query())
        return call(x)

    def shard() -> None:
        job, began = setting.job(BATCHES * setting.batch), time.perf_counter()
        watched = Wrapped(model, call)
        worker.computed = lambda: took.append(time.perf_counter() - began)
        sample_shard(job, watched, worker)

    setting.seconds(shard, most=8.0)
    last = statistics.median(took[1:])
    setting.say(f"images/s: a shard, {name}", BATCHES * setting.batch / last)
    if setting.on_gpu:
        busy = _busy(setting, _sampling(setting, model, BATCHES))
        setting.say(f"idle share: {name}", 1 - busy / last, "at most 0.03")
        setting.say(f"calls that found the device with nothing to do: {name}", statistics.mean(starved))
    bare = BATCHES * setting.seconds(setting.bare(precision, compile))
    setting.say(f"of a bare loop: {name}", bare / last, OF_BARE.get((precision, compile), ""))


def _busy(setting: Setting, work: Callable[[], None]) -> float:
    """Seconds that a GPU takes for work which the host only submits: the least of two."""
    times = []
    for _ in range(2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        setting.wait()
        start.record()
        work()
        end.record()
        setting.wait()
        times.append(start.elapsed_time(end) / 1000)
    return min(times)


def compiled(setting: Setting) -> None:
    """The fastest cell, bf16-weights and compile: default. It compiles once: torch keeps that for the bare network."""
    setting.require_compiler()
    if SHIPPED not in setting.known:
        _shipped(setting)
    began, model = time.perf_counter(), setting.network("bf16-weights", "default")
    _sampling(setting, model, 1)()
    setting.say("s: to load, compile and sample a batch", time.perf_counter() - began)
    speed = setting.batch / setting.seconds(_sampling(setting, model, 1))
    setting.say("images/s: taugrid, bf16-weights, compile: default", speed)
    setting.say("over diffusers as shipped", speed / setting.known[SHIPPED], "at least 2.5")
    _shard(setting, "bf16-weights", "default")


def compiled_diffusers(setting: Setting) -> None:
    """Images a second of diffusers' pipeline with its network in bf16 and compiled, as its guide says.

    The last two parts compile one module each, of different code.
    """
    setting.require_compiler()
    arithmetic.configure()
    speed = setting.batch / setting.seconds(_pipeline(setting, torch.bfloat16, compile=True))
    setting.say("images/s: diffusers, bf16, compiled", speed)


def training(setting: Setting) -> None:
    """Milliseconds of a training step by precision, and whether weights are the same twice.

    torch warns on stderr of what it can't repeat.
    """
    count, size = (3, 8) if setting.short else (12, 128)
    try:
        precisions = get_args(Train.model_fields["precision"].annotation)
        for precision in filter(setting.precisions.__contains__, precisions):
            arithmetic.prepare_training(precision, setting.device, setting.device)
            (first, _), (second, seconds) = (_trained(setting, precision, count, size) for _ in range(2))
            setting.say(f"ms: a step of {size} images, {precision}", 1000 * seconds)
            setting.say(f"same weights twice, {precision}", torch.equal(first, second))
    finally:
        torch.use_deterministic_algorithms(False)
        arithmetic.configure()  # attention as workers compute it


def _trained(setting: Setting, precision: str, count: int, size: int) -> tuple[Tensor, float]:
    """The weights after a training of `count` steps, and the seconds of a step after the first."""
    train = setting.config.train.model_copy(update={"precision": precision, "batch_size": size, "seed": 0})
    unet = setting.config.model.unet
    assert unet is not None
    spec = TrainingSpec(Data(name="gaussian", shape=setting.shape), "", unet, DIFFUSION_DEFAULTS, train, "m", "", 1, 0)
    state = new_state(spec, setting.device)
    indices = torch.arange(size, device=setting.device)
    network, loss_of = loop.network_to_train(train, state.unet, None, 1), Loss(DIFFUSION_DEFAULTS, None, setting.device)
    for step in range(count):
        x0, eps = (normal(0, indices, step, setting.shape, domain) for domain in ("train", "train-eps"))
        t = torch.full((size,), 500, device=setting.device)
        batch = TrainingBatch(x0 + eps, t, x0, eps, t - 1)
        loop._step(spec, state, network, batch, loss_of, 1e-4, 1)
        if step == 0:  # libraries choose their kernels
            setting.wait()
            began = time.perf_counter()
    setting.wait()
    seconds = (time.perf_counter() - began) / (count - 1)
    return torch.cat([weight.detach().flatten().cpu() for weight in state.unet.parameters()]), seconds


def features(setting: Setting) -> None:
    """Images a second through Inception with weights from a seed."""
    weights = setting.folder / "inception.pth"
    draw_weights(weights)
    count, random = 2 if setting.short else 250, np.random.default_rng(0)
    for side in (32,) if setting.short else (32, 256):
        shape = (3, side, side)
        images = torch.from_numpy(random.integers(0, 256, (count, *shape), dtype=np.uint8))
        for precision in get_args(FeaturePrecision):
            extract = load(resolve(INCEPTION, "any", str(weights), shape, precision=precision), setting.device)
            seconds = setting.seconds(lambda run=extract, x=images: [*completed(run(x) for _ in range(BATCHES))], 2)
            setting.say(f"images/s: {side} pixels, {precision}", BATCHES * count / seconds)
