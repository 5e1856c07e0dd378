"""Images, encoded and decoded, and threads that decode ahead of the reader."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from taugrid.errors import DamagedFile

IMAGES_AT_ONCE = 32
"""Images that a thread decodes before it hands them over: few, so that the first batch is ready soon."""

THREADS = min(8, os.cpu_count() or 1)
"""Number of threads that decode."""

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
    """How many images there are, how to read them in order, and warnings that need no image to be read."""

    num_images: int
    pictures: Callable[[int], Iterator[Picture]]
    """Takes the number of the first image to read; those before it are not decoded."""
    warnings: tuple[str, ...]


def decode(name: str, data: bytes) -> Picture:
    """The image in the bytes of a PNG or JPEG file.

    Raises:
        SourceError: unless it is 8-bit grey or RGB.
        taugrid.errors.DamagedFile: if the bytes are not such a file, or only part of one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            mode, lossy = picture.mode, picture.format != "PNG"
            # Pillow silently takes the upper 8 bits of 16-bit RGB.
            if data.startswith(PNG_SIGNATURE) and data[PNG_DEPTH_AT] == 16:
                mode = f"16-bit {mode.removesuffix(';16')}"
            pixels = np.asarray(picture) if mode in ("L", "RGB") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is neither PNG nor JPEG" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DamagedFile(f"{name} can't be decoded: {reason}") from None
    if pixels is None:
        raise SourceError(f"{name} must be 8-bit grey (L) or RGB, not {mode} (Pillow's mode): convert it first")
    return Picture(name, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), lossy)


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())


Item = TypeVar("Item")


def ahead(work: Callable[[Item], list[Picture]], items: Iterable[Item]) -> Iterator[Picture]:
    """The results of `work` on each item, in order. Threads work a bounded number of items ahead.

    The garbage collector closes a reader that was abandoned before its end, in whatever thread it runs. Closing must
    not wait for the threads: in a thread that is just starting, Python 3.11 would deadlock on a lock that it holds.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        pending: deque[Future[list[Picture]]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * THREADS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
