"""External images behind one interface: a folder, an `.npz`, Parquet, or a data set of torch-fidelity.

A source is identified by its decoded pixels: the same images in a folder, an `.npz` and Parquet are the same source,
whatever their place and file names. Torch is imported only to read a data set of torch-fidelity.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.features.weight_files import torch_hub_folder
from taugrid.hashing import digest_of_shape
from taugrid.workers.data.readers import directory, npz, parquet_files, torch_fidelity
from taugrid.workers.data.readers.picture import Picture, Reader, SourceError

Kind = Literal["folder", "npz", "parquet", "dataset"]

WAYS = "a folder of PNG or JPEG files, an .npz with arr_0, a Parquet file or a folder of them"


@dataclass(frozen=True)
class Source:
    """A set of images in a fixed order; plain data, so that it can travel to a worker."""

    kind: Kind
    path: str
    """Absolute; for a data set the folder in which torchvision keeps it."""
    dataset: str | None
    """torch-fidelity's name of a data set, else None."""
    num_images: int
    shape: tuple[int, int, int]
    """(channels, height, width), the same for all images."""
    sha256: str
    """`workers.data.load.fingerprint` of all images: SHA-256 of the shape (N, C, H, W) and the pixels, in order."""
    warnings: tuple[str, ...]
    """Threats to a fair comparison."""


class Batch(NamedTuple):
    """Consecutive images: `indices` (B,) int64 from 0, `images` (B, C, H, W) uint8."""

    indices: NDArray[np.int64]
    images: NDArray[np.uint8]


def open_source(path: str) -> Source:
    """Find the images that `path` means and decode all of them, so that damage is found at once.

    `path` is a folder of PNG or JPEG files (those directly in it, sorted by real path), an `.npz` with `arr_0`
    (N, H, W, C) uint8, a Parquet file or a folder of Parquet files with an image column (taugrid's: rows by `index`;
    others: by file name, then row), or, if no such path exists, the name of a data set of torch-fidelity.

    Raises:
        workers.data.readers.picture.SourceError: for anything but a set of 8-bit grey or RGB images of one size.
        taugrid.errors.DamagedFile: for an image or a file that can't be read, naming it.
    """
    kind, found, dataset = _locate(path)
    reader = _reader(kind, found, dataset)
    lossy, shape, digest = 0, (0, 0, 0), hashlib.sha256()
    for position, picture in enumerate(_alike(reader.pictures())):
        if position == 0:
            channels, height, width = picture.pixels.shape
            shape = (channels, height, width)
            digest = digest_of_shape((reader.num_images, *shape))
        digest.update(np.ascontiguousarray(picture.pixels).tobytes())
        lossy += picture.lossy
    warnings = reader.warnings
    if lossy:
        warnings += (
            f"{lossy} of {reader.num_images} images in {found} are JPEG, whose compression alone can change FID by a "
            "factor of two: use PNG",
        )
    return Source(kind, str(found), dataset, reader.num_images, shape, digest.hexdigest(), warnings)


def batches(source: Source, size: int) -> Iterator[Batch]:
    """All images of `source` in order, `size` at a time. Threads decode a bounded number of images ahead.

    Raises:
        workers.data.readers.picture.SourceError: also if the images have changed since they were opened, which is only
            known at the end.
        taugrid.errors.DamagedFile: for an image or a file that can't be read.
    """
    reader = _reader(source.kind, Path(source.path), source.dataset)
    pictures = _alike(reader.pictures())
    digest = digest_of_shape((reader.num_images, *source.shape))
    start = 0
    while chunk := list(islice(pictures, size)):
        images = np.stack([picture.pixels for picture in chunk])
        digest.update(images.tobytes())
        yield Batch(np.arange(start, start + len(images)), images)
        start += len(images)
    if digest.hexdigest() != source.sha256:
        raise SourceError(f"the images of {source.path} have changed since they were opened: run the command again")


def _alike(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """The pictures; SourceError at the first that differs in shape."""
    first: Picture | None = None
    for picture in pictures:
        first = first or picture
        if picture.pixels.shape != first.pixels.shape:
            raise SourceError(
                f"{first.name} is {_describe(first)}, but {picture.name} is {_describe(picture)}: make all images of "
                "one size, and all grey or all RGB"
            )
        yield picture


def _describe(picture: Picture) -> str:
    channels, height, width = picture.pixels.shape
    return f"{'grey' if channels == 1 else 'RGB'} of {height}x{width}"


def _locate(text: str) -> tuple[Kind, Path, str | None]:
    path = Path(text).expanduser().absolute()
    if not path.exists():
        if text in torch_fidelity.NAMES:
            return "dataset", torch_hub_folder().parent / "fidelity_datasets", text
        raise SourceError(f"there is no {text}; give {WAYS}, or a data set: {', '.join(torch_fidelity.NAMES)}")
    if path.is_dir():
        pictures, tables = directory.files(path, directory.EXTENSIONS), directory.files(path, (".parquet",))
        if pictures and tables:
            raise SourceError(f"{path} holds {len(pictures)} images and {len(tables)} Parquet files: separate them")
        if not pictures and not tables:
            raise SourceError(_nothing_in(path))
        return ("folder" if pictures else "parquet"), path, None
    if path.suffix == ".npz":
        return "npz", path, None
    if path.suffix == ".parquet":
        return "parquet", path, None
    raise SourceError(f"{path} does not hold images; give {WAYS}")


def _nothing_in(folder: Path) -> str:
    deeper = directory.subfolder_with_images(folder)
    if deeper is not None:
        return f"{folder} has images in subfolders only, which are not searched: give one of them, such as {deeper}"
    return f"{folder} holds no .png, .jpg, .jpeg or .parquet file; give {WAYS}"


def _reader(kind: Kind, path: Path, dataset: str | None) -> Reader:
    if dataset is not None:
        return torch_fidelity.dataset_reader(path, dataset)
    if kind == "folder":
        return directory.folder_reader(path)
    return npz.npz_reader(path) if kind == "npz" else parquet_files.parquet_reader(path)
