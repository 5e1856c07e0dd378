"""Pictures on disk, and how a data set of them is refused, for the tests of data sets."""

import numpy as np
import pytest
from PIL import Image

from taugrid.errors import UserError
from taugrid.workers.data import load as data

NOWHERE = "http://127.0.0.1:9/"
"""Nothing listens on the port `discard`."""


def refused(section):
    """The line with which a data set is refused."""
    with pytest.raises(UserError) as error:
        data.load_images(section)
    assert "\n" not in str(error.value)
    return str(error.value)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_picture(path, pixels, **options):
    """(C, H, W) as the file that the name's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        path, **options
    )
