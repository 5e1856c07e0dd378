"""`parquet`: the image column of Parquet files in a folder or on the Hugging Face hub; and such files made elsewhere.

They are taugrid's, Hugging Face's, or any other with the bytes of PNG or JPEG.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.config import Data
from taugrid.config.model import is_hub_id
from taugrid.errors import DamagedFile, MissingInput, UserError, joined_lines
from taugrid.workers import hub
from taugrid.workers.data.decoding import (
    IMAGES_AT_ONCE,
    EncodedDataset,
    EncodedImage,
    Reader,
    SourceError,
    decode_image,
)
from taugrid.workers.data.folder import below, files, fits
from taugrid.workers.data.load import Labels, root_of

SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\b.*")
"""How Hugging Face names the files of a split. A hash may follow."""

HUB_ROOT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+?))?/?")
"""A data set's address as huggingface_hub's file system writes it; a slash in a revision is %2F."""


def read(data: Data) -> EncodedDataset:
    """The image column of Parquet files, by path, then row. `root` is a file, a folder, or hf://datasets/ORG/NAME. A
    split's files are named SPLIT.parquet or SPLIT-*.parquet, or are in a folder of its name, as Hugging Face writes and
    finds them. Raises `UserError` if there are none, one of X-00000-of-0000N is missing, or one can't be read."""
    split = data.split
    names = [f"{split}.parquet", f"{split}-*.parquet", f"{split}/*.parquet"]
    patterns = ["*.parquet"] if split == "all" else [*names, *(f"*/{name}" for name in names)]
    root = _hub_folder(data, patterns) if "://" in str(data.root) else root_of(data)
    if root.is_file():
        root, paths = root.parent, [root] if fits(root.name, patterns) else []
    else:
        paths = below(root, patterns)
        _require_all_shards(paths)
    if not paths:
        wanted = "*.parquet" if data.split == "all" else f"{data.split}.parquet or {data.split}-*.parquet"
        hint = "" if data.split == "all" else ", or data.split: all"
        raise UserError(f"data: there is no {wanted} in {data.root}: set data.root to a folder that has some{hint}")
    try:
        readers = [reader(path) for path in paths]
    except (SourceError, DamagedFile) as error:
        raise UserError(f"data: {error}") from None

    def rows(first: int) -> Iterator[EncodedImage]:
        return islice(chain.from_iterable(one.items(0) for one in readers), first, None)

    return EncodedDataset(root, paths, Reader(sum(one.num_images for one in readers), rows, decode_image))


LABEL = "label"  # the column of labels, as Hugging Face's data sets and taugrid's own files name it


def labels(data: Data) -> Labels:
    """The column `label` of the files of `read`, whole numbers from 0 on. Hugging Face writes the names of its classes
    beside it."""
    values, names = [], []
    for path in read(data).files:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if LABEL not in schema.names:
                raise UserError(
                    f"data: {path} has no column {LABEL}, only {', '.join(schema.names)}: data has no labels"
                )
            column = file.read(columns=[LABEL]).column(LABEL)
        if not pa.types.is_integer(column.type) or column.null_count or (len(column) and column.to_numpy().min() < 0):
            has = f"{column.null_count} nulls" if column.null_count else f"{column.type} or a negative number"
            raise UserError(f"data: the column {LABEL} of {path} must have whole numbers from 0 on, not {has}")
        values.append(column.to_numpy().astype(np.int32))
        names.append(_class_names(schema))
    every = np.concatenate(values)
    classes = names[0] or tuple(map(str, range(int(every.max()) + 1)))
    if set(names) != {names[0]} or every.max() >= len(classes):
        raise UserError(f"data: the files in {data.root} name different classes, or too few for their labels")
    return Labels(every, classes)


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names of the classes in Hugging Face's metadata; none if it has none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[LABEL]["names"]))
    except (ValueError, KeyError, TypeError):
        return ()


def _require_all_shards(paths: Sequence[Path]) -> None:
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := SHARD_NAME.fullmatch(path.name):
            key = path.parent, match["split"], int(match["count"])
            numbers.setdefault(key, set()).add(int(match["number"]))
    for (folder, split, count), present in numbers.items():
        missing = sorted(set(range(count)) - present)
        if missing:
            raise UserError(
                f"data: {folder} has {count - len(missing)} of the {count} files {split}-*-of-{count:05d}; number "
                f"{missing[0]} is missing: get it (data.download: true, from hf://), or set data.root to one file"
            )


