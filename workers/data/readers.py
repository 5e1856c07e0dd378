"""How each kind of place where images lie is read: a folder, an `.npz`, Parquet, a data set of torch-fidelity.

A reader says how many images there are and goes through them in order, decoded. Imports no torch, unless a data set of
torch-fidelity is read.
"""

import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from taugrid.parquet import DamagedFile

EXTENSIONS = (".png", ".jpg", ".jpeg")
"""torch-fidelity's, of which it takes those directly in the folder, in the order of their real paths. So does this."""

DATASETS = ("cifar10-train", "cifar10-val", "cifar100-train", "cifar100-val", "stl10-train", "stl10-test",
            "stl10-unlabeled")  # fmt: skip
"""The names in torch-fidelity's registry of data sets."""

IMAGES_AT_ONCE = 32
"""Images that a thread decodes before it hands them over: few enough that the first batch comes soon."""

THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24
"""Where a PNG's header says how many bits a channel has."""

NPZ_IMAGES = "arr_0"
"""The name that numpy.savez gives to its first array; guided-diffusion's samples are kept under it."""

NPZ_ERRORS = (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What zipfile and numpy raise for a damaged `.npz`: a wrong bit can make an array encrypted, or of another
compression, or of a later version of zip (NotImplementedError, which is a RuntimeError)."""

SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}")
"""How Hugging Face names the files of a split."""


class SourceError(ValueError):
    """Images that can't be taken for what they are: one line with the file and the way out."""


class Picture(NamedTuple):
    """One decoded image (C, H, W), and where it is from."""

    name: str
    pixels: NDArray[np.uint8]
    lossy: bool


class Reader(NamedTuple):
    """How many images there are, how to go through them, and what to warn of before looking at any."""

    num_images: int
    pictures: Callable[[], Iterator[Picture]]
    warnings: tuple[str, ...]


def decode(name: str, data: bytes) -> Picture:
    """The image in the bytes of a PNG or JPEG file.

    Raises:
        SourceError: unless it has 8 bits in one grey channel or three of RGB.
        taugrid.parquet.DamagedFile: if the bytes are no such file or not all of it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            mode, lossy = picture.mode, picture.format != "PNG"
            # Pillow silently takes the upper 8 bits of 16-bit RGB.
            if data.startswith(PNG_SIGNATURE) and data[PNG_DEPTH_AT] == 16:
                mode = f"16-bit {mode.removesuffix(';16')}"
            pixels = np.asarray(picture) if mode in ("L", "RGB") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is no PNG or JPEG" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise DamagedFile(f"{name} can't be decoded: {reason}") from None
    if pixels is None:
        raise SourceError(f"{name} is of Pillow's mode {mode}; taken are 8-bit grey (L) and RGB: convert it first")
    return Picture(name, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), lossy)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


Encoded = tuple[str, bytes]
"""Where an image is from, and its file's bytes."""

Item = TypeVar("Item")


def ahead(work: Callable[[Item], list[Picture]], items: Iterable[Item]) -> Iterator[Picture]:
    """What `work` makes of the items, in their order, while threads are at the next ones."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[list[Picture]]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * THREADS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def files(folder: Path, extensions: Sequence[str]) -> list[str]:
    """Real paths, sorted, of the files directly in `folder` with one of `extensions`."""
    with os.scandir(folder) as entries:
        return sorted(os.path.realpath(e.path) for e in entries if Path(e.name).suffix.lower() in extensions)


def subfolder_with_images(folder: Path) -> str | None:
    """Some folder below `folder` that holds images or Parquet."""
    for parent, _, names in os.walk(folder):
        if Path(parent) != folder and any(Path(n).suffix.lower() in (*EXTENSIONS, ".parquet") for n in names):
            return parent
    return None


def folder_reader(folder: Path) -> Reader:
    """The PNG and JPEG files directly in `folder`, sorted by real path."""
    paths = files(folder, EXTENSIONS)
    deeper = subfolder_with_images(folder)
    warnings = (f"images in subfolders of {folder}, such as {deeper}, are left out",) if deeper else ()
    chunks = [paths[i : i + IMAGES_AT_ONCE] for i in range(0, len(paths), IMAGES_AT_ONCE)]
    return Reader(len(paths), lambda: ahead(_decode_files, chunks), warnings)


def _decode_files(paths: Sequence[str]) -> list[Picture]:
    try:
        return [decode(path, Path(path).read_bytes()) for path in paths]
    except OSError as error:
        raise DamagedFile(f"{error.filename} can't be read: {error.strerror}") from None


def npz_reader(path: Path) -> Reader:
    """The images `arr_0` (N, H, W, C) of an `.npz`, read a few at a time."""
    try:
        names, (count, *shape) = _npz_header(path)
    except SourceError:
        require_whole_npz(path)  # what looks like another file may be a damaged one
        raise
    warnings: tuple[str, ...] = ()
    if {"mu", "sigma"} <= set(names):
        # guided-diffusion's references: statistics of a whole training set beside 10,000 images of it
        warnings = (f"{path} holds mu and sigma too, perhaps of more images; its {count} images are taken",)
    return Reader(count, lambda: _npz_pictures(path, count, tuple(shape)), warnings)


def require_whole_npz(path: Path) -> None:
    """Raise `DamagedFile` unless `path` is an `.npz` whose arrays have their checksums."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} can't be read")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Makes a `DamagedFile` of what zipfile and numpy raise."""
    try:
        yield
    except SourceError:
        raise
    except NPZ_ERRORS as error:
        raise DamagedFile(f"{path} is no whole .npz: {_one_line(error)}") from None


def _npz_header(path: Path) -> tuple[list[str], tuple[int, ...]]:
    """The names of the arrays in an `.npz`, and the shape of its images."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if NPZ_IMAGES not in names:
            hint = "; mu and sigma can be a reference, not samples" if {"mu", "sigma"} <= set(names) else ""
            raise SourceError(f"{path} has no images {NPZ_IMAGES} (N, height, width, channels), only {names}{hint}")
        with archive.open(f"{NPZ_IMAGES}.npy") as file:
            return names, _npy_shape(path, file)


