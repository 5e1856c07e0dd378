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


class ShadedTable(NamedTuple):
    pivot: Pivot
    rows: Sequence[tuple[tuple[str, ...], Sequence[tuple[Entry, str]]]]
    """Labels, and each entry with its shade: a number from 0, the best, to `SHADES` - 1, or `NO_SHADE`."""


def shaded_tables(quality: QualityTable, section: MetricTables) -> list[ShadedTable]:
    """The tables of a metric, with one scale of shades."""
    metric = section.metric
    values = quality.frame[metric.name].to_numpy(dtype=np.float64) * metric.scale
    scale = _Scale.of(values, metric.higher_is_better)
    tables = []
    for pivot in section.tables:
        shaded = [[(entry, scale.shade(entry.number)) for entry in row] for row in pivot.entries]
        tables.append(ShadedTable(pivot, list(zip(pivot.labels, shaded, strict=True))))
    return tables


class _Scale(NamedTuple):
    """Maps values to shades: logarithmic if all values are positive, since FIDs span decades."""

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
        """The shade of a value; `NO_SHADE` if it is missing or all values are equal."""
        if not math.isfinite(value) or self.high <= self.low:
            return NO_SHADE
        share = ((math.log(value) if self.is_log else value) - self.low) / (self.high - self.low)
        return str(min(SHADES - 1, int((1 - share if self.higher_is_better else share) * SHADES)))
