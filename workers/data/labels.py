"""The labels of a data set's images: which class each shows. Imports no torch."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.errors import ContentMismatch, UserError
from taugrid.registry.datasets import DATASETS
from taugrid.words import this_node


class Labels(NamedTuple):
    of_images: NDArray[np.int32]
    """(N,), read-only: a class in [0, K) for each image of `load_images`, in its order."""
    classes: tuple[str, ...]
    """The names of the K classes, which differ: of a name that several have, each is followed by its number."""

    @property
    def sha256(self) -> str:
        """The labels' identity by content, in hex: of K and the labels, not of names."""
        return hashlib.sha256(np.append(self.of_images, len(self.classes)).astype("<i4").tobytes()).hexdigest()


@lru_cache(maxsize=4)
def load_labels(data: Data) -> Labels:
    """The labels of the images that `data` names, as many as `load_images` gives.

    Raises:
        UserError: if the data set has none, or its files of labels are missing, damaged or unusable.
    """
    if not data.dataset.labels:
        raise UserError(f"data: {without_labels(data)}")
    found: Labels = resolve_name(data.dataset.labels)(data)
    published = data.dataset.published_size(data.split, data.category)
    if published not in (None, len(found.of_images)):
        raise UserError(
            f"data: there are {len(found.of_images)} labels of {data.full_name}'s split {data.split}, which was "
            f"published with {published} images: get them again"
        )
    kept = found.of_images[: data.limit]
    kept.flags.writeable = False
    return Labels(kept, _distinct(found.classes))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """ImageNet has two classes crane, a bird and a machine: crane (134) and crane (517)."""
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} ({label})" for label, name in enumerate(names))


def load_known_labels(data: Data, sha256: str) -> Labels:
    """`load_labels` on a worker, whose node may have other files; `sha256` is that of the driver's.

    Raises:
        ContentMismatch: if they are missing or damaged on this node, or differ.
    """
    try:
        labels = load_labels(data)
    except UserError as error:
        raise ContentMismatch(f"node {this_node()}: {error}") from error
    if labels.sha256 != sha256:
        raise ContentMismatch(
            f"data: node {this_node()} has different labels of {data.full_name} (SHA-256 {labels.sha256[:8]}) from the "
            f"driver's ({sha256[:8]}): copy the driver's files there"
        )
    return labels


def number_of_classes(data: Data) -> int:
    """K. Of a published data set it is known without its files. `UserError` as `load_labels`."""
    return len(data.dataset.classes or load_labels(data).classes)


def of_folders(first_folders: Sequence[str]) -> Labels:
    """The labels of images from the names of their folders; the classes are these names, sorted."""
    classes, labels = np.unique(np.array(first_folders, dtype=str), return_inverse=True)
    return Labels(labels.astype(np.int32), tuple(map(str, classes)))


def without_labels(data: Data) -> str:
    """What to say of a data set that has no labels."""
    labelled = ", ".join(name for name, dataset in DATASETS.items() if dataset.labels)
    return f"{data.full_name} has no labels ({labelled} can have them)"
