"""The images and labels of a data set: read by the functions that the registry names, checked, and kept in memory.

The driver takes fingerprints and references from here, so this imports no torch.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data
from taugrid.errors import DamagedFile, MissingInput, UserError, WorkerRefusal, joined_lines
from taugrid.hashing import digest_of_shape
from taugrid.registry.datasets import DATASETS
from taugrid.storage import user_cache
from taugrid.words import this_node
from taugrid.workers.data.decoding import Decoded, EncodedDataset, SourceError, fitted, load_or_decode, locked

L = TypeVar("L")

FINGERPRINT_ROWS = 1024  # images that are brought into memory at a time to compute a fingerprint


class MissingImages(UserError):
    """The images of a published data set are not there. Its text begins with the section `data` of a config."""

    def for_section(self, section: str) -> MissingInput:
        """The same error for a different section that names a data set, such as `evaluate.reference`."""
        return MissingInput(f"{section}{str(self).removeprefix('data')}")


def load_images(data: Data) -> NDArray[np.uint8]:
    """All images of the data set and split that `data` names, in their published order: (N, C, H, W) uint8, contiguous.
    They are kept for the next call, so they are read-only. Raises `UserError` if they are missing or damaged."""
    return decoded(data).images


def few_images(data: Data, count: int) -> NDArray[np.uint8] | None:
    """The first images of `load_images`, at most `count`, which alone are decoded; None if they are not here."""
    try:
        dataset = resolve_name(data.dataset.reader)(data.model_copy(update={"download": False}))
        if isinstance(dataset, EncodedDataset):
            count = min(count, dataset.reader.num_images, data.limit or count)
            return np.stack([each.pixels for each in fitted(dataset.reader, data.image_shape, count)])
        return np.array(dataset.reshape(-1, *data.image_shape)[: data.limit][:count])
    except (UserError, SourceError, DamagedFile, OSError):
        return None


def few_labels(data: Data, count: int) -> NDArray[np.int32] | None:
    """The labels of `few_images`; None if there are none."""
    try:
        return np.array(load_labels(data).of_images[:count])
    except (UserError, OSError):
        return None


def load_known_images(data: Data, sha256: str) -> NDArray[np.uint8]:
    """`load_images` on a worker; `sha256` is the driver's fingerprint. Raises `WorkerRefusal` if those of this node
    are missing or damaged, or differ."""
    loaded = _on_this_node(decoded, data)
    # Decoded images are a file of this node: what counts is what is in it now.
    actual = fingerprint(loaded.images) if isinstance(loaded.images, np.memmap) else loaded.fingerprint
    _require_drivers("images", data, actual, sha256)
    return loaded.images


def load_known_rows(data: Data, start: int, stop: int, sha256: str) -> NDArray[np.uint8]:
    """Images `start` to `stop` - 1 of `load_known_images`; `sha256` is the fingerprint of these alone on the driver."""
    rows = np.array(_on_this_node(decoded, data).images[start:stop])
    _require_drivers("images", data, fingerprint(rows), sha256)
    return rows


def _on_this_node(load: Callable[[Data], L], data: Data) -> L:
    """What `load` returns. The driver has loaded the same, so an error is the node's fault: `WorkerRefusal`."""
    try:
        return load(data)
    except UserError as error:
        raise WorkerRefusal(f"node {this_node()}: {error}") from error


def _require_drivers(what: str, data: Data, actual: str, expected: str) -> None:
    if actual != expected:
        raise WorkerRefusal(
            f"data: node {this_node()} has different {what} of {data.full_name} in {_place(data)} (SHA-256 "
            f"{actual[:8]}) from the driver's ({expected[:8]}): copy the driver's files there"
        )


def content_fingerprint(data: Data, of: Literal["images", "labels"] = "images") -> str:
    """The `fingerprint` of `load_images`, or the SHA-256 of `load_labels`; raises the same errors."""
    return load_labels(data).sha256 if of == "labels" else decoded(data).fingerprint


