"""The GPU that Ray gave a process: started, or refused in one line with torch's own words and the ways out.

Torch's texts are from c10/cuda/CUDAFunctions.cpp (`device_count_impl`), torch/cuda/__init__.py (`_lazy_init`), and
cudaGetErrorString in c10/cuda/CUDAException.cpp. A build for ROCm has the same texts, some with HIP in place of CUDA.
Torch is imported when a GPU is started, not with this module: the driver must not import it.
"""

import os
import platform
import re
from collections.abc import Callable

from taugrid.errors import DeviceUnusable, is_accelerator_error, last_line
from taugrid.versions import versions
from taugrid.words import this_node

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""What hides GPUs from a process, by NVIDIA and AMD. Ray sets the first or the second for each worker."""

INDEX = "https://download.pytorch.org/whl"
"""Where torch's builds for other versions of CUDA are."""


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
    return next((out(words) for text, out in _WAYS_OUT if re.search(text, words)), None)


def _for_an_old_driver(words: str) -> str:
    version = re.search(r"found version (\d+)", words)
    major = int(version.group(1)) // 1000 if version else 0
    return f"update the driver, or install a torch for CUDA {major} on every node: {_install(_newest_of(major))}"


def _for_a_cpu_build(_: str) -> str:
    oldest = min((_major(cuda) for cuda in _published()), default=0)  # for the most drivers
    return f"install a torch for GPUs on every node: {_install(_newest_of(oldest))}"


def _for_a_hidden_gpu(_: str) -> str:
    said = [f"{name}={os.environ[name]!r}" for name in VISIBLE if name in os.environ]
    variables = f"{' and '.join(said)} there hides it or names one that the node does not have: " if said else ""
    return (
        f"{variables}start Ray on the node with --num-gpus as {_tool()} counts them and without "
        f"{VISIBLE[0]} of your own, and a container with its GPUs"
    )


def _for_another_card(_: str) -> str:
    """Torch has no kernels for the card. Reads properties that need none."""
    import torch

    has = " ".join(torch.cuda.get_arch_list())
    if torch.version.hip is not None:
        card = torch.cuda.get_device_properties().gcnArchName
        return f"the card is {card}, and this torch has kernels for {has}: install a torch built for it"
    major, minor = torch.cuda.get_device_capability()
    fitting = [
        cuda
        for cuda, codes in _published().items()
        if any(code // 10 == major and code % 10 <= minor for code in codes)
    ]
    return (
        f"the card has compute capability {major}.{minor}, and this torch has kernels for {has}: install a torch that "
        f"has its kernels on every node: {_install(fitting[0] if fitting else None)}"
    )


def _published() -> dict[str, set[int]]:
    """The versions of CUDA, ascending, for which this torch is published, with the capabilities that each one knows."""
    import torch

    builds = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", {})  # since torch 2.10
    machine = "aarch64" if platform.machine().lower() in ("aarch64", "arm64") else "x86_64"
    return {cuda: codes.get(machine, set()) if isinstance(codes, dict) else codes for cuda, codes in builds.items()}


def _major(cuda: str) -> int:
    return int(cuda.partition(".")[0])


def _newest_of(major: int) -> str | None:
    """The newest published build for a major version of CUDA: a driver takes all builds of its own."""
    return next((cuda for cuda in reversed(_published()) if _major(cuda) == major), None)


def _install(cuda: str | None) -> str:
    """The command that installs this version of torch for a version of CUDA.

    Its builds have the same number: without their tags, pip would find that it is installed. torchvision refuses to
    work with a torch for a different major version.
    """
    if cuda is None:
        return "see https://pytorch.org/get-started/previous-versions"
    tag = f"cu{cuda.replace('.', '')}"
    numbers = {name: version.partition("+")[0] for name, version in versions(("torch", "torchvision")).items()}
    packages = " ".join(f"{name}=={number}+{tag}" for name, number in numbers.items())
    return f"pip install {packages} --index-url {INDEX}/{tag}"


def _tool() -> str:
    import torch

    return "nvidia-smi" if torch.version.hip is None else "rocm-smi"


_WAYS_OUT: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("driver on your system is too old", _for_an_old_driver),
    ("not compiled with CUDA enabled", _for_a_cpu_build),
    ("No (CUDA|HIP) GPUs are available", _for_a_hidden_gpu),
    ("no kernel image|invalid device function", _for_another_card),
    (
        "busy or unavailable",
        lambda _: (
            "another process has it in exclusive-process mode (nvidia-smi -q -d COMPUTE; nvidia-smi -c DEFAULT ends "
            "it), or its MIG mode has no instance (nvidia-smi -L)"
        ),
    ),
    (
        "device < num_gpus",  # pytorch#130181
        lambda _: (
            "a process sees one MIG instance: start Ray with --num-gpus=1 and with the name of one (nvidia-smi -L) in "
            "CUDA_VISIBLE_DEVICES"
        ),
    ),
    (
        "Found no NVIDIA driver|driver initialization failed",
        lambda _: "install its driver there, or give the container its GPUs (docker run --gpus all)",
    ),
    ("system not yet initialized", lambda _: "start nvidia-fabricmanager on the node (NVSwitch machines need it)"),
    (
        "driver combination|[Ff]orward compatibility",
        lambda _: "restart the node after the update of its driver, and take cuda-compat out of LD_LIBRARY_PATH",
    ),
    ("out of memory", lambda _: f"other processes fill its memory: {_tool()} shows which; end them"),
)
"""What torch says, as patterns -> what to do about it."""

_HARDWARE = re.compile(r"ECC|hardware stack error|fallen off the bus|GPU is lost|NVLink")


def about_broken(words: str) -> str:
    """What to do about an accelerator's error after which a process can't use it any more, in a phrase."""
    counts, log = ("rocm-smi --showrasinfo", "amdgpu") if "HIP" in words else ("nvidia-smi -q -d ECC", "Xid")
    if _HARDWARE.search(words):
        return (
            f"the card is broken or must be reset: {counts} and {log} in dmesg of that node tell; keep the node out "
            "(cluster.label_selector) until it is mended"
        )
    return f"{log} in dmesg of that node tells whether the card is broken"
