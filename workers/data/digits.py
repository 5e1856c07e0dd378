"""`digits`: scikit-learn's handwritten digits."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from taugrid.config import Data
from taugrid.registry.datasets import DATASETS

LEVELS = 16
"""scikit-learn's digits count the dark pixels of 4x4 blocks: whole numbers from 0 to 16."""

TRAIN_IMAGES = DATASETS["digits"].num_images["train"]
"""The rest is by other writers, for the images are sorted by who wrote them."""


def read(data: Data) -> NDArray[np.uint8]:
    """The images of a split, (N, 8, 8) uint8, with the levels spread over 0 to 255."""
    rows = {"all": slice(None), "train": slice(TRAIN_IMAGES), "test": slice(TRAIN_IMAGES, None)}[data.split]
    counts = load_digits().images[rows]
    images: NDArray[np.uint8] = np.rint(counts * (255 / LEVELS)).astype(np.uint8)
    return images