def require_files(data: Data, has_labels: bool = False) -> None:
    """Raise `UserError` if files of a data set, or of its labels, are missing, as far as that is known without decoding
    or downloading: a data set with `data.download`, or that ships with taugrid, is not checked."""
    if "root" in data.dataset.keys and not data.download:
        resolve_name(data.dataset.reader)(data)
        if has_labels:
            resolve_name(data.dataset.labels)(data)


@lru_cache(maxsize=4)
def decoded(data: Data) -> Decoded:
    dataset = resolve_name(data.dataset.reader)(data)
    if isinstance(dataset, EncodedDataset):
        _require_published_size(data, dataset.reader.num_images, str(dataset.files[0]))
        return load_or_decode(data, dataset, decoded_folder())
    _require_published_size(data, len(dataset), _place(data))
    images = dataset.reshape(-1, *data.image_shape)[: data.limit]
    images.flags.writeable = False
    return Decoded(images, fingerprint(images))


def _place(data: Data) -> str:
    return str(root_of(data)) if "root" in data.dataset.keys else "its packages"


def _require_published_size(data: Data, count: int, place: str) -> None:
    """Raise `UserError` unless there are as many images as published, before `data.limit`: ids depend on the name."""
    published = data.dataset.published_size(data.split, data.category)
    if published is not None and count != published:
        raise UserError(
            f"data: {place} has {count} images of {data.full_name}'s split {data.split}, which was published with "
            f"{published}: get it again, or set data.limit for a part of it, or data.name: folder for other images"
        )


def fingerprint(images: NDArray[np.uint8]) -> str:
    """The identity of a data set by content: SHA-256, in hex, of the shape (as int64, little-endian) and the bytes."""
    digest = digest_of_shape(images.shape)
    for start in range(0, len(images), FINGERPRINT_ROWS):
        digest.update(np.ascontiguousarray(images[start : start + FINGERPRINT_ROWS]).tobytes())
    return str(digest.hexdigest())


def decoded_folder() -> Path:
    return user_cache() / "decoded"


def root_of(data: Data) -> Path:
    """`data.root`, or the usual folder of data sets and of downloads."""
    return user_cache() / "datasets" if data.root is None else Path(data.root)


def download(name: str, root: Path) -> None:
    """Have torchvision download its data set `name` to `root`, or raise `UserError`. Other processes wait for it."""
    from torchvision import datasets

    try:
        with locked(root / f".{name}.lock"), redirect_stdout(sys.stderr):
            getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib's, gdown's, requests', torchvision's or the operating system's
        raise UserError(
            f"data: {name} can't be downloaded to {root}: {type(error).__name__}: {joined_lines(error)}"
        ) from error


class Labels(NamedTuple):
    of_images: NDArray[np.int32]  # (N,), read-only: a class in [0, K) for each image of `load_images`, in its order
    classes: tuple[str, ...]
    """The names of the K classes, which differ: of a name that several have, each is followed by its number."""

    @property
    def sha256(self) -> str:
        """The labels' identity by content, in hex: of K and the labels, not of names."""
        return hashlib.sha256(np.append(self.of_images, len(self.classes)).astype("<i4").tobytes()).hexdigest()


@lru_cache(maxsize=4)
def load_labels(data: Data) -> Labels:
    """The labels of the images that `data` names, as many as `load_images` gives; `UserError` if there are none."""
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
    times = Counter(found.classes)  # ImageNet has two classes crane, a bird and a machine
    classes = (name if times[name] == 1 else f"{name} ({label})" for label, name in enumerate(found.classes))
    return Labels(kept, tuple(classes))


def load_known_labels(data: Data, sha256: str) -> Labels:
    """`load_labels` on a worker, with the driver's `sha256`. Raises `WorkerRefusal` as `load_known_images`."""
    labels = _on_this_node(load_labels, data)
    _require_drivers("labels", data, labels.sha256, sha256)
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