def _npy_shape(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or columns_first:
        order = " in Fortran's order" if columns_first else ""
        raise SourceError(
            f"{path}: {NPZ_IMAGES} is {dtype} of shape {shape}{order}; taken is uint8 of shape (N, height, width, 1 or "
            "3) in C order"
        )
    return shape


def _npz_pictures(path: Path, count: int, shape: tuple[int, ...]) -> Iterator[Picture]:
    size = int(np.prod(shape))
    with _damage(path), zipfile.ZipFile(path) as archive, archive.open(f"{NPZ_IMAGES}.npy") as file:
        _npy_shape(path, file)
        for start in range(0, count, IMAGES_AT_ONCE):
            wanted = min(IMAGES_AT_ONCE, count - start) * size
            data = file.read(wanted)
            if len(data) < wanted:
                raise DamagedFile(f"{path}: {NPZ_IMAGES} ends before image {start + len(data) // size} of {count}")
            images = np.frombuffer(data, np.uint8).reshape(-1, *shape)
            for offset, image in enumerate(images):
                yield Picture(f"{path} image {start + offset}", image.transpose(2, 0, 1), lossy=False)
        if file.read(1):  # only at its end is an array's checksum known
            raise DamagedFile(f"{path}: {NPZ_IMAGES} goes on after its {count} images")


class Table(NamedTuple):
    """A Parquet file, the column of its images, and, in a file of taugrid's, the first and last index of its rows."""

    path: str
    column: str
    rows: int
    ends: tuple[int, int] | None


def parquet_reader(path: Path) -> Reader:
    """The image column of a Parquet file or of those in a folder: taugrid's by index, others by file name, then row."""
    paths = files(path, (".parquet",)) if path.is_dir() else [str(path)]
    tables = [_table(p) for p in paths]
    if all(table.ends is not None for table in tables):
        tables.sort(key=lambda table: table.ends or (0, 0))
        _require_one_cell(path, tables)
    splits = sorted({match[1] for p in paths if (match := SPLIT_NAME.match(Path(p).name))})
    warnings = (f"{path} holds the splits {', '.join(splits)}, and all are taken",) if len(splits) > 1 else ()
    count = sum(table.rows for table in tables)
    if not count:
        raise SourceError(f"{path} holds no rows")
    return Reader(count, lambda: ahead(_decode_rows, _rows(tables)), warnings)


def _require_one_cell(path: Path, tables: Sequence[Table]) -> None:
    """SourceError unless the rows of these files, sorted, have the indices 0, 1, 2 and so on: none twice, none missing.

    Whether images are missing at the end can't be seen; within a file, `_table` has looked.
    """
    before, stop = "", 0
    for table in tables:
        first, last = table.ends or (stop, stop)
        if first < stop:
            raise SourceError(f"{before} and {table.path} both hold index {first}: give the files of one cell")
        if first > stop:
            raise SourceError(f"{path} lacks the images of index {stop} to {first - 1}: give all files of a cell")
        before, stop = table.path, last + 1


def _decode_rows(rows: Sequence[Encoded]) -> list[Picture]:
    return [decode(name, data) for name, data in rows]


def _table(path: str) -> Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            ours = b"taugrid" in (schema.metadata or {}) and "index" in schema.names
            index = file.read(columns=["index"]).column("index").to_numpy() if ours and rows else None
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{path} can't be read: {_one_line(error)}") from None
    ends = None if index is None else (int(index[0]), int(index[-1]))
    if index is not None and (np.diff(index) != 1).any():
        at = int(np.flatnonzero(np.diff(index) != 1)[0])
        raise SourceError(f"{path}: index {index[at]} is followed by {index[at + 1]}, not by the next")
    return Table(path, _image_column(path, schema), rows, ends)


def _image_column(path: str, schema: pa.Schema) -> str:
    """The one column of pictures: a struct with the field `bytes`, or of binary; `image` where there are several."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if len(candidates) == 1 or "image" in candidates:
        return "image" if "image" in candidates else candidates[0]
    if candidates:
        raise SourceError(f"{path} has the columns {candidates} of bytes: name the one with the pictures image")
    raise SourceError(
        f"{path} has no column of pictures (bytes of PNG or JPEG, or a struct with bytes), only {schema.names}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(tables: Sequence[Table]) -> Iterator[list[Encoded]]:
    for table in tables:
        row = 0
        try:
            with pq.ParquetFile(table.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(IMAGES_AT_ONCE, columns=[table.column]):
                    column = batch.column(0)
                    if pa.types.is_struct(column.type):
                        column = column.field("bytes")
                    yield [_encoded(table, row + i, data) for i, data in enumerate(column.to_pylist())]
                    row += len(column)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"{table.path} can't be read: {_one_line(error)}") from None


def _encoded(table: Table, row: int, data: bytes | None) -> Encoded:
    if data is None:
        raise SourceError(f"{table.path} row {row} has no bytes: embed the pictures in the file")
    return f"{table.path} row {row}", data


def dataset_reader(root: Path, name: str) -> Reader:
    """A data set of torch-fidelity that lies in `root`, by the name that it has in torch-fidelity's registry."""
    from torch_fidelity.registry import DATASETS_REGISTRY
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name.split("-")[0]]
    try:
        data = DATASETS_REGISTRY[name](str(root), False)
    except (RuntimeError, OSError) as error:
        raise SourceError(
            f"{name} is not in {root}: download {kind.url} and unpack it there, to {root / kind.base_folder} (taugrid "
            "downloads no data sets)"
        ) from error
    return Reader(len(data), lambda: _dataset_pictures(name, data), ())


def _dataset_pictures(name: str, data: Any) -> Iterator[Picture]:
    """Each item of torch-fidelity's data sets is a uint8 tensor (3, H, W)."""
    for i in range(len(data)):
        yield Picture(f"{name} image {i}", data[i].numpy(), lossy=False)
