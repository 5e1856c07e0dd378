"""Checks and reads files of samples, features and numbers, a row group at a time.

A file may be somebody else's, and small though it claims to hold much: what would be larger in memory than on the disk
is refused before it is read, since files of `PartWriter` are uncompressed.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.errors import DamagedFile, is_of_content, joined_lines, naming
from taugrid.images import PIXELS_AT_ONCE, decode_png, decode_together, num_pixels, to_pictures
from taugrid.retries import retried
from taugrid.storage import LOCAL, Storage
from taugrid.threads import decode_each

PICTURES = "image.bytes"  # the column of PNG
ROWS_AT_ONCE = 1024
TEXT_SHARE = 32  # the bytes of a table in memory for each on the disk: equal texts are stored once

BYTES_PER_VALUE = 4  # at least, in memory. Labels take less on the disk, but there are no more of them than of indices
PIECE_BYTES = 2**27  # of a piece of a table with texts, if each of its rows were as large as the file


class PartSummary(NamedTuple):
    """The content of a file: its rows are images `start` to `stop` - 1."""

    start: int
    stop: int
    metadata: dict[str, Any]


def inspect(path: Path, every_byte: bool = True, storage: Storage = LOCAL) -> PartSummary:
    """Check a sample or feature file: its seal (unless `every_byte` is off), its footer, and that indices are in order.
    `DamagedFile` says which check fails; OSError if it can't be read, and its content may be intact."""

    def read() -> tuple[bytes, list[NDArray[np.int64]]]:
        with storage.local_path(path) if every_byte else storage.readable(path) as source:
            if isinstance(source, Path) and every_byte:
                check_seal(source)
            file, _ = _parquet_file(source, ["index"])
            with file:
                blob = (file.schema_arrow.metadata or {}).get(b"taugrid") or b"{}"
                groups = range(file.metadata.num_row_groups)
                return blob, [file.read_row_group(g, columns=["index"]).column("index").to_numpy() for g in groups]

    with _as_damaged_file(path, ""):
        blob, indices = retried(read)
        metadata = json.loads(blob)
    index = np.concatenate([np.zeros(0, np.int64), *indices])
    if len(index) == 0 or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        raise DamagedFile("its indices are not consecutive")
    return PartSummary(int(index[0]), int(index[-1]) + 1, metadata)


