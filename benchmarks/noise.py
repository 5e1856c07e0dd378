"""What noise costs beside a denoising step, and three ways to make it a function of (seed, sample, time).

    python -m benchmarks.noise [--batch 256] [--network-batch 16] [--rounds 7]

For images of 3x32x32 and 1x8x8 it times, in turns within each round:
- `philox`: ours, Philox in tensor operations (`workers/diffusion/noise.py`);
- `generators`: one torch.Generator for each sample and time, as EDM's StackedRandomGenerator has one for each sample;
- `numpy`: numpy's Philox bit generator and ziggurat normals for each sample and time, on the CPU;
- `network`: one evaluation of a U-Net in float32: google/ddpm-cifar10-32's shape for 3x32x32, a small one for 1x8x8.
On the CPU it uses one thread, as a sampling actor on one core does, and CPU seconds, so that other load on the machine
counts little; the network of 3x32x32 takes a smaller batch and its time is scaled up. Where there is a CUDA device, all
of it runs there, and ours is compared with itself on the CPU: words for equality, normals by their largest difference.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor

from taugrid.workers.diffusion.noise import normal, stream_key, words

SEED = 20
Shape = tuple[int, int, int]
Way = Callable[[Tensor, int, Shape], Tensor]


def philox(indices: Tensor, t: int, shape: Shape) -> Tensor:
    return normal(SEED, indices, t, shape)


def generators(indices: Tensor, t: int, shape: Shape) -> Tensor:
    device = indices.device
    each = [torch.Generator(device).manual_seed(hash((SEED, n, t))) for n in indices.tolist()]
    return torch.stack([torch.randn(shape, generator=g, device=device) for g in each])


def numpy_philox(indices: Tensor, t: int, shape: Shape) -> Tensor:
    key = stream_key(SEED, "benchmark")[0]
    each = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, n, t])) for n in indices.tolist()]
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in each])).to(indices.device)


WAYS: dict[str, Way] = {"philox": philox, "generators": generators, "numpy": numpy_philox}


def network(shape: Shape) -> UNet2DModel:
    """google/ddpm-cifar10-32's U-Net for 3x32x32, else one of two levels; random weights, which cost the same."""
    channels, side, _ = shape
    if side == 32:
        widths, attention = (128, 256, 256, 256), 1
    else:
        widths, attention = (32, 64), 1
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=2 if side == 32 else 1,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        freq_shift=1,
        flip_sin_to_cos=False,
    ).eval()


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """What one call takes: CPU seconds on the CPU, wall seconds with an empty queue before and after on CUDA."""
    if device.type == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def compare(shape: Shape, batch: int, network_batch: int, rounds: int, device: torch.device) -> None:
    """Print the medians over `rounds` of every way and of the network, and the ways' shares of the network's time."""
    indices = torch.arange(batch, device=device)
    unet = network(shape).to(device)
    x = torch.zeros(network_batch, *shape, device=device)
    times: dict[str, list[float]] = {name: [] for name in [*WAYS, "network"]}
    for t in range(rounds + 1):
        for name, way in WAYS.items():
            times[name].append(seconds(lambda way=way, t=t: way(indices, t, shape), device))
        times["network"].append(seconds(lambda t=t: unet(x, t), device) * batch / network_batch)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up
    scaled = f", network measured at {network_batch} and scaled" if network_batch != batch else ""
    print(f"{'x'.join(map(str, shape))}, batch {batch}, median of {rounds} rounds{scaled}:")
    for name, median in medians.items():
        low, high = min(times[name][1:]), max(times[name][1:])
        share = 100 * median / medians["network"]
        versus = median / medians["philox"]
        print(f"  {name:<11}{1e3 * median:11.2f} ms  ({1e3 * low:.2f} to {1e3 * high:.2f})", end="")
        print(f"{share:9.3f} % of a step{versus:9.2f} x philox")


def check_devices_agree(batch: int, shape: Shape) -> None:
    """Print whether a CUDA device draws the CPU's words, and the largest difference of the normals."""
    cpu, cuda = torch.arange(batch), torch.arange(batch, device="cuda")
    equal, largest, different, count = True, 0.0, 0, 0
    for t in range(20):
        blocks = -(-int(np.prod(shape)) // 4)
        equal &= torch.equal(words(SEED, "sample", cpu, t, blocks), words(SEED, "sample", cuda, t, blocks).cpu())
        difference = (normal(SEED, cpu, t, shape) - normal(SEED, cuda, t, shape).cpu()).abs()
        largest = max(largest, difference.max().item())
        different += int((difference > 0).sum())
        count += difference.numel()
    print(f"cpu and cuda: words equal: {equal}; of {count} normals {different} differ, by at most {largest:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What noise costs beside a denoising step.")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--network-batch", type=int, default=16, help="on the CPU, for 3x32x32; scaled to --batch")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "one thread, CPU seconds"
    print(f"torch {torch.__version__}, {device.type}, {where}")
    batch = arguments.batch
    large = batch if device.type == "cuda" else min(batch, arguments.network_batch)
    compare((3, 32, 32), batch, large, arguments.rounds, device)
    compare((1, 8, 8), batch, batch, arguments.rounds, device)
    if device.type == "cuda":
        check_devices_agree(batch, (3, 32, 32))


if __name__ == "__main__":
    main()
