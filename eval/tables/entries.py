"""The values of a table as people read them: decimals, errors, the best of a column, and marks.

With an error, value and error get as many decimals as show two significant digits of the error, but are never rounded
left of the point (14.21 ± 0.32, 367 ± 12, 4.160 ± 0.012). Without one, a value has two decimals, or three significant
digits if that is more (13.36, 0.00412). There are never more than six decimals. A missing value is a dash.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from taugrid.eval.tables.long_form import FID, score_columns
from taugrid.eval.tables.pivots import Pivot, pivot_tables
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

MISSING = "–"
NOTHING = 5e-7
"""Smaller values have no digit that is shown."""
ROUNDING = 1e-9
"""A spread below this share of its value is rounding: it occurs if every subset is the whole set."""
Z_95 = 1.96
"""|z| from which a difference counts: chance alone reaches it 1 time in 20. There is no correction for the number of
values in a column, nor for picking the best of them."""
INDISTINGUISHABLE = "≈"
JOINED = "‡"
MEANINGS = {
    INDISTINGUISHABLE: "not distinguishable from the best of its column: "
    f"|z| < {Z_95} for the paired difference of FID (values without ± are not tested)",
    JOINED: "has another protocol than most, see the notes",
}
"""The marks after values, and their explanations below a table."""


class Entry(NamedTuple):
    """A cell of a pivot as people read it; `error` and `mark` are empty where there is none."""

    value: str
    error: str
    best: bool
    mark: str = ""

    def joined(self, separator: str) -> str:
        """Value and error with `separator` between them."""
        return f"{self.value}{separator}{self.error}" if self.error else self.value


def tabulated(frame: pd.DataFrame) -> list[MetricColumn]:
    """The scores that some cell has; if no cell has any, FID with only dashes."""
    given = [column for column in score_columns() if column.name in frame and frame[column.name].notna().any()]
    return [unscaled(column) if frame[column.name].max() >= 1 else column for column in given] or [FID]


def unscaled(column: MetricColumn) -> MetricColumn:
    """A column without its factor, which suits the small KIDs of Inception's features: KID grows as their cube."""
    return replace(column, title=column.title.split(" ×")[0], scale=1.0)


def entries(table: Pivot, metric: MetricColumn) -> Iterator[tuple[str, list[Entry]]]:
    """Each row's label and its cells. The best of a column is marked only if the column has more than one value."""
    values, errors = table.values * metric.scale, table.errors * metric.scale
    cells = table.cells.reindex(index=values.index, columns=values.columns)
    best = (values.max() if metric.higher_is_better else values.min()).where(values.count() > 1)
    for label in values.index:
        row = zip(values.loc[label], errors.loc[label], best, cells.loc[label], strict=True)
        yield str(label), [_entry(*placed, table.marks) for placed in row]


def _entry(value: float, error: float, best: float, cell: str, marks: Mapping[str, str]) -> Entry:
    return Entry(*write_number(value, error), value == best, marks.get(cell, "") if math.isfinite(value) else "")


def marked_pivots(
    frame: pd.DataFrame,
    metric: MetricColumn,
    protocols: Mapping[str, ProtocolFields],
    indistinguishable: Set[str],
    joined: Set[str],
) -> list[Pivot]:
    """The pivots of `metric` with marks. Only FID is tested.

    Args:
        frame: in long form.
        metric: the column to show.
        protocols: the rows' protocols by hash.
        indistinguishable: cells whose FID can't be distinguished from the best of its column
            (eval/tables/differences.py).
        joined: cells with another kind of protocol that share a table anyway (`eval.tables.rows.check_joinable`).
    """
    marks: dict[str, str] = dict.fromkeys(indistinguishable, INDISTINGUISHABLE) if metric.name == FID.name else {}
    marks |= {cell: marks.get(cell, "") + JOINED for cell in joined}
    pivots = pivot_tables(frame, metric.name, metric.error, {} if joined else protocols)
    return [replace(table, marks=marks) for table in pivots]


def legend(tables: Sequence[Pivot], metric: MetricColumn) -> list[str]:
    """A line for each mark that appears in the tables."""
    seen = {mark for table in tables for _, row in entries(table, metric) for entry in row for mark in entry.mark}
    return [f"{mark} {meaning}." for mark, meaning in MEANINGS.items() if mark in seen]


def write_number(value: float, error: float) -> tuple[str, str]:
    """Value and "± error" by the rules in the module's docstring; the error is empty if there is none."""
    value = 0.0 if abs(value) < NOTHING else value  # not "-0.000000"
    if not math.isfinite(value):
        return MISSING, ""
    # A single split has spread 0, and subsets that equal the whole set have nearly none: neither means anything.
    if not (math.isfinite(error) and error > ROUNDING * abs(value)):
        return f"{value:.{max(2, _decimals(value, digits=3))}f}", ""
    decimals = _decimals(error, digits=2)
    return f"{value:.{decimals}f}", f"± {error:.{decimals}f}"


def _decimals(number: float, digits: int) -> int:
    """The number of decimals that show `digits` significant digits, at most 6, after rounding: 0.0999 becomes 0.10."""
    exponent = int(f"{number:.{digits - 1}e}".split("e")[1]) if number else 0
    return min(max(0, digits - 1 - exponent), 6)


def sizes(frame: pd.DataFrame) -> str:
    """Every N in the table, such as "1000 or 5000"."""
    return " or ".join(str(size) for size in sorted(set(frame["num_samples"])))
