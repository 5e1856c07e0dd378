"""Reads the image column of Parquet files: taugrid's, Hugging Face's, or any other with the bytes of PNG or JPEG."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.errors import DamagedFile
from taugrid.workers.data.readers.directory import files
from taugrid.workers.data.readers.picture import (
    IMAGES_AT_ONCE,
    EncodedImage,
    Picture,
    Reader,
    SourceError,
    decode,
    decoded,
    one_line,
)

SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}")
"""How Hugging Face names the files of a split."""


class Table(NamedTuple):
    """A Parquet file: the column of its images and, if taugrid wrote it, the first and last index of its rows."""

    path: str
    column: str
    rows: int
    ends: tuple[int, int] | None


def parquet_reader(path: Path) -> Reader:
    """The image column of a Parquet file or a folder of them: taugrid's by index, others by file name, then row."""
    paths = files(path, (".parquet",)) if path.is_dir() else [str(path)]
    tables = [_table(p) for p in paths]
    if all(table.ends is not None for table in tables):
        tables.sort(key=lambda table: table.ends or (0, 0))
        _require_one_cell(path, tables)
    splits = sorted({match[1] for p in paths if (match := SPLIT_NAME.match(Path(p).name))})
    warnings = (f"{path} holds the splits {', '.join(splits)}; all are used",) if len(splits) > 1 else ()
    count = sum(table.rows for table in tables)
    if not count:
        raise SourceError(f"{path} holds no rows")
    return Reader(count, lambda first: decoded(_decode_row, _rows(tables, first)), warnings)


def _require_one_cell(path: Path, tables: Sequence[Table]) -> None:
    """Raise `SourceError` unless the sorted files have the indices 0, 1, 2, ... without gaps or repetitions.

    `_table` has checked the rows within each file. Images that are missing at the end can't be detected.
    """
    before, stop = "", 0
    for table in tables:
        first, last = table.ends or (stop, stop)
        if first < stop:
            raise SourceError(f"{before} and {table.path} both hold index {first}: give the files of one cell")
        if first > stop:
            raise SourceError(f"{path} lacks the images {stop} to {first - 1}: give all files of a cell")
        before, stop = table.path, last + 1


def _decode_row(row: EncodedImage) -> Picture:
    return decode(row.name, row.data)


def _table(path: str) -> Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            ours = b"taugrid" in (schema.metadata or {}) and "index" in schema.names
            index = file.read(columns=["index"]).column("index").to_numpy() if ours and rows else None
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{path} can't be read: {one_line(error)}") from None
    ends = None if index is None else (int(index[0]), int(index[-1]))
    if index is not None and (np.diff(index) != 1).any():
        at = int(np.flatnonzero(np.diff(index) != 1)[0])
        raise SourceError(f"{path}: index {index[at]} is followed by {index[at + 1]}, not {index[at] + 1}")
    return Table(path, _image_column(path, schema), rows, ends)


def _image_column(path: str, schema: pa.Schema) -> str:
    """The column of pictures: binary, or a struct with the field `bytes`. Of several, the one named `image`."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if len(candidates) == 1 or "image" in candidates:
        return "image" if "image" in candidates else candidates[0]
    if candidates:
        raise SourceError(
            f"{path} has several columns of bytes, {candidates}: rename the one with the pictures to image"
        )
    raise SourceError(
        f"{path} has no column of pictures (bytes of PNG or JPEG, or a struct with bytes), only {schema.names}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(tables: Sequence[Table], first: int) -> Iterator[EncodedImage]:
    """The rows from number `first` on, over all tables."""
    for table in tables:
        skipped = min(first, table.rows)
        first -= skipped
        if skipped == table.rows:
            continue
        row = 0
        try:
            with pq.ParquetFile(table.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(IMAGES_AT_ONCE, columns=[table.column]):
                    column = batch.column(0)
                    if pa.types.is_struct(column.type):
                        column = column.field("bytes")
                    numbers = range(row, row + len(column))
                    row += len(column)
                    if row > skipped:
                        encoded = zip(numbers, column.to_pylist(), strict=True)
                        yield from (_encoded(table, number, data) for number, data in encoded if number >= skipped)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"{table.path} can't be read: {one_line(error)}") from None


def _encoded(table: Table, row: int, data: bytes | None) -> EncodedImage:
    if data is None:
        raise SourceError(f"{table.path} row {row} has no bytes: embed the pictures in the file")
    return EncodedImage(f"{table.path} row {row}", data)
