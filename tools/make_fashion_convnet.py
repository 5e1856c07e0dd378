"""Makes the fashion-convnet weights: `python tools/make_fashion_convnet.py FOLDER` (minutes on one core).

FOLDER holds Fashion-MNIST's four files as published (Xiao, Rasul and Vollgraf 2017), gzipped IDX.
"""

import argparse
from pathlib import Path

import numpy as np
from convnet_training import Images, Recipe, make

from taugrid.eval.features.resolve import shipped_weights
from taugrid.registry.extractors import FASHION_CONVNET
from taugrid.workers.data.published import read_idx

RECIPE = Recipe(
    epochs=6, batch_size=128, learning_rate=2e-3, weight_decay=1e-2, dropout=0.3, shift_probability=0.5, seed=0
)


def read_fashion(folder: Path) -> Images:
    """Fashion-MNIST as published: 60,000 images to learn, 10,000 held out."""
    images, labels = (
        [read_idx(folder / f"{split}-{kind}-ubyte.gz", kind.partition("-")[0]) for split in ("train", "t10k")]
        for kind in ("images-idx3", "labels-idx1")
    )
    return Images(images[0][:, None], labels[0].astype(np.int64), images[1][:, None], labels[1].astype(np.int64))


def main() -> None:
    """Makes the weights and the JSON beside them."""
    parser = argparse.ArgumentParser(description="Make the fashion-convnet weights and the JSON beside them.")
    parser.add_argument("folder", type=Path, help="where Fashion-MNIST's files are")
    parser.add_argument("--to", type=Path, default=shipped_weights(FASHION_CONVNET).parent, help="folder to write to")
    arguments = parser.parse_args()
    description = {
        "script": "python tools/make_fashion_convnet.py FOLDER",
        "data": "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT licence, images as published",
        "split": "as published: train and t10k",
    }
    make(FASHION_CONVNET, RECIPE, read_fashion(arguments.folder), description, arguments.to)


if __name__ == "__main__":
    main()
