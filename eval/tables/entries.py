"""The values of a table as people read them: decimals, errors, the best of a column, and marks.

With an error, value and error get as many decimals as show two significant digits of the error, but are never rounded
left of the point (14.21 ± 0.32, 367 ± 12, 4.160 ± 0.012). Without one, a value has two decimals, or three significant
digits if that is more (13.36, 0.00412). There are never more than six decimals. A missing value is a dash. A mean over
replicates also has their standard deviation, in brackets, and their number n where others have more.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from taugrid.eval.reference_names import reference_in_words
from taugrid.eval.tables.ablation.one_table import USUAL, Layout, one_table
from taugrid.eval.tables.ablation.replicates import alike_over_seeds, averaged
from taugrid.eval.tables.long_form import FID, score_columns
from taugrid.eval.tables.pivots import Pivot, against_best
from taugrid.protocol import ProtocolFields, extractor_in_words
from taugrid.registry.metrics import MetricColumn

MISSING = "–"
NOTHING = 5e-7
"""Smaller values have no digit that is shown."""
ROUNDING = 1e-9
"""A spread or a standard error below this share of what it belongs to is rounding: it occurs if every subset is the
whole set, or if two cells have the same samples, as any eta at S = 1."""
Z_95 = 1.96
"""|z| from which a single difference counts: chance alone reaches it 1 time in 20. For the best of a column and all
others, joint.py has the limit."""
INDISTINGUISHABLE = "≈"
JOINED = "‡"
MEANINGS = {
    INDISTINGUISHABLE: "not distinguishable from the best of its column by the paired difference of FID, 95 % jointly "
    "for all cells of the column (values without ± are not tested)",
    JOINED: "has another protocol than most, see the notes",
}
"""The marks after values, and their explanations below a table."""
AMONG_REPLICATES = (
    "not distinguishable from the best of its column by Student's t for differences paired by seed, 95 % jointly for "
    "all cells of the column (values without ± are not tested)"
)
"""What `INDISTINGUISHABLE` means where values are means over replicates."""


class Entry(NamedTuple):
    """A cell of a pivot as people read it; `error` and `mark` are empty where there is none."""

    value: str
    error: str
    best: bool
    mark: str = ""

    def joined(self, separator: str) -> str:
        return f"{self.value}{separator}{self.error}" if self.error else self.value


def tabulated(frame: pd.DataFrame) -> list[MetricColumn]:
    """The scores that some cell has; if no cell has any, FID with only dashes."""
    given = [column for column in score_columns() if column.name in frame and frame[column.name].notna().any()]
    return given or [FID]


def entries(table: Pivot, metric: MetricColumn) -> Iterator[tuple[tuple[str, ...], list[Entry]]]:
    """Each row's labels and its cells. The best of a column is marked only if the column has more than one value."""
    values, errors = table.values * metric.scale, table.errors * metric.scale
    spreads = errors * math.nan if table.spreads is None else table.spreads * metric.scale
    cells = table.cells.reindex(index=values.index, columns=values.columns)
    best = (values.max() if metric.higher_is_better else values.min()).where(values.count() > 1)
    for place, labels in enumerate(table.labels):
        numbers = (part.iloc[place] for part in (values, errors, spreads))
        row = zip(*numbers, best, cells.iloc[place], strict=True)
        yield (
            labels,
            [
                _entry(value, error, spread, least, table.marks.get(cell, ""), table.fewer.get(cell))
                for value, error, spread, least, cell in row
            ],
        )


def _entry(value: float, error: float, spread: float, best: float, mark: str, fewer: int | None) -> Entry:
    shown, behind = write_number(value, error)
    if behind and math.isfinite(spread):
        behind += f" ({spread:.{_decimals(error, digits=2)}f})"
    if fewer is not None and math.isfinite(value):
        behind = f"{behind} (n = {fewer})".lstrip()
    return Entry(shown, behind, value == best, mark if math.isfinite(value) else "")


