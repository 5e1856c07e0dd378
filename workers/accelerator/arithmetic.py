"""How networks compute: in true float32, unless a cell's `sample.precision` asks for less.

torch is imported when something is computed, not with this module: the driver must not import it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from taugrid.config.sample import Compilation, Precision, Sample
from taugrid.errors import DeviceUnusable
from taugrid.words import this_node
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser

FIRST_WITH_TF32 = (8, 0)
"""The compute capability of Ampere (A100), the first NVIDIA architecture with TF32."""

HALF = {"bf16": "bfloat16", "fp16": "float16"}
"""Precisions under autocast -> torch's names of their types."""

ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
"""torch's kernels for attention, as it names their switches."""


class Arithmetic(NamedTuple):
    """How a network is computed; every field changes its output in the last digits, or more."""

    precision: Precision = "float32"
    compile: Compilation = "none"
    batch_size: int | None = None
    """The one number of images for which a compiled network is built. None: it is not compiled."""

    @classmethod
    def of(cls, settings: Sample) -> "Arithmetic":
        """How the network of a cell with these `settings` is computed."""
        return cls(settings.precision, settings.compile, settings.batch_size)


PLAIN = Arithmetic()


def configure(tf32: bool = False) -> None:
    """Make this process compute in true float32, or in TF32 where float32 is asked for, and the same every time.

    A user's network or extractor can change these settings of the whole process, so they are set for every job. torch
    has an old and a new set of switches. Libraries read the old ones, and torch raises an error if both disagree, so
    both are set. The new ones are set where they are read, not from above: there no later setting reaches them. Sums in
    half precision and the kernels of attention are as torch ships them.
    """
    import torch

    backends: Any = torch.backends  # torch sets its switches with modules whose types lag
    for above in (backends, backends.cudnn, backends.mkldnn):
        above.fp32_precision = "none"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32  # on by default for convolutions
    backends.cuda.matmul.allow_tf32 = tf32
    for place in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
        place.fp32_precision = "tf32" if tf32 else "ieee"
    for place in (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul):
        place.fp32_precision = "ieee"  # a CPU could take bf16 for it
    backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False  # it takes the kernel that was fastest this time
    backends.miopen.immediate = True  # the same on ROCm, whose library times kernels even without a benchmark
    for half in HALF:
        setattr(backends.cuda.matmul, f"allow_{half}_reduced_precision_reduction", True)
    backends.cuda.matmul.allow_fp16_accumulation = False
    for kernel in ATTENTION:
        getattr(backends.cuda, f"enable_{kernel}_sdp")(True)


@contextmanager
def restored() -> Iterator[None]:
    """Leave this process's switches after the context as they were before: a caller's process has its own.

    torch refuses to read float32's old switches where they disagree with the new ones, and its users are told to use
    the new ones alone. So the new ones are read first, and made to agree within the context.
    """
    import torch

    backends: Any = torch.backends
    cudnn, mkldnn, matmul = backends.cudnn, backends.mkldnn, backends.cuda.matmul
    switches = [(cudnn, "deterministic"), (cudnn, "benchmark"), (backends.miopen, "immediate")]
    switches.append((matmul, "allow_fp16_accumulation"))
    before = [(*switch, getattr(*switch)) for switch in switches]
    before += [(matmul, *_reduced_sums(matmul, half)) for half in HALF]
    attention = {kernel: getattr(backends.cuda, f"{kernel}_sdp_enabled")() for kernel in ATTENTION}
    precisions = []  # each place and what is set there itself, not from above
    for place in (backends, cudnn, mkldnn):  # the topmost first, or else its value would be read below
        precisions.append((place, place.fp32_precision))
        place.fp32_precision = "none"
    below = (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    precisions += [(place, place.fp32_precision) for place in below]
    for place in below:
        place.fp32_precision = "ieee"
    try:
        convolutions = bool(cudnn.allow_tf32)
    except RuntimeError:  # the new switches are off, so the old one must be on
        convolutions = True
    matrices = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        cudnn.allow_tf32 = convolutions  # both set new ones too, so these come last
        for place, value in reversed(precisions):  # the topmost last: mkldnn's switch sets that one too (torch 2.13)
            place.fp32_precision = value
        for switch in before:
            setattr(*switch)
        for kernel, on in attention.items():
            getattr(backends.cuda, f"enable_{kernel}_sdp")(on)


def _reduced_sums(matmul: Any, half: str) -> tuple[str, Any]:
    """The switch for sums of products in `half`, and its value, which in newer versions covers split sums too."""
    name = f"allow_{half}_reduced_precision_reduction"
    split = getattr(matmul, f"{name}_split_k", None)
    return name, getattr(matmul, name) if split is None else (getattr(matmul, name), split)


def repeat_backward() -> None:
    """Make backward passes on GPUs give the same every time, where torch can; where it can't, it warns in the log.

    The fast backward passes of attention add in any order, so attention is computed from plain matrix products.
    """
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # saves time
    for switch in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{switch}_sdp")(False)


def has_tf32(device: str) -> bool:
    import torch

    if device != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability() >= FIRST_WITH_TF32


def prepare(precision: Precision, device: str, hardware: str) -> None:
    """Set this process up for a job of `precision`; DeviceUnusable if the device does not have it."""
    if precision == "tf32" and not has_tf32(device):
        raise DeviceUnusable(
            f"node {this_node()}: sample.precision: tf32 needs an NVIDIA GPU of the generation of the A100 or later, "
            f"and this worker has {hardware}; set float32, bf16 or fp16, or choose nodes with cluster.label_selector"
        )
    configure(tf32=precision == "tf32")


def computed(network: "Denoiser", how: Arithmetic, device: str) -> "Denoiser":
    """`network` with the precision and batch size of `how`; if `how` asks for compilation, it is compiled already."""
    if how.precision in HALF:
        network = under_autocast(network, HALF[how.precision], device)
    if how.compile != "none" and how.batch_size is not None:
        from taugrid.workers.accelerator.compiled import in_full_batches

        network = in_full_batches(network, how.batch_size)
    return network


def under_autocast(network: "Denoiser", half: str, device: str) -> "Denoiser":
    """`network` under autocast to torch's type `half`. x and the output are float32.

    Only the network runs under autocast. The sampler's own arithmetic stays float32, and so does t: in bf16, 998 would
    be 1000.
    """
    import torch

    def in_half(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        with torch.autocast(device, getattr(torch, half)):
            output = call(x)
        return output.float()

    return Wrapped(network, in_half)
