"""A device that only keeps time: what is submitted to it takes as long as it is told, and the host goes on meanwhile.

Tensors are small ones of a CPU, which cost the host about what launches on a GPU cost it, Python included. Pictures of
full size stand for what comes back. For tests too.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid.config import DIFFUSION_DEFAULTS, Data
from taugrid.jobs import OracleNetwork
from taugrid.workers.accelerator import transfer
from taugrid.workers.accelerator.transfer import Mark
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoiser, FromTimes, Wrapped
from taugrid.workers.jobs import SampleJob
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler

QUEUE = 1000
"""Launches that CUDA queues before it lets the host wait."""

LAUNCHES = 600
"""Of a network call: the CIFAR-10 U-Net launches 570 to 660 kernels in an evaluation."""

R = TypeVar("R")


class Call(NamedTuple):
    """A network call on the device, in seconds of `time.perf_counter`."""

    began: float
    ended: float


class FakeMark(NamedTuple):
    """A `transfer.Mark`: the device reaches it at a time."""

    at: float

    def query(self) -> bool:
        return time.perf_counter() >= self.at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.at - time.perf_counter()))


class FakeDevice:
    """A device on which each network call takes `seconds`, and whose images have the shape (C, H, W)."""

    def __init__(self, seconds: float, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        self.seconds, self.shape = seconds, shape
        self._pictures: NDArray[np.uint8] = photographs(0, shape)
        self.calls: list[Call] = []
        """Those that were submitted. The last ones may not have ended."""

    @property
    def _free_at(self) -> float:
        return self.calls[-1].ended if self.calls else 0.0

    def submit(self, launch: Callable[[], R]) -> R:
        """Run `launch`, whose kernels the device begins as they come, and wait while too many are queued."""
        launched_from = time.perf_counter()
        output = launch()
        began = max(self._free_at, launched_from)
        self.calls.append(Call(began, max(began + self.seconds, time.perf_counter())))
        room = float(QUEUE)
        for call in reversed(self.calls):
            if room < LAUNCHES:
                FakeMark(call.ended - room / LAUNCHES * (call.ended - call.began)).synchronize()
                break
            room -= LAUNCHES
        return output

    def network(self) -> Denoiser:
        """A network that launches what the CIFAR-10 U-Net launches, and returns its x."""
        modules = launches()
        return Wrapped(FromTimes(lambda x, t: x), lambda call, x: self.submit(lambda: (modules(), call(x))[1]))

    def mark(self, device: torch.device) -> Mark:
        return FakeMark(self._free_at)

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Mark]:
        """Pictures for grey levels, and other tensors as they are."""
        if len(self._pictures) < len(tensors[0]):
            self._pictures = photographs(len(tensors[0]), self.shape)
        found = [torch.from_numpy(self._pictures[: len(x)]) if x.dtype == torch.uint8 else x for x in tensors]
        return found, self.mark(tensors[0].device)

    @contextmanager
    def installed(self) -> Iterator["FakeDevice"]:
        """Let transfers of this process go by this device's clock within the block."""
        with mock.patch.multiple(transfer, mark=self.mark, to_host=self.to_host):
            yield self


def launches() -> Callable[[], object]:
    """The modules of the CIFAR-10 U-Net with a sixteenth of its channels, for one image of 8 x 8."""
    from diffusers import UNet2DModel

    from benchmarks import noise

    with torch.device("meta"):
        config = dict(noise.network((3, 32, 32)).config)
    config |= {"block_out_channels": [width // 16 for width in config["block_out_channels"]], "norm_num_groups": 8}
    network = UNet2DModel.from_config({key: value for key, value in config.items() if not key.startswith("_")}).eval()
    x, t = torch.zeros(1, 3, 8, 8), torch.full((1,), 500)

    @torch.inference_mode()
    def launch() -> object:
        return network(x, t, return_dict=False)

    return launch


def photographs(number: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(B, C, H, W) pictures that are as large as PNG as small photographs are: 2.4 kB for 3 x 32 x 32."""
    random, (channels, height, width) = np.random.default_rng(0), shape
    coarse = random.normal(128, 50, (number, channels, height // 8, width // 8)).repeat(8, 2).repeat(8, 3)
    noise = random.normal(0, 4, (number, *shape))
    return (coarse + noise).clip(0, 255).astype(np.uint8)


def job_of(path: str, shape: tuple[int, int, int], batch: int, images: int) -> SampleJob:
    """Samples `images` images in `path`, with S = 10 and eta = 1. Its network is never loaded: bring another."""
    given = {"steps": 10, "eta": 1.0, "batch_size": batch}
    settings = SAMPLE_DEFAULTS.model_copy(update=given)
    described = describe_sampler(settings, DIFFUSION_DEFAULTS)
    oracle, decoder = OracleNetwork(Data(name="gaussian", shape=shape)), Identity(shape)
    metadata = {"cell": "benchmark", "model": "benchmark"}
    told = described.tau, described.evaluations, metadata
    return SampleJob(path, 0, images, oracle, decoder, settings, DIFFUSION_DEFAULTS, *told)
