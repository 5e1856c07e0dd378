"""The policy of arithmetic: how a network is computed on a kind of device. Pure, and without torch.

Everything that lays out memory, sets a switch of torch or chooses a kernel asks here. benchmarks/device measures it.
"""

from typing import Literal, NamedTuple

HALF = {"bf16": "bfloat16", "fp16": "float16", "bf16-weights": "bfloat16"}
"""Precisions whose layers compute in half precision -> torch's name of the type."""

ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
"""torch's kernels for attention, as it names their switches."""


class Policy(NamedTuple):
    """How a network is computed; every field changes its output in the last digits, or more."""

    layout: Literal["channels_last", "contiguous"]
    """The memory format of weights and images."""
    tf32: bool
    """Whether float32 products and convolutions may round their factors to TF32."""
    autocast: str | None
    """torch's name of the type that the network is called under autocast to."""
    weights: str | None
    """torch's name of the type that weights and x are cast to; None: they stay in float32."""
    attention: tuple[str, ...]
    """The kernels that torch may choose from."""
    pads: bool
    """Whether a batch that is cut short is filled up: libraries choose kernels by the number of images."""
    benchmark: bool = False
    """Whether libraries choose kernels by timing them. Never: it differs from one process to the next."""


def policy(kind: str, precision: str = "float32", compile: str = "none") -> Policy:
    """How a network samples on a `kind` of device: `cpu`, `cuda` (NVIDIA), `rocm` (AMD) or `mps` (Apple).

    channels_last: oneDNN on CPUs is faster with it. cuDNN's tensor cores in half precision need it; its kernels for
    true float32 do not, and torch's GroupNorm copies such images there and back. MIOpen copies them at each
    convolution unless PYTORCH_MIOPEN_SUGGEST_NHWC is set.
    """
    half = HALF.get(precision)
    casts = precision == "bf16-weights"
    return Policy(
        layout="channels_last" if kind == "cpu" or (kind == "cuda" and half) else "contiguous",
        tf32=precision == "tf32",
        autocast=None if casts else half,
        weights=half if casts else None,
        attention=ATTENTION,
        pads=kind != "cpu" or compile != "none",
    )


def kind_of(device: str) -> str:
    """The kind of a device that torch names so, such as `cuda:1`: AMD's GPUs are `cuda` to torch too."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        return "rocm" if torch.version.hip is not None else kind
    return kind
