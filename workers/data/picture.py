"""Pictures, encoded and decoded, and what every reader of images returns. Imports no torch."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from taugrid.errors import DamagedFile, joined_lines
from taugrid.threads import decoded, unchanged

IMAGES_AT_ONCE = 32
"""Images that are read at once: few, so that the first batch is ready soon."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24
"""Where a PNG's header says how many bits a channel has."""


class SourceError(ValueError):
    """Images that are intact but can't be used. The message is one line with the file and the way out."""


class Picture(NamedTuple):
    """One decoded image, (C, H, W), and where it comes from."""

    name: str
    pixels: NDArray[np.uint8]
    lossy: bool


class EncodedImage(NamedTuple):
    """One image as it is stored, and where it comes from."""

    name: str
    data: bytes
    """The bytes of a PNG, JPEG or WebP file."""


class Reader(NamedTuple):
    """Images in a fixed order, not read yet."""

    num_images: int
    items: Callable[[int], Iterable[Any]]
    """Takes the number of the first image, and returns the argument of `decode` for it and each that follows."""
    decode: Callable[[Any], Picture] = unchanged
    """Decodes one image; large ones in threads."""
    warnings: tuple[str, ...] = ()
    """Warnings that need no image to be read."""

    def pictures(self, first: int = 0, then: Callable[[Picture], Picture] = unchanged) -> Iterator[Picture]:
        """`then` of each image from number `first` on, in order."""
        return decoded(self.decode, self.items(first), lambda picture: picture.pixels.nbytes, then)


def decode(image: EncodedImage) -> Picture:
    """The image in the bytes of a PNG or JPEG file.

    Raises:
        SourceError: unless it is 8-bit grey or RGB.
        taugrid.errors.DamagedFile: if the bytes are not such a file, or only part of one.
    """
    name, data = image
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            mode, lossy = picture.mode, picture.format != "PNG"
            # Pillow silently takes the upper 8 bits of 16-bit RGB.
            if data.startswith(PNG_SIGNATURE) and data[PNG_DEPTH_AT] == 16:
                mode = f"16-bit {mode.removesuffix(';16')}"
            pixels = np.asarray(picture) if mode in ("L", "RGB") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is neither PNG nor JPEG" if isinstance(error, UnidentifiedImageError) else joined_lines(error)
        raise DamagedFile(f"{name} can't be decoded: {reason}") from None
    if pixels is None:
        raise SourceError(f"{name} must be 8-bit grey (L) or RGB, not {mode} (Pillow's mode): convert it first")
    return Picture(name, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), lossy)
