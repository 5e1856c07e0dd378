"""Bits: what the device is, how exactly it computes, and whether it repeats it."""

import hashlib

import torch

from benchmarks.device.setting import Setting, in_a_process
from taugrid.config.sample import Precision
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.hardware import libraries
from taugrid.workers.device import set_up
from taugrid.workers.diffusion.noise import normal, words
from taugrid.workers.diffusion.process import Point
from taugrid.workers.samplers.sampler import sample_batch

SEED = 20
DIGESTS = "from benchmarks.device import exactness, setting; print(*exactness.digests(setting.Setting('{}', {})))"


def card(setting: Setting) -> None:
    """The device and its software, and the largest relative errors of a product and a convolution.

    They are about 1e-6 in true float32, 1e-3 in TF32 and 1e-2 in bf16.
    """
    about = {"torch": torch.__version__, **libraries(setting.kind)}
    if setting.on_gpu:
        found = (torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.mem_get_info())
        about |= dict(zip(("device", "capability", "bytes free, and in all"), found, strict=True))
    for name, value in about.items():
        setting.say(name, value)
    for precision in setting.precisions:
        for what, error in _errors(setting, precision).items():
            setting.say(f"relative error of a {what}, {precision}", error)


def _errors(setting: Setting, precision: Precision) -> dict[str, float]:
    how = arithmetic.prepare(precision, setting.device, setting.device)
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 256, device=setting.device)
    image, kernel = torch.randn(4, 32, 16, 16, device=setting.device), torch.randn(32, 32, 3, 3, device=setting.device)
    half = how.autocast or how.weights
    with torch.autocast(setting.device, getattr(torch, half or "bfloat16"), enabled=half is not None):
        product, convolved = a @ b, torch.nn.functional.conv2d(image, kernel)
    arithmetic.configure()
    exactly = torch.nn.functional.conv2d(image.double(), kernel.double())
    pairs = {"product": (product, a.double() @ b.double()), "convolution": (convolved, exactly)}
    return {name: float((x - y).abs().max() / y.abs().max()) for name, (x, y) in pairs.items()}


def bits(setting: Setting) -> None:
    """Whether noise has the CPU's bits; and whether a network gives the same bits twice, in another process and, where
    the policy fills up batches, for an image alone."""
    _noise(setting)
    here, again = digests(setting), digests(setting)
    there = in_a_process(DIGESTS.format(setting.device, setting.short)).split()
    for n, precision in enumerate(setting.precisions):
        setting.say(f"network twice, {precision}", here[n] == again[n])
        setting.say(f"network in another process, {precision}", here[n] == there[n])
    model, indices = setting.network("float32"), torch.arange(setting.batch, device=setting.device)
    spec = setting.job(setting.batch).spec
    equal = torch.equal(sample_batch(model, indices, spec)[:1], sample_batch(model, indices[:1], spec))
    setting.say("an image alone is that of a full batch, float32", equal)


def _noise(setting: Setting) -> None:
    shape, batch = (3, 32, 32), 1000
    here, there = torch.arange(batch), torch.arange(batch, device=setting.device)
    times = 1 if setting.short else 7
    equal, different, largest = True, 0, 0.0
    for t in range(times):
        equal &= torch.equal(words(SEED, "sample", here, t, 768), words(SEED, "sample", there, t, 768).cpu())
        difference = (normal(SEED, here, t, shape) - normal(SEED, there, t, shape).cpu()).abs()
        different += int((difference > 0).sum())
        largest = max(largest, float(difference.max()))
    setting.say("words of noise equal the CPU's", equal)
    setting.say(f"of {times * batch * 3072:,} normals differ", different)
    setting.say("largest difference of a normal", largest)


def digests(setting: Setting) -> list[str]:
    """SHA-256 of the network's output for a batch of noise, in each precision."""
    set_up(1)
    x = normal(SEED, torch.arange(setting.batch, device=setting.device), 0, setting.shape)
    at = Point(alpha=0.5, sigma=0.75**0.5, alpha_bar=0.25, time=500, key=501)
    outputs = (setting.network(precision)(x, at).cpu() for precision in setting.precisions)
    return [hashlib.sha256(output.numpy().tobytes()).hexdigest() for output in outputs]
