"""`cifar10`, and the data sets that torch-fidelity knows by name: read by torchvision, which is imported only then."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.workers.data.load import MissingImages, download, root_of
from taugrid.workers.data.picture import DecodedImage, Reader, SourceError

FIDELITY_NAMES = ("cifar10-train", "cifar10-val", "cifar100-train", "cifar100-val", "stl10-train", "stl10-test",
                  "stl10-unlabeled")  # fmt: skip
"""The names in torch-fidelity's registry of data sets."""


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


def fidelity_reader(root: Path, name: str) -> Reader:
    """The data set that torch-fidelity's registry knows as `name`, unpacked in the folder `root`."""
    from torch_fidelity.registry import DATASETS_REGISTRY
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name.split("-")[0]]
    try:
        images = DATASETS_REGISTRY[name](str(root), False)
    except (RuntimeError, OSError) as error:
        raise SourceError(
            f"{name} is not in {root}: download {kind.url} and unpack it there, to {root / kind.base_folder} (taugrid "
            "downloads no data sets)"
        ) from error

    def pictures(first: int) -> Iterator[DecodedImage]:
        for i in range(first, len(images)):  # each item is a uint8 tensor (3, H, W)
            yield DecodedImage(f"{name} image {i}", images[i].numpy(), lossy=False)

    return Reader(len(images), pictures)
