"""A device that only keeps time: what is submitted takes as long as it is told, and the host goes on meanwhile."""

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
    """A device on which each network call takes `seconds`, whose images are of 3 x 32 x 32."""

    def __init__(self, seconds: float, launch: Callable[[], object]) -> None:
        """`launch` takes the host as long as the launches of a network call."""
        self.seconds = seconds
        self._launch = launch
        self.calls: list[Call] = []
        """Those that were submitted. The last ones may not have ended."""

    @property
    def _free_at(self) -> float:
        return self.calls[-1].ended if self.calls else 0.0

    def submit(self, call: Callable[[], R]) -> R:
        """Make a network call, whose kernels the device begins as they come, and wait while too many are queued."""
        launched_from = time.perf_counter()
        self._launch()
        output = call()
        began = max(self._free_at, launched_from)
        self.calls.append(Call(began, max(began + self.seconds, time.perf_counter())))
        room = float(QUEUE)
        for queued in reversed(self.calls):
            if room < LAUNCHES:
                FakeMark(queued.ended - room / LAUNCHES * (queued.ended - queued.began)).synchronize()
                break
            room -= LAUNCHES
        return output

    def network(self) -> Denoiser:
        """A network that returns its x."""
        return Wrapped(FromTimes(lambda x, t: x), lambda call, x: self.submit(lambda: call(x)))

    def mark(self, device: torch.device) -> Mark:
        return FakeMark(self._free_at)

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Mark]:
        """Pictures for grey levels, and other tensors as they are."""
        pictures = torch.from_numpy(photographs(len(tensors[0])))
        copies = [pictures if x.dtype == torch.uint8 else x for x in tensors]
        return copies, self.mark(tensors[0].device)

    @contextmanager
    def installed(self) -> Iterator["FakeDevice"]:
        """Let transfers of this process go by this device's clock within the block."""
        with mock.patch.multiple(transfer, mark=self.mark, to_host=self.to_host):
            yield self


def photographs(number: int) -> NDArray[np.uint8]:
    """(B, 3, 32, 32) pictures that are as large as PNG as small photographs are, 2.4 kB."""
    random = np.random.default_rng(0)
    coarse = random.normal(128, 50, (number, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    noise = random.normal(0, 4, (number, 3, 32, 32))
    return (coarse + noise).clip(0, 255).astype(np.uint8)


def job_of(path: str, shape: tuple[int, int, int], batch: int, images: int) -> SampleJob:
    """Samples `images` images in `path`, with S = 10 and eta = 1. Its network is never loaded: bring another."""
    settings = SAMPLE_DEFAULTS.model_copy(update={"steps": 10, "eta": 1.0, "batch_size": batch})
    sampler = describe_sampler(settings, DIFFUSION_DEFAULTS)
    oracle = OracleNetwork(Data(name="gaussian", shape=shape))
    metadata = {"cell": "test", "model": "test"}
    plan = (sampler.tau, sampler.evaluations, metadata)
    return SampleJob(path, 0, images, oracle, Identity(shape), settings, DIFFUSION_DEFAULTS, *plan)
