"""The device itself: what it is, how it computes, and what happens when its memory is used up or it breaks."""

import subprocess
import sys
from typing import Any

import torch

from benchmarks.device.setting import SMALL, NotHere, Setting, denoiser, unet
from taugrid.errors import is_out_of_memory
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.memory import batch_that_fits, release_memory

BREAKS = "import torch; torch.zeros(2, device='cuda')[torch.tensor([5], device='cuda')]; torch.cuda.synchronize()"


def card(setting: Setting) -> dict[str, Any]:
    """The device's name and software, the switches of precision, and what they do to a product and a convolution."""
    arithmetic.prepare("float32", setting.device, setting.device)
    backends: Any = torch.backends
    places = {
        "cudnn.conv": backends.cudnn.conv,
        "cuda.matmul": backends.cuda.matmul,
        "mkldnn.conv": backends.mkldnn.conv,
    }
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "hardware": torch.cuda.get_device_name() if setting.on_gpu else "cpu",
        "switches": {name: place.fp32_precision for name, place in places.items()},
        "errors": {precision: _errors(setting, precision) for precision in setting.precisions if precision != "bf16"},
    }
    if setting.on_gpu:
        found |= {"cuda": torch.version.cuda, "capability": torch.cuda.get_device_capability(), "driver": _driver()}
    return found


def _errors(setting: Setting, precision: Any) -> dict[str, float]:
    """The largest relative errors: about 1e-6 in true float32, 1e-3 in TF32."""
    arithmetic.prepare(precision, setting.device, setting.device)
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 256, device=setting.device)
    image, kernel = torch.randn(4, 32, 16, 16, device=setting.device), torch.randn(32, 32, 3, 3, device=setting.device)
    exact, product = a.double() @ b.double(), a @ b
    convolved = torch.nn.functional.conv2d(image, kernel)
    exactly = torch.nn.functional.conv2d(image.double(), kernel.double())
    arithmetic.configure()
    pairs = {"product": (product, exact), "convolution": (convolved, exactly)}
    return {name: float(f"{(x - y).abs().max() / y.abs().max():.1e}") for name, (x, y) in pairs.items()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def memory(setting: Setting) -> dict[str, Any]:
    """Peak memory of a step, what fits when memory is short, and whether a broken process can be replaced."""
    if not setting.on_gpu:
        raise NotHere("device memory and device asserts need a GPU")
    model, batch = denoiser(unet(SMALL, setting.device), setting, "float32"), setting.batches[-1]
    torch.cuda.reset_peak_memory_stats()
    model(torch.zeros(batch, *SMALL, device=setting.device), 1)
    found: dict[str, Any] = {"batch": batch, "peak_bytes": torch.cuda.max_memory_allocated()}
    found |= _short_of_memory(setting)
    broken = subprocess.run([sys.executable, "-c", BREAKS], capture_output=True, text=True, check=False)
    found["broken"] = {"exit_code": broken.returncode, "says": broken.stderr.strip().splitlines()[-1][:200]}
    replaced = subprocess.run([sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"], check=False)
    return found | {"replacement_exit_code": replaced.returncode}


def _short_of_memory(setting: Setting) -> dict[str, Any]:
    """Half a GiB is all this process may have: which batch does not fit, and which one taugrid would name."""
    total = torch.cuda.get_device_properties(0).total_memory
    model, batch = denoiser(unet(SMALL, setting.device), setting, "float32"), 1024
    release_memory(setting.device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**29 / total))
    try:
        while batch < 2**20:
            try:
                model(torch.zeros(batch, *SMALL, device=setting.device), 1)
                batch *= 2
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
        release_memory(setting.device)
        return {"too_large": batch, "would_fit": batch_that_fits(model, SMALL, batch, setting.device)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
