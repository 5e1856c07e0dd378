"""Images, encoded and decoded, and the `Reader` that every source of images returns. Imports no torch."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from taugrid.errors import DamagedFile, joined_lines
from taugrid.threads import as_is, decode_each

IMAGES_AT_ONCE = 32
"""Images that are read at once: few, so that the first batch is ready soon."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_OFFSET = 24
"""The byte of a PNG's header that holds the bits of a channel."""


class SourceError(ValueError):
    """Images that are intact but can't be used. The message is one line with the file and what to do."""


class DecodedImage(NamedTuple):
    """The pixels of an image, and the file or row that it comes from."""

    name: str
    pixels: NDArray[np.uint8]
    """(C, H, W)."""
    lossy: bool
    """Whether it was stored with loss, as JPEG is."""
    turned: bool = False
    """Whether its EXIF data ask viewers to turn it. Pixels are as they are stored, as torch-fidelity reads them."""


class EncodedImage(NamedTuple):
    """The stored bytes of an image, and the file or row that they come from."""

    name: str
    data: bytes
    """The bytes of a PNG, JPEG or WebP file."""


class Reader(NamedTuple):
    """Images in a fixed order, not read yet."""

    num_images: int
    items: Callable[[int], Iterable[Any]]
    """Called with a number n; returns the items of image n and all that follow, to be decoded."""
    decode_item: Callable[[Any], DecodedImage] = as_is
    """Called with an item; returns its image. Large images are decoded in threads."""
    warnings: tuple[str, ...] = ()
    """Warnings that need no image to be read."""

    def images(
        self, first: int = 0, transform: Callable[[DecodedImage], DecodedImage] = as_is
    ) -> Iterator[DecodedImage]:
        """`transform` of each image from number `first` on, in order."""
        return decode_each(self.decode_item, self.items(first), lambda image: image.pixels.nbytes, transform)


def decode_image(image: EncodedImage) -> DecodedImage:
    """The image in the bytes of a PNG or JPEG file.

    Raises:
        SourceError: unless it is 8-bit grey or RGB.
        taugrid.errors.DamagedFile: if the bytes are not such a file, or only part of one.
    """
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