def read_images(
    path: Path, stop: int | None = None, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Indices (B,) and images (B, C, H, W) uint8, row group by row group, for indices below `stop`. DamagedFile if a
    checksum or an image is wrong. A row group of more than `PIXELS_AT_ONCE` comes in parts."""
    for index, pngs in read_encoded(path, stop, storage):
        decode = partial(decode_png, max_pixels=(pixels := num_pixels(pngs[0])))
        at_once = PIXELS_AT_ONCE // max(1, pixels)
        for first in range(0, len(pngs), at_once):
            images = list(decode_each(decode, pngs[first : first + at_once], lambda image: image.nbytes))
            yield index[first : first + at_once], np.stack(images)


def read_png(path: Path, wanted: Iterable[int], storage: Storage = LOCAL) -> dict[int, bytes]:
    """PNG bytes by index, for the wanted indices that the file holds."""
    remaining, found = set(wanted), dict[int, bytes]()
    for index, pngs in _read(path, PICTURES, storage):
        found |= {int(number): pngs[row].as_py() for row, number in enumerate(index) if int(number) in remaining}
        if len(found) == len(remaining):
            break
    return found


def read_encoded(
    path: Path, stop: int | None = None, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Indices (B,) and PNG bytes below index `stop`, row group by row group. Raises what `read_images` raises."""
    for index, pngs in _read(path, PICTURES, storage):
        count = len(index) if stop is None else int(np.searchsorted(index, stop))
        if count:
            yield index[:count], pngs.to_pylist()[:count]


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


def read_digests(path: Path, storage: Storage = LOCAL) -> NDArray[np.int64]:
    """The column `pixels` (N,) of a sample file, or of the record of removed ones: `digests_of` the images."""
    return np.concatenate([values.to_numpy() for _, values in _read(path, "pixels", storage)])


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A table in an uncompressed file; DamagedFile if it is none, or would be larger in memory than its texts allow."""
    with _as_damaged_file(Path(), ""):
        file, size = _parquet_file(io.BytesIO(data), [])
        with file:
            return _in_pieces(file, size, columns, None, TEXT_SHARE * size)


def _read(path: Path, column: str, storage: Storage) -> Iterator[tuple[NDArray[np.int64], pa.ChunkedArray]]:
    with storage.readable(path) as source, _as_damaged_file(path, f"{path}: "), ExitStack() as stack:
        columns = ["index", column]
        file, size = retried(lambda: _parquet_file(source, columns))
        stack.enter_context(file)
        for group in range(file.metadata.num_row_groups):
            if column == PICTURES:
                table = retried(partial(_in_pieces, file, size, columns, [group], 2 * size))
            else:
                table = retried(partial(file.read_row_group, group, columns))
            table = table.flatten()
            yield table.column("index").to_numpy(), table.column(column)


def _in_pieces(
    file: pq.ParquetFile, size: int, columns: Sequence[str] | None, groups: Sequence[int] | None, limit: int
) -> pa.Table:
    """Row groups of a file of `size` bytes; DamagedFile at the first piece that would exceed `limit`."""
    pieces, left = [], limit
    rows = max(1, min(ROWS_AT_ONCE, PIECE_BYTES // size))
    for piece in file.iter_batches(rows, row_groups=groups, columns=columns):
        if (left := left - piece.nbytes) < 0:
            raise DamagedFile("it holds more than fits into it")
        pieces.append(piece)
    return pa.Table.from_batches(pieces, None if pieces else file.schema_arrow)


def _parquet_file(source: Path | IO[bytes], columns: Sequence[str]) -> tuple[pq.ParquetFile, int]:
    """An open file and its bytes. `columns` are those that will be read; none: all, which then hold no lists.
    DamagedFile if one of them is not of a type that taugrid writes, or claims what does not fit into the file."""
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)
    file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=not isinstance(source, Path))
    groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
    schema, rows = file.schema_arrow, file.metadata.num_rows
    paths = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
    for name in columns or schema.names:
        kind = schema.field(name.split(".")[0]).type
        leaves = [number for number, path in enumerate(paths) if f"{path}.".startswith(f"{name}.")]  # Arrow reads all
        if len(leaves) != 1 or not (_is_written(name, kind) if columns else not pa.types.is_nested(kind)):
            raise DamagedFile(f"its column {name} has a type that taugrid does not write")
        chunks = [group.column(leaves[0]) for group in groups]
        if any(chunk.compression != "UNCOMPRESSED" for chunk in chunks):
            raise DamagedFile("it is compressed; taugrid writes uncompressed files")
        values = max(sum(chunk.num_values for chunk in chunks), rows)
        if pa.types.is_fixed_size_list(kind):  # which takes nothing on the disk where it is null
            values = max(values, rows * kind.list_size)
        if BYTES_PER_VALUE * values > size:
            raise DamagedFile("it claims more rows than fit into it")
    return file, size


def _is_written(column: str, kind: pa.DataType) -> bool:
    """Whether a column that is read has its type: PNG, int64 for the index, else numbers or lists of a fixed size."""
    if column == PICTURES:
        return bool(kind == pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if column == "index":
        return bool(kind == pa.int64())
    kind = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


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
    """The images 0 to `count` - 1, or as many as the files, which are in order, have: (n, H, W) or (n, H, W, 3).
    DamagedFile also if they have more than `PIXELS_AT_ONCE` together."""
    return to_pictures(decode_together(first_pngs(paths, count, storage)))


def first_pngs(paths: Iterable[Path], count: int, storage: Storage) -> list[bytes]:
    """The PNG bytes of the images 0 to `count` - 1, or of as many as the files have."""
    pngs: dict[int, bytes] = {}
    for path in paths:
        if len(pngs) >= count:
            break
        pngs |= read_png(path, range(count), storage)
    return [pngs[i] for i in sorted(pngs)]


# The seal: a SHA-256 of all other bytes, before the footer, where readers of Parquet do not look. Page checksums, which
# any reader can check, cover only the pages: they miss a bit that flips in a page's header, an index or the footer.

SEAL = b"taugrid.sha256:"
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size
TAIL_BYTES = 8  # Parquet ends with the footer's length (4 bytes, little-endian) and `PAR1`
CHUNK_BYTES = 2**20


def write_seal(path: Path) -> bytes:
    """Insert `SEAL` and the SHA-256 of all other bytes before the footer; returns that SHA-256."""
    with retried(lambda: path.open("r+b")) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        footer = read_end(file).footer
        file.seek(footer)
        end = file.read()
        file.seek(footer)
        file.write(SEAL + digest + end)
    return digest


class FileEnd(NamedTuple):
    """The facts that can be read from a file's end."""

    size: int
    footer: int  # its offset; negative if this is not a complete Parquet file
    digest: bytes | None  # in the seal, which is not checked; None: there is no seal


def read_end(file: IO[bytes]) -> FileEnd:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    footer = size - TAIL_BYTES - int.from_bytes(tail[:4], "little") if tail[4:] == b"PAR1" else -1
    if footer < SEAL_BYTES:
        return FileEnd(size, footer, None)
    file.seek(footer - SEAL_BYTES)
    seal = file.read(SEAL_BYTES)
    return FileEnd(size, footer, seal.removeprefix(SEAL) if seal.startswith(SEAL) else None)


def file_end(path: Path, storage: Storage) -> tuple[FileEnd, str]:
    """The facts in the end of a file, of which nothing else is read, and the version (`Stat.version`) that has them."""

    def read() -> tuple[FileEnd, str]:
        with storage.opened(path) as (file, stat):
            return read_end(file), stat.version

    with naming(path):
        return retried(read)


def check_seal(path: Path) -> None:
    """Raise `DamagedFile` unless every byte of a file is as it was written."""
    with path.open("rb") as file:
        end = read_end(file)
        if end.footer < SEAL_BYTES:
            raise DamagedFile("its end is missing")
        file.seek(0)
        digest, start = hashlib.sha256(), end.footer - SEAL_BYTES
        for offset in range(0, start, CHUNK_BYTES):
            digest.update(file.read(min(CHUNK_BYTES, start - offset)))
        seal = file.read(SEAL_BYTES)
        digest.update(file.read())
    if seal != SEAL + digest.digest():
        raise DamagedFile("its bytes have changed since it was written")
