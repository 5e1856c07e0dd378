"""How networks compute: true float32 unless a cell asks for less, whatever a user's code has set before."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from denoisers import of_time, sample
from snapshots import raises, recorded
from torch import nn
from torch.torch_version import TorchVersion

from taugrid.config import DIFFUSION_DEFAULTS, Sample
from taugrid.errors import WorkerRefusal
from taugrid.eval.features.load import as_input
from taugrid.workers import schedules
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import ATTENTION
from taugrid.workers.accelerator.policy import SAMPLING_ATTENTION, Arithmetic, policy
from taugrid.workers.device import set_up
from taugrid.workers.training.meeting import stay_on_loopback

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def settled():
    yield
    arithmetic.configure()


PLANTED = {
    "the old switches": lambda: torch.set_float32_matmul_precision("medium"),
    "the new switch above all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "a new switch": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
    "cuDNN's choice by timing": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "MIOpen's choice by timing": lambda: setattr(torch.backends.miopen, "immediate", False),
    "TF32 in cuBLAS": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "the new switch of matrices alone": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "the new switch of one of cuDNN's": lambda: setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
    "the new switch of NVIDIA's": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "the new switch of CPUs": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "sums in bf16": lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    "sums in fp16": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    "cuDNN's attention": lambda: torch.backends.cuda.enable_cudnn_sdp(True),
    "a kernel of attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
}


def switches():
    """What torch says of old switches is an error where old and new ones disagree."""
    backends, matmul, read = torch.backends, torch.backends.cuda.matmul, []
    for old in (lambda: backends.cudnn.allow_tf32, lambda: matmul.allow_tf32, torch.get_float32_matmul_precision):
        try:
            read.append(old())
        except RuntimeError:
            read.append("they disagree")
    places = (backends.cudnn.conv, backends.cudnn.rnn, matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    kernels = (backends.cudnn.benchmark, backends.cudnn.deterministic, backends.miopen.immediate)
    names = ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation")
    sums = [getattr(matmul, f"allow_{name}") for name in names]
    return [place.fp32_precision for place in places], read, kernels, sums, attention()


def attention():
    return [name for name in ATTENTION if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]


@pytest.mark.parametrize("what", PLANTED)
def test_no_switch_that_users_code_sets_outlives_its_job(what):
    """cuDNN's attention is off: it depends on the cuDNN found at run time. Patch: "cudnn" in SAMPLING_ATTENTION."""
    arithmetic.configure()
    expected = switches()
    old, kernels = [False, False, "highest"], (False, True, True)
    assert expected == (["ieee"] * 5, old, kernels, [True, True, False], [*SAMPLING_ATTENTION])
    PLANTED[what]()
    arithmetic.configure()
    assert switches() == expected, "and torch does not refuse to read the old ones"


FROM_ABOVE = (torch.backends.cuda.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)


def as_torch_ships_them():
    arithmetic.configure()
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    torch.backends.miopen.immediate = False
    for place in (*FROM_ABOVE, torch.backends.mkldnn.rnn):
        place.fp32_precision = "none"


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("what", PLANTED)
def test_a_callers_switches_are_as_before_whichever_set_of_them_is_used(what, tf32):
    """torch refuses to read old switches that disagree with new ones, and advises to use the new ones alone."""
    as_torch_ships_them()
    PLANTED[what]()
    before = switches()
    with arithmetic.restored():
        arithmetic.configure(policy("cuda", "tf32" if tf32 else "float32"))
        assert switches() != before
    assert switches() == before


def test_what_a_caller_sets_above_all_still_reaches_what_was_not_set():
    as_torch_ships_them()
    with arithmetic.restored():
        arithmetic.configure()
    torch.backends.fp32_precision = "tf32"
    with arithmetic.restored():
        arithmetic.configure()
    torch.backends.fp32_precision = "ieee"
    assert [place.fp32_precision for place in FROM_ABOVE] == ["ieee"] * 3


