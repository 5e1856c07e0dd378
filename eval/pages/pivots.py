"""The quality tables as HTML: shaded by value, with errors and marks as in quality.md."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from taugrid.eval.metrics.statistics import Array
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
    shade = _shade_of(values, metric.higher_is_better)
    tables = []
    for pivot in section.tables:
        shaded = [[(entry, shade(entry.number)) for entry in row] for row in pivot.entries]
        tables.append(ShadedTable(pivot, list(zip(pivot.labels, shaded, strict=True))))
    return tables


def _shade_of(values: Array, higher_is_better: bool) -> Callable[[float], str]:
    """A function from a value to its shade: logarithmic if all `values` are positive, since FIDs span decades.

    It returns `NO_SHADE` for a missing value, or if all values are equal.
    """
    finite = values[np.isfinite(values)]
    is_log = bool(len(finite)) and bool((finite > 0).all())
    ends = np.log(finite) if is_log else finite
    low, high = (float(ends.min()), float(ends.max())) if len(finite) else (0.0, 0.0)

    def shade(value: float) -> str:
        if not math.isfinite(value) or high <= low:
            return NO_SHADE
        share = ((math.log(value) if is_log else value) - low) / (high - low)
        return str(min(SHADES - 1, int((1 - share if higher_is_better else share) * SHADES)))

    return shade
