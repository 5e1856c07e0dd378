"""What a call would cost a GPU, counted without one: kernels, bytes and memory."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from torch import nn

import taugrid.configs
from taugrid.config import DIFFUSION_DEFAULTS, Unet
from taugrid.workers.accelerator.arithmetic import Arithmetic, adapted
from taugrid.workers.accelerator.counting import count
from taugrid.workers.accelerator.memory import FIRST
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.network.checkpoint import saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet

BATCH = 250
GB = 1e9


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The network of configs/cifar10-table1.yaml in a folder; its weights are those that memory happened to hold."""
    config = yaml.safe_load(Path(taugrid.configs.__path__[0], "cifar10-table1.yaml").read_text())
    with torch.device("meta"):
        unet = build_unet(Unet(**config["model"]["unet"]), (3, 32, 32)).to_empty(device="cpu")
    unet.save_pretrained(folder := tmp_path_factory.mktemp("saved"))
    return saved_network(folder)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


def forward(saved, precision, how=None):
    """The `Count` of a forward of 250 images, loaded and called as a worker with an NVIDIA GPU does it.

    `how` replaces its policy.
    """
    how = how or policy("cuda", precision)
    loaded = load_network(saved, DIFFUSION_DEFAULTS, "cpu", how)
    network = adapted(loaded, Arithmetic(precision, batch_size=BATCH), "cuda")
    autocast = None if how.autocast is None else getattr(torch, how.autocast)
    return count(lambda x: network(x, FIRST), meta(BATCH, 3, 32, 32), autocast=autocast)


def test_true_float32_makes_no_copies_for_group_norm(saved):
    """Defect 1: put back by `layout="channels_last"` for every device in workers/accelerator/policy.py.

    The network itself has 570 kernels and 53.9 GB; one more makes the times.
    """
    found = forward(saved, "float32")
    assert found.launches <= 575
    assert found.bytes <= 54 * GB
    assert found.kernels["to_layout"] < 25


def test_weights_in_half_precision_are_cast_once(saved):
    """Defect 2: put back by `weights=None` and `autocast=half` for bf16-weights in workers/accelerator/policy.py.

    655 kernels and 33.3 GB in the network itself.
    """
    found = forward(saved, "bf16-weights")
    assert found.launches <= 660
    assert found.bytes <= 34 * GB
    assert found.kernels["_to_copy"] <= 6, "of images, times and their embedding"


def test_memory_is_that_of_what_is_alive_at_once():
    """x, y and z at first; then y is gone when the last sum is made."""

    def call(x):
        y = x + 1
        z = y * 2
        del y
        return z + x

    found = count(call, meta(1000))
    assert (found.peak, found.launches, found.bytes) == (3 * 4000, 3, 4000 * (2 + 2 + 3))


def test_views_calls_in_place_and_weights_need_no_memory():
    weight = torch.ones(1000)
    found = count(lambda x: x.view(10, 100).t()[1:].add_(1).unsqueeze(0), meta(1000))
    assert (found.peak, found.launches) == (4000, 1)
    found = count(lambda x: x.mul_(weight[None].view(-1)), meta(1000))
    assert (found.peak, found.launches, found.bytes) == (4000, 1, 3 * 4000)
    assert torch.equal(weight, torch.ones(1000))


def test_attention_is_one_kernel_where_cuda_fuses_it_and_else_holds_every_pair():
    def peak(width, dtype=torch.float32, **options):
        q = meta(2, 4, 1024, width, dtype=dtype)
        found = count(lambda q: nn.functional.scaled_dot_product_attention(q, q, q, **options), q)
        return found.kernels["attention"], found.peak / _bytes(q)

    assert peak(8) == (1, 2)
    assert peak(8, torch.bfloat16) == (1, 2)
    fused, times = peak(6)
    assert fused == 0
    assert times > 1024 / 6, "(1024, 1024) for each head"


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


def test_a_convolution_follows_either_layout_and_adds_its_bias_apart():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    x = meta(2, 8, 16, 16)
    assert count(layer, x).kernels == {"convolution": 1, "add_bias": 1}
    mixed = count(layer, x.contiguous(memory_format=torch.channels_last))
    assert mixed.kernels == {"to_layout": 1, "convolution": 1, "add_bias": 1}, "the weight is copied at each call"
    layer = layer.to(memory_format=torch.channels_last)
    assert count(layer, x).kernels == {"to_layout": 1, "convolution": 1, "add_bias": 1}, "the images are"


def test_room_is_counted_for_a_workspace_of_cudnn():
    """The patch: x, y and the weight once more. A U-Net at 256 x 256 had 29.1 GB required for 64 images, of which
    Winograd's kernels need 33.9.
    """
    x, layer = meta(4, 8, 16, 16), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    winograd = 36 * 2 * 4 * 8 * (16 // 4) ** 2 + 36 * 8 * 8
    assert count(layer, x).peak == 2 * _bytes(x) + 4 * winograd
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        )
    at = torch.zeros((), dtype=torch.long, device="meta")
    assert count(lambda x: unet(x, at).sample, meta(64, 3, 256, 256)).peak / GB == pytest.approx(33.9, abs=0.05)


def test_what_a_network_makes_on_a_device_of_its_own_is_traced_too():
    """As on a GPU: weights there, x without data, and a device that is named."""
    place = "meta"  # stands for cuda:0; torch for CPUs has no other
    table = torch.arange(8.0)

    def network(x):
        return x + torch.ones(8, device=place) * table.to(place)

    assert count(network, meta(4, 8)).kernels == {"ones": 1, "mul": 1, "add": 1}
