"""The policy of arithmetic: networks obey it, and what a device lacks is refused."""

from collections import Counter
from typing import get_args

import pytest
import torch
from denoisers import at
from snapshots import raises
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from taugrid.config import DIFFUSION_DEFAULTS, Data, Unet
from taugrid.config.sample import Precision
from taugrid.errors import CustomCodeError, WorkerRefusal
from taugrid.jobs import OracleNetwork
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import adapted
from taugrid.workers.accelerator.policy import Arithmetic, lacks, policy
from taugrid.workers.device import Device
from taugrid.workers.diffusion.denoiser import FromTimes
from taugrid.workers.network.checkpoint import saved_network
from taugrid.workers.network.custom import for_inference
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import UNet2DModel, build_unet, ema_start, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = Unet(
    block_out_channels=[8, 16],
    layers_per_block=1,
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
    norm_num_groups=4,
)
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    unet = build_unet(UNET, SHAPE)
    save_pipeline(folder, unet, ema_start(unet), DIFFUSION_DEFAULTS)
    return saved_network(folder / "unet")


class Seen(TorchDispatchMode):
    """Counts torch's operations by name, and notes of what convolutions get: is it NCHW, is it NHWC, and its type."""

    def __init__(self):
        super().__init__()
        self.calls, self.convolutions = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        self.calls[name] += 1
        if name == "conv2d":
            for each in args[:2]:
                formats = (torch.contiguous_format, torch.channels_last)
                self.convolutions.append((*(each.is_contiguous(memory_format=form) for form in formats), each.dtype))
        return function(*args, **(kwargs or {}))


def seen(saved, kind, precision="float32", t=500):
    """What a network computes on this CPU as the policy has it for another kind of device, and its output."""
    network = load_network(saved, DIFFUSION_DEFAULTS, "cpu", policy(kind, precision))
    network = adapted(network, Arithmetic(precision), "cpu")
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Seen() as found:
        output = network(x, at(t))
    return found, output


@pytest.mark.parametrize(
    ("kind", "precision", "channels_last"),
    [("cpu", "float32", True), ("cuda", "float32", False), ("rocm", "bf16-weights", False)],
)
def test_a_saved_networks_weights_and_images_have_the_layout_of_the_policy(saved, kind, precision, channels_last):
    """Defect 1: NHWC wherever a weight or an image is NHWC, and torch's GroupNorm on GPUs copies it there and back.

    Patch: `unet.to(device=device, memory_format=torch.channels_last)` in `load_unet`, whatever `how.layout` says.
    """
    found, _ = seen(saved, kind, precision)
    assert found.convolutions, "no convolution was seen"
    assert all(formats[channels_last] for *formats, _ in [found.convolutions[0], *found.convolutions[1::2]])


def test_weights_are_cast_once_and_not_at_each_call(saved):
    """Defect 2: autocast casts weights at each call. Patch: `policy` returns autocast for bf16-weights."""
    under_autocast, _ = seen(saved, "cpu", "bf16")
    cast, output = seen(saved, "cpu", "bf16-weights")
    assert {half for *_, half in cast.convolutions} == {torch.bfloat16}
    assert cast.calls["to"] < 10 < 100 < under_autocast.calls["to"], "most of those that are left cast nothing"
    assert output.dtype == torch.float32
    assert torch.equal(output.bfloat16().float(), output), "it was computed in bf16"
    _, exact = seen(saved, "cpu")
    assert 0 < (output - exact).abs().max() < 0.05 * exact.abs().max()


def test_no_time_is_rounded_where_weights_are_in_bf16(saved, monkeypatch):
    """In bf16, 998 is 1000 and 997 is 996. The index stays int64, and the sines of its embedding are float32's."""
    given = {}
    embed = UNet2DModel.forward

    def forward(self, x, t, **kwargs):
        given["t"], given["proj"] = t, self.time_proj(t)
        return embed(self, x, t, **kwargs)

    monkeypatch.setattr(UNet2DModel, "forward", forward)
    outputs = {}
    for t in (997, 998, 999, 1000):
        outputs[t] = seen(saved, "cpu", "bf16-weights", t=t)[1]
        assert given["t"].dtype == torch.int64
        assert given["t"].tolist() == [t - 1] * 4
        half = given["proj"]
        seen(saved, "cpu", "float32", t=t)
        assert half.dtype == torch.float32
        assert torch.equal(half, given["proj"])
    assert not any(torch.equal(outputs[t], outputs[t + 1]) for t in (997, 998, 999))


class Custom(nn.Module):
    def __init__(self, casts):
        super().__init__()
        torch.manual_seed(0)
        self.casts = casts
        self.image, self.time, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 3), nn.BatchNorm2d(3)
        self.register_buffer("frequencies", torch.linspace(0, 1.003, 8))

    def forward(self, x, t):
        embedded = (t[:, None] * self.frequencies).sin()
        embedded = embedded.to(x.dtype) if self.casts else embedded
        return self.norm(self.image(x) + self.time(embedded)[..., None, None])


