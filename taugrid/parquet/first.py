"""The first images of a folder's files, as figures want them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid.images import decode_png, to_pictures
from taugrid.parquet.reader import read_png
from taugrid.storage import Storage


def first_pictures(paths: Iterable[Path], count: int, storage: Storage) -> NDArray[np.uint8]:
    """The images 0 to `count` - 1, fewer if the files have fewer; later files are not read once all are found.

    Args:
        paths: of files with images, in the order of their indices.
        count: how many are wanted.
        storage: where the files are.

    Returns:
        (n, H, W) or (n, H, W, 3), in the order of their indices.

    Raises:
        taugrid.errors.DamagedFile: if a file can't be read.
    """
    found: dict[int, bytes] = {}
    for path in paths:
        if len(found) >= count:
            break
        found |= read_png(path, range(count), storage)
    return to_pictures([decode_png(found[i]) for i in sorted(found)])
