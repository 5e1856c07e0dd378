"""Reads the data sets that torch-fidelity knows by name, from where torchvision has unpacked them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taugrid.workers.data.readers.picture import Picture, Reader, SourceError

NAMES = ("cifar10-train", "cifar10-val", "cifar100-train", "cifar100-val", "stl10-train", "stl10-test",
            "stl10-unlabeled")  # fmt: skip
"""The names in torch-fidelity's registry of data sets."""


def dataset_reader(root: Path, name: str) -> Reader:
    """A reader of the data set that torch-fidelity's registry knows as `name`, in the folder `root`."""
    from torch_fidelity.registry import DATASETS_REGISTRY
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name.split("-")[0]]
    try:
        data = DATASETS_REGISTRY[name](str(root), False)
    except (RuntimeError, OSError) as error:
        raise SourceError(
            f"{name} is not in {root}: download {kind.url} and unpack it there, to {root / kind.base_folder} (taugrid "
            "downloads no data sets)"
        ) from error
    return Reader(len(data), lambda first: _dataset_pictures(name, data, first), ())


def _dataset_pictures(name: str, data: Any, first: int) -> Iterator[Picture]:
    """Each item of torch-fidelity's data sets is a uint8 tensor (3, H, W)."""
    for i in range(first, len(data)):
        yield Picture(f"{name} image {i}", data[i].numpy(), lossy=False)
