"""Reads the images in an `.npz`, as numpy.savez and guided-diffusion write them."""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from taugrid.errors import DamagedFile, joined_lines
from taugrid.images import MAX_PIXELS
from taugrid.workers.data.decoding import IMAGES_AT_ONCE, DecodedImage, Reader, SourceError

NPZ_IMAGES = "arr_0"  # the name that numpy.savez gives to its first array. guided-diffusion writes its samples under it

SMALL_BYTES = 2**26
MOST_COMPRESSED = 32
"""Arrays that are read whole have at most `SMALL_BYTES`, or this many times the bytes of their file."""

NPZ_ERRORS = (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""The exceptions that zipfile and numpy raise for a damaged `.npz`. A wrong bit can make an array look encrypted,
compressed in another way, or written by a later version of zip (NotImplementedError, which is a RuntimeError)."""


def reader(path: Path) -> Reader:
    """The images `arr_0` (N, H, W, C) of an `.npz`, read a few at a time."""
    try:
        with _opened(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if NPZ_IMAGES not in names:
                hint = "; mu and sigma can be a reference, not samples" if {"mu", "sigma"} <= set(names) else ""
                raise SourceError(f"{path} has no images {NPZ_IMAGES} (N, height, width, channels), only {names}{hint}")
            with archive.open(f"{NPZ_IMAGES}.npy") as file:
                count, *shape = _npy_shape(path, file, archive.getinfo(f"{NPZ_IMAGES}.npy"))
    except SourceError:
        require_intact_npz(path)  # a damaged file can look like one of another kind
        raise
    warnings: tuple[str, ...] = ()
    if {"mu", "sigma"} <= set(names):
        # guided-diffusion's references: statistics of a whole training set next to 10,000 of its images
        warnings = (f"{path} also holds mu and sigma, perhaps of more images; its {count} images are used",)
    return Reader(count, partial(_pictures, path, count, tuple(shape)), warnings=warnings)


def require_intact_npz(path: Path) -> None:
    """Raise `DamagedFile` unless `path` is an `.npz` whose arrays match their checksums."""
    with _opened(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} can't be read")


def require_small_arrays(path: Path) -> None:
    """Raise `DamagedFile` unless the arrays of an `.npz`, apart from images, are as large as their headers say: a file
    of some kB can't claim arrays that fill the memory."""
    with _opened(path) as archive:
        infos = [info for info in archive.infolist() if info.filename not in ("", f"{NPZ_IMAGES}.npy")]
        for info in infos:
            with archive.open(info) as file:
                _array_header(file, info)
        if sum(info.file_size for info in infos) > max(SMALL_BYTES, MOST_COMPRESSED * path.stat().st_size):
            raise ValueError("its arrays are far larger than the file")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Turns the exceptions of zipfile and numpy into `DamagedFile`, and refuses compressions that numpy never writes,
    which zipfile unpacks without a limit."""
    try:
        with zipfile.ZipFile(path) as archive:
            if {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile("it is not compressed as numpy does")
            yield archive
    except SourceError:
        raise
    except NPZ_ERRORS as error:
        raise DamagedFile(f"{path} is not a complete .npz: {joined_lines(error)}") from None


def _array_header(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array; ValueError if its bytes are not those."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if not dtype.hasobject and file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{info.filename} has other bytes than {dtype} of shape {shape}")
    return shape, columns_first, dtype


def _npy_shape(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, ...]:
    shape, columns_first, dtype = _array_header(file, info)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or columns_first:
        order = " in Fortran order" if columns_first else ""
        raise SourceError(
            f"{path}: {NPZ_IMAGES} must be uint8 of shape (N, height, width, 1 or 3) in C order, not {dtype} of shape "
            f"{shape}{order}"
        )
    if shape[1] * shape[2] > MAX_PIXELS:
        raise SourceError(f"{path}: images of {shape[1]} x {shape[2]} pixels are larger than {MAX_PIXELS:,}")
    return shape


def _pictures(path: Path, count: int, shape: tuple[int, ...], first: int) -> Iterator[DecodedImage]:
    size = math.prod(shape)
    at_once = max(1, min(IMAGES_AT_ONCE, SMALL_BYTES // size))
    with _opened(path) as archive, archive.open(f"{NPZ_IMAGES}.npy") as file:
        _npy_shape(path, file, archive.getinfo(f"{NPZ_IMAGES}.npy"))
        file.seek(first * size, os.SEEK_CUR)
        for start in range(first, count, at_once):
            size_in_bytes = min(at_once, count - start) * size
            data = file.read(size_in_bytes)
            if len(data) < size_in_bytes:
                raise DamagedFile(f"{path}: {NPZ_IMAGES} ends before image {start + len(data) // size} of {count}")
            images = np.frombuffer(data, np.uint8).reshape(-1, *shape)
            for offset, image in enumerate(images):
                yield DecodedImage(f"{path} image {start + offset}", image.transpose(2, 0, 1), lossy=False)
        file.read(1)  # the array's checksum is only checked at its end