@pytest.mark.long
@pytest.mark.skipif(torch.__version__ < "2.10", reason="torch 2.9 hands nothing from above to convolutions")
def test_a_caller_who_asked_for_ieee_from_above_keeps_it_for_convolutions():
    """They have a value that no call sets again, below which TF32 lies. Patch: restore what `below` reads as it is."""
    code = """
import torch
from taugrid.workers.accelerator import arithmetic
backends = torch.backends
backends.fp32_precision = "ieee"
for expected in ("ieee", "tf32"):
    with arithmetic.restored():
        arithmetic.configure()
    assert backends.cudnn.conv.fp32_precision == backends.cudnn.rnn.fp32_precision == expected
    backends.fp32_precision = "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "value", "refused"), [
    ("NVIDIA_TF32_OVERRIDE", "1", "on a GPU"), ("NVIDIA_TF32_OVERRIDE", "0", "never"),
    ("NVIDIA_TF32_OVERRIDE", "", "never"), ("CUBLAS_EMULATE_SINGLE_PRECISION", "1", "on a GPU"),
    ("CUBLAS_EMULATE_SINGLE_PRECISION", "0", "never"), ("DNNL_DEFAULT_FPMATH_MODE", "BF16", "always"),
    ("ONEDNN_DEFAULT_FPMATH_MODE", "any", "always"), ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT", "never"),
])  # fmt: skip
@pytest.mark.parametrize("has_gpu", [True, False])
def test_an_environment_that_changes_float32_here_is_refused_in_one_line(monkeypatch, name, value, refused, has_gpu):
    """Patches: `set_up` without `require_float32`; all variables wherever it is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv(name, value)
    if refused == "never" or (refused == "on a GPU" and not has_gpu):
        set_up()
        return
    with raises(WorkerRefusal):
        set_up()


@pytest.mark.parametrize(("threads", "value"), [(None, ":4096:2:16:8"), (1, ":4096:8")])
def test_a_worker_has_a_workspace_for_repeatable_sums_and_a_caller_keeps_its_own(monkeypatch, threads, value):
    """torch refuses others where determinism is strict. Patches: `setdefault` for both, or neither."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
    set_up(threads)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == value
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_up(threads)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("kind", "refused"), [("cuda", True), ("rocm", True), ("cpu", False)])
def test_a_compiler_that_chooses_sums_by_timing_is_refused_on_gpus(monkeypatch, kind, refused):
    """torch 2.9 has no option `deterministic`. Patch: no such check in `require`."""
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cu128"))
    monkeypatch.setattr(arithmetic, "kind_of", lambda device: kind)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **kwargs: None)
    for prepare in (
        lambda: arithmetic.prepare("float32", kind, "simulated", "default"),
        lambda: arithmetic.prepare_training("float32", kind, "simulated", compiles=True),
    ):
        if not refused:
            prepare()
            continue
        with raises(WorkerRefusal) as error:
            prepare()
        assert "torch 2.10 " in str(error.value)
    arithmetic.prepare("float32", "cpu", "simulated")
    assert not torch.__version__ >= arithmetic.REPEATABLE_COMPILER
    assert TorchVersion("2.13.0") >= arithmetic.REPEATABLE_COMPILER


@pytest.mark.parametrize(("capability", "hip", "has"), [((8, 0), None, True), ((9, 0), None, True),
                                                       ((7, 5), None, False), ((9, 4), "6.4", False)])  # fmt: skip
def test_tf32_is_used_where_a_device_has_it_and_refused_elsewhere(monkeypatch, capability, hip, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    if has:
        arithmetic.prepare("tf32", "cuda", "simulated")
        assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "tf32"
        arithmetic.prepare("float32", "cuda", "simulated")
    else:
        with raises(WorkerRefusal):
            arithmetic.prepare("tf32", "cuda", "simulated")
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    with pytest.raises(WorkerRefusal, match="tf32"):
        arithmetic.prepare("tf32", "cpu", "a CPU")


class Spy(nn.Module):
    """A linear network that notes the types of what goes in, and of what its layer computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Linear(16, 16), set()

    def forward(self, x, t):
        y = self.layer(x.flatten(1))
        self.seen.add((x.dtype, type(t), y.dtype))
        return y.view_as(x)


