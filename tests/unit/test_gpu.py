"""A GPU that can't be used: one line with torch's own words and the ways out, and a broken one is told apart."""

import pickle
from types import SimpleNamespace

import pytest
import ray
import torch
from test_memory import Poison, poison  # noqa: F401  # the job's entry point

from taugrid.errors import BrokenAccelerator, DeviceUnusable, WorkerRefusal, last_line
from taugrid.orchestrator.dispatch.pool import Failed
from taugrid.workers import actor
from taugrid.workers.accelerator import gpu
from taugrid.workers.actor import Probe, Worker

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


class AcceleratorError(RuntimeError):
    """As torch names it."""


def raising(error):
    def raised(*_, **__):
        raise error

    return raised


@pytest.fixture
def card(monkeypatch):
    """A simulated card for an H100 and torch 2.13.0 for CUDA 13; `fails` makes a call of torch's raise."""

    def answer(value):
        return lambda *_: value

    def fails(error, at="init"):
        monkeypatch.setattr(*((torch.cuda, "init") if at == "init" else (torch, "zeros")), raising(error))

    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "init", answer(None))
    monkeypatch.setattr(torch.cuda, "get_device_name", answer("NVIDIA H100"))
    monkeypatch.setattr(torch.cuda, "get_arch_list", answer(["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", answer((6, 1)))
    monkeypatch.setattr(gpu.platform, "machine", answer("x86_64"))
    monkeypatch.setattr(gpu, "versions", answer({"torch": "2.13.0+cu130", "torchvision": "0.28.0"}))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: SimpleNamespace(add_=lambda _: torch.tensor(1.0)))
    for name in gpu.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    return fails


INIT = [
    (DRIVER.format(12040), ["is too old (found version 12040); update the driver", "CUDA 12 on every node: pip install "
     "torch==2.13.0+cu129 torchvision==0.28.0+cu129 --index-url https://download.pytorch.org/whl/cu129"]),
    (DRIVER.format(11080), ["CUDA 11 on every node: see https://pytorch.org/get-started/previous-versions"]),
    ("No CUDA GPUs are available", ["No CUDA GPUs are available; start Ray on the node with --num-gpus as nvidia-smi"]),
    ("No HIP GPUs are available", ["--num-gpus"]),
    (NO_DRIVER, ["Found no NVIDIA driver on your system; install its driver there, or give the container its GPUs"]),
    ("CUDA driver initialization failed, you might not have a CUDA gpu.", ["install its driver there"]),
    (UNEXPECTED.format("802: system not yet initialized"), ["not yet initialized; start nvidia-fabricmanager on the"]),
    (UNEXPECTED.format("803: system has unsupported display driver / cuda driver combination"), ["restart the node"]),
    (UNEXPECTED.format("804: forward compatibility was attempted on non supported HW"), ["LD_LIBRARY_PATH"]),
    ("what torch may say one day", ["what torch may say one day; check its driver and its torch"]),
]  # fmt: skip

FIRST_KERNEL = [
    (CUDA.format("no kernel image is available for execution on the device"),
     ["compute capability 6.1, and this torch has kernels for sm_75 sm_80 sm_90 sm_100 sm_120", "/whl/cu126"]),
    (CUDA.format("CUDA-capable device(s) is/are busy or unavailable"), ["exclusive-process mode", "MIG"]),
    (CUDA.format("out of memory"), ["CUDA error: out of memory; other processes fill its memory: nvidia-smi shows"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said", "at"), [(*i, "init") for i in INIT] + [(*k, "kernel") for k in FIRST_KERNEL])
def test_a_gpu_that_torch_can_not_use_is_refused_in_one_line_with_torchs_words_and_the_ways_out(card, words, said, at):
    """Defect 5: `torch.cuda.is_available()` in `Worker._set_up`, which is False and says nothing, in place of
    `start_gpu`. Torch's own words then reach only Ray's logs, as a warning."""
    card((AcceleratorError if at == "kernel" else RuntimeError)(words), at)
    with pytest.raises(
        DeviceUnusable, match=r"^node .*: torch 2\.13\.0\+cu130 can't use the GPU that Ray gave"
    ) as caught:
        gpu.start_gpu()
    text = str(caught.value)
    for part in [*said, "or set cluster.gpus_per_worker: 0 to use CPUs"]:
        assert part in text
    assert "\n" not in text
    assert "Please" not in text
    assert "TORCH_USE_CUDA_DSA" not in text
    assert type(pickle.loads(pickle.dumps(caught.value))) is DeviceUnusable, "it travels to the driver by its type"


@pytest.mark.parametrize(
    ("capability", "said"),
    [((6, 1), r"torch==2.13.0\+cu126"), ((10, 3), r"torch==2.13.0\+cu129"), ((3, 5), "see https.*previous-versions")],
)
def test_a_build_is_named_that_has_kernels_for_the_card(card, monkeypatch, capability, said):
    """By torch's own list of what it publishes; a card of a minor version takes the kernels of those before."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    card(AcceleratorError(FIRST_KERNEL[0][0]), "kernel")
    with pytest.raises(DeviceUnusable, match=said):
        gpu.start_gpu()
    monkeypatch.delattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC")  # older versions have no list
    with pytest.raises(DeviceUnusable, match="previous-versions"):
        gpu.start_gpu()


def test_on_rocm_nothing_needs_nvidias_tools(card, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(gcnArchName="gfx803"))
    for error, at, said in (
        (RuntimeError("No HIP GPUs are available"), "init", "as rocm-smi counts them"),
        (AcceleratorError("HIP error: invalid device function"), "kernel", "the card is gfx803"),
        (AcceleratorError("HIP error: out of memory"), "kernel", "rocm-smi shows which"),
    ):
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        card(error, at)
        with pytest.raises(DeviceUnusable, match=said) as caught:
            gpu.start_gpu()
        assert "nvidia-smi" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "-1", "3"])
def test_a_variable_that_hides_the_gpu_is_quoted(card, monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    card(RuntimeError("No CUDA GPUs are available"))
    with pytest.raises(DeviceUnusable, match=f"; CUDA_VISIBLE_DEVICES='{value}' there hides it or names one that"):
        gpu.start_gpu()


def test_a_broken_amd_card_is_looked_up_with_amds_tools():
    told = gpu.about_broken("HIP error: uncorrectable ECC error encountered")
    assert "rocm-smi --showrasinfo and amdgpu in dmesg" in told
    assert "nvidia" not in told
    assert gpu.about_broken("HIP error: unspecified launch failure").startswith("amdgpu in dmesg")


def test_an_error_within_the_start_is_quoted_without_torchs_tracebacks(card):
    """torch/cuda/__init__.py: DeferredCudaCallError has the text of its cause and the traceback of its origin."""
    error = RuntimeError("CUDA call failed lazily at initialization with error: x\n\nCUDA call was\n\n  File ...")
    error.__cause__ = RuntimeError("device >= 0 && device < num_gpus INTERNAL ASSERT FAILED")  # of a MIG instance
    card(error)
    with pytest.raises(DeviceUnusable, match=r"num_gpus INTERNAL ASSERT FAILED; a process sees one MIG instance: "):
        gpu.start_gpu()


@pytest.fixture
def on_a_gpu(monkeypatch, card):
    """A worker to which Ray gave a simulated GPU. What it computes is on the CPU."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    worker = Worker(1)
    monkeypatch.setattr(worker, "locate", lambda: ("node-7", "7"))
    monkeypatch.setattr(actor, "check_device", lambda *_: None)
    return worker


def test_a_refused_gpu_is_no_broken_one_and_may_be_checked_again(on_a_gpu, card, tmp_path, monkeypatch):
    """A process that made no context can try again, when another has left the card."""
    (tmp_path / ".probe").touch()
    probe = Probe(str(tmp_path / ".probe"))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(torch, "zeros", raising(AcceleratorError(FIRST_KERNEL[1][0])))
        for _ in range(2):
            with pytest.raises(WorkerRefusal, match="busy or unavailable"):
                on_a_gpu.check_health(probe)
    assert on_a_gpu.check_health(probe).device == "NVIDIA H100"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("uncorrectable ECC error encountered", "the card is broken or must be reset: nvidia-smi -q -d ECC and Xid in"),
        ("GPU has fallen off the bus", "keep the node out (cluster.label_selector)"),
        ("an illegal memory access was encountered", "encountered; Xid in dmesg of that node tells whether"),
        ("unspecified launch failure", "Xid in dmesg"),
    ],
)
@pytest.mark.parametrize("when", ["start", "job"])
def test_a_broken_card_is_named_with_its_node_and_torchs_words(
    on_a_gpu, card, tmp_path, monkeypatch, words, said, when
):
    """The patch: the last line of torch's text, "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions",
    was all that a user saw (`lines[-1]` in `errors.last_line`)."""
    (tmp_path / ".probe").touch()
    monkeypatch.setattr(actor, "this_node", lambda: "node-7")
    if when == "start":
        card(AcceleratorError(CUDA.format(words)), "kernel")
        with pytest.raises(BrokenAccelerator) as caught:
            on_a_gpu.check_health(Probe(str(tmp_path / ".probe")))
    else:
        monkeypatch.setattr(
            actor, "run_in_memory", lambda *_: (_ for _ in ()).throw(AcceleratorError(CUDA.format(words)))
        )
        with pytest.raises(BrokenAccelerator) as caught:
            on_a_gpu.do(Poison(str(tmp_path / "x")))
    assert str(caught.value).startswith(f"node node-7: AcceleratorError: CUDA error: {words}; ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_torch_adds_to_each_error_of_cuda_is_not_the_error():
    error = AcceleratorError(CUDA.format("uncorrectable ECC error encountered"))
    assert last_line(error) == "CUDA error: uncorrectable ECC error encountered"
    failure = Failed("worker-0", error, "traceback", "task")
    assert failure.summary == "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    assert last_line(ValueError("two\nlines\n")) == "lines"
    assert last_line(ValueError()) == "ValueError"
