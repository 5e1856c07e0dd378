"""A set of images behind one interface: a config's data set, or external images in a folder, an `.npz` or Parquet.

A set is identified by its decoded pixels: the same images in a folder, an `.npz` and Parquet are the same set, whatever
their place and file names. Imports no torch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Data
from taugrid.hashing import digest_of_shape
from taugrid.workers.data import folder, npz
from taugrid.workers.data import parquet as parquet_files
from taugrid.workers.data.decoding import DecodedImage, Reader, SourceError
from taugrid.workers.data.load import content_fingerprint, fingerprint, load_images

Kind = Literal["folder", "npz", "parquet"]

PART_IMAGES = 4 * parquet.ROWS_PER_GROUP
"""Images of a reference whose features are one file. Whole row groups: a cut elsewhere would change batches, and a
feature may depend on its batch in the last bit."""

READERS: dict[str, Callable[[Path], Reader]] = {
    "folder": folder.reader,
    "npz": npz.reader,
    "parquet": parquet_files.reader,
}

WAYS = "a folder of PNG or JPEG files, an .npz with arr_0, a Parquet file or a folder of them"


@dataclass(frozen=True)
class ImageSet:
    """A set of images in a fixed order; plain data, so that it can travel to a worker."""

    kind: Kind | Literal["dataset"]
    given: Data | str  # a data set of a config, or an absolute path
    num_images: int
    shape: tuple[int, int, int]  # (channels, height, width), the same for all images
    sha256: str
    """`workers.data.load.fingerprint` of all images: SHA-256 of the shape (N, C, H, W) and the pixels, in order."""
    warnings: tuple[str, ...] = ()  # threats to a fair comparison
    parts_sha256: tuple[str, ...] = ()
    """Of external images, the same of each part (`part_bounds`) by itself. Not part of its identity."""

    @property
    def place(self) -> str | None:
        """Its path; of a data set, `data.root`."""
        return self.given.root if isinstance(self.given, Data) else self.given

    def part_sha256(self, number: int) -> str:
        """The SHA-256 of a part by itself, for workers to check."""
        if isinstance(self.given, Data):
            start, stop = part_bounds(self.num_images)[number]
            return fingerprint(load_images(self.given)[start:stop])
        return self.parts_sha256[number]


class Batch(NamedTuple):
    """Consecutive images: `indices` (B,) int64 from 0, `images` (B, C, H, W) uint8."""

    indices: NDArray[np.int64]
    images: NDArray[np.uint8]


def part_bounds(num_images: int) -> list[tuple[int, int]]:
    """The first image of each part of a reference, and the one after its last."""
    return [(start, min(start + PART_IMAGES, num_images)) for start in range(0, num_images, PART_IMAGES)]


def open_images(given: Data | str) -> ImageSet:
    """Find the images that are meant and decode all of them, so that damage is found at once.

    A text is the path of a folder of PNG or JPEG files (those directly in it, sorted by real path), an `.npz` with
    `arr_0` (N, H, W, C) uint8, or a Parquet file or a folder of Parquet files with an image column (taugrid's: rows by
    `index`; others: by file name, then row). Raises `SourceError` for anything but a set of 8-bit grey or RGB images of
    one size, `DamagedFile` for one that can't be read, `UserError` for a data set that can't be read."""
    if isinstance(given, Data):
        count = len(load_images(given))
        return ImageSet("dataset", given, count, given.image_shape, content_fingerprint(given))
    kind, found = _locate(given)
    reader = READERS[kind](found)
    lossy, turned, shape, count = 0, 0, (0, 0, 0), reader.num_images
    digests: list[hashlib._Hash] = []  # of all images, and of each part
    for position, picture in enumerate(_alike(reader.images())):
        if position == 0:
            channels, height, width = picture.pixels.shape
            shape = (channels, height, width)
            digests = [digest_of_shape((count, *shape))]
        if position % PART_IMAGES == 0:
            digests.append(digest_of_shape((min(PART_IMAGES, count - position), *shape)))
        pixels = np.ascontiguousarray(picture.pixels).tobytes()
        digests[0].update(pixels)
        digests[-1].update(pixels)
        lossy += picture.lossy
        turned += picture.turned
    warnings = reader.warnings
    if lossy:
        warnings += (
            f"{lossy} of {count} images in {found} are JPEG, whose compression alone can change FID by a factor of "
            "two: use PNG",
        )
    if turned:
        warnings += (
            f"{turned} of {count} images in {found} have an EXIF orientation, which is ignored: they are taken as they "
            "are stored, so turn them first",
        )
    sha256, *parts = (digest.hexdigest() for digest in digests)
    return ImageSet(kind, str(found), count, shape, sha256, warnings, tuple(parts))


def batches(
    images: ImageSet, size: int, start: int = 0, stop: int | None = None, sha256: str | None = None
) -> Iterator[Batch]:
    """Images `start` to `stop` - 1 of a set in order, `size` at a time; all of them if nothing is said.

    Threads decode a bounded number of large images ahead (`threads.decode_each`). `sha256` is that of these images
    alone (`ImageSet.part_sha256`). Raises as `open_images`, and `SourceError` if the images are gone, or have changed
    since they were opened, which is only known at the end."""
    stop, expected = images.num_images if stop is None else stop, sha256 or images.sha256
    digest, first = digest_of_shape((stop - start, *images.shape)), start
    try:
        count, chunks = _chunks(images, size, start, stop)
        for chunk in chunks:
            digest.update(chunk.tobytes())
            yield Batch(np.arange(first, first + len(chunk)), chunk)
            first += len(chunk)
    except FileNotFoundError as error:
        place = error.filename or images.place
        raise SourceError(f"there is no {place} any more: put it back, and run the command again") from None
    if count != images.num_images or digest.hexdigest() != expected:
        name = images.given.full_name if isinstance(images.given, Data) else images.given
        raise SourceError(
            f"the images of {name} have changed since they were opened (SHA-256 {digest.hexdigest()[:12]}, not "
            f"{expected[:12]}): run the command again"
        )


def _chunks(images: ImageSet, size: int, start: int, stop: int) -> tuple[int, Iterator[NDArray[np.uint8]]]:
    """How many images there are now, and those from `start` to `stop` - 1, `size` at a time."""
    if isinstance(images.given, Data):
        loaded = load_images(images.given)
        return len(loaded), (np.array(loaded[at : min(at + size, stop)]) for at in range(start, stop, size))
    reader = READERS[images.kind](Path(images.given))
    pictures = _alike(islice(reader.images(start), stop - start))
    chunks = iter(lambda: list(islice(pictures, size)), [])
    return reader.num_images, (np.stack([picture.pixels for picture in chunk]) for chunk in chunks)


def names_of(images: ImageSet, column: str | None) -> list[str] | None:
    """The images' names in their order: of files, or the values of a Parquet `column`; None if they have none. Raises
    `SourceError` if a Parquet file has no such column."""
    if images.kind == "folder":
        return folder.names(Path(str(images.given)))
    if images.kind == "parquet" and column is not None:
        return [str(value) for value in parquet_files.column(Path(str(images.given)), column)]
    return None


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


def _locate(text: str) -> tuple[Kind, Path]:
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise SourceError(nothing_there(text))
    if path.suffix == ".npz" and not path.is_dir():
        return "npz", path
    if path.suffix == ".parquet" and not path.is_dir():
        return "parquet", path
    if not path.is_dir():
        raise SourceError(f"{path} does not hold images; give {WAYS}")
    pictures, tables = folder.files(path, folder.EXTENSIONS), folder.files(path, (".parquet",))
    if pictures and tables:
        raise SourceError(f"{path} holds {len(pictures)} images and {len(tables)} Parquet files: separate them")
    if pictures or tables:
        return ("folder" if pictures else "parquet"), path
    if (deeper := folder.subfolder_with_images(path)) is not None:
        raise SourceError(
            f"{path} has images in subfolders only, which are not searched: give one of them, such as {deeper}"
        )
    raise SourceError(f"{path} holds no .png, .jpg, .jpeg or .parquet file; give {WAYS}")


def nothing_there(text: str) -> str:
    """The message for a text that is no path."""
    return (
        f"there is no {text}; give {WAYS}; a reference may also be a run directory, or a data set with its split "
        "(fashion-mnist/train)"
    )
