"""torch.compile for networks: static shapes, and no choice by timing, which would differ from one process to the next.

torch keeps what it compiled with the code, not with the weights: a second network of the same architecture in the same
process takes a fraction of a second.

This is the one file that uses `torch._dynamo` and `torch._inductor`: torch 2.13 has no public name for the limit on
compilations, for the errors of its compiler, or for what an installed compiler has as options.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError, InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import cache_dir

from taugrid.config.sample import Compilation
from taugrid.errors import DeviceUnusable, is_out_of_memory, last_line
from taugrid.words import this_node
from taugrid.workers.accelerator.policy import Policy
from taugrid.workers.data.decoding import locked
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser

F = TypeVar("F", bound=Callable[..., Any])

CHOICES_BY_TIMING: dict[str, bool] = {"shape_padding": False, "deterministic": True}
"""Options of torch's compiler. Before torch 2.10 it lacks `deterministic` and is refused on GPUs."""

CUDA_GRAPHS = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True, "graph_partition": False}
"""What `mode="reduce-overhead"` sets (a mode excludes options), and an error in place of a network without graphs,
which torch leaves out where it partitions graphs (pytorch#193044)."""

CUDA_GRAPHS_SINCE = "2.13"
"""The torch whose source was read for this: older ones do not say if they leave a network without a graph, and keep
graphs in threads of their own alone."""

MAX_COMPILATIONS = 256
"""How often torch may compile the same code, for different shapes of weights or batches and different precisions.
torch's own limit is 8 in a process. Beyond it torch silently runs the code uncompiled, so the bits of an image would
depend on what its worker did before."""


BEAT_SECONDS = 5.0
"""How often a worker says that it compiles."""

COMPILE_SECONDS = 1800.0
"""How long it may say so. Compiling takes minutes, and hours only if torch's compiler hangs."""


def by_torch(function: F, how: Policy) -> F:
    """`function`, which torch compiles when it is first called, as `how` says.

    Raises:
        DeviceUnusable: if this torch can't promise CUDA graphs.
    """
    return torch.compile(function, dynamic=False, options=options(how))  # type: ignore[return-value]


def options(how: Policy) -> dict[str, Any]:
    """Options of torch's compiler; those that an older one lacks are left out."""
    chosen = dict(CHOICES_BY_TIMING)
    if how.layout == "contiguous_format":
        chosen["layout_optimization"] = False  # torch's compiler would choose channels_last for convolutions
    if how.compile == "reduce-overhead":
        if torch.__version__ < CUDA_GRAPHS_SINCE:
            raise DeviceUnusable(
                f"node {this_node()}: sample.compile: reduce-overhead needs torch {CUDA_GRAPHS_SINCE} or later, and "
                f"this is {torch.__version__}; set default or none"
            )
        chosen |= CUDA_GRAPHS
    known = set(torch._inductor.list_options())
    return {name: value for name, value in chosen.items() if name in known}


def guarded(
    network: "Denoiser", compile: Compilation, first_call: Callable[[], AbstractContextManager[None]] = nullcontext
) -> "Denoiser":
    """`network`, compiled as `compile` says, whose calls raise `DeviceUnusable` if torch can't compile it here.

    Its first call, which compiles it, is in the context that `first_call` returns.
    """
    contexts = chain([first_call], repeat(nullcontext))
    network = Wrapped(network, _limited)
    if compile == "reduce-overhead":
        network = in_thread_of_graphs(network)

    def called(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        try:
            with next(contexts)():
                return call(x)
        except FailOnRecompileLimitHit as error:
            raise DeviceUnusable(
                f"node {this_node()}: sample.compile: {compile} failed: torch compiled a network's code "
                f"{MAX_COMPILATIONS} times in one process; set sample.compile: none"
            ) from error
        except (InvalidCxxCompiler, RuntimeError) as error:
            if is_out_of_memory(error) or not _is_compilers(error) or _is_cudas(error):
                raise
            raise DeviceUnusable(
                f"node {this_node()}: sample.compile: {compile} failed: {last_line(error)[:300]}; it needs a C++ "
                "compiler on CPUs and Triton on GPUs; set sample.compile: none"
            ) from error

    return Wrapped(network, called)


@contextmanager
def once_on_a_node(compiled: object, beat: Callable[[], None]) -> Iterator[None]:
    """The first call of a network of which `compiled` says all that torch compiles it by.

    The first worker of a node to get here compiles alone, and the others wait: they read torch's cache then, by default
    a folder of the user's on the node. Not all code is kept there, so they do not wait for each other. `beat` is called
    every `BEAT_SECONDS`, for at most `COMPILE_SECONDS`: if the compiler hangs, the worker falls silent then.
    """
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


def _limited(call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
    """`call(x)`, in the thread whose limit on compilations this sets."""
    with dynamo.patch(
        recompile_limit=MAX_COMPILATIONS,
        accumulated_recompile_limit=MAX_COMPILATIONS,
        fail_on_recompile_limit_hit=True,
    ):
        return call(x)


def _is_compilers(error: Exception) -> bool:
    """Whether an error is one of torch's compiler, or of a network that it can't record in a CUDA graph."""
    return (
        isinstance(error, TorchDynamoException | InductorError | InvalidCxxCompiler)
        or "cudagraph" in str(error).lower()
    )


def _is_cudas(error: BaseException | None) -> bool:
    """Whether an error came from an error of CUDA, which torch's compiler wraps in its own.

    Texts do not tell: "Triton Error [CUDA]" is the compiler's too.
    """
    while error is not None and type(error).__name__ != "AcceleratorError":
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return error is not None


@functools.cache
def thread_of_graphs() -> ThreadPoolExecutor:
    """The one thread of this process that calls networks with CUDA graphs."""
    return ThreadPoolExecutor(1, "cuda-graphs", initializer=_set_up_thread_of_graphs)


def _set_up_thread_of_graphs() -> None:
    """Set what is read at each call: options are for the compiler, and settings of torch's compiler for one thread."""
    inductor.triton.cudagraph_or_error = True


def in_thread_of_graphs(network: "Denoiser") -> "Denoiser":
    """`network`, always called in one thread, whose outputs are copied before the next call overwrites them.

    torch keeps its CUDA graphs by thread (pytorch#123177), and a worker has two for its jobs: each would record graphs
    in memory of its own, and free only those. Without a mark before each call torch would take a call for one that
    continues from the last, and record it anew. All is in inference mode: graphs of both modes in a process fail
    (pytorch#166792).
    """

    def called(device: torch.device, call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return call(x).clone()

    return Wrapped(network, lambda call, x: thread_of_graphs().submit(called, x.device, call, x).result())


def release_graphs() -> None:
    """Free what CUDA graphs hold. Networks that are still in use are compiled anew, from torch's cache."""
    if thread_of_graphs.cache_info().currsize:
        thread_of_graphs().submit(torch.compiler.reset).result()
