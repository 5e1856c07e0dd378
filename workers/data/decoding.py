"""Encoded images, and how they become pixels: decoded once, fitted to one shape, and kept in a file mapped to memory.

The file is in the user's cache. Its name is a hash of the files that it was decoded from. Imports no torch.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from taugrid.config import Data
from taugrid.errors import DamagedFile, UserError, joined_lines
from taugrid.hashing import digest_of_shape, json_sha256
from taugrid.registry.datasets import Shape
from taugrid.storage import read_sealed, replacing, write_sealed
from taugrid.threads import as_is, decode_each
from taugrid.workers.heartbeat import alive

CACHE_FORMAT = 1  # part of every key: raised when the same files should give other pixels

IMAGES_AT_ONCE = 32  # images that are read at once: few, so that the first batch is ready soon

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_OFFSET = 24  # the byte of a PNG's header that holds the bits of a channel


class SourceError(ValueError):
    """Images that are intact but can't be used. The message is one line with the file and what to do."""


class DecodedImage(NamedTuple):
    name: str  # of the file or row that it comes from
    pixels: NDArray[np.uint8]  # (C, H, W), as they are stored, as torch-fidelity reads them
    lossy: bool  # stored with loss, as JPEG is
    turned: bool = False  # its EXIF data ask viewers to turn it


class EncodedImage(NamedTuple):
    name: str  # of the file or row that it comes from
    data: bytes  # of a PNG, JPEG or WebP file


class Reader(NamedTuple):
    """Images in a fixed order, not read yet."""

    num_images: int
    items: Callable[[int], Iterable[Any]]
    """Called with a number n; returns the items of image n and all that follow, to be decoded."""
    decode_item: Callable[[Any], DecodedImage] = as_is
    """Called with an item; returns its image. Large images are decoded in threads."""
    warnings: tuple[str, ...] = ()  # warnings that need no image to be read

    def images(
        self, first: int = 0, transform: Callable[[DecodedImage], DecodedImage] = as_is
    ) -> Iterator[DecodedImage]:
        """`transform` of each image from number `first` on, in order."""
        return decode_each(self.decode_item, self.items(first), lambda image: image.pixels.nbytes, transform)


def decode_image(image: EncodedImage) -> DecodedImage:
    """The image in the bytes of a PNG or JPEG file. Raises `SourceError` unless it is 8-bit grey or RGB, `DamagedFile`
    if the bytes are not such a file, or only part of one."""
    name, data = image
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            mode, lossy = picture.mode, picture.format != "PNG"
            # Pillow silently takes the upper 8 bits of 16-bit RGB, whose mode is "RGB". That of 16-bit grey is "I;16".
            if data.startswith(PNG_SIGNATURE) and data[PNG_DEPTH_OFFSET] == 16:
                mode = f"16-bit {mode.removesuffix(';16')}"
            pixels = np.asarray(picture) if mode in ("L", "RGB") else None
            turned = "exif" in picture.info and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if not lossy:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                picture.verify()  # decoding alone checks no checksum, so a flipped byte would be other pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is neither PNG nor JPEG" if isinstance(error, UnidentifiedImageError) else joined_lines(error)
        raise DamagedFile(f"{name} can't be decoded: {reason}; replace or remove it") from None
    if pixels is None:
        raise SourceError(f"{name} must be 8-bit grey (L) or RGB, not {mode} (Pillow's mode): convert it first")
    return DecodedImage(name, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), lossy, turned)


class EncodedDataset(NamedTuple):
    """A data set whose images must be decoded."""

    root: Path
    files: Sequence[Path]  # below `root`; a changed file is recognised by its size or time
    reader: Reader


class Decoded(NamedTuple):
    images: NDArray[np.uint8]  # (N, C, H, W), read-only
    fingerprint: str  # `workers.data.load.fingerprint` of them


