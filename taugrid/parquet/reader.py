"""Checks and reads files of samples, features and numbers, a row group at a time."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.errors import DamagedFile, is_of_content, joined_lines, naming
from taugrid.images import decode_png, to_pictures
from taugrid.parquet.seal import check_seal
from taugrid.retries import retried
from taugrid.storage import LOCAL, Storage
from taugrid.threads import decode_each


class PartSummary(NamedTuple):
    """The content of a file: its rows are images `start` to `stop` - 1."""

    start: int
    stop: int
    metadata: dict[str, Any]


def inspect(path: Path, every_byte: bool = True, storage: Storage = LOCAL) -> PartSummary:
    """Check a sample or feature file: its seal (unless `every_byte` is off), its footer, and that indices are in order.

    Raises:
        DamagedFile: if a check fails; the message says which.
        FileNotFoundError, NotADirectoryError: if there is no such file.
        OSError: if it can't be read; its content may be intact.
    """

    def read() -> tuple[bytes | None, list[NDArray[np.int64]]]:
        with storage.local_path(path) if every_byte else storage.readable(path) as source:
            if isinstance(source, Path) and every_byte:
                check_seal(source)
            with _parquet_file(source) as file:
                blob = (file.schema_arrow.metadata or {}).get(b"taugrid")
                groups = range(file.metadata.num_row_groups)
                return blob, [file.read_row_group(g, columns=["index"]).column("index").to_numpy() for g in groups]

    with _as_damaged_file(path, ""):
        blob, indices = retried(read)
        metadata = json.loads(blob) if blob else {}
    index = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    if len(index) == 0 or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        raise DamagedFile("its indices are not consecutive")
    return PartSummary(int(index[0]), int(index[-1]) + 1, metadata)


def read_images(
    path: Path, stop: int | None = None, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Indices (B,) and images (B, C, H, W) uint8, row group by row group, for indices below `stop`.

    Threads decode large images (`threads.decode_each`).

    Raises:
        DamagedFile: if a checksum or an image is wrong.
    """
    for index, pngs in read_encoded(path, stop, storage):
        images = list(decode_each(decode_png, pngs, lambda image: image.nbytes))
        yield index, np.stack(images)


def read_png(path: Path, wanted: Iterable[int], storage: Storage = LOCAL) -> dict[int, bytes]:
    """PNG bytes by index, for the wanted indices that the file holds."""
    remaining = set(wanted)
    pngs_by_index: dict[int, bytes] = {}
    for index, column in _read(path, "image", storage):
        rows = [row for row, i in enumerate(index) if int(i) in remaining]
        pngs = column.combine_chunks().field("bytes")
        pngs_by_index |= {int(index[row]): pngs[row].as_py() for row in rows}
        if len(pngs_by_index) == len(remaining):
            break
    return pngs_by_index


def read_encoded(
    path: Path, stop: int | None = None, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Indices (B,) and PNG bytes below index `stop`, row group by row group. Raises what `read_images` raises."""
    for index, column in _read(path, "image", storage):
        count = len(index) if stop is None else int(np.searchsorted(index, stop))
        if count:
            yield index[:count], column.combine_chunks().field("bytes").to_pylist()[:count]


def read_features(
    path: Path, column: str, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Indices (B,) and the column `features` or `logits` as (B, d) float32, row group by row group."""
    for index, values in _read(path, column, storage):
        flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield index, flat.reshape(len(index), -1)


def read_numbers(
    path: Path, column: str, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Indices (B,) and a column of numbers (B,) as float64, row group by row group."""
    for index, values in _read(path, column, storage):
        yield index, values.to_numpy().astype(np.float64)


def _read(path: Path, column: str, storage: Storage) -> Iterator[tuple[NDArray[np.int64], pa.ChunkedArray]]:
    with storage.readable(path) as source, _as_damaged_file(path, f"{path}: "), ExitStack() as stack:
        file = stack.enter_context(retried(lambda: _parquet_file(source)))
        for group in range(file.metadata.num_row_groups):
            table = retried(partial(file.read_row_group, group, columns=["index", column]))
            yield table.column("index").to_numpy(), table.column(column)


def _parquet_file(source: Path | IO[bytes]) -> pq.ParquetFile:
    """An open file. What is fetched by ranges is fetched in as few as possible."""
    return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=not isinstance(source, Path))


@contextmanager
def _as_damaged_file(path: Path, prefix: str) -> Iterator[None]:
    """Turn errors of the content into `DamagedFile`; errors of reading stay, with the file's name."""
    try:
        with naming(path):
            yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and not is_of_content(error):
            raise
        reason = "its end is missing" if "magic bytes" in str(error) else joined_lines(error)
        raise DamagedFile(f"{prefix}{reason}") from None


def first_pictures(paths: Iterable[Path], count: int, storage: Storage) -> NDArray[np.uint8]:
    """The images 0 to `count` - 1, or as many as the files have: (n, H, W) or (n, H, W, 3), by index.

    `paths` are in the order of their indices; no more are read than needed. Raises what `read_images` raises.
    """
    pngs: dict[int, bytes] = {}
    for path in paths:
        if len(pngs) >= count:
            break
        pngs |= read_png(path, range(count), storage)
    return to_pictures([decode_png(pngs[i]) for i in sorted(pngs)])
