"""Bits: of noise, of a network twice and in another process, of 8-bit pixels, of samplers, of training."""

import hashlib
import os
import subprocess
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.device.setting import MIDDLE, NAMES, SMALL, Setting, Shape, denoiser, unet
from benchmarks.device.speed import job_of
from taugrid.config.sample import Compilation
from taugrid.images import to_uint8
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.diffusion.noise import normal, words
from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.batch import sample_batch

SEED = 20
NORMALS = 100_000_000
SAMPLERS = (
    "diffusers:DPMSolverMultistepScheduler",
    "diffusers:EulerAncestralDiscreteScheduler",
    "diffusers:HeunDiscreteScheduler",
    "unipc",
)
"""Multistep, with noise, with two evaluations a step; and one of taugrid's own."""
OTHER_PROCESS = (
    "from benchmarks.device import exactness, setting; print(exactness.digest(setting.Setting('{}', {}), '{}'))"
)


def noise(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a batch of noise, eager and compiled, and of a step with noise after the network and beside it.

    Also how a GPU's words and normals differ from the CPU's.
    """
    shape, batch = setting.shapes[-1], setting.batches[-1 if setting.short else 1]
    indices = torch.arange(batch, device=setting.device)
    found: dict[str, Any] = {"batch": batch, "shape": NAMES[shape]}
    found["eager_ms"] = round(1000 * setting.seconds(lambda: normal(SEED, indices, 1, shape)), 3)
    if not setting.on_gpu:
        return found | {"against_the_cpu": "skipped: this is the CPU"}
    fused = torch.compile(normal, dynamic=False)
    found["compiled_ms"] = round(1000 * setting.seconds(lambda: fused(SEED, indices, 1, shape)), 3)
    found["compiled_equals_eager"] = torch.equal(fused(SEED, indices, 1, shape), normal(SEED, indices, 1, shape))
    return found | {"step_ms": _steps_with_noise(setting, shape)} | _against_the_cpu(setting)


def _steps_with_noise(setting: Setting, shape: Shape) -> dict[str, Any]:
    """A network's evaluation without noise, with noise after it, and with noise on a stream beside it."""
    found = dict[str, Any]()
    for batch in setting.batches[:2]:
        network = denoiser(unet(shape, setting.device), setting, setting.precisions[-1])
        indices = torch.arange(batch, device=setting.device)
        x, side = normal(SEED, indices, 0, shape), torch.cuda.Stream()

        def after(model: Denoiser = network, x: Tensor = x, indices: Tensor = indices) -> None:
            model(x, MIDDLE)
            normal(SEED, indices, 500, shape)

        def beside(
            model: Denoiser = network, x: Tensor = x, indices: Tensor = indices, side: torch.cuda.Stream = side
        ) -> None:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                normal(SEED, indices, 500, shape)
            model(x, MIDDLE)
            torch.cuda.current_stream().wait_stream(side)

        ways = {"no noise": lambda model=network, x=x: model(x, MIDDLE), "after": after, "beside": beside}
        times = {way: round(1000 * setting.seconds(run), 3) for way, run in ways.items()}
        found[f"{NAMES[shape]} batch {batch}"] = times
    return found


def _against_the_cpu(setting: Setting) -> dict[str, Any]:
    shape, batch = (3, 32, 32), 1000
    here, there = torch.arange(batch), torch.arange(batch, device=setting.device)
    times = 2 if setting.short else -(-NORMALS // (batch * 3072))
    equal, different, largest = True, 0, 0.0
    for t in range(times):
        equal &= torch.equal(words(SEED, "sample", here, t, 768), words(SEED, "sample", there, t, 768).cpu())
        difference = (normal(SEED, here, t, shape) - normal(SEED, there, t, shape).cpu()).abs()
        different += int((difference > 0).sum())
        largest = max(largest, float(difference.max()))
    return {"words_equal": equal, "normals": times * batch * 3072, "differ": different, "largest_difference": largest}


def digest(setting: Setting, compiled: Compilation = "none") -> str:
    """SHA-256 of the small network's output for a batch of noise."""
    from taugrid.workers.device import set_up

    set_up(1)
    batch = setting.batches[0]
    x = normal(SEED, torch.arange(batch, device=setting.device), 0, SMALL)
    output = denoiser(unet(SMALL, setting.device), setting, "float32", compiled, batch)(x, MIDDLE)
    return hashlib.sha256(output.cpu().numpy().tobytes()).hexdigest()


def bits(setting: Setting) -> dict[str, Any]:
    """Whether a network gives the same bits twice and in another process, and the same compiled."""
    found: dict[str, Any] = _twice(setting, "none")
    return found | {"compiled": _twice(setting, "default") if setting.on_gpu else "skipped: this is the CPU"}


def _twice(setting: Setting, compiled: Compilation) -> dict[str, Any]:
    first = digest(setting, compiled)
    command = [sys.executable, "-c", OTHER_PROCESS.format(setting.device, setting.short, compiled)]
    anew = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # or else it reads what this process compiled
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=anew).stdout.strip()
    return {"twice": digest(setting, compiled) == first, "in_another_process": other == first}


def flips(setting: Setting) -> dict[str, Any]:
    """The share of 8-bit pixels that other precisions move, and by how much at most. Weights are random here."""
    shape, batch = SMALL, setting.batches[0]
    job = job_of("unused", shape, batch, batch)
    network, indices = unet(shape, setting.device), torch.arange(batch, device=setting.device)
    images = {}
    for precision in setting.precisions:
        x0 = sample_batch(denoiser(network, setting, precision), indices, job.spec)
        images[precision] = to_uint8(x0.cpu().numpy()).astype(int)
    found = {}
    for precision in setting.precisions[1:]:
        moved = abs(images[precision] - images["float32"])
        found[precision] = {"share": round(float((moved > 0).mean()), 5), "most_levels": int(moved.max())}
    return {"network": NAMES[shape], "against_float32": found}


def samplers(setting: Setting) -> dict[str, Any]:
    """Whether images have the same bits twice and alone, and how far a GPU's are from the CPU's.

    The network is the exact one for N(0, 1), eps = sigma x: each of its pixels depends on one pixel alone.
    """

    def network(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        return at.sigma * x

    found = {}
    for name in SAMPLERS:
        job = job_of("unused", SMALL, setting.batches[0], setting.batches[0], name)
        indices = torch.arange(setting.batches[0], device=setting.device)
        first, second = (sample_batch(network, indices, job.spec) for _ in range(2))
        alone = sample_batch(network, indices[:1], job.spec)
        there = (first.cpu() - sample_batch(network, indices.cpu(), job.spec)).abs().max()
        found[name] = {"twice": torch.equal(first, second), "alone": torch.equal(first[:1], alone)}
        found[name] |= {"from_the_cpu": float(there)} if setting.on_gpu else {}
    return found


def training(setting: Setting) -> dict[str, Any]:
    """Whether 20 steps of training give the same weights twice, what torch can't repeat, and milliseconds of a step."""
    arithmetic.prepare_training("float32", setting.device, setting.device)
    count, batch = (3, 8) if setting.short else (20, 128)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = (_trained(setting.device, count, batch) for _ in range(2))
    said = sorted({str(warning.message).partition("\n")[0][:150] for warning in caught})
    milliseconds = 1000 * setting.seconds(lambda: _trained(setting.device, 1, batch), 1)
    torch.use_deterministic_algorithms(False)
    arithmetic.configure()  # attention as workers compute it
    found = {"steps": count, "batch": batch, "same_weights": first == second, "warnings": said}
    return found | {"step_ms": round(milliseconds, 1)}


def _trained(device: str, count: int, batch: int) -> str:
    network = unet(SMALL, device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    indices = torch.arange(batch, device=device)
    for step in range(count):
        x, eps = (normal(SEED, indices, step, SMALL, domain) for domain in ("train", "train-eps"))
        output = network(x, torch.full((batch,), 500, device=device), return_dict=False)[0]
        optimizer.zero_grad()
        torch.autograd.backward((output - eps).square().mean())
        optimizer.step()
    state = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    return hashlib.sha256(state.cpu().numpy().tobytes()).hexdigest()
