"""What the parts of the benchmark share: the device, sizes, networks, and a clock that waits for the device."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor

from benchmarks import noise as noise_benchmark
from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.config.sample import Compilation, Precision
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import Arithmetic
from taugrid.workers.diffusion.denoiser import Denoiser, from_times
from taugrid.workers.schedules import process

Shape = tuple[int, int, int]

SMALL, CIFAR10 = (1, 28, 28), (3, 32, 32)
NAMES = {SMALL: "1x28x28", CIFAR10: "3x32x32"}


MIDDLE = process(DIFFUSION_DEFAULTS).at(500)
"""Where networks are asked."""


class NotHere(Exception):
    """Raised for what a device can't show. The message says why."""


class Setting(NamedTuple):
    """The device, and whether it takes the short form."""

    device: str
    short: bool

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device == "cuda"

    @property
    def shapes(self) -> list[Shape]:
        """Of the images whose networks are timed."""
        return [SMALL] if self.short else [SMALL, CIFAR10]

    @property
    def batches(self) -> list[int]:
        """Images at a time."""
        return [16] if self.short else [64, 256, 500]

    @property
    def precisions(self) -> list[Precision]:
        """Those that the device has."""
        return ["float32", "tf32", "bf16"] if arithmetic.has_tf32(self.device) else ["float32", "bf16"]

    def wait(self) -> None:
        """Return once the device has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], rounds: int = 5) -> float:
        """The median wall time of `function`, after two calls that warm up."""
        times = []
        for call in range(2 + rounds):
            self.wait()
            began = time.perf_counter()
            function()
            self.wait()
            if call >= 2:
                times.append(time.perf_counter() - began)
        return statistics.median(times)


def unet(shape: Shape, device: str, channels_last: bool = True) -> UNet2DModel:
    """A U-Net with weights from a seed: google/ddpm-cifar10-32's for 3x32x32, a small one for 1x28x28."""
    torch.manual_seed(0)
    network = noise_benchmark.network(shape) if shape == CIFAR10 else _small()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device=device, memory_format=layout).eval()


def _small() -> UNet2DModel:
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


def denoiser(
    network: UNet2DModel,
    setting: Setting,
    precision: Precision,
    compiled: Compilation = "none",
    batch: int | None = None,
) -> Denoiser:
    """`network` as workers call it, in a precision, compiled or not."""
    how = arithmetic.prepare(precision, setting.device, setting.device, compiled)
    module = network
    if compiled != "none":
        from taugrid.workers.accelerator.compiled import by_torch

        module = by_torch(network, how)
    layout = torch.channels_last if _is_channels_last(network) else torch.contiguous_format

    @torch.inference_mode()
    def call(x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = module(x.contiguous(memory_format=layout), t, return_dict=False)[0]
        return output

    return arithmetic.computed(from_times(call), Arithmetic(precision, compiled, batch), setting.device)


def _is_channels_last(network: UNet2DModel) -> bool:
    weight = network.mid_block.resnets[0].conv1.weight
    return bool(weight.is_contiguous(memory_format=torch.channels_last))
