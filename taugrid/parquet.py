"""Parquet files of samples, features and numbers: schemas, the writer, the seal, checks and readers.

A file holds one shard (or the features of one). It is written to the same folder under a temporary name that begins
with a dot, and committed in one step, so that a file in place is whole. Its seal shows whether it still is: a SHA-256
of all other bytes, placed before the footer, where readers of Parquet do not look. Page checksums, which any reader can
check, cover only the pages: they miss a bit that flips in a page's header, an index or the footer.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.errors import DamagedFile
from taugrid.hashing import canonical_json
from taugrid.images import decode_png, encode_png
from taugrid.storage import LOCAL, Storage

ROWS_PER_GROUP = 1024
BYTES_PER_GROUP = 32 * 2**20
"""A row group ends at whichever limit comes first, so that neither writer nor reader holds more in memory."""

SETTING_FIELDS = (
    ("seed", pa.int64()),
    ("steps", pa.int32()),
    ("eta", pa.float64()),
    ("sigma", pa.string()),
    ("spacing", pa.string()),
    ("sampler", pa.string()),
    ("clip", pa.string()),
    ("cell", pa.string()),
    ("model", pa.string()),
)
"""Every setting is a column with one value in a file, so that files of many cells can be read as one table."""


SEAL = b"taugrid.sha256:"
TAIL_BYTES = 8
"""Parquet ends with the footer's length (4 bytes, little-endian) and `PAR1`."""
CHUNK_BYTES = 2**20


def sample_schema(metadata: Mapping[str, Any]) -> pa.Schema:
    """The schema of a sample file; `metadata` goes under the key `taugrid` as JSON."""
    return _schema_with_pictures(metadata, SETTING_FIELDS)


def picture_schema(metadata: Mapping[str, Any], numbers: Sequence[str] = ()) -> pa.Schema:
    """The schema of a file of pictures with a float64 column for each of `numbers`."""
    return _schema_with_pictures(metadata, [(name, pa.float64()) for name in numbers])


def _schema_with_pictures(metadata: Mapping[str, Any], columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """Schema metadata under the key `huggingface` tells `datasets` that the first column holds pictures."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [("image", image), ("index", pa.int64()), *columns]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for name, kind in fields[1:]:
        features[name] = {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
    huggingface = json.dumps({"info": {"features": features}}).encode()
    return pa.schema(fields, metadata={b"huggingface": huggingface, b"taugrid": canonical_json(metadata).encode()})


def feature_schema(metadata: Mapping[str, Any], dimensions: int, classes: int | None) -> pa.Schema:
    """The schema of a feature file: index, features (float32, fixed size) and logits, if any."""
    fields = [pa.field("index", pa.int64()), pa.field("features", pa.list_(pa.float32(), dimensions))]
    if classes is not None:
        fields.append(pa.field("logits", pa.list_(pa.float32(), classes)))
    return pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})


def number_schema(metadata: Mapping[str, Any], names: Sequence[str]) -> pa.Schema:
    """The schema of a file of numbers: index, and a float64 column for each of `names`."""
    fields = [("index", pa.int64()), *((name, pa.float64()) for name in names)]
    return pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})


class PartWriter:
    """Writes a Parquet file under a temporary name; `commit` puts it in place; leaving without a commit removes it."""

    def __init__(self, path: Path, schema: pa.Schema, storage: Storage = LOCAL) -> None:
        self._path = path
        self._schema = schema
        self._storage = storage
        self._removal = ExitStack()
        self._temporary = self._removal.enter_context(storage.temporary(path))
        self._writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="none",  # PNG is compressed already, features don't compress
            use_dictionary=[name for name, kind in SETTING_FIELDS],
            write_page_index=True,
            write_page_checksum=True,
        )

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._removal, suppress(Exception):
            self._writer.close()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append one row group; a column is a sequence, or a (B, d) array for a list of fixed size."""
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=ROWS_PER_GROUP)

    def commit(self, replace: bool) -> bool:
        """Put the file in place, atomically. If a file is already there and `replace` is off, keep it, return False."""
        self._writer.close()
        _seal(self._temporary)
        if not replace:
            return self._storage.create(self._path, self._temporary)
        self._storage.replace(self._path, self._temporary)
        return True


