"""Whether a batch fits into a GPU's memory, before it is computed.

Where memory is short, cuDNN does not fail: torch catches the error, takes the next kernel and remembers it (ATen's
native/cudnn/Conv_v8.cpp, `run_single_conv`). So the bits of an image would depend on what else was in memory.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from taugrid.errors import NotEnoughMemory
from taugrid.workers.accelerator.arithmetic import Arithmetic, adapted
from taugrid.workers.accelerator.counting import count
from taugrid.workers.accelerator.memory import FIRST, some_labels
from taugrid.workers.accelerator.policy import kind_of, policy
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.diffusion.denoiser import FromTimes

if TYPE_CHECKING:
    from taugrid.workers.diffusion.decoder import Decode
    from taugrid.workers.diffusion.denoiser import Denoiser
    from taugrid.workers.diffusion.process import Point

LIBRARIES_BYTES = 512 * 2**20
"""Estimated, no card has measured it: kernels that CUDA loads when they are first called, and workspaces of cuBLAS (32
MiB with the setting in `device.set_up`). Those of convolutions are counted with each (`counting`)."""

FRAGMENTATION = 1.1
"""Estimated, no card has measured it: memory reserved in blocks of 2 to 20 MiB over memory that tensors take."""

TENSORS_OF_SAMPLER = 8
"""Tensors like x that a step holds while it calls the network: x, noise, what a solver keeps of its last three steps,
and the images of the batch before, on their way to the host."""


TENSORS_OF_PICTURES = 5
"""Tensors like a batch of pictures that are held where a VAE decodes it: its slices, the batch that is made of them,
one while it is rounded, and 8-bit ones on their way to the host."""


BatchShape = tuple[int, int, int, int]
"""(B, C, H, W) of what a network is called with."""


def free_bytes(device: str) -> int | None:
    """Memory that a call on `device` can take: what the driver has left, and what torch holds unused.

    None: not known, and on CPUs, where nothing is chosen by it. Memory of CUDA graphs is left out: it serves only them.
    """
    if device.partition(":")[0] != "cuda":
        return None
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    free, total = torch.cuda.mem_get_info(index)
    allowed = torch.cuda.get_per_process_memory_fraction(index) * total - torch.cuda.memory_reserved(index)
    free = min(free, int(allowed))
    try:
        segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    except RuntimeError:  # CUDA's own allocator, which torch can be told to use, has none
        return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    usable = [s for s in segments if s["device"] == index and tuple(s["segment_pool_id"]) == (0, 0)]
    return free + sum(int(s["total_size"] - s["allocated_size"]) for s in usable)


def needed_bytes(
    network: "Denoiser",
    how: Arithmetic,
    batch: BatchShape,
    device: str,
    conditional: bool = False,
    at: "Point" = FIRST,
) -> int | None:
    """The memory that a call of a network takes beside its weights; None: it can't be traced, so nothing is claimed.

    `network` is as loaded, before `arithmetic.adapted`; `conditional`: it takes labels; `at`: where it is called. The
    uncompiled network is counted: torch's compiler fuses kernels, which need less.
    """
    if (without_data := getattr(network, "without_data", None)) is None:
        return None
    how = how._replace(compile="none", batch_size=batch[0])
    autocast = policy(kind_of(device), how.precision).autocast
    x = torch.empty(batch, device="meta")
    labels = some_labels(x) if conditional else None
    try:
        traced = adapted(FromTimes(without_data()), how, device)
        call = count(
            lambda x: traced(x, at, labels), x, autocast=None if autocast is None else getattr(torch, autocast)
        )
    except Exception:  # a custom network may read values, or do what only its own device can
        return None
    return int(call.peak * FRAGMENTATION) + TENSORS_OF_SAMPLER * x.nbytes + LIBRARIES_BYTES


def needed_to_decode(decode: "Decode", vae: Vae, size: int, batch_size: int, autocast: str | None) -> int | None:
    """The memory that decoding a batch, `size` latents at once, takes beside the VAE's weights; None: not known.

    `decode` is without data and without autocast, to torch's type `autocast`, which is counted.
    """
    half = None if autocast is None else getattr(torch, autocast)
    try:
        call = count(decode, torch.empty((size, *vae.network_shape), device="meta"), autocast=half)
    except Exception:  # as of a network
        return None
    batch = batch_size * 4 * math.prod(vae.picture_shape)
    return int(call.peak * FRAGMENTATION) + TENSORS_OF_PICTURES * batch + LIBRARIES_BYTES


def check(
    network: "Denoiser", how: Arithmetic, batch: BatchShape, device: str, conditional: bool = False, at: "Point" = FIRST
) -> None:
    """Raise `NotEnoughMemory` if a call of a network would not fit; arguments as of `needed_bytes`."""
    if (free := free_bytes(device)) is not None:
        require(needed_bytes(network, how, batch, device, conditional, at), free, batch)


def require(needed: int | None, free: int, batch: BatchShape, decoding: bool = False) -> None:
    """Raise `NotEnoughMemory` if a batch, or `decoding` it, needs more bytes than are free. None: not known."""
    if needed is not None and needed > free:
        what, whose = (
            (f"decoding {batch[0]} latents at once", "VAE") if decoding else (f"a batch of {batch[0]}", "network")
        )
        raise NotEnoughMemory(
            f"{what} needs an estimated {needed / 1e9:.1f} GB beside the {whose}'s weights, and "
            f"{free / 1e9:.1f} GB are free"
        )
