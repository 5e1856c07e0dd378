"""What a solver's arithmetic costs beside DDIM's, per network evaluation, where the network is so small that it shows.

    python -m benchmarks.solvers [--rounds 15] [--steps 50] [--images 16]

Samples one batch with the untrained network of configs/digits.yaml by `workers.sample.sample_batch`, as a worker does,
with each solver in turns with `ddim` at eta = 0. Prints the medians of CPU seconds (of one thread, so that other load
on the machine counts less) per network evaluation, and their ratio to DDIM's.
"""

import argparse
import statistics
import time
from functools import partial

import torch

from taugrid.config.load import load
from taugrid.orchestrator.in_memory import Settings
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.workers.diffusion.denoiser import from_times
from taugrid.workers.network.unet import build_unet
from taugrid.workers.sample import sample_batch

SAMPLERS = ("ddim", "dpm++2m", "dpm++3m", "unipc", "heun")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = plan(load("digits", [f"grid={{sampler: [{', '.join(SAMPLERS)}], steps: [{arguments.steps}]}}"])).cells
    [model] = {cell.model.id: cell.model for cell in cells}.values()
    assert isinstance(model.source, Trained)
    unet = build_unet(model.source.unet, model.image_shape).eval()
    network, indices = from_times(lambda x, t: unet(x, t).sample), torch.arange(arguments.images)
    samples = {
        cell.settings.sampler: (
            partial(
                sample_batch,
                network,
                indices,
                Settings(model.decoder, model.diffusion, cell.settings, cell.tau, cell.evaluations),
            ),
            cell.evaluations,
        )
        for cell in cells
    }
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(arguments.rounds + 1):
        for name, (sample, evaluations) in samples.items():
            began = time.process_time()
            sample()
            seconds[name].append((time.process_time() - began) / evaluations)
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}  # the first round warms up
    for name, median in medians.items():
        print(f"{name}: {1000 * median:.3f} ms of CPU an evaluation, {median / medians['ddim']:.3f} of ddim's")


if __name__ == "__main__":
    main()
