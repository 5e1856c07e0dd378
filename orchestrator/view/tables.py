"""The tables of a run, as its files hold them."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from taugrid.errors import UserError
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import read_json

TEXT_COLUMNS = frozenset(
    {"cell", "folder", "name", "model", "model_name", "protocol", "cell_a", "cell_b", "protocol_a", "protocol_b"}
    | {"spacing", "along", "settings", "others", "note", "base", "value", "class"}
)
"""Columns that stay text, though all their values may look like numbers (an id can be 123e456789) or be empty."""


class Tables:
    """The files in tables/. They are read again each time, because a run may be writing them."""

    def __init__(self, rundir: Paths) -> None:
        self._rundir = rundir

    @property
    def names(self) -> list[str]:
        return [path.stem for path in self._rundir.storage.list(self._rundir.tables, "*.csv")]

    def frame(self, name: str) -> pd.DataFrame:
        path = self._rundir.tables / f"{name}.csv"
        try:
            text = self._rundir.storage.read(path).decode()
        except (FileNotFoundError, NotADirectoryError):
            raise self.lacks(name) from None
        return parsed(text)

    def lacks(self, name: str) -> UserError:
        """What to say of a table that is not there."""
        there = f"it has {', '.join(self.names)}" if self.names else "`taugrid report` writes tables from scores"
        return UserError(f"{self._rundir.shown} has no table {name} ({there})")

    def document(self) -> dict[str, Any]:
        """What quality.json says besides the rows: protocols, notes and marks; empty if there is none."""
        return read_json(self._rundir.tables / "quality.json", self._rundir.storage) or {}


def parsed(text: str) -> pd.DataFrame:
    """A table from CSV, every number as it was before it was written.

    A column is of integers, floats with NaN for what is empty, booleans, or texts.
    """
    head, *rows = csv.reader(io.StringIO(text))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(head)}
    return pd.DataFrame({name: _typed(name, texts) for name, texts in columns.items()})


def _typed(name: str, texts: Sequence[str]) -> "pd.Series[Any]":
    if name in TEXT_COLUMNS:
        return pd.Series(texts, dtype="str")
    kinds: dict[str, Callable[[str], Any]] = {"int64": int, "float64": _number, "bool": _truth}
    for dtype, convert in kinds.items():
        try:
            return pd.Series([convert(text) for text in texts], dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return pd.Series(texts, dtype="str")


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"
