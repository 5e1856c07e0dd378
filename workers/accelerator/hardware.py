"""The devices of a machine: what torch finds there, the GPU that Ray gave a process, and versions for records.

Torch is imported in functions: neither the driver nor its checks import it.
"""

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from taugrid.errors import WorkerRefusal, is_accelerator_error, last_line
from taugrid.words import this_node

DRIVERS = {"cuda": "nvidia", "rocm": "amdgpu"}
"""Kind of device -> the Linux kernel's module, whose version is that of the driver."""

GPU_DRIVERS = "/proc/driver/nvidia", "/dev/kfd"  # what NVIDIA's and AMD's drivers make on a machine

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that Ray empties for a task without GPUs, as a check on a node is one."""

BUILDS = "see https://pytorch.org/get-started/previous-versions"

GPU_REMEDY = (
    f"check its driver, that torch is a build for it ({BUILDS}), that no other process fills it, and that `ray start "
    "--num-gpus` and a container (docker run --gpus all) have it; or set cluster.gpus_per_worker: 0 to use CPUs"
)
"""What to do about a GPU that torch can't use."""

NOT_BROKEN = "no kernel image|invalid device function|busy or unavailable|out of memory"
"""Errors of CUDA and HIP when a GPU is started that say nothing against the card (cudaGetErrorString)."""

BROKEN_REMEDY = (
    "Xid (NVIDIA) or amdgpu lines in dmesg there tell whether the card is broken; then exclude the node with "
    "cluster.label_selector"
)
"""What to do about an accelerator's error after which a process can't use it any more."""


def start_gpu(who: str = "this worker") -> str:
    """Start the GPU that Ray gave this process, which may see no other, and return its model. `WorkerRefusal` if torch
    can't use it and a new process could not either; torch's error if the accelerator is broken."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # unlike `is_available`, it raises the reason
        model = str(torch.cuda.get_device_name())
        torch.zeros(1, device="cuda").add_(1).item()  # the first kernel: it makes the process's context
        return model
    except Exception as error:
        words = torchs_words(error)
        if is_accelerator_error(error) and not re.search(NOT_BROKEN, words):
            raise
    # Not in the handler: with torch's error as its context, it would count as a broken accelerator.
    raise WorkerRefusal(
        f"node {this_node()}: torch {torch.__version__} can't use the GPU that Ray gave {who}: {words}; {GPU_REMEDY}"
    )


def torchs_words(error: BaseException) -> str:
    """What torch says of an error, without its general advice."""
    while error.__cause__ is not None:  # an error within `init` is wrapped with two tracebacks
        error = error.__cause__
    return re.split(r" Please | Of the allocated memory ", last_line(error))[0].rstrip(" .")


@dataclass(frozen=True)
class TorchFound:
    version: str
    kind: str  # what it is built for: cuda, rocm or cpu
    libraries: Mapping[str, str] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)  # the names of those that have computed something
    error: str = ""  # why it can't use a GPU, in its own words


def torch_found() -> TorchFound:
    """What torch finds here; each GPU computes something."""
    for name in VISIBLE:
        if os.environ.get(name) == "":
            del os.environ[name]
    import torch

    kind = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"
    found = TorchFound(str(torch.__version__), kind, libraries(kind))
    if kind == "cpu":
        return found
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # unlike `is_available`, it raises the reason
        for number in range(torch.cuda.device_count()):
            torch.zeros(1, device=f"cuda:{number}").add_(1).item()
            found.gpus.append(str(torch.cuda.get_device_name(number)))
    except Exception as error:
        return replace(found, error=torchs_words(error))
    return found


def has_gpus() -> bool:
    """Whether a driver of GPUs is on this machine, as far as known without torch."""
    return any(Path(driver).exists() for driver in GPU_DRIVERS)


def libraries(kind: str, modules: Path = Path("/sys/module")) -> dict[str, str]:
    """Name -> version of what a `kind` of device computes with, as far as it is known; empty for CPUs. `cuda` and
    `cudnn`, or `hip` and `miopen`, are those that torch loaded (91002 is cuDNN 9.10.2)."""
    if kind not in DRIVERS:
        return {}
    import torch

    names = ("cuda", "cudnn") if kind == "cuda" else ("hip", "miopen")
    found: dict[str, object] = {names[0]: getattr(torch.version, names[0])}
    with suppress(RuntimeError):  # torch found a different cuDNN than it was built for: computing will tell
        found[names[1]] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    with suppress(OSError):
        found["driver"] = (modules / DRIVERS[kind] / "version").read_text().strip()
    return {name: str(version) for name, version in found.items() if version}


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """The model of this machine's CPU; empty if it is not known."""
    with suppress(OSError):
        models = [line for line in file.read_text().splitlines() if line.startswith("model name")]
        return models[0].partition(":")[2].strip() if models else platform.processor()
    return platform.processor()
