"""Makes the digits-convnet weights: `python tools/make_digits_convnet.py` (about a minute on one core)."""

import argparse
from pathlib import Path

import numpy as np
from convnet_training import Images, Recipe, make
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from taugrid.eval.features.resolve import shipped_weights
from taugrid.registry.extractors import DIGITS_CONVNET

HELD_OUT = 360  # images that training never sees: a fifth of the 1797, drawn by class

# One pixel of eight is as far as an image can be moved with the digit left whole.
RECIPE = Recipe(
    epochs=120, batch_size=64, learning_rate=2e-3, weight_decay=1e-2, dropout=0.3, shift_probability=0.5, seed=0
)


def split_digits() -> Images:
    """The 1797 digits as 8-bit grey levels (0..16 scaled to 0..255, to nearest), split by class with the seed."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=RECIPE.seed
    )
    return Images(images[train], labels[train], images[held_out], labels[held_out])


def main() -> None:
    """Makes the weights and the JSON beside them."""
    parser = argparse.ArgumentParser(description="Make the digits-convnet weights and the JSON beside them.")
    parser.add_argument("--to", type=Path, default=shipped_weights(DIGITS_CONVNET).parent, help="folder to write to")
    description = {
        "script": "python tools/make_digits_convnet.py",
        "data": "scikit-learn load_digits, levels 0..16 scaled to 0..255",
        "split": f"train_test_split, stratified, random_state {RECIPE.seed}",
    }
    make(DIGITS_CONVNET, RECIPE, split_digits(), description, parser.parse_args().to)


if __name__ == "__main__":
    main()
