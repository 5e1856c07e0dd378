"""What a solver's arithmetic costs beside DDIM's, per network evaluation, where the network is so small that it shows.

    python -m benchmarks.solvers [--rounds 15] [--steps 50] [--images 16]

Samples one batch by `sample_batch`, as a worker does, with each solver in turns with `ddim` at eta = 0:
with the untrained network of configs/digits.yaml, and with one that computes nothing. Prints the medians of CPU seconds
(of one thread, so that other load on the machine counts less) per network evaluation, and their ratio to DDIM's.
"""

import argparse
import statistics
import time
from functools import partial

import torch

from taugrid.config.load import load
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.workers.diffusion.denoiser import Denoiser, FromTimes
from taugrid.workers.network.unet import build_unet
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

SAMPLERS = ("ddim", "dpm++2m", "dpm++3m", "unipc", "heun")


def milliseconds(network: Denoiser, recipes: dict[str, SamplingSpec], images: int, rounds: int) -> dict[str, float]:
    """Of CPU per network evaluation, by sampler."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(rounds + 1):
        for name, spec in recipes.items():
            began = time.process_time()
            sample_batch(network, torch.arange(images), spec)
            found[name].append(1000 * (time.process_time() - began) / spec.nfe)
    return {name: statistics.median(each[1:]) for name, each in found.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = plan(load("digits", [f"grid={{sampler: [{', '.join(SAMPLERS)}], steps: [{arguments.steps}]}}"])).cells
    model = cells[0].model
    recipes = {
        cell.settings.sampler: SamplingSpec(model.decoder, model.diffusion, cell.settings, cell.tau, cell.nfe)
        for cell in cells
    }
    assert isinstance(model.source, Trained)
    unet = build_unet(model.source.unet, model.image_shape).eval()
    measure = partial(milliseconds, recipes=recipes, images=arguments.images, rounds=arguments.rounds)
    whole, alone = measure(FromTimes(lambda x, t: unet(x, t).sample)), measure(lambda x, *_: x)
    for name, each in whole.items():
        print(
            f"{name}: {each:.3f} ms of CPU an evaluation, {each / whole['ddim']:.3f} of ddim's; "
            f"{alone[name]:.3f} ms without the network"
        )


if __name__ == "__main__":
    main()
