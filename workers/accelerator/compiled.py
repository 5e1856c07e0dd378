"""torch.compile for networks: static shapes, and no choice by timing, which would differ from one process to the next.

torch keeps what it compiled with the code, not with the weights: a second network of the same architecture in the same
process takes a fraction of a second.

This is the one file that uses `torch._dynamo` and `torch._inductor`: torch 2.13 has no public name for the limit on
compilations, for the errors of its compiler, or for what an installed compiler has as options.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from taugrid.errors import DeviceUnusable, is_out_of_memory, last_line
from taugrid.words import this_node
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser

F = TypeVar("F", bound=Callable[..., Any])

CHOICES_BY_TIMING = {"shape_padding": False, "deterministic": True}
"""Options of torch's compiler, of which older versions lack some."""

MAX_COMPILATIONS = 256
"""How often torch may compile the same code, for different shapes of weights or batches and different precisions.
torch's own limit is 8 in a process. Beyond it torch silently runs the code uncompiled, so the bits of an image would
depend on what its worker did before."""


def by_torch(function: F) -> F:
    """`function`, which torch compiles when it is first called."""
    options: dict[str, Any] = {name: value for name, value in CHOICES_BY_TIMING.items() if hasattr(inductor, name)}
    return torch.compile(function, dynamic=False, options=options)  # type: ignore[return-value]


def in_full_batches(network: "Denoiser", batch_size: int) -> "Denoiser":
    """`network`, always called with `batch_size` images: zeros fill up a smaller batch, which would be compiled again.

    Calling it raises `DeviceUnusable` if torch can't compile it here.
    """

    def filled_up(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        missing = batch_size - len(x)
        whole = torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x
        try:
            with dynamo.patch(
                recompile_limit=MAX_COMPILATIONS,
                accumulated_recompile_limit=MAX_COMPILATIONS,
                fail_on_recompile_limit_hit=True,
            ):
                return call(whole)[: len(x)]
        except FailOnRecompileLimitHit as error:
            raise DeviceUnusable(
                f"node {this_node()}: sample.compile: default failed: torch compiled a network's code "
                f"{MAX_COMPILATIONS} times in one process; set sample.compile: none"
            ) from error
        except (TorchDynamoException, InductorError, InvalidCxxCompiler) as error:
            if is_out_of_memory(error):
                raise
            raise DeviceUnusable(
                f"node {this_node()}: sample.compile: default failed: {last_line(error)[:300]}; it needs a C++ "
                "compiler on CPUs and Triton on GPUs; set sample.compile: none"
            ) from error

    return Wrapped(network, filled_up)
