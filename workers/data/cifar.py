"""`cifar10`: read by torchvision, which is imported only then."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.workers.data.labels import Labels
from taugrid.workers.data.load import MissingImages, download, root_of

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def read(data: Data) -> NDArray[np.uint8]:
    """The images of CIFAR-10, (N, 3, 32, 32) uint8, read by torchvision, which checks the MD5 of each file.

    Raises:
        UserError: if a file is missing or differs from the published one, saying how to get it.
    """
    images = np.concatenate([part.data for part in _parts(data)])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def labels(data: Data) -> Labels:
    """The labels of the images of `read`; raises the same errors."""
    return Labels(np.concatenate([part.targets for part in _parts(data)]).astype(np.int32), data.dataset.classes)


def _parts(data: Data) -> "list[CIFAR10]":
    from torchvision.datasets import CIFAR10

    root = root_of(data)
    parts = _in_folder(root, data.split)
    if parts is None and data.download:
        download("CIFAR10", root)
        parts = _in_folder(root, data.split)
    if parts is None:
        folder = root / CIFAR10.base_folder
        fault = f"files in {folder} are missing or changed" if folder.is_dir() else f"there is no {folder}"
        raise MissingImages(
            f"data: CIFAR-10 is missing ({fault}): unpack {CIFAR10.filename} ({CIFAR10.url}) in {root}, or set root to "
            "its folder, or download: true"
        )
    return parts


def _in_folder(root: Path, split: str) -> "list[CIFAR10] | None":
    from torchvision.datasets import CIFAR10

    parts = {"train": (True,), "test": (False,), "all": (True, False)}[split]
    try:
        return [CIFAR10(str(root), train=train) for train in parts]
    except RuntimeError:  # torchvision's, for a missing or changed file
        return None
