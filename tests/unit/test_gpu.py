"""A GPU that can't be used: one line with torch's own words and the ways out, and a broken one is told apart."""

import pickle
import subprocess
from types import SimpleNamespace

import pytest
import ray
import torch
from cards import AcceleratorError
from snapshots import raises, recorded
from test_memory import Poison, poison  # noqa: F401  # the job's entry point

from taugrid.errors import BrokenAccelerator, WorkerRefusal, last_line
from taugrid.orchestrator.dispatch.pool import Failed
from taugrid.workers import actor
from taugrid.workers.accelerator import hardware
from taugrid.workers.actor import Probe, Worker
from taugrid.workers.device import Device

pytestmark = pytest.mark.usefixtures("one_thread")

DRIVER = (  # c10/cuda/CUDAFunctions.cpp, device_count_impl
    "The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by downloading and "
    "installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
UNEXPECTED = (  # the same, its last case
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error {}"
)
NO_DRIVER = (  # the same
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
CUDA = (  # c10/cuda/CUDAException.cpp; CUDAMiscFunctions.cpp: get_cuda_error_help, get_cuda_check_suffix
    "CUDA error: {}\nSearch for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/"
    "group__CUDART__TYPES.html for more information.\nCUDA kernel errors might be asynchronously reported at some "
    "other API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def raising(error):
    def raised(*_, **__):
        raise error

    return raised


@pytest.fixture
def card(monkeypatch):
    """A simulated card for an H100 and torch 2.13.0 for CUDA 13; `fails` makes a call of torch's raise.

    Defect 13: no program of a vendor is run, such as nvidia-smi.
    """

    def answer(value):
        return lambda *_: value

    def fails(error, at="init"):
        monkeypatch.setattr(*((torch.cuda, "init") if at == "init" else (torch, "zeros")), raising(error))

    monkeypatch.setattr(subprocess, "Popen", raising(AssertionError("a program is run")))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "init", answer(None))
    monkeypatch.setattr(torch.cuda, "get_device_name", answer("NVIDIA H100"))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: SimpleNamespace(add_=lambda _: torch.tensor(1.0)))
    return fails


INIT = [
    DRIVER.format(12040),
    "Torch not compiled with CUDA enabled",
    "No CUDA GPUs are available",
    "No HIP GPUs are available",
    NO_DRIVER,
    "CUDA driver initialization failed, you might not have a CUDA gpu.",
    UNEXPECTED.format("802: system not yet initialized"),
]
FIRST_KERNEL = [
    CUDA.format("no kernel image is available for execution on the device"),
    CUDA.format("CUDA-capable device(s) is/are busy or unavailable"),
    CUDA.format("out of memory"),
    "HIP error: invalid device function",
    "HIP error: out of memory",
]
REFUSED = [(RuntimeError(words), "init") for words in INIT]
REFUSED += [(AcceleratorError(words), "kernel") for words in FIRST_KERNEL]


@pytest.mark.parametrize(("error", "at"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_gpu_that_torch_can_not_use_is_refused_in_one_line_with_torchs_words_and_the_ways_out(card, error, at):
    """Defect 5: `torch.cuda.is_available()` in `Worker._set_up`, which is False and says nothing, in place of
    `start_gpu`. Torch's own words then reach only Ray's logs, as a warning."""
    card(error, at)
    with raises(WorkerRefusal) as caught:
        hardware.start_gpu()
    assert type(pickle.loads(pickle.dumps(caught.value))) is WorkerRefusal, "it travels to the driver by its type"


def test_the_variable_that_ray_set_is_not_blamed(card, monkeypatch):
    """The patch: the message quotes the process's CUDA_VISIBLE_DEVICES, which is Ray's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    card(RuntimeError("No CUDA GPUs are available"))
    with raises(WorkerRefusal) as caught:
        hardware.start_gpu()
    assert "'3'" not in str(caught.value)


def test_an_error_within_the_start_is_quoted_without_torchs_tracebacks(card):
    """torch/cuda/__init__.py: DeferredCudaCallError has the text of its cause and the traceback of its origin."""
    error = RuntimeError("CUDA call failed lazily at initialization with error: x\n\nCUDA call was\n\n  File ...")
    error.__cause__ = RuntimeError("device >= 0 && device < num_gpus INTERNAL ASSERT FAILED")  # of a MIG instance
    card(error)
    with raises(WorkerRefusal):
        hardware.start_gpu()


@pytest.fixture
def on_a_gpu(monkeypatch, card):
    """A worker to which Ray gave a simulated GPU. What it computes is on the CPU."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    worker = Worker(1)
    monkeypatch.setattr(worker, "locate", lambda: ("node-7", "7"))
    monkeypatch.setattr(Device, "check", lambda *_: None)
    return worker


def test_a_refused_gpu_is_no_broken_one_and_may_be_checked_again(on_a_gpu, card, tmp_path, monkeypatch):
    """A process that made no context can try again, when another has left the card."""
    (tmp_path / ".probe").touch()
    probe = Probe(str(tmp_path / ".probe"))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(torch, "zeros", raising(AcceleratorError(FIRST_KERNEL[1])))
        for _ in range(2):
            with raises(WorkerRefusal):
                on_a_gpu.check_health(probe)
    assert on_a_gpu.check_health(probe).device == "NVIDIA H100"


@pytest.mark.parametrize("words", ["uncorrectable ECC error encountered", "an illegal memory access was encountered"])
@pytest.mark.parametrize("when", ["start", "job"])
def test_a_broken_card_is_named_with_its_node_and_torchs_words(on_a_gpu, card, tmp_path, monkeypatch, words, when):
    """The patch: the last line of torch's text, "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions",
    was all that a user saw (`lines[-1]` in `errors.last_line`)."""
    (tmp_path / ".probe").touch()
    monkeypatch.setattr(actor, "this_node", lambda: "node-7")
    error = AcceleratorError(CUDA.format(words))
    if when == "start":
        card(error, "kernel")
    monkeypatch.setattr(actor, "run_in_memory", raising(error))
    with raises(BrokenAccelerator):
        if when == "start":
            on_a_gpu.check_health(Probe(str(tmp_path / ".probe")))
        on_a_gpu.do(Poison(str(tmp_path / "x")))


def test_what_torch_adds_to_each_error_of_cuda_is_not_the_error():
    error = AcceleratorError(CUDA.format("uncorrectable ECC error encountered"))
    recorded(last_line(error))
    recorded(Failed("worker-0", error, "traceback", "task").summary)
    assert last_line(ValueError("two\nlines\n")) == "lines"
    assert last_line(ValueError()) == "ValueError"