def marked_pivots(
    frame: pd.DataFrame,
    metric: MetricColumn,
    protocols: Mapping[str, ProtocolFields],
    indistinguishable: Set[str],
    joined: Set[str],
    layout: Layout = USUAL,
) -> list[Pivot]:
    """The tables of `metric` with marks, one for all models. Metrics other than FID are tested only over replicates.

    Args:
        frame: in long form.
        metric: the column to show.
        protocols: the rows' protocols by hash.
        indistinguishable: cells whose FID can't be distinguished from the best of its column
            (eval/tables/ablation/alike.py).
        joined: cells with another kind of protocol that share a table anyway (`eval.tables.rows.check_joinable`).
        layout: what rows and columns are.
    """
    used = {} if joined else protocols
    pivots = one_table(frame, metric, used, layout)
    alike = indistinguishable if metric.name == FID.name else _alike_over_seeds(pivots, frame, metric, used)
    marks: dict[str, str] = dict.fromkeys(alike, INDISTINGUISHABLE)
    if joined:
        members = averaged(frame).members
        mixed = (cell for cell, replicates in members.items() if any(each.cell in joined for each in replicates))
        marks |= {cell: marks.get(cell, "") + JOINED for cell in mixed}
    return [replace(table, marks=marks) for table in pivots]


def _alike_over_seeds(
    tables: Sequence[Pivot], frame: pd.DataFrame, metric: MetricColumn, protocols: Mapping[str, ProtocolFields]
) -> set[str]:
    """Cells whose mean over replicates can't be distinguished from the best of its column; none without replicates."""
    means = averaged(frame, protocols)
    if not means.over:
        return set()
    values = dict(zip(frame["cell"], frame[metric.name], strict=True))
    alike: set[str] = set()
    for table in tables:
        for best, others in against_best(table, metric.higher_is_better):
            alike |= alike_over_seeds(means.members[best], {cell: means.members[cell] for cell in others}, values)
    return alike


def has_best(tables: Iterable[Pivot], metric: MetricColumn) -> bool:
    return any(entry.best for table in tables for _, row in entries(table, metric) for entry in row)


def legend(tables: Sequence[Pivot], metric: MetricColumn) -> list[str]:
    """A line for each mark that appears in the tables."""
    seen = {mark for table in tables for _, row in entries(table, metric) for entry in row for mark in entry.mark}
    of_means = {INDISTINGUISHABLE: AMONG_REPLICATES} if any(table.spreads is not None for table in tables) else {}
    return [f"{mark} {meaning}." for mark, meaning in (MEANINGS | of_means).items() if mark in seen]


def write_number(value: float, error: float) -> tuple[str, str]:
    """Value and "± error" by the rules in the module's docstring; the error is empty if there is none."""
    if not math.isfinite(value):
        return MISSING, ""
    # A single split has spread 0, and subsets that equal the whole set have nearly none: neither means anything.
    if not (math.isfinite(error) and error > ROUNDING * abs(value)):
        value = 0.0 if abs(value) < NOTHING else value
        return _fixed(value, max(2, _decimals(value, digits=3))), ""
    decimals = _decimals(error, digits=2)
    return _fixed(value, decimals), f"± {error:.{decimals}f}"


def _fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; zero has no sign."""
    return f"{value:z.{decimals}f}"


def _decimals(number: float, digits: int) -> int:
    """The number of decimals that show `digits` significant digits, at most 6, after rounding: 0.0999 becomes 0.10."""
    exponent = int(f"{number:.{digits - 1}e}".split("e")[1]) if number else 0
    return min(max(0, digits - 1 - exponent), 6)


def sizes(frame: pd.DataFrame) -> str:
    """Every N in the table, such as "1000 or 5000"."""
    return " or ".join(str(size) for size in sorted(set(frame["num_samples"])))


def scored_as(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> str:
    """A line with N, the reference and the extractor."""
    spelled = [protocols[name] for name in dict.fromkeys(frame["protocol"]) if name in protocols]
    references = dict.fromkeys(
        reference_in_words(protocol["reference"]) for protocol in spelled if "reference" in protocol
    )
    extractors = dict.fromkeys(
        extractor_in_words(protocol["extractor"]) for protocol in spelled if "extractor" in protocol
    )
    parts = [f"N = {sizes(frame)} images a cell"]
    parts += [f"reference: {' or '.join(references)}"] if references else []
    parts += [f"features: {' or '.join(extractors)}"] if extractors else []
    return "; ".join(parts)