def _seal(path: Path) -> None:
    """Insert `SEAL` and the SHA-256 of all other bytes before the footer, and sync.

    The file stays valid: the footer is found from the file's end, and its offsets point before the seal.
    """
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        size = file.tell()
        file.seek(size - TAIL_BYTES)
        footer = int.from_bytes(file.read(4), "little") + TAIL_BYTES
        file.seek(size - footer)
        end = file.read()
        file.seek(size - footer)
        file.write(SEAL + digest + end)
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: Path) -> None:
    """Raise `DamagedFile` unless every byte of a file is as it was written."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        footer = int.from_bytes(tail[:4], "little") + TAIL_BYTES
        start = size - footer - len(SEAL) - hashlib.sha256().digest_size
        if tail[4:] != b"PAR1" or start < 0:
            raise DamagedFile("its end is missing")
        file.seek(0)
        digest = hashlib.sha256()
        for offset in range(0, start, CHUNK_BYTES):
            digest.update(file.read(min(CHUNK_BYTES, start - offset)))
        seal = file.read(size - footer - start)
        digest.update(file.read())
    if seal != SEAL + digest.digest():
        raise DamagedFile("its bytes have changed since it was written")


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(values, type=kind)


def pictures(batch: NDArray[np.uint8], start: int) -> dict[str, Any]:
    """The columns `image` and `index` for a (B, C, H, W) batch whose first image has index `start`."""
    return _picture_columns([encode_png(image) for image in batch], start)


def _picture_columns(pngs: Sequence[bytes], start: int) -> dict[str, Any]:
    index = range(start, start + len(pngs))
    return {
        "image": [{"bytes": png, "path": f"{i:07d}.png"} for i, png in zip(index, pngs, strict=True)],
        "index": index,
    }


class SampleWriter:
    """Encodes batches of one shard in order and writes them; row groups depend on the images alone, not on timing."""

    def __init__(self, part: PartWriter, settings: Mapping[str, Any], start: int) -> None:
        self._part = part
        self._settings = settings
        self._next = start
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add a (B, C, H, W) batch; the first of the shard has index `start`."""
        for image in images:
            png = encode_png(image)
            if self._pending and self._pending_bytes + len(png) > BYTES_PER_GROUP:
                self.flush()
            self._pending.append(png)
            self._pending_bytes += len(png)
            if len(self._pending) == ROWS_PER_GROUP:
                self.flush()

    def flush(self) -> None:
        """Write the pending images as a row group."""
        count = len(self._pending)
        if count:
            columns = _picture_columns(self._pending, self._next)
            columns |= {name: [self._settings[name]] * count for name, _ in SETTING_FIELDS}
            self._part.write(columns)
            self._next += count
            self._pending, self._pending_bytes = [], 0


class Part(NamedTuple):
    """The content of a file: its rows are images `start` to `stop` - 1."""

    start: int
    stop: int
    metadata: dict[str, Any]


def inspect(path: Path, every_byte: bool = True, storage: Storage = LOCAL) -> Part:
    """Check a sample or feature file: its seal (unless `every_byte` is off), its footer, and that indices are in order.

    Raises:
        DamagedFile: saying what is wrong.
        FileNotFoundError, NotADirectoryError: if there is no such file.
    """
    try:
        with storage.local_path(path) as local:
            if every_byte:
                check_seal(local)
            with pq.ParquetFile(local, page_checksum_verification=True) as file:
                blob = (file.schema_arrow.metadata or {}).get(b"taugrid")
                metadata = json.loads(blob) if blob else {}
                groups = range(file.metadata.num_row_groups)
                indices = [file.read_row_group(g, columns=["index"]).column("index").to_numpy() for g in groups]
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedFile(" ".join(str(error).split())) from None
    index = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    if len(index) == 0 or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        raise DamagedFile("its indices are not consecutive")
    return Part(int(index[0]), int(index[-1]) + 1, metadata)


def read_images(
    path: Path, stop: int | None = None, storage: Storage = LOCAL
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Indices (B,) and images (B, C, H, W) uint8, row group by row group, for indices below `stop`.

    Raises:
        DamagedFile: if a checksum or an image is wrong.
    """
    for index, column in _read(path, "image", storage):
        count = len(index) if stop is None else int(np.searchsorted(index, stop))
        pngs = column.combine_chunks().field("bytes").to_pylist()[:count]
        if count:
            yield index[:count], np.stack([decode_png(png) for png in pngs])


def read_png(path: Path, wanted: Iterable[int], storage: Storage = LOCAL) -> dict[int, bytes]:
    """PNG bytes by index, for the wanted indices that the file holds."""
    remaining = set(wanted)
    found: dict[int, bytes] = {}
    for index, column in _read(path, "image", storage):
        rows = [row for row, i in enumerate(index) if int(i) in remaining]
        pngs = column.combine_chunks().field("bytes")
        found |= {int(index[row]): pngs[row].as_py() for row in rows}
        if len(found) == len(remaining):
            break
    return found


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
    try:
        with storage.local_path(path) as local, pq.ParquetFile(local, page_checksum_verification=True) as file:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=["index", column])
                yield table.column("index").to_numpy(), table.column(column)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedFile(f"{path}: {' '.join(str(error).split())}") from None
