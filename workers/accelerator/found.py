"""What torch finds on a machine, to be asked of another process: neither the driver nor its checks import torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from taugrid.workers.accelerator.gpu import torchs_words, way_out
from taugrid.workers.accelerator.libraries import libraries

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that Ray empties for a task without GPUs, as a check on a node is one."""


@dataclass(frozen=True)
class TorchFound:
    version: str
    kind: str
    """What it is built for: cuda, rocm or cpu."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    gpus: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, bytes of memory, and free bytes of each GPU that has computed something."""
    error: str = ""
    """Why it can't use a GPU, in its own words."""
    fix: str = ""


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
            free, total = torch.cuda.mem_get_info(number)
            found.gpus.append((str(torch.cuda.get_device_name(number)), int(total), int(free)))
    except Exception as error:
        words = torchs_words(error)
        fix = way_out(words) or "check its driver and its torch"
        return TorchFound(found.version, kind, found.libraries, found.gpus, words, fix)
    return found
