"""Sets this process up to compute as `policy` says, and networks with it. benchmarks/device measures it."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from taugrid.config.sample import Compilation, Precision
from taugrid.errors import WorkerRefusal
from taugrid.words import this_node
from taugrid.workers.accelerator.policy import Arithmetic, Policy, lacks, policy
from taugrid.workers.diffusion.denoiser import Denoiser, Wrapped
from taugrid.workers.diffusion.process import Point

ATTENTION = ("flash", "mem_efficient", "math", "cudnn")  # torch's kernels for attention, as it names their switches

REPEATABLE_COMPILER = "2.10"
"""The first torch whose compiler has the option `deterministic`: older ones choose the order of sums by timing."""

SUMS = ("bf16", "fp16")  # types for whose sums of products torch has a switch, as the switch names them

ON_CPUS = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
ON_GPUS = ("NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION")
"""Variables by which libraries compute float32 differently whatever torch's switches say."""


def kind_of(device: str) -> str:
    """The kind of a device that torch names so, such as `cuda:1`: AMD's GPUs are `cuda` to torch too."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return "rocm" if torch.version.hip is not None else kind
    return kind


CONFIGURED = policy("cpu")  # what processes are set up for until a job asks for more


def require_float32(has_gpu: bool) -> None:
    """Raise `WorkerRefusal` if a variable changes float32. Libraries may have read it, so it can't be taken back."""
    for name in (*ON_CPUS, *(ON_GPUS if has_gpu else ())):
        if (value := os.environ.get(name, "")).lower() not in ("", "0", "strict"):
            raise WorkerRefusal(
                f"node {this_node()}: {name}={value} changes how libraries compute float32; unset it (for workers, in "
                "front of `ray start` on every node)"
            )


def configure(how: Policy = CONFIGURED) -> None:
    """Make this process compute in true float32, or in TF32 where `how` says so, and the same every time.

    A user's network or extractor can change these settings, so they are set for every job. torch has an old and a new
    set of switches, and raises an error if they disagree, so both are set. The new ones are set where they are read,
    not from above: there no later setting reaches them. Sums in half precision are as torch ships them."""
    global _now
    _now = how
    backends: Any = torch.backends  # torch sets its switches with modules whose types lag
    for above in (backends, backends.cudnn, backends.mkldnn):
        above.fp32_precision = "none"
    torch.set_float32_matmul_precision("high" if how.tf32 else "highest")
    backends.cudnn.allow_tf32 = how.tf32  # on by default for convolutions
    backends.cuda.matmul.allow_tf32 = how.tf32
    for place in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
        place.fp32_precision = "tf32" if how.tf32 else "ieee"
    for place in (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul):
        place.fp32_precision = "ieee"  # a CPU could take bf16 for it
    backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False  # it takes the kernel that was fastest this time: not the same in each process
    backends.miopen.immediate = True  # the same on ROCm, whose library times kernels even without a benchmark
    for half in SUMS:
        setattr(backends.cuda.matmul, f"allow_{half}_reduced_precision_reduction", True)
    backends.cuda.matmul.allow_fp16_accumulation = False
    for kernel in ATTENTION:
        getattr(backends.cuda, f"enable_{kernel}_sdp")(kernel in how.attention)


_now = CONFIGURED  # what this process was last configured for


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within the context, products of float32 are true, whatever the job's network computes in."""
    before = _now
    if before.tf32:
        configure(before._replace(tf32=False))
    try:
        yield
    finally:
        if before.tf32:
            configure(before)


