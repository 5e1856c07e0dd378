"""Samples the cells of an experiment with Ray Data, from the same file that taugrid reads.

python with_ray_data.py experiment.yaml --out DIR --address HOST:PORT --workers N [--sort]
"""

import argparse
import io
from pathlib import Path

import numpy as np
import ray
import torch
import yaml
from PIL import Image
from ray.data.checkpoint import CheckpointConfig
from stand_in import load


def shards(sample, grid, sort):
    """Rows of (steps, first image, the one after the last): whole batches, about `shard_evaluations` calls each."""
    found = []
    for steps in grid["steps"]:
        images = sample["batch_size"] * max(1, sample["shard_evaluations"] // (steps * sample["batch_size"]))
        starts = range(0, sample["num_samples"], images)
        found += [(steps, start, min(start + images, sample["num_samples"])) for start in starts]
    return sorted(found, key=lambda s: s[0] * (s[1] - s[2])) if sort else found


class Sampler:
    def __init__(self, shards, shape, batch_size, seed, weights):
        torch.set_num_threads(1)
        self.shards, self.shape, self.batch_size, self.seed = shards, shape, batch_size, seed
        self.network = load(weights)
        self.alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)

    @torch.inference_mode()
    def sample(self, steps, start, stop):
        """DDIM, eta = 0, with as many calls of the network as steps."""
        generator = torch.Generator().manual_seed(hash((self.seed, steps, start)) % 2**63)
        x = torch.randn(stop - start, *self.shape, generator=generator)
        times = torch.linspace(0, 999, steps).long().flip(0)
        for t, before in zip(times, [*times[1:], None], strict=True):
            now, then = self.alpha_bar[t], torch.ones(()) if before is None else self.alpha_bar[before]
            eps = self.network(x, t.expand(len(x)))
            x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
            x = then.sqrt() * x0 + (1 - then).sqrt() * eps
        return ((x.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def __call__(self, batch):
        for id in batch["id"]:
            steps, start, stop = self.shards[id]
            for first in range(start, stop, self.batch_size):
                images = self.sample(steps, first, min(first + self.batch_size, stop))
                same = {"id": id, "steps": steps, "seed": self.seed}
                columns = {name: np.full(len(images), value) for name, value in same.items()}
                index = np.arange(first, first + len(images))
                yield {**columns, "index": index, "image": [png(image) for image in images]}


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--sort", action="store_true")
    options = parser.parse_args()
    experiment = yaml.safe_load(options.experiment.read_text())
    sample, weights = experiment["sample"], experiment["model"]["weights"]
    rows = shards(sample, experiment["grid"], options.sort)
    ray.init(options.address, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.actor_task_retry_on_errors = True
    path = str(options.out.absolute().with_suffix(".checkpoint"))
    context.checkpoint_config = CheckpointConfig("id", path, delete_checkpoint_on_success=False)
    arguments = rows, experiment["data"]["shape"], sample["batch_size"], experiment["seed"], weights
    pool = ray.data.ActorPoolStrategy(size=options.workers, max_tasks_in_flight_per_actor=2)
    dataset = ray.data.range(len(rows), override_num_blocks=len(rows))
    cpus = experiment["cluster"]["cpus_per_worker"]
    dataset = dataset.map_batches(Sampler, fn_constructor_args=arguments, batch_size=None, compute=pool, num_cpus=cpus)
    dataset.write_parquet(str(options.out.absolute()), compression="none")


if __name__ == "__main__":
    main()
