"""What the parts of the benchmark share: the device, sizes, networks as workers load them, and a clock."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from taugrid.config import DIFFUSION_DEFAULTS, Config
from taugrid.config.load import load
from taugrid.config.sample import Compilation, Precision
from taugrid.jobs import SavedNetwork
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.policy import Arithmetic, Policy, lacks
from taugrid.workers.device import Device
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.jobs import SampleJob
from taugrid.workers.network.checkpoint import saved_network
from taugrid.workers.network.unet import build_unet
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler

STEPS = 10
ETA = 1.0
"""Of taugrid's sampler and diffusers' alike: every step draws noise."""


class NotHere(Exception):
    """Raised for what a device can't show. The message says why."""


class Setting:
    """The device, whether it takes the short form, and the figures of the part that runs."""

    def __init__(self, device: str, short: bool) -> None:
        self.device, self.short, self.kind = device, short, kind_of(device)
        self.part, self.figures = "", dict[str, Any]()
        self.known: dict[str, float] = {}
        """Figures that later parts compare theirs with."""
        self.worker = Device(device)
        self._scratch = tempfile.TemporaryDirectory(prefix="taugrid-benchmark-")
        self.folder = Path(self._scratch.name)

    @property
    def on_gpu(self) -> bool:
        return self.kind != "cpu"

    @property
    def batch(self) -> int:
        """Images at a time."""
        return 8 if self.short else 256

    @property
    def precisions(self) -> list[Precision]:
        """Those that the device has."""
        known: list[Precision] = ["float32", "tf32", "bf16", "bf16-weights"]
        return [each for each in known if lacks(self.kind, each, arithmetic.is_ampere(self.device)) is None]

    @cached_property
    def config(self) -> Config:
        """The shipped config whose network is measured."""
        return load("digits" if self.short else "cifar10-table1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its images."""
        return self.config.data.image_shape

    def say(self, name: str, value: Any, goal: str = "") -> None:
        """Print a figure now, with the goal that it has on a GPU, and keep it for the part's line of JSON."""
        self.figures[name] = value = float(f"{value:.4g}") if isinstance(value, float) else value
        print(f"{self.part}: {name}: {value}{f' (goal on a GPU: {goal})' if goal else ''}", flush=True)

    def require_compiler(self) -> None:
        if self.short or "bf16-weights" not in self.precisions:
            raise NotHere("compiling needs a compiler, a GPU that has bf16 and more time than the short form")

    def wait(self) -> None:
        """Return once the device has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], rounds: int = 3, most: float = 4.0) -> float:
        """The median wall time of `function` after a call that warms up, in at most `rounds` and about `most` s."""
        times: list[float] = []
        function()
        while len(times) < rounds and sum(times) < most:
            self.wait()
            began = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def unet(self) -> UNet2DModel:
        """The network on the CPU, with weights from a seed."""
        assert self.config.model.unet is not None
        torch.manual_seed(0)
        return build_unet(self.config.model.unet, self.shape).eval()

    @cached_property
    def _saved(self) -> SavedNetwork:
        folder = self.folder / "unet"
        self.unet().save_pretrained(folder)
        return saved_network(folder)

    def network(self, precision: Precision, compile: Compilation = "none", fills_up: bool = True) -> Denoiser:
        """The network as a worker loads and calls it. It makes this process compute so, until it is called again.

        Without `fills_up`, smaller batches stay as they are on GPUs too.
        """
        how = Arithmetic(precision, compile, self.batch if fills_up else None)
        return self.worker.network(self._saved, DIFFUSION_DEFAULTS, how)

    def module(self, how: Policy, device: str) -> UNet2DModel:
        """The network itself on `device`, with weights and layout as workers have them."""
        unet = self.unet()
        if how.weights is not None:
            arithmetic.cast_weights(unet, how.weights, but=("time_proj",))
        moved: UNet2DModel = unet.to(memory_format=getattr(torch, how.layout)).to(device)
        return moved

    def inputs(self, how: Policy, device: str) -> tuple[Tensor, Tensor]:
        """The x and t of a call of `module`."""
        dtype, layout = getattr(torch, how.weights or "float32"), getattr(torch, how.layout)
        x = torch.zeros(self.batch, *self.shape, device=device, dtype=dtype).contiguous(memory_format=layout)
        return x, torch.full((self.batch,), 500, device=device)

    def bare(self, precision: Precision, compile: Compilation = "none") -> Callable[[], None]:
        """The network's calls for a batch of images and nothing else: no noise, no sampler, x as it needs it."""
        how = arithmetic.prepare(precision, self.device, self.device, compile)
        module: Callable[..., Any] = self.module(how, self.device)
        if how.compile != "none":
            from taugrid.workers.accelerator.compiled import by_torch

            module = by_torch(module, how.layout)
        x, t = self.inputs(how, self.device)
        half = getattr(torch, how.autocast or "bfloat16")

        def calls() -> None:
            with torch.inference_mode(), torch.autocast(self.device, half, enabled=how.autocast is not None):
                for _ in range(STEPS):
                    module(x, t, return_dict=False)

        return calls

    def job(self, images: int) -> SampleJob:
        """Samples `images` images into a scratch file. Callers bring its network."""
        settings = SAMPLE_DEFAULTS.model_copy(update={"steps": STEPS, "eta": ETA, "batch_size": self.batch})
        described = describe_sampler(settings, DIFFUSION_DEFAULTS)
        path = str(Path(tempfile.mkdtemp(dir=self.folder)) / "shard.parquet")
        metadata = {"cell": "benchmark", "model": "benchmark"}
        how = (settings, DIFFUSION_DEFAULTS, described.tau, described.evaluations)
        return SampleJob(path, 0, images, self._saved, Identity(self.shape), *how, metadata)


def in_a_process(code: str) -> str:
    """What other Python code prints in a process of its own.

    Raises:
        RuntimeError: with what it wrote to stderr, if it fails.
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"a child process ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done.stdout.strip()
