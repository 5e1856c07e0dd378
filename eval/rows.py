"""What every table shares: the order of rows, dtypes of columns, JSON without NaN, values as text."""

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd


def sort_key(value: object) -> tuple[int, float, str]:
    """Nothing comes first, then numbers by value, then text."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, Real) else (2, 0.0, str(value))


def series(values: Sequence[object], as_float: bool) -> "pd.Series[Any]":
    """A column: float64 with NaN for None, or else as it is, integers whole; a list or mapping becomes its JSON."""
    if as_float:
        return pd.Series(np.array(values, dtype=np.float64))
    plain = [json.dumps(value) if isinstance(value, list | tuple | dict) else value for value in values]
    series = pd.Series(plain, dtype=object)
    return series if None in plain else series.infer_objects()  # which would make floats of integers beside a None


def as_text(value: object) -> str:
    """A value as people read it."""
    return "not set" if value is None or value is pd.NA or value != value else str(value)


def without_nan(value: object) -> object:
    """The same with None for numbers that are not finite, which JSON lacks, and plain Python types."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        return without_nan(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
