"""Data sets that need no files: `digits` (scikit-learn's), and distributions whose best eps is known.

These are `gaussian`, `two-points` and `classes`.
"""

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.images import to_uint8
from taugrid.registry.datasets import DATASETS
from taugrid.workers.data.labels import Labels
from taugrid.workers.diffusion import gaussian

DIGITS_LEVELS = 16
"""scikit-learn's digits count the dark pixels of 4x4 blocks: whole numbers from 0 to 16."""

DIGITS_FOR_TRAINING = DATASETS["digits"].num_images["train"]
"""The rest is by other writers, for the images are sorted by who wrote them."""

DRAWN_IMAGES = 10_000


def read_digits(data: Data) -> NDArray[np.uint8]:
    """The digits of a split, (N, 8, 8) uint8, with the levels spread over 0 to 255."""
    from sklearn.datasets import load_digits

    images: NDArray[np.uint8] = np.rint(load_digits().images[_split(data)] * (255 / DIGITS_LEVELS)).astype(np.uint8)
    return images


def digits_labels(data: Data) -> Labels:
    """Which digit each image of a split shows."""
    from sklearn.datasets import load_digits

    return Labels(load_digits().target[_split(data)].astype(np.int32), data.dataset.classes)


def _split(data: Data) -> slice:
    train, test = slice(DIGITS_FOR_TRAINING), slice(DIGITS_FOR_TRAINING, None)
    return {"all": slice(None), "train": train, "test": test}[data.split]


def read_draws(data: Data) -> NDArray[np.uint8]:
    """10,000 draws, (N, C, H, W) uint8. The split `test` has different draws from `train` and `all`."""
    x = gaussian.draw(distribution(data), DRAWN_IMAGES, seed=1 if data.split == "test" else 0)
    return to_uint8(x.astype(np.float32))


def labels_of_draws(data: Data) -> Labels:
    """The class of each draw of `classes`."""
    return Labels((np.arange(DRAWN_IMAGES) % len(data.dataset.classes)).astype(np.int32), data.dataset.classes)


def distribution(data: Data) -> gaussian.Gaussian | gaussian.TwoPoints | gaussian.Classes:
    """The distribution that the images of `data` are drawn from; ValueError if it is not known."""
    if data.name == "gaussian":
        return gaussian.gaussian(data.image_shape)
    if data.name == "two-points":
        return gaussian.two_points(data.image_shape)
    if data.name == "classes":
        return gaussian.classes(data.image_shape)
    raise ValueError(f"the distribution of {data.name} is not known")