def _hub_folder(data: Data, patterns: Sequence[str]) -> Path:
    """The folder in Hugging Face's cache that holds a data set's Parquet files, downloaded if `data.download` is set:
    at the commit in the cache, so that a data set doesn't change between two commands."""
    match = HUB_ROOT.fullmatch(str(data.root))
    revision = match and match["revision"] and unquote(match["revision"])
    identifier = "" if match is None else match["repo"] + (f"@{revision}" if revision else "")
    if match is None or not is_hub_id(identifier):
        raise UserError(
            f"data.root: {data.root} is neither a path nor hf://datasets/ORG/NAME, perhaps with @REVISION or /FOLDER"
        )
    within = f"{match['folder']}/" if match["folder"] else ""
    wanted = [f"{within}{pattern}" for pattern in patterns]
    try:
        searched = [] if data.download else wanted
        cached = hub.snapshot(identifier, searched, "data.root", kind="dataset", download=False)
    except MissingInput:
        cached = None
    if data.download:
        commit = None if cached is None else cached.name
        cached = hub.snapshot(identifier, wanted, "data.root", commit, kind="dataset")
    elif cached is None:
        raise UserError(
            f"data: Hugging Face's cache does not hold all of {data.root}: set data.download: true, or data.root to a "
            "folder with its Parquet files"
        )
    return cached / within


class ImageTable(NamedTuple):
    """A Parquet file: the column of its images and, if taugrid wrote it, the first and last index of its rows."""

    path: str
    column: str
    rows: int
    ends: tuple[int, int] | None


def reader(path: Path) -> Reader:
    """The image column of a Parquet file or a folder of them: taugrid's by index, others by file name, then row."""
    tables = _tables(path)
    splits = sorted({match["split"] for table in tables if (match := SHARD_NAME.fullmatch(Path(table.path).name))})
    warnings = (f"{path} holds the splits {', '.join(splits)}; all are used",) if len(splits) > 1 else ()
    count = sum(table.rows for table in tables)
    if not count:
        raise SourceError(f"{path} holds no rows")
    return Reader(count, partial(_rows, tables), decode_image, warnings)


def column(path: Path, name: str) -> list[Any]:
    """The values of a column in the order of `reader`; SourceError if a file has no such column."""
    values: list[Any] = []
    for table in _tables(path):
        with pq.ParquetFile(table.path, page_checksum_verification=True) as file:
            if name not in (columns := file.schema_arrow.names):
                raise SourceError(f"{table.path} has no column {name}, only {', '.join(columns)}")
            values += file.read(columns=[name]).column(name).to_pylist()
    return values


def _tables(path: Path) -> list[ImageTable]:
    paths = files(path, (".parquet",)) if path.is_dir() else [str(path)]
    tables = [_table(p) for p in paths]
    if all(table.ends is not None for table in tables):
        tables.sort(key=lambda table: table.ends or (0, 0))
        stop = 0  # `_table` has checked the rows within each file
        for table in tables:
            first, last = table.ends or (stop, stop)
            if first != stop:
                raise SourceError(
                    f"{table.path} begins with image {first}, not {stop}: give all files of one cell, and no others"
                )
            stop = last + 1
    return tables


def _table(path: str) -> ImageTable:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            is_taugrids = b"taugrid" in (schema.metadata or {}) and "index" in schema.names
            index = file.read(columns=["index"]).column("index").to_numpy() if is_taugrids and rows else None
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{path} can't be read: {joined_lines(error)}") from None
    ends = None if index is None else (int(index[0]), int(index[-1]))
    if index is not None and (np.diff(index) != 1).any():
        at = int(np.flatnonzero(np.diff(index) != 1)[0])
        raise SourceError(f"{path}: index {index[at]} is followed by {index[at + 1]}, not {index[at] + 1}")
    return ImageTable(path, _image_column(path, schema), rows, ends)


def _image_column(path: str, schema: pa.Schema) -> str:
    """The column of pictures: binary, or a struct with the field `bytes`. Of several, the one named `image`."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if len(candidates) != 1 and "image" not in candidates:
        raise SourceError(
            f"{path} needs a column image, or only one, of bytes of PNG or JPEG, or of structs with bytes; it has "
            f"{schema.names}"
        )
    return "image" if "image" in candidates else candidates[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(tables: Sequence[ImageTable], first: int) -> Iterator[EncodedImage]:
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
            raise DamagedFile(f"{table.path} can't be read: {joined_lines(error)}") from None


def _encoded(table: ImageTable, row: int, data: bytes | None) -> EncodedImage:
    if data is None:
        raise SourceError(f"{table.path} row {row} has no bytes: embed the pictures in the file")
    return EncodedImage(f"{table.path} row {row}", data)