def custom(made, precision="bf16-weights"):
    network = for_inference(made, "mine:net", "cpu", policy("cpu", precision))
    return adapted(FromTimes(network), Arithmetic(precision), "cpu")


def test_a_custom_modules_weights_are_cast_and_its_frequencies_are_not():
    """Rounded to bf16, a frequency of 1.003 would be 1, and the sine at t = 900 another one."""
    made = Custom(casts=True)
    x = torch.randn(2, *SHAPE)
    output = custom(made)(x, at(900))
    assert (output.dtype, made.image.weight.dtype) == (torch.float32, torch.bfloat16)
    assert made.frequencies.dtype == made.norm.weight.dtype == torch.float32
    exact = custom(Custom(casts=True), "float32")(x, at(900))
    torch.testing.assert_close(output, exact, rtol=0.05, atol=0.02)


def test_a_custom_network_that_can_not_compute_in_bf16_weights_is_refused_in_one_line():
    x = torch.randn(2, *SHAPE)
    for refuse in (
        lambda: custom(Custom(casts=False))(x, at(900)),
        lambda: custom(lambda x, t: x),
        lambda: custom(lambda x, t: x.bfloat16(), "float32")(x, at(900)),
    ):
        with raises(CustomCodeError):
            refuse()


def test_every_batch_is_full_on_an_accelerator(monkeypatch):
    """Defect 10: libraries choose kernels by the number of images, so a shard's end would decide the bits of an image.

    Patch: `pads=compile != "none"` in `policy`.
    """
    monkeypatch.setattr(arithmetic, "kind_of", lambda device: "cuda")
    sizes = []

    def network(x, at, condition=None):
        sizes.append((len(x), None if condition is None else len(condition)))
        return 2 * x

    filled = adapted(network, Arithmetic(batch_size=4), "cpu")
    x = torch.randn(3, *SHAPE)
    assert torch.equal(filled(x, at(5)), 2 * x)
    assert torch.equal(filled(x[:1], at(5), torch.ones(1)), 2 * x[:1])
    assert sizes == [(4, None), (4, 4)]
    monkeypatch.undo()
    assert adapted(network, Arithmetic(batch_size=4), "cpu") is network, "a CPU computes the images there are"


def test_all_networks_of_a_worker_ask_the_policy(monkeypatch):
    """A worker on an NVIDIA GPU: each precision is loaded as it is computed, and those that agree are one network."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    loaded = []
    monkeypatch.setattr("taugrid.workers.device.load_network", lambda *args: loaded.append(args[-1]) or len)
    device, spec = Device("cuda"), OracleNetwork(Data())
    try:
        for precision in ("float32", "tf32", "bf16", "bf16-weights"):
            device.network(spec, DIFFUSION_DEFAULTS, Arithmetic(precision))
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    finally:
        arithmetic.configure()
    assert loaded == [policy("cuda", precision) for precision in ("float32", "bf16", "bf16-weights")]


def test_the_gpu_that_computes_is_asked_for_its_generation_and_not_the_first_one(monkeypatch):
    """A V100 and an A100 in one machine. Patch: `self.kind` in `Device.network`, or no device in `is_ampere`."""
    capabilities = {"cuda": (7, 0), "cuda:0": (7, 0), "cuda:1": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device="cuda": capabilities[device])
    monkeypatch.setattr("taugrid.workers.device.load_network", lambda *args: lambda x, at, c: x)
    try:
        Device("cuda:1").network(OracleNetwork(Data()), DIFFUSION_DEFAULTS, Arithmetic("bf16"))
        with raises(WorkerRefusal):
            Device("cuda:0").network(OracleNetwork(Data()), DIFFUSION_DEFAULTS, Arithmetic("bf16"))
    finally:
        arithmetic.configure()


LACKS = {
    ("cuda", "tf32"): None,
    ("cuda", "tf32", False): "sample.precision: tf32",
    ("rocm", "tf32"): "sample.precision: tf32",
    ("cuda", "bf16-weights", False): "sample.precision: bf16-weights",
    ("rocm", "bf16"): None,
}


def test_what_a_device_lacks_is_refused_and_what_is_offered_instead_can_be_computed_there():
    """Patch: `bf16-weights` left out, or bf16 offered to a V100."""
    assert {asked: (need := lacks(*asked)) and need.setting for asked in LACKS} == LACKS
    with raises(WorkerRefusal):
        arithmetic.prepare("tf32", "cpu", "a CPU")
    for kind, is_ampere in (("cpu", True), ("rocm", True), ("cuda", False)):
        offered = lacks(kind, "tf32", is_ampere).instead.replace(" or ", ", ").split(", ")
        usable = [each for each in get_args(Precision) if lacks(kind, each, is_ampere) is None]
        assert sorted(offered) == sorted(usable)
