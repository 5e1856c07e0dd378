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

from taugrid import parquet
from taugrid.eval.features.resolve import torch_hub_folder
from taugrid.hashing import digest_of_shape
from taugrid.workers.data import cifar, folder, npz
from taugrid.workers.data import parquet as parquet_files
from taugrid.workers.data.picture import DecodedImage, Reader, SourceError

Kind = Literal["folder", "npz", "parquet", "dataset"]

PART_IMAGES = 4 * parquet.ROWS_PER_GROUP
"""Images of a reference whose features are one file. Whole row groups: a cut elsewhere would change batches, and a
feature may depend on its batch in the last bit."""

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
    parts_sha256: tuple[str, ...] = ()
    """The same of each part (`part_bounds`) by itself, for workers to check. Not part of its identity."""


class Batch(NamedTuple):
    """Consecutive images: `indices` (B,) int64 from 0, `images` (B, C, H, W) uint8."""

    indices: NDArray[np.int64]
    images: NDArray[np.uint8]


def part_bounds(num_images: int) -> list[tuple[int, int]]:
    """The first image of each part of a reference, and the one after its last."""
    return [(start, min(start + PART_IMAGES, num_images)) for start in range(0, num_images, PART_IMAGES)]


def open_source(path: str) -> Source:
    """Find the images that `path` means and decode all of them, so that damage is found at once.

    `path` is a folder of PNG or JPEG files (those directly in it, sorted by real path), an `.npz` with `arr_0`
    (N, H, W, C) uint8, a Parquet file or a folder of Parquet files with an image column (taugrid's: rows by `index`;
    others: by file name, then row), or, if no such path exists, the name of a data set of torch-fidelity.

    Raises:
        workers.data.picture.SourceError: for anything but a set of 8-bit grey or RGB images of one size.
        taugrid.errors.DamagedFile: for an image or a file that can't be read, naming it.
    """
    kind, found, dataset = _locate(path)
    reader = _reader(kind, found, dataset)
    lossy, turned, shape, digest = 0, 0, (0, 0, 0), hashlib.sha256()
    parts: list[hashlib._Hash] = []
    for position, picture in enumerate(_alike(reader.images())):
        if position == 0:
            channels, height, width = picture.pixels.shape
            shape = (channels, height, width)
            digest = digest_of_shape((reader.num_images, *shape))
        if position % PART_IMAGES == 0:
            parts.append(digest_of_shape((min(PART_IMAGES, reader.num_images - position), *shape)))
        pixels = np.ascontiguousarray(picture.pixels).tobytes()
        digest.update(pixels)
        parts[-1].update(pixels)
        lossy += picture.lossy
        turned += picture.turned
    warnings = reader.warnings
    if lossy:
        warnings += (
            f"{lossy} of {reader.num_images} images in {found} are JPEG, whose compression alone can change FID by a "
            "factor of two: use PNG",
        )
    if turned:
        warnings += (
            f"{turned} of {reader.num_images} images in {found} have an EXIF orientation, which is ignored: they are "
            "taken as they are stored, so turn them first",
        )
    parts_sha256 = tuple(part.hexdigest() for part in parts)
    return Source(kind, str(found), dataset, reader.num_images, shape, digest.hexdigest(), warnings, parts_sha256)


def batches(
    source: Source, size: int, start: int = 0, stop: int | None = None, sha256: str | None = None
) -> Iterator[Batch]:
    """Images `start` to `stop` - 1 of `source` in order, `size` at a time; all of them if nothing is said.

    Threads decode a bounded number of large images ahead (`threads.decode_each`). `sha256` is that of these images
    alone (`parts_sha256`).

    Raises:
        workers.data.picture.SourceError: also if the images are gone, or have changed since they were opened,
            which is only known at the end.
        taugrid.errors.DamagedFile: for an image or a file that can't be read.
    """
    try:
        yield from _batches(source, size, start, stop, sha256)
    except FileNotFoundError as error:
        place = error.filename or source.path
        raise SourceError(f"there is no {place} any more: put it back, and run the command again") from None


def names_of(source: Source, column: str | None) -> list[str] | None:
    """The images' names in their order: of files, or the values of a Parquet `column`; None: they have none.

    Raises:
        workers.data.picture.SourceError: if a Parquet file has no such column.
    """
    if source.kind == "folder":
        return folder.names(Path(source.path))
    if source.kind == "parquet" and column is not None:
        return [str(value) for value in parquet_files.column(Path(source.path), column)]
    return None


def _batches(source: Source, size: int, start: int, stop: int | None, sha256: str | None) -> Iterator[Batch]:
    reader = _reader(source.kind, Path(source.path), source.dataset)
    first, stop, expected = start, source.num_images if stop is None else stop, sha256 or source.sha256
    pictures = _alike(islice(reader.images(start), stop - start))
    digest = digest_of_shape((stop - start, *source.shape))
    while chunk := list(islice(pictures, size)):
        images = np.stack([picture.pixels for picture in chunk])
        digest.update(images.tobytes())
        yield Batch(np.arange(first, first + len(images)), images)
        first += len(images)
    if reader.num_images != source.num_images or digest.hexdigest() != expected:
        raise SourceError(
            f"the images of {source.path} have changed since they were opened (SHA-256 {digest.hexdigest()[:12]}, not "
            f"{expected[:12]}): run the command again"
        )


def _alike(pictures: Iterable[DecodedImage]) -> Iterator[DecodedImage]:
    """The pictures; SourceError at the first that differs in shape."""
    first: DecodedImage | None = None
    for picture in pictures:
        first = first or picture
        if picture.pixels.shape != first.pixels.shape:
            raise SourceError(
                f"{first.name} is {_describe(first)}, but {picture.name} is {_describe(picture)}: make all images of "
                "one size, and all grey or all RGB"
            )
        yield picture


def _describe(picture: DecodedImage) -> str:
    channels, height, width = picture.pixels.shape
    return f"{'grey' if channels == 1 else 'RGB'} of {height}x{width}"


def _locate(text: str) -> tuple[Kind, Path, str | None]:
    path = Path(text).expanduser().absolute()
    if not path.exists():
        if text in cifar.FIDELITY_NAMES:
            return "dataset", torch_hub_folder().parent / "fidelity_datasets", text
        raise SourceError(nothing_there(text))
    if path.is_dir():
        pictures, tables = folder.files(path, folder.EXTENSIONS), folder.files(path, (".parquet",))
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


def nothing_there(text: str) -> str:
    """The message for a text that is neither a path nor the name of a data set."""
    return (
        f"there is no {text}; give {WAYS}, or a data set: {', '.join(cifar.FIDELITY_NAMES)}; a reference may also be a "
        "run directory, or a data set of a config with its split (fashion-mnist/train)"
    )


def _nothing_in(place: Path) -> str:
    deeper = folder.subfolder_with_images(place)
    if deeper is not None:
        return f"{place} has images in subfolders only, which are not searched: give one of them, such as {deeper}"
    return f"{place} holds no .png, .jpg, .jpeg or .parquet file; give {WAYS}"


def _reader(kind: Kind, path: Path, dataset: str | None) -> Reader:
    if dataset is not None:
        return cifar.fidelity_reader(path, dataset)
    if kind == "folder":
        return folder.reader(path)
    return npz.reader(path) if kind == "npz" else parquet_files.reader(path)
