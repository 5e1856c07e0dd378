"""How networks compute on each kind of device: in true float32, unless a cell's `sample.precision` asks for less.

All that lays out memory, sets a switch of torch or chooses a kernel asks `policy`. Imports no torch: the driver asks
too.
"""

from typing import Literal, NamedTuple

from taugrid.config.sample import Compilation, Precision, Sample

HALF = {"bf16": "bfloat16", "fp16": "float16", "bf16-weights": "bfloat16"}
"""Precisions whose layers compute in half precision -> torch's name of the type."""

SAMPLING_ATTENTION: tuple[str, ...] = ("flash", "mem_efficient", "math")
"""Those that torch may choose from where nothing is trained on a GPU: whether it prefers cuDNN's depends on the cuDNN
found at run time (`check_prefer_cudnn_attention` in ATen's sdp_utils.cpp)."""

AMPERE = "an NVIDIA GPU of the A100's generation or later"  # what TF32 and bf16 need


class Policy(NamedTuple):
    """How a network is computed; every field changes its output in the last digits, or more."""

    layout: Literal["channels_last", "contiguous_format"]  # torch's name of the memory format of weights and images
    tf32: bool  # whether float32 products and convolutions may round their factors to TF32
    autocast: str | None  # torch's name of the type that the network is called under autocast to
    weights: str | None  # torch's name of the type that weights and x are cast to; None: they stay in float32
    attention: tuple[str, ...]  # the kernels that torch may choose from
    compile: Compilation
    pads: bool  # whether a batch that is cut short is filled up: libraries choose kernels by the number of images


def policy(kind: str, precision: Precision = "float32", compile: Compilation = "none", trains: bool = False) -> Policy:
    """How a network samples, or `trains`, on a `kind` of device: `cpu`, `cuda` (NVIDIA), `rocm` (AMD) or `mps` (Apple).

    channels_last: oneDNN on CPUs is faster with it, and cuDNN's tensor cores in half precision need it. In true float32
    torch's GroupNorm copies such images there and back, and MIOpen does at each convolution.

    Backward passes of attention add in any order, except that of plain products and, under torch's strict determinism,
    that of flash attention, which is for half precision (torch's attention_backward.cu).

    In float32, mem_efficient attention on an A100 or later makes each product of three in TF32 and leaves out the
    smallest (2^-22 of it), whatever `tf32` says: no switch reaches it (mem_eff_attention/gemm_kernel_utils.h)."""
    half = HALF.get(precision)
    casts = precision == "bf16-weights"
    attention = SAMPLING_ATTENTION
    if trains and kind != "cpu":
        attention = ("flash", "math") if kind == "cuda" and half else ("math",)
    return Policy(
        layout="channels_last" if kind == "cpu" or (kind == "cuda" and half) else "contiguous_format",
        tf32=precision == "tf32",
        autocast=None if casts else half,
        weights=half if casts else None,
        attention=attention,
        compile=compile,
        pads=kind != "cpu" or compile != "none",
    )


class Need(NamedTuple):
    """A setting that a device lacks what it needs for, and values that it has."""

    setting: str
    instead: str

    def refused(self, because: str, way_out: str) -> str:
        """The error message: why there is no such device, and how to get one."""
        return f"{self.setting} needs {AMPERE}, and {because}; set {self.instead}, or {way_out}"


def lacks(
    kind: str, precision: Precision, is_ampere: bool = True, section: str = "sample", key: str = "precision"
) -> Need | None:
    """What the precision, a `key` of a `section`, needs that a device of this `kind` lacks; None: nothing. `is_ampere`:
    whether it is of the generation of the A100 or later. Older ones have no bf16: torch would compute it through
    float32, and leave a network uncompiled."""
    setting = f"{section}.{key}: {precision}"
    has_fp16 = (section, key) == ("sample", "precision")
    if not is_ampere and precision in ("tf32", "bf16", "bf16-weights"):
        return Need(setting, "float32 or fp16" if has_fp16 else "float32")
    if precision == "tf32" and kind != "cuda":
        return Need(setting, "float32, bf16, bf16-weights or fp16" if has_fp16 else "float32 or bf16")
    return None


class Arithmetic(NamedTuple):
    """How a network is computed; every field changes its output in the last digits, or more."""

    precision: Precision = "float32"
    compile: Compilation = "none"
    batch_size: int | None = None
    """The one number of images with which the network is called, where the policy fills up smaller batches. None: it is
    not compiled, and called with as many as there are."""

    @classmethod
    def of(cls, settings: Sample) -> "Arithmetic":
        """How the network of a cell with these `settings` is computed."""
        return cls(settings.precision, settings.compile, settings.batch_size)


PLAIN = Arithmetic()