def load_or_decode(data: Data, encoded: EncodedDataset, cache: Path) -> Decoded:
    """The images of `encoded` in the shape that `data` asks for, at most `data.limit` of them, mapped to memory. If
    they are not in `cache` yet, one process decodes them to a file there and the others wait for it. Raises `UserError`
    if a file is missing or damaged, an image does not fit, or the disk is too full."""
    count = min(encoded.reader.num_images, data.limit or encoded.reader.num_images)
    try:
        path = cache / f"{data.name}-{_key(data, encoded)}.npy"
        with locked(path.with_suffix(".lock")):
            images = _open(path)
            if images is None:
                print(f"decoding {count} images of {data.full_name}, once, to {path}", file=sys.stderr)
                _write(path, fitted(encoded.reader, data.image_shape, count), (count, *data.image_shape))
                images = _open(path)
    except (SourceError, DamagedFile) as error:
        raise UserError(f"data: {error}") from None
    except OSError as error:
        place = Path(error.filename or cache)
        in_cache = place.is_relative_to(cache)
        remedy = "set XDG_CACHE_HOME to another folder for decoded images" if in_cache else "get it again, or remove it"
        raise UserError(f"data: {place} can't be used ({error.strerror or error}); {remedy}") from None
    assert images is not None, "it was written under the lock"
    return images


def fitted(reader: Reader, shape: Shape, count: int) -> Iterator[DecodedImage]:
    """The first `count` images, decoded and fitted; if they are large, by threads that work ahead."""
    limited = reader._replace(items=lambda first: islice(reader.items(first), count))
    return limited.images(transform=lambda image: fit(image, shape))


def fit(picture: DecodedImage, shape: Shape) -> DecodedImage:
    """`picture` as an image of `shape`, (channels, height, width), unchanged if it has that shape.

    As in the DDIM authors' code for LSUN, this is torchvision's `Resize` and `CenterCrop` of a Pillow image: it is
    resized (bilinear, with antialiasing) until it just covers height x width, and its centre is cropped. Grey becomes
    RGB if `shape` has 3 channels. Raises `SourceError` if it is smaller, or RGB although `shape` is grey."""
    channels, height, width = shape
    pixels = picture.pixels
    if len(pixels) > channels:
        raise SourceError(f"{picture.name} is RGB, but data.shape has 1 channel: set 3, or convert the images to grey")
    if pixels.shape[1] < height or pixels.shape[2] < width:
        size = f"{pixels.shape[1]}x{pixels.shape[2]}"
        raise SourceError(
            f"{picture.name} is {size}, smaller than data.shape ({height}x{width}), and images are never enlarged: "
            "set a smaller shape, or remove the image"
        )
    if pixels.shape[1:] != (height, width):
        _, h, w = pixels.shape
        new_h, new_w = (height, w * height // h) if h * width <= w * height else (h * width // w, width)
        top, left = round((new_h - height) / 2), round((new_w - width) / 2)
        whole = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
        resized = np.asarray(whole.resize((new_w, new_h), Image.Resampling.BILINEAR))
        cropped = resized[top : top + height, left : left + width]
        pixels = cropped[None] if cropped.ndim == 2 else cropped.transpose(2, 0, 1)
    if len(pixels) < channels:
        pixels = np.repeat(pixels, channels, axis=0)
    return picture._replace(pixels=pixels)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for. On a file system without locks they repeat the work instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _key(data: Data, encoded: EncodedDataset) -> str:
    """32 hex digits. They also depend on the folder: files in two folders can have the same names, sizes and times."""
    stats = [(path.relative_to(encoded.root).as_posix(), path.stat()) for path in encoded.files]
    determines = {
        "format": CACHE_FORMAT,
        "root": str(encoded.root.resolve()),
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "data": data.model_dump(mode="json", exclude={"root", "download"}) | {"shape": data.image_shape},
    }
    return json_sha256(determines)[:32]


def _open(path: Path) -> Decoded | None:
    """The images that `_write` wrote; None if they are missing or cut short."""
    record = read_sealed(path.with_suffix(".json"))
    if record is None:
        return None
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return Decoded(images, record["fingerprint"])


def _write(path: Path, pictures: Iterable[DecodedImage], shape: tuple[int, int, int, int]) -> None:
    """Write an .npy of images and, next to it, their fingerprint. Not through a map: a full disk must be an error."""
    digest, count = digest_of_shape(shape), 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for picture in pictures:
            alive()
            pixels = picture.pixels.tobytes()
            digest.update(pixels)
            file.write(pixels)
            count += 1
    if count != shape[0]:
        raise DamagedFile(f"{path.stem} has {count} images, but its reader promised {shape[0]}")
    write_sealed(path.with_suffix(".json"), {"fingerprint": digest.hexdigest()})