@pytest.mark.parametrize(("precision", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_only_the_network_computes_in_half_precision(precision, half):
    """A network of zeros loses nothing by rounding, so every bit that differs would be the sampler's."""
    spy, alpha_bar = Spy(), schedules.alpha_bar(DIFFUSION_DEFAULTS)
    x_T = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))

    def sampled(network):
        return sample(network, lambda t: x_T, alpha_bar, (250, 500, 750, 1000), 0.5, "none")

    assert arithmetic.adapted(spy, Arithmetic(), "cpu") is spy
    half_network = arithmetic.adapted(of_time(spy), Arithmetic(precision), "cpu")
    exact, rounded = sampled(of_time(spy)), sampled(half_network)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
    nn.init.zeros_(spy.layer.weight)
    nn.init.zeros_(spy.layer.bias)
    exact, seen = sampled(of_time(spy)), spy.seen.copy()
    assert torch.equal(sampled(half_network), exact)
    assert seen == {(torch.float32, int, torch.float32), (torch.float32, int, half)}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16", "bf16-weights"])
def test_a_protocol_says_how_the_network_computed(precision):
    recorded(Sample(precision=precision).precision_in_words)


@pytest.mark.parametrize(
    ("precision", "kernels", "warns"),
    [("float32", {"math"}, True), ("tf32", {"math"}, True), ("bf16", {"math", "flash"}, False)],
)
def test_backward_passes_on_gpus_are_made_repeatable(monkeypatch, precision, kernels, warns):
    """Defect 15. The switches alone: whether they suffice, benchmarks/device asks on a card.

    Flash attention's backward pass adds in any order unless torch's determinism is strict. Patch: `warn_only=True`.
    """
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    try:
        how = arithmetic.prepare_training(precision, "cuda", "simulated")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
        assert set(attention()) == kernels
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert how.layout == ("channels_last" if precision == "bf16" else "contiguous_format")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_training_is_refused_where_a_gpu_lacks_its_precision(monkeypatch, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with raises(WorkerRefusal):
        arithmetic.prepare_training(precision, "cuda", "a T4")
    arithmetic.prepare_training("float32", "cuda", "a T4")
    torch.use_deterministic_algorithms(False)
    arithmetic.configure()
    arithmetic.prepare_training("bf16", "cpu", "a CPU")
    assert not torch.are_deterministic_algorithms_enabled()
    assert attention() == [*SAMPLING_ATTENTION]


def test_a_training_on_loopback_listens_nowhere_else(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    stay_on_loopback()
    assert {name: value[:2] for name, value in os.environ.items()} == {
        "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def test_what_torch_is_built_for_is_read_without_importing_it(tmp_path):
    """The folder before all others has a torch that fails when it is imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('imported')")
    asked = "from taugrid.versions import torch_is_for_gpus; print(torch_is_for_gpus())"
    for text, expected in (("cuda = None\nhip = None", "False"), ("hip = '6.4'\ncuda: str | None = None", "True")):
        (tmp_path / "torch/version.py").write_text(text)
        ended = subprocess.run([sys.executable, "-c", asked], env=os.environ | {"PYTHONPATH": str(tmp_path)},
                               capture_output=True, text=True, check=True)  # fmt: skip
        assert ended.stdout.strip() == expected


def test_grey_images_are_pinned_before_their_channels_are_repeated(monkeypatch):
    """On a simulated GPU: a tensor of which several elements are one can't be pinned."""

    def pin(images):  # what torch does on a machine with a GPU: a copy with the same strides
        return torch.empty_strided(images.size(), images.stride(), dtype=images.dtype).copy_(images)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    grey = torch.from_numpy(np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        grey.expand(-1, 3, -1, -1).pin_memory()
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self)
        for takes_grey, channels in ((False, 3), (True, 1)):
            assert as_input(grey, "cuda", takes_grey).shape == (2, channels, 8, 8)
    assert torch.equal(as_input(grey, "cpu", False), grey.repeat(1, 3, 1, 1))
