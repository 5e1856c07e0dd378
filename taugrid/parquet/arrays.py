"""Arrow arrays from buffers. `pa.array` would import pandas, to ask whether it got a Series: 0.2 s of each worker."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def arrow_array(values: Any, kind: pa.DataType) -> pa.Array:
    """`values` as an Arrow array: a sequence, or a (B, d) array for a list of fixed size. None is null."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_numbers(np.reshape(values, -1), kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        columns = [arrow_array([value[field.name] for value in values], field.type) for field in fields]
        return pa.StructArray.from_arrays(columns, fields=fields)
    if _may_hold_none(values) and any(value is None for value in values):
        return pa.nulls(len(values), kind) if all(value is None for value in values) else pa.array(values, type=kind)
    if pa.types.is_string(kind):
        return _bytes([text.encode() for text in values], kind)
    return _bytes(values, kind) if pa.types.is_binary(kind) else _numbers(values, kind)


def _numbers(values: Any, kind: pa.DataType) -> pa.Array:
    given = np.asarray(values)
    if not _holds(kind, given):
        return pa.array(given, type=kind)  # which converts them or says what is wrong
    numbers = np.ascontiguousarray(given, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _may_hold_none(values: Any) -> bool:
    return not isinstance(values, np.ndarray) or values.dtype == object


def _holds(kind: pa.DataType, numbers: NDArray[Any]) -> bool:
    """Whether NumPy's conversion to `kind` keeps the numbers: floats are rounded, integers would wrap."""
    if pa.types.is_floating(kind):
        return numbers.dtype.kind == "f"
    if not pa.types.is_integer(kind) or numbers.dtype.kind not in "iu":
        return False
    limits = np.iinfo(kind.to_pandas_dtype())
    return numbers.size == 0 or (limits.min <= int(numbers.min()) and int(numbers.max()) <= limits.max)


def _bytes(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *map(len, values)])
    if ends[-1] > np.iinfo(np.int32).max:
        return pa.array(values, type=kind)  # which says what is wrong
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)
