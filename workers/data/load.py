"""Datasets, as 8-bit images. The driver takes fingerprints and references from here, so torch is for CIFAR-10 alone."""

import platform
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from taugrid import config
from taugrid.errors import UserError
from taugrid.hashing import digest_of_shape
from taugrid.parquet import to_uint8
from taugrid.workers.data import datasets
from taugrid.workers.data.decoding import Decoded, decoded
from taugrid.workers.diffusion import gaussian

DIGITS_LEVELS = 16
"""scikit-learn's digits count the dark pixels of 4x4 blocks: whole numbers from 0 to 16."""


DIGITS_TRAIN = 1437
"""Images of the training split; the rest, 360, are by other writers, for the images are sorted by who wrote them."""

DRAWN_IMAGES = 10_000
"""Images of a distribution's data set."""


FINGERPRINT_ROWS = 1024
"""Images that a fingerprint is brought into memory for at a time."""


def load_images(data: config.Data) -> NDArray[np.uint8]:
    """All images of the data set and split that `data` names, in their published order.

    Returns:
        (N, C, H, W) uint8, contiguous, of `data.image_shape`; kept for the next call, so it can't be written to. Where
        images had to be decoded, a map of a file.

    Raises:
        UserError: if they are missing or damaged, saying how to get them.
    """
    return _load(data).images


def load_known_images(data: config.Data, sha256: str) -> NDArray[np.uint8]:
    """`load_images` on a worker, of whose node it is not known whether its images are the driver's.

    Args:
        data: as of `load_images`.
        sha256: their `content_fingerprint` on the driver.

    Raises:
        UserError: as `load_images`, and if they are other images.
    """
    found = _load(data)
    if found.fingerprint != sha256:
        place = "its packages" if data.name in BUNDLED else data.root or datasets.default_root()
        raise UserError(
            f"data: node {platform.node()} has other images of {data.full_name} in {place} (SHA-256 "
            f"{found.fingerprint[:8]}) than the driver ({sha256[:8]}): put the driver's there"
        )
    return found.images


def content_fingerprint(data: config.Data) -> str:
    """`fingerprint` of `load_images`; that of images which were decoded once is not computed anew.

    Raises:
        UserError: as `load_images`.
    """
    return _load(data).fingerprint


@lru_cache(maxsize=4)
def _load(data: config.Data) -> Decoded:
    if data.name in datasets.ENCODED:
        return decoded(data, datasets.ENCODED[data.name](data), datasets.decoded_folder())
    images = READERS[data.name](data).reshape(-1, *data.image_shape)[: data.limit]
    images.flags.writeable = False
    return Decoded(images, fingerprint(images))


def distribution(data: config.Data) -> gaussian.Gaussian | gaussian.TwoPoints:
    """What the images of `data` are drawn from; ValueError where that is not known."""
    if data.name == "gaussian":
        return gaussian.gaussian(data.image_shape)
    if data.name == "two-points":
        return gaussian.two_points(data.image_shape)
    raise ValueError(f"the distribution of {data.name} is not known")


def _digits(data: config.Data) -> NDArray[np.uint8]:
    rows = {"all": slice(None), "train": slice(DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None)}[data.split]
    counts = load_digits().images[rows]
    images: NDArray[np.uint8] = np.rint(counts * (255 / DIGITS_LEVELS)).astype(np.uint8)
    return images


def _drawn(data: config.Data) -> NDArray[np.uint8]:
    x = gaussian.draw(distribution(data), DRAWN_IMAGES, seed=1 if data.split == "test" else 0)
    return to_uint8(x.astype(np.float32))


BUNDLED: dict[str, Callable[[config.Data], NDArray[np.uint8]]] = {
    "digits": _digits,
    "gaussian": _drawn,
    "two-points": _drawn,
}
READERS = BUNDLED | datasets.READERS


def fingerprint(images: NDArray[np.uint8]) -> str:
    """The identity of a dataset by content: SHA-256, in hex, of the shape (as int64, little-endian) and the bytes."""
    digest = digest_of_shape(images.shape)
    for start in range(0, len(images), FINGERPRINT_ROWS):
        digest.update(np.ascontiguousarray(images[start : start + FINGERPRINT_ROWS]).tobytes())
    return str(digest.hexdigest())
