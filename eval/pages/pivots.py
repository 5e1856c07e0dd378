"""The quality tables as HTML: shaded by value, with errors and marks as in quality.md."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taugrid.eval.tables.entries import Entry
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.quality import MetricTables, QualityTable

SHADES = 8
"""Shades from the best value to the worst."""
NO_SHADE = "none"

Labels = tuple[str, ...]
"""Of a row, one for each of its table's heads."""


class ShadedEntry(NamedTuple):
    value: str
    error: str
    best: bool
    mark: str
    shade: str
    """A number from 0, the best, to `SHADES` - 1, or `NO_SHADE`."""
    number: float
    """The value itself; NaN if it is missing."""
    cell: str
    """Its id; empty where there is no cell."""

    @property
    def shown(self) -> str:
        return f"{self.value} {self.error}".rstrip()


class ShadedTable(NamedTuple):
    heading: str
    notes: tuple[str, ...]
    heads: tuple[str, ...]
    """What each label of a row is."""
    across: str
    """What the columns are."""
    columns: Sequence[str]
    rows: Sequence[tuple[Labels, Sequence[ShadedEntry]]]


def shaded_tables(quality: QualityTable, section: MetricTables) -> list[ShadedTable]:
    """The tables of a metric with shades that mean the same in all of them."""
    metric = section.metric
    scale = _Scale.of(quality.frame[metric.name].to_numpy(dtype=np.float64), metric.higher_is_better)
    return [
        ShadedTable(table.label, table.notes, table.heads, table.across, table.columns, _rows(table, scale))
        for table in section.tables
    ]


def _rows(table: Pivot, scale: "_Scale") -> list[tuple[Labels, list[ShadedEntry]]]:
    numbers = zip(table.values.to_numpy(), table.cells.to_numpy(), strict=True)
    return [
        (labels, list(map(_shaded, row, map(scale.shade, values), values, cells)))
        for labels, row, (values, cells) in zip(table.labels, table.entries, numbers, strict=True)
    ]


def _shaded(entry: Entry, shade: str, value: float, cell: object) -> ShadedEntry:
    name = cell if isinstance(cell, str) else ""
    return ShadedEntry(entry.value, entry.error, bool(entry.best), entry.mark, shade, float(value), name)


class _Scale(NamedTuple):
    """From a value to its shade: logarithmic if all values are positive, since FIDs span decades."""

    low: float
    high: float
    is_log: bool
    higher_is_better: bool

    @classmethod
    def of(cls, values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", higher_is_better: bool) -> "_Scale":
        finite = values[np.isfinite(values)]
        is_log = bool(len(finite)) and bool((finite > 0).all())
        ends = np.log(finite) if is_log else finite
        low, high = (float(ends.min()), float(ends.max())) if len(finite) else (0.0, 0.0)
        return cls(low, high, is_log, higher_is_better)

    def shade(self, value: float) -> str:
        """The shade of a value; none if it is missing or there is nothing to tell apart."""
        if not math.isfinite(value) or self.high <= self.low:
            return NO_SHADE
        share = ((math.log(value) if self.is_log else value) - self.low) / (self.high - self.low)
        return str(min(SHADES - 1, int((1 - share if self.higher_is_better else share) * SHADES)))