@contextmanager
def restored() -> Iterator[None]:
    """Leave this process's switches after the context as they were before: a caller's process has its own.

    torch refuses to read float32's old switches where they disagree with the new ones. So the new ones are read first,
    and made to agree within the context. cuDNN's convolutions and recurrent layers begin as TF32 unless a setting from
    above says otherwise (torch 2.13), and no call sets that again: where it does not, they are TF32 of their own
    afterwards, and `torch.backends.fp32_precision = "ieee"` no longer reaches them."""
    backends: Any = torch.backends
    cudnn, mkldnn, matmul = backends.cudnn, backends.mkldnn, backends.cuda.matmul
    switches = [(cudnn, "deterministic"), (cudnn, "benchmark"), (backends.miopen, "immediate")]
    before = [(*switch, getattr(*switch)) for switch in [*switches, (matmul, "allow_fp16_accumulation")]]
    for name in (f"allow_{half}_reduced_precision_reduction" for half in SUMS):
        split = getattr(matmul, f"{name}_split_k", None)  # of newer versions, whose value covers split sums too
        value = getattr(matmul, name)
        before.append((matmul, name, value if split is None else (value, split)))
    attention = {kernel: getattr(backends.cuda, f"{kernel}_sdp_enabled")() for kernel in ATTENTION}
    precisions = []  # each place and what is set there itself, not from above
    for place in (backends, cudnn, mkldnn):  # the topmost first, or else its value would be read below
        precisions.append((place, place.fp32_precision))
        place.fp32_precision = "none"
    below = (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    own = [place.fp32_precision for place in below]
    if any(value != "none" for _, value in precisions[:2]):
        backends.fp32_precision = "ieee"  # reaches what has no value of its own, whatever that reads
        own[:2] = [was if place.fp32_precision == was else "none" for place, was in zip(below[:2], own, strict=False)]
        backends.fp32_precision = "none"
    precisions += zip(below, own, strict=True)
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


def is_ampere(device: str) -> bool:
    """Whether a device that torch names so, where it is NVIDIA's, is of the generation of the A100 or later."""
    return kind_of(device) != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def prepare(precision: Precision, device: str, hardware: str, compile: Compilation = "none") -> Policy:
    """Set this process up for a job, and return how it computes on `device`; `WorkerRefusal` as `require`."""
    require(precision, device, hardware, compile)
    how = policy(kind_of(device), precision, compile)
    configure(how)
    return how


def prepare_training(precision: Precision, device: str, hardware: str, compiles: bool = False) -> Policy:
    """`prepare` for training, whose backward passes give the same every time on GPUs, where torch can. In float32,
    torch warns of an operation that it can't repeat. In half precision it raises RuntimeError: flash attention's
    backward pass is repeatable only in this strict mode."""
    require(precision, device, hardware, "default" if compiles else "none", section="train")
    kind = kind_of(device)
    how = policy(kind, precision, trains=True)
    configure(how)
    if kind != "cpu":
        torch.use_deterministic_algorithms(True, warn_only="flash" not in how.attention)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # saves time
    return how


def require(
    precision: Precision,
    device: str,
    hardware: str,
    compile: Compilation = "none",
    section: str = "sample",
    key: str = "precision",
) -> None:
    """Raise `WorkerRefusal` if `device` lacks what the settings of a section of the config need."""
    kind = kind_of(device)
    if (need := lacks(kind, precision, is_ampere(device), section, key)) is not None:
        refused = need.refused(f"this worker has {hardware}", "choose nodes with cluster.label_selector")
        raise WorkerRefusal(f"node {this_node()}: {refused}")
    if compile != "none" and kind != "cpu" and torch.__version__ < REPEATABLE_COMPILER:
        raise WorkerRefusal(
            f"node {this_node()}: {section}.compile needs torch {REPEATABLE_COMPILER} or later on GPUs, because the "
            f"compiler of torch {torch.__version__} chooses the order of sums by timing; leave it out, or install a "
            "newer torch"
        )


def adapted(
    network: Denoiser,
    how: Arithmetic,
    device: str,
    first_call: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Denoiser:
    """`network` with the precision and batch size of `how`; its weights are cast already. x, the output and the
    sampler's own arithmetic are float32, and t stays as it is. torch compiles the network when it is first called, in
    the context that `first_call` returns."""
    decided = policy(kind_of(device), how.precision, how.compile)
    if decided.autocast is not None:
        kind, half = device.partition(":")[0], getattr(torch, decided.autocast)

        def under_autocast(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            with torch.autocast(kind, half):
                output = call(x)
            return output.float()

        network = Wrapped(network, under_autocast)
    if decided.weights is not None:
        dtype = getattr(torch, decided.weights)
        network = Wrapped(network, lambda call, x: call(x.to(dtype)).float())
    if how.batch_size is None:
        return network
    if how.compile != "none":
        from taugrid.workers.accelerator.compiled import guarded

        network = guarded(network, first_call)
    return in_full_batches(network, how.batch_size) if decided.pads else network


def cast_weights(module: Module, half: str, but: Collection[str] = ()) -> None:
    """Cast the floating-point parameters of a module to torch's type `half`, in place. Buffers stay in float32, such as
    frequencies of a time embedding, and so do batch norms and the children named in `but`."""
    kept = [part for name in but if (child := getattr(module, name, None)) is not None for part in child.modules()]
    for part in module.modules():
        if isinstance(part, _BatchNorm) or any(part is other for other in kept):
            continue
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, half))


def in_full_batches(network: Denoiser, batch_size: int) -> Denoiser:
    """`network`, always called with `batch_size` images: zeros fill up a smaller batch. Else a batch that is cut short
    would be compiled again, or computed by other kernels, and an image would depend on where its shard ends."""

    def filled(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(batch_size - len(tensor), *tensor.shape[1:])])

    def called(x: Tensor, at: Point, condition: "Tensor | None" = None, /) -> Tensor:
        if len(x) >= batch_size:
            return network(x, at, condition)
        return network(filled(x), at, None if condition is None else filled(condition))[: len(x)]

    return called
