"""`cifar10`, and the data sets that torch-fidelity knows by name: read by torchvision, which is imported only then."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.workers.data.labels import Labels
from taugrid.workers.data.load import MissingImages, download, root_of
from taugrid.workers.data.picture import DecodedImage, Reader, SourceError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

FIDELITY_NAMES = ("cifar10-train", "cifar10-val", "cifar100-train", "cifar100-val", "stl10-train", "stl10-test",
                  "stl10-unlabeled")  # fmt: skip
"""The names in torch-fidelity's registry of data sets."""


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
            f"CIFAR-10 is missing ({fault})",
            f"the folder where {CIFAR10.filename} was unpacked ({CIFAR10.url})",
            "data.download: true",
        )
    return parts


def _in_folder(root: Path, split: str) -> "list[CIFAR10] | None":
    from torchvision.datasets import CIFAR10

    parts = {"train": (True,), "test": (False,), "all": (True, False)}[split]
    try:
        return [CIFAR10(str(root), train=train) for train in parts]
    except RuntimeError:  # torchvision's, for a missing or changed file
        return None


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
