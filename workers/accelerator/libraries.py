"""The libraries and the driver that a GPU computes with, for records."""

from contextlib import suppress
from pathlib import Path

DRIVERS = {"cuda": "nvidia", "rocm": "amdgpu"}
"""Kind of device -> the Linux kernel's module, whose version is that of the driver."""


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
