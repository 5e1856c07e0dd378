"""What a device computes with, for records: the libraries and the driver of a GPU, the model of a CPU."""

import platform
from contextlib import suppress
from pathlib import Path

DRIVERS = {"cuda": "nvidia", "rocm": "amdgpu"}
"""Kind of device -> the Linux kernel's module, whose version is that of the driver."""


GPU_DRIVERS = "/proc/driver/nvidia", "/dev/kfd"
"""What NVIDIA's and AMD's drivers make on a machine."""


def has_gpus() -> bool:
    """Whether a driver of GPUs is on this machine, as far as known without torch."""
    return any(Path(driver).exists() for driver in GPU_DRIVERS)


def libraries(kind: str, modules: Path = Path("/sys/module")) -> dict[str, str]:
    """Name -> version of what a `kind` of device computes with, as far as it is known; empty for CPUs.

    `cuda` and `cudnn`, or `hip` and `miopen`, are those that torch loaded (91002 is cuDNN 9.10.2). `driver`: NVIDIA's
    and AMD's modules tell their version; the amdgpu that is part of Linux has none.
    """
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
