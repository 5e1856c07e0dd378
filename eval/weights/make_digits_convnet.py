"""Makes the digits-convnet weights: `python -m eval.weights.make_digits_convnet` (about a minute on one core).

The same software on the same kind of CPU makes the same bytes. The JSON beside the weights says which those were.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import sklearn
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from eval.extractor_names import DIGITS_CONVNET, sha256
from eval.extractors import DigitsNetwork, network_input

SEED = 0
HELD_OUT = 360
"""Images that training never sees: a fifth of the 1797, drawn by class."""
EPOCHS = 120
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.3
SHIFT_PROBABILITY = 0.5
"""Share of training images that are moved by one pixel; one pixel of eight is as much as leaves the digit whole."""


class Digits(NamedTuple):
    """scikit-learn's digits, divided into those that are learned and those that are held out."""

    train_images: NDArray[np.uint8]
    """(N, 1, 8, 8)."""
    train_labels: NDArray[np.int64]
    held_out_images: NDArray[np.uint8]
    held_out_labels: NDArray[np.int64]


def split_digits() -> Digits:
    """The 1797 digits as 8-bit grey levels (0..16 scaled to 0..255, to nearest), split by class with `SEED`."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SEED)
    return Digits(images[train], labels[train], images[held_out], labels[held_out])


def shift_some(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` (B, 1, 8, 8), of which some are moved by one pixel along each axis or one of them; black moves in."""
    count = len(images)
    moved = torch.rand(count, generator=generator) < SHIFT_PROBABILITY
    offsets = torch.randint(-1, 2, (count, 2), generator=generator) * moved[:, None]
    rows = 1 + offsets[:, 0, None] + torch.arange(8)
    columns = 1 + offsets[:, 1, None] + torch.arange(8)
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(digits: Digits) -> DigitsNetwork:
    """The network after `EPOCHS` over the training images: AdamW, cosine learning rate, dropout, small shifts."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network = DigitsNetwork(dropout=DROPOUT)
    images, labels = network_input(torch.from_numpy(digits.train_images)), torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = -(-len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            logits = network(shift_some(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


class Performance(NamedTuple):
    """How well a network does on the held-out images."""

    accuracy: float
    cross_entropy: float
    """Nats per image; unlike the accuracy it shows the slightest change of weights or preprocessing."""


def performance(logits: Tensor, digits: Digits) -> Performance:
    """The performance of the classifier that gave `logits` (N, 10) for the held-out images."""
    labels = torch.from_numpy(digits.held_out_labels)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return Performance(float(accuracy), float(functional.cross_entropy(logits.double(), labels)))


def main() -> None:
    """Trains, writes the weights and their provenance, and prints the held-out accuracy."""
    parser = argparse.ArgumentParser(description="Make the digits-convnet weights and the JSON beside them.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder: Path = parser.parse_args().to
    torch.set_num_threads(1)  # the number of threads changes the order of sums, and so the bytes
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    digits = split_digits()
    network = train(digits)
    with torch.no_grad():
        held_out = performance(network(network_input(torch.from_numpy(digits.held_out_images))), digits)
    weights = folder / f"{DIGITS_CONVNET}.safetensors"
    save_file(network.state_dict(), weights)
    provenance = {
        "script": "python -m eval.weights.make_digits_convnet",
        "data": "scikit-learn load_digits, levels 0..16 scaled to 0..255",
        "split": f"train_test_split, stratified, random_state {SEED}",
        "train_images": len(digits.train_labels),
        "held_out_images": len(digits.held_out_labels),
        "held_out_accuracy": held_out.accuracy,
        "held_out_cross_entropy": held_out.cross_entropy,
        "seed": SEED,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": sha256(weights),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": platform.machine(),
    }
    (folder / f"{DIGITS_CONVNET}.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(f"held-out accuracy {held_out.accuracy:.4f} of {HELD_OUT}, {weights.stat().st_size} bytes, "
          f"SHA-256 {provenance['sha256']}, {time.monotonic() - started:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
