"""The GPU that Ray gave a process: started, or refused in one line with torch's own words and the ways out.

Torch's texts are from c10/cuda/CUDAFunctions.cpp (`device_count_impl`), torch/cuda/__init__.py (`_lazy_init`), and
cudaGetErrorString in c10/cuda/CUDAException.cpp. A build for ROCm has the same texts, some with HIP in place of CUDA.
Torch is imported when a GPU is started, not with this module: the driver must not import it.
"""

import re

from taugrid.errors import DeviceUnusable, is_accelerator_error, last_line
from taugrid.words import this_node

BUILDS = "see https://pytorch.org/get-started/previous-versions"

WAYS_OUT = {
    "driver on your system is too old": f"update the driver, or install a torch for its CUDA on every node: {BUILDS}",
    "not compiled with CUDA enabled": f"install a torch for GPUs on every node: {BUILDS}",
    "No (CUDA|HIP) GPUs are available": "start Ray on the node with --num-gpus equal to the number of GPUs that {tool} "
    "lists and with CUDA_VISIBLE_DEVICES unset, and containers with their GPUs (docker run --gpus all)",
    "no kernel image|invalid device function": "install a torch that has kernels for this card on every node: "
    + BUILDS,
    "busy or unavailable": "end the other processes that {tool} shows, or the card's exclusive-process mode",
    "Found no NVIDIA driver|driver initialization failed": "install its driver there, or give the container its GPUs "
    "(docker run --gpus all)",
    "out of memory": "end the other processes that {tool} shows, which fill its memory",
}
"""What torch says, as patterns -> what to do about it."""

_HARDWARE = re.compile(r"ECC|hardware stack error|fallen off the bus|GPU is lost|NVLink")


def start_gpu(who: str = "this worker") -> str:
    """Start the GPU that Ray gave this process, which may see no other, and return its model.

    Raises:
        DeviceUnusable: if torch can't use it and a new process could not either; it names the ways out.
        Exception: torch's error, if the accelerator is broken (`is_accelerator_error`).
    """
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # unlike `is_available`, it raises the reason
        model = str(torch.cuda.get_device_name())
        torch.zeros(1, device="cuda").add_(1).item()  # the first kernel: it makes the process's context
        return model
    except Exception as error:
        words = torchs_words(error)
        if (out := way_out(words)) is None:
            if is_accelerator_error(error):
                raise
            out = "check its driver and its torch"
    # Not in the handler: with torch's error as its context, it would count as a broken accelerator.
    raise DeviceUnusable(
        f"node {this_node()}: torch {torch.__version__} can't use the GPU that Ray gave {who}: {words}; {out}, or set "
        "cluster.gpus_per_worker: 0 to use CPUs"
    )


def torchs_words(error: BaseException) -> str:
    """What torch says of an error, without its general advice."""
    while error.__cause__ is not None:  # an error within `init` is wrapped with two tracebacks
        error = error.__cause__
    return re.split(r" Please | Of the allocated memory ", last_line(error))[0].rstrip(" .")


def way_out(words: str) -> str | None:
    """What to do about an error of torch's when it starts a GPU, in a phrase; None: that is not known."""
    tool = "rocm-smi" if "HIP" in words else "nvidia-smi"
    return next((out.format(tool=tool) for text, out in WAYS_OUT.items() if re.search(text, words)), None)


def about_broken(words: str) -> str:
    """What to do about an accelerator's error after which a process can't use it any more, in a phrase."""
    counts, log = ("rocm-smi --showrasinfo", "amdgpu") if "HIP" in words else ("nvidia-smi -q -d ECC", "Xid")
    if _HARDWARE.search(words):
        return (
            f"the card is broken or must be reset: check `{counts}` and {log} lines in dmesg there; exclude the node "
            "with cluster.label_selector"
        )
    return f"{log} lines in dmesg there tell whether the card is broken"
