"""Labels in a column of a Parquet file that a user names, read on the driver."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.config.sample import LabelColumn
from taugrid.errors import MissingInput, UserError, joined_lines


class Column(NamedTuple):
    sha256: str
    """Of its values, as int64."""
    values: NDArray[np.int64] | None
    """(rows,). None: the file is gone, but a run has recorded the hash."""


def read_column(section: LabelColumn) -> Column:
    """The whole numbers in a column.

    Raises:
        MissingInput: if there is no such file.
        UserError: if it has no such column, or the column holds anything but whole numbers.
    """
    path, name = Path(section.parquet), section.column
    if not path.is_file():
        raise MissingInput(f"sample.labels.parquet: there is no file {path}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            found = file.read(columns=[name]).column(name) if names.count(name) == 1 else None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"sample.labels.parquet: {path} can't be read: {joined_lines(error)}") from None
    where = f"sample.labels.column: {name} of {path}"
    if found is None:
        raise UserError(f"{where} is missing; the file's columns are {', '.join(names)}")
    if not pa.types.is_integer(found.type):
        raise UserError(f"{where} holds {found.type}, but labels must be whole numbers, such as int32")
    if found.null_count:
        raise UserError(f"{where} has {found.null_count} nulls, but each sample needs a label; fill them in")
    try:
        values = found.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise UserError(f"{where} has numbers beyond 2^63") from None
    return Column(hashlib.sha256(values.astype("<i8").tobytes()).hexdigest(), values)
