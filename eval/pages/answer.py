"""The result of a run in two sentences, which claim nothing beyond its numbers and their errors."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from taugrid.eval.tables.entries import INDISTINGUISHABLE, Entry
from taugrid.eval.tables.labels import SIGMA_HAT
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.quality import QualityTable
from taugrid.protocol import comparability_key
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

MAX_NAMED = 3
"""Rows, or groups of comparable cells, that a sentence names. More are counted."""


class Measured(NamedTuple):
    """A cell with an FID, or another metric, for charts and the answer."""

    row: str
    """The row of its table, such as "η = 0.5"."""
    table: Pivot
    at: int
    """Its column: S or, where samplers are compared, its network evaluations."""
    entry: Entry
    comparability_key: str
    """Cells with equal keys can be compared."""

    @property
    def line(self) -> str:
        return ", ".join(filter(None, [self.row, self.table.label]))

    @property
    def place(self) -> str:
        return f"{self.table.column_key} = {self.at}, {self.line}"


def measured(quality: QualityTable, metric: MetricColumn = FID) -> list[Measured]:
    """The cells with a value of the metric, in the order of the tables of eta and S, or evaluations."""
    by_cell = {row["cell"]: row for row in quality.shown or quality.rows}
    if not by_cell:
        return []
    keys = {name: "" if quality.joined else comparability_key(protocol) for name, protocol in quality.protocols.items()}
    cells = []
    for pivot in quality.by_steps.section(metric).tables:
        for labels, entries in zip(pivot.labels, pivot.entries, strict=True):
            for at, entry in zip(pivot.values.columns, entries, strict=True):
                if entry.cell and entry.number == entry.number:
                    row = by_cell[entry.cell]
                    name, key = row_name(pivot.row_keys, labels), keys.get(row["protocol"], "unknown")
                    cells.append(Measured(name, pivot, int(at), entry, key))
    return cells


def row_name(row_keys: Sequence[str], labels: Sequence[str]) -> str:
    """The name of a row, such as "schedule = cosine, η = 0.5"."""
    pairs = [(key, label) for key, label in zip(row_keys, labels, strict=True) if label]
    return ", ".join(label if label == SIGMA_HAT else f"{key} = {label}" for key, label in pairs)


def comparable(cells: Sequence[Measured]) -> list[list[Measured]]:
    groups: dict[str, list[Measured]] = defaultdict(list)
    for cell in cells:
        groups[cell.comparability_key].append(cell)
    return list(groups.values())


def answer(cells: Sequence[Measured], planned: int) -> list[str]:
    """Sentences on the cell with the lowest FID, and on the best setting at the other end of the steps.

    `planned` is the number of cells in the grid, means over replicates counted once.
    """
    if not cells:
        return [f"None of {counted(planned, 'cell')} has an FID yet."]
    groups = comparable(cells)
    if len(groups) > 1:
        bests = [_lowest(group) for group in groups[:MAX_NAMED]]
        named = "; ".join(f"{best.entry.shown} at {best.place}" for best in bests)
        more = f", and {counted(len(groups) - MAX_NAMED, 'other')}" if len(groups) > MAX_NAMED else ""
        return [
            f"The cells were measured under {len(groups)} protocols, whose numbers can't be compared.",
            f"The lowest FID under each: {named}{more}.",
        ]
    best = _lowest(cells)
    among = counted(len(cells), "cell") if len(cells) >= planned else counted(len(cells), "scored cell")
    more = f" ({planned:,} in the grid)" if len(cells) < planned else ""
    first = f"Of {among}{more}, FID is lowest at {best.place}: {best.entry.shown}"
    second = _other_end(cells, best)
    return [f"{first}{_beside(best, cells)}.", *([second] if second else [])]


def _lowest(cells: Sequence[Measured]) -> Measured:
    return min(cells, key=lambda cell: cell.entry.number)


def _other_end(cells: Sequence[Measured], best: Measured) -> str:
    """A sentence on the best cell with the fewest steps, or with the most if the best of all has the fewest."""
    counts = {cell.at for cell in cells}
    fewest = min(counts) < best.at
    at = min(counts) if fewest else max(counts)
    if at == best.at:
        return ""
    column = [cell for cell in cells if cell.at == at]
    lowest_there = _lowest(column)
    key = best.table.column_key
    end = f"the {'fewest' if fewest else 'most'} {'steps' if key == 'S' else key}"
    lowest = "it is" if len(column) == 1 else "it is lowest with"
    line, number = lowest_there.line, lowest_there.entry.shown
    value = f"{number} ({line})" if len(column) == 1 else f"{line}: {number}"
    return f"At {key} = {at}, {end}, {lowest} {value}{_beside(lowest_there, column)}."


def _beside(best: Measured, cells: Sequence[Measured]) -> str:
    """A clause on the cells of the same column and table that can't be distinguished from the best."""
    column = [cell for cell in cells if cell.at == best.at and cell.table is best.table]
    if len(column) < 2:
        return ""
    by = best.table.tested_by or FID
    if not best.entry.error and by == FID:
        return ", without an error bar that would tell how close the others are"
    alike = [cell.row for cell in column if INDISTINGUISHABLE in cell.entry.mark]
    if not alike:
        return ""
    if len(alike) > MAX_NAMED:
        named = counted(len(alike), "other row")
    else:
        named = " and ".join(filter(None, [", ".join(alike[:-1]), alike[-1]]))
    there = "this S" if best.table.column_key == "S" else "this number of evaluations"
    return f"; at {there}, {named} can't be told apart from it{'' if by == FID else f' by {by.title}'}"
