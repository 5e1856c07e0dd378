"""How the shipped classifiers are trained and written down. The scripts beside it say on what.

The same software on the same kind of CPU makes the same bytes. The JSON beside the weights says which those were.
"""

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import sklearn
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from taugrid.eval.features.networks import Convnet, network_input
from taugrid.hashing import file_sha256

IMAGES_AT_ONCE = 1000  # where nothing is learned: bounds memory


class Images(NamedTuple):
    """Labelled grey images, divided into those that are learned and those that are held out."""

    train_images: NDArray[np.uint8]  # (N, 1, H, W)
    train_labels: NDArray[np.int64]  # (N,)
    held_out_images: NDArray[np.uint8]
    held_out_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    shift_probability: float  # share of training images that are moved by one pixel
    seed: int = 0


def shift_some(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """`images` (B, 1, H, W), of which some are moved by one pixel along each axis or one of them; black moves in."""
    count, _, height, width = images.shape
    moved = torch.rand(count, generator=generator) < probability
    offsets = torch.randint(-1, 2, (count, 2), generator=generator) * moved[:, None]
    rows = 1 + offsets[:, 0, None] + torch.arange(height)
    columns = 1 + offsets[:, 1, None] + torch.arange(width)
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(name: str, recipe: Recipe, data: Images) -> Convnet:
    """The network `name` after the recipe: AdamW, cosine learning rate, dropout, small shifts."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = Convnet(name, dropout=recipe.dropout)
    images, labels = network_input(torch.from_numpy(data.train_images)), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    batches = -(-len(labels) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs * batches)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in torch.split(order, recipe.batch_size):
            logits = network(shift_some(images[batch], recipe.shift_probability, generator))
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


class Performance(NamedTuple):
    """How well a network does on labelled images."""

    accuracy: float
    cross_entropy: float
    """Nats per image; unlike the accuracy it shows the slightest change of weights or preprocessing."""


def performance(logits: Tensor, labels: NDArray[np.int64]) -> Performance:
    """The performance of the classifier that gave `logits` (N, 10) for the images with `labels` (N,)."""
    truth = torch.from_numpy(labels)
    accuracy = (logits.argmax(1) == truth).double().mean()
    return Performance(float(accuracy), float(functional.cross_entropy(logits.double(), truth)))


def features_of(network: Convnet, images: NDArray[np.uint8]) -> Tensor:
    """The features (N, 64) of uint8 `images` (N, 1, H, W)."""
    with torch.no_grad():
        chunks = torch.split(torch.from_numpy(images), IMAGES_AT_ONCE)
        return torch.cat([network.features(network_input(chunk)) for chunk in chunks])


def make(name: str, recipe: Recipe, data: Images, description: dict[str, str], folder: Path) -> None:
    """Trains, writes the weights and their provenance to `folder`, and prints the held-out accuracy. `description` says
    in words which script, data and split these are; it opens the JSON."""
    torch.set_num_threads(1)  # the number of threads changes the order of sums, and so the bytes
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    network = train(name, recipe, data)
    features = features_of(network, np.concatenate([data.train_images, data.held_out_images]))
    held_out = performance(network.classifier(features[len(data.train_labels) :]).detach(), data.held_out_labels)
    weights = folder / f"{name}.safetensors"
    save_file(network.state_dict(), weights)
    provenance = {
        **description,
        "train_images": len(data.train_labels),
        "held_out_images": len(data.held_out_labels),
        "held_out_accuracy": held_out.accuracy,
        "held_out_cross_entropy": held_out.cross_entropy,
        "smallest_feature_std": float(features.std(dim=0).min()),
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": file_sha256(weights),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": platform.machine(),
    }
    (folder / f"{name}.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(f"held-out accuracy {held_out.accuracy:.4f} of {len(data.held_out_labels)}, {weights.stat().st_size} bytes, "
          f"SHA-256 {provenance['sha256']}, {time.monotonic() - started:.0f} s")  # fmt: skip
