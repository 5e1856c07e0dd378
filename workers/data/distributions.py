"""`gaussian` and `two-points`: draws from distributions whose optimal eps is known."""

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.images import to_uint8
from taugrid.workers.diffusion import gaussian

DRAWN_IMAGES = 10_000
"""Images of a distribution's data set."""


def read(data: Data) -> NDArray[np.uint8]:
    """10,000 draws, (N, C, H, W) uint8. The split `test` has different draws from `train` and `all`."""
    x = gaussian.draw(distribution(data), DRAWN_IMAGES, seed=1 if data.split == "test" else 0)
    return to_uint8(x.astype(np.float32))


def distribution(data: Data) -> gaussian.Gaussian | gaussian.TwoPoints:
    """The distribution that the images of `data` are drawn from; ValueError if it is not known."""
    if data.name == "gaussian":
        return gaussian.gaussian(data.image_shape)
    if data.name == "two-points":
        return gaussian.two_points(data.image_shape)
    raise ValueError(f"the distribution of {data.name} is not known")
