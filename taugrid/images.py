"""Images from [-1, 1] to 8 bits to PNG, and back. Imports no torch, because the driver verifies files with it."""

import io
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from taugrid.errors import DamagedFile, NotFinite, joined_lines

MAX_PIXELS = 2**24  # of an image, 4096 x 4096: a PNG of a few kB can claim any size

PIXELS_AT_ONCE = 10**8  # of images that are in memory at once

NOT_FINITE = "the images hold nan or infinity, so they would be meaningless; trying again changes nothing"


def to_uint8(x: NDArray[np.float32], rounding: str = "round") -> NDArray[np.uint8]:
    """Values in [-1, 1] as 0..255, rounded to nearest (half to even); values outside are clipped. `NotFinite` for NaN
    and infinity, which would silently become some grey level. `truncate` casts `(x + 1) * 127.5` instead, as
    guided-diffusion and REPA do: half a grey level darker on average."""
    if not np.isfinite(x).all():
        raise NotFinite(NOT_FINITE)
    grey = (x.astype(np.float32) + np.float32(1)) * np.float32(127.5)
    grey = grey if rounding == "truncate" else np.rint(grey)
    result: NDArray[np.uint8] = np.clip(grey, 0, 255).astype(np.uint8)
    return result


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """A (C, H, W) image, C = 1 or 3, as PNG bytes. The same Pillow and zlib always give the same bytes."""
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def serve_encoding() -> None:
    """Encode each pickled batch of images that stdin brings, until it ends: a process does nothing else. To stdout
    goes, pickled, a list of PNG bytes for each, or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who still need it
    while True:
        answer: list[bytes] | Exception
        try:
            images = pickle.load(sys.stdin.buffer)
        except EOFError:  # the other process has ended, however it did
            return
        try:
            answer = [encode_png(image) for image in images]
        except Exception as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()


def decode_png(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """PNG bytes as a (C, H, W) uint8 image, C = 1 for grey and 3 for RGB; `DamagedFile` if they are not a PNG, grey or
    RGB in 8 bits, of at most `max_pixels`."""
    with _opened(data) as picture:
        if (pixels := picture.width * picture.height) > max_pixels:
            raise DamagedFile(f"an image can't be decoded: it has {pixels:,} pixels, more than {max_pixels:,}")
        if (mode := picture.mode) in ("L", "RGB"):
            image = np.asarray(picture)
            return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    raise DamagedFile(f"an image can't be decoded: it is neither grey (L) nor RGB, but {mode} (Pillow's mode)")


def decode_together(pngs: Sequence[bytes], max_pixels: int = PIXELS_AT_ONCE) -> list[NDArray[np.uint8]]:
    """`decode_png` of images of one size, which have at most `max_pixels` together; else DamagedFile."""
    pixels = num_pixels(pngs[0]) if pngs else 0
    if len(pngs) * pixels > max_pixels:
        raise DamagedFile(f"{len(pngs)} images of {pixels:,} pixels are more than can be shown")
    return [decode_png(png, pixels) for png in pngs]


def num_pixels(png: bytes) -> int:
    """The pixels that a PNG claims to have; none is decoded. DamagedFile if they are more than `MAX_PIXELS`."""
    with _opened(png) as picture:
        pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise DamagedFile(f"an image has {pixels:,} pixels, more than {MAX_PIXELS:,}")
    return pixels


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is no PNG" if isinstance(error, UnidentifiedImageError) else joined_lines(error)
        raise DamagedFile(f"an image can't be decoded: {reason}") from None


def to_pictures(batch: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """N images (C, H, W) as figures need them: (n, H, W) if they are grey, else (n, H, W, 3)."""
    stack = np.stack(tuple(batch))
    return stack[:, 0] if stack.shape[1] == 1 else stack.transpose(0, 2, 3, 1)
