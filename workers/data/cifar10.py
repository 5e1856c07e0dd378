"""`cifar10`: read and checked by torchvision, which is imported only then."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.workers.data.places import MissingImages, download, root_of


def read(data: Data) -> NDArray[np.uint8]:
    """The images of CIFAR-10, (N, 3, 32, 32) uint8, read by torchvision, which checks the MD5 of each file.

    Raises:
        UserError: if a file is missing or differs from the published one, saying how to get it.
    """
    from torchvision.datasets import CIFAR10

    root = root_of(data)
    images = _images(root, data.split)
    if images is None and data.download:
        download("CIFAR10", root)
        images = _images(root, data.split)
    if images is None:
        folder = root / CIFAR10.base_folder
        fault = f"files in {folder} are missing or changed" if folder.is_dir() else f"there is no {folder}"
        raise MissingImages(
            f"CIFAR-10 is missing ({fault})",
            f"the folder where {CIFAR10.filename} was unpacked ({CIFAR10.url})",
            "data.download: true",
        )
    return images


def _images(root: Path, split: str) -> NDArray[np.uint8] | None:
    from torchvision.datasets import CIFAR10

    parts = {"train": (True,), "test": (False,), "all": (True, False)}[split]
    try:
        images = np.concatenate([CIFAR10(str(root), train=train).data for train in parts])
    except RuntimeError:  # torchvision's, for a missing or changed file
        return None
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
