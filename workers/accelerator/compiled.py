"""torch.compile for networks: static shapes, and no choice by timing, which would differ from one process to the next.

This is the one file that uses `torch._dynamo` and `torch._inductor`: torch 2.13 has no public name for the limit on
compilations, for the errors of its compiler, or for what an installed compiler has as options.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.exc import InductorError, InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import cache_dir

from taugrid.errors import WorkerRefusal, is_out_of_memory, last_line
from taugrid.words import this_node
from taugrid.workers.data.decoding import locked
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser

F = TypeVar("F", bound=Callable[..., Any])

CHOICES_BY_TIMING: dict[str, bool] = {"shape_padding": False, "deterministic": True}
"""Options of torch's compiler. Before torch 2.10 it lacks `deterministic` and is refused on GPUs."""

MAX_COMPILATIONS = 256
"""How often torch may compile the same code. Beyond its own limit of 8 in a process torch silently runs the code
uncompiled, so the bits of an image would depend on what its worker did before."""


BEAT_SECONDS = 5.0  # how often a worker says that it compiles

COMPILE_SECONDS = 1800.0
"""How long it may say so. Compiling takes minutes, and hours only if torch's compiler hangs."""


def by_torch(function: F, layout: str) -> F:
    """`function`, which torch compiles when it is first called; `layout` is that of `Policy`."""
    return torch.compile(function, dynamic=False, options=options(layout))  # type: ignore[return-value]


def options(layout: str) -> dict[str, Any]:
    """Options of torch's compiler; those that an older one lacks are left out."""
    chosen = dict(CHOICES_BY_TIMING)
    if layout == "contiguous_format":
        chosen["layout_optimization"] = False  # torch's compiler would choose channels_last for convolutions
    known = set(torch._inductor.list_options())
    return {name: value for name, value in chosen.items() if name in known}


def guarded(network: "Denoiser", first_call: Callable[[], AbstractContextManager[None]] = nullcontext) -> "Denoiser":
    """`network`, which is compiled at its first call, in the context that `first_call` returns. Raises `WorkerRefusal`
    if torch can't compile it here."""
    contexts = chain([first_call], repeat(nullcontext))

    def called(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        limited = dynamo.patch(
            recompile_limit=MAX_COMPILATIONS,
            accumulated_recompile_limit=MAX_COMPILATIONS,
            fail_on_recompile_limit_hit=True,
        )
        try:
            with next(contexts)(), limited:
                return call(x)
        except FailOnRecompileLimitHit as error:
            raise WorkerRefusal(
                f"node {this_node()}: sample.compile: default failed: torch compiled a network's code "
                f"{MAX_COMPILATIONS} times in one process; set sample.compile: none"
            ) from error
        except (InvalidCxxCompiler, RuntimeError) as error:
            is_compilers = isinstance(error, TorchDynamoException | InductorError | InvalidCxxCompiler)
            if is_out_of_memory(error) or not is_compilers or _is_cudas(error):
                raise
            raise WorkerRefusal(
                f"node {this_node()}: sample.compile: default failed: {last_line(error)[:300]}; it needs a C++ "
                "compiler on CPUs and Triton on GPUs; set sample.compile: none"
            ) from error

    return Wrapped(network, called)


@contextmanager
def once_on_a_node(compiled: object, beat: Callable[[], None]) -> Iterator[None]:
    """The first call of a network of which `compiled` says all that torch compiles it by. The first worker of a node to
    get here compiles alone, and the others wait: they read torch's cache then. `beat` is called every `BEAT_SECONDS`,
    for at most `COMPILE_SECONDS`: if the compiler hangs, the worker falls silent then."""
    marker = Path(cache_dir()) / "taugrid" / hashlib.sha256(repr((compiled, torch.__version__)).encode()).hexdigest()
    with beating(beat):
        if marker.exists():
            yield
            return
        with ExitStack() as lock:
            lock.enter_context(locked(marker.with_suffix(".lock")))
            if marker.exists():  # another worker has compiled it
                lock.close()
            yield
            marker.touch()


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` every `BEAT_SECONDS` in a thread, until the context ends or `COMPILE_SECONDS` are over."""
    ended, deadline = threading.Event(), time.monotonic() + COMPILE_SECONDS

    def beats() -> None:
        while not ended.wait(BEAT_SECONDS) and time.monotonic() < deadline:
            beat()

    thread = threading.Thread(target=beats, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_cudas(error: BaseException | None) -> bool:
    """Whether an error came from one of CUDA, which torch's compiler wraps. "Triton Error [CUDA]" is the compiler's."""
    while error is not None and type(error).__name__ != "AcceleratorError":
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return error is not None
