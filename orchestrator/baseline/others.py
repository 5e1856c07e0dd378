"""Metrics beside FID. None has a standard error of sampling (KID's ± is over subsets, the Inception Score's over
splits), so they are shown beside the verdict and not judged."""

import math
from collections.abc import Iterable, Mapping

from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.registry.metrics import METRICS, MetricColumn

Others = Mapping[str, tuple[float | None, float | None]]
"""Column of quality.csv -> the new value, and the baseline's."""

OTHER_COLUMNS: tuple[MetricColumn, ...] = tuple(
    column for metric in METRICS.values() for column in metric.columns if column.name != "fid"
)

NOT_JUDGED = "shown, not judged, because they have no standard error"


def other_metrics(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Those that either side has."""
    sides = {column.name: (new.get(column.name), old.get(column.name)) for column in OTHER_COLUMNS}
    return {name: values for name, values in sides.items() if any(value is not None for value in values)}


def columns_in(cells: Iterable[Others]) -> list[MetricColumn]:
    """The metrics that some cell has, in the order of the registry."""
    given = {name for others in cells for name in others}
    return [column for column in OTHER_COLUMNS if column.name in given]


def change_in_words(others: Others, column: MetricColumn, arrow: str = "->") -> str:
    """Such as "2.31 -> 2.35": the baseline's value, and the new one."""
    new, old = others.get(column.name, (None, None))
    return f"{_number(old, column)} {arrow} {_number(new, column)}"


def _number(value: float | None, column: MetricColumn) -> str:
    return MISSING if value is None else write_number(value * column.scale, math.nan)[0]
