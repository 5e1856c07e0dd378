"""The result of a run as one number and in two sentences, which claim nothing beyond its numbers and their errors."""

from collections.abc import Sequence
from typing import NamedTuple

from taugrid.eval.tables.labels import row_name, spelled
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.table import INDISTINGUISHABLE, Entry, Table
from taugrid.protocol import comparability_key
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted

MAX_NAMED = 3
"""Rows that a sentence names. More are counted."""


class Measured(NamedTuple):
    """A cell with an FID, or another metric, for charts and the answer."""

    row: str  # the row of its table, such as "η = 0.5"
    table: Table
    at: int  # its column: S or, where samplers are compared, its network evaluations
    entry: Entry
    comparability_key: str  # cells with equal keys can be compared

    @property
    def line(self) -> str:
        return ", ".join(filter(None, [self.row, spelled(self.table.label)]))

    @property
    def place(self) -> str:
        return f"{self.table.column_key} = {self.at}, {self.line}"


def measured(quality: QualityTable, metric: MetricColumn = FID) -> list[Measured]:
    """The cells with a value of the metric, in the order of the tables of eta and S, or evaluations."""
    by_cell = {row["cell"]: row for row in quality.shown or quality.rows}
    if not by_cell:
        return []
    keys = {
        name: "" if quality.joined else comparability_key(protocol, (metric.name,))
        for name, protocol in quality.protocols.items()
    }
    cells = []
    for pivot in quality.by_steps.section(metric).tables:
        for labels, entries in zip(pivot.labels, pivot.entries, strict=True):
            for at, entry in zip(pivot.columns, entries, strict=True):
                if entry.cell and entry.number == entry.number:
                    name = row_name(zip(pivot.row_keys, labels, strict=True))
                    key = keys.get(by_cell[entry.cell]["protocol"], "unknown")
                    cells.append(Measured(name, pivot, int(at), entry, key))
    return cells


def hero(quality: QualityTable, cells: Sequence[Measured]) -> dict[str, str] | None:
    """The number that a page begins with, of the best of `cells`, measured by the metric that decides. None without a
    score, or if not all scores can be compared."""
    if len({cell.comparability_key for cell in cells}) != 1:
        return None
    best, metric = _best(cells), quality.judged_by
    kind = "setting" if quality.means.over else "scored cell"
    of = f"the {_end(metric)} {metric.title} of {counted(len(cells), kind)}" if len(cells) > 1 else f"the only {kind}"
    return {
        "cell": best.entry.cell,
        "steps": f"{best.at} {'steps' if best.table.column_key == 'S' else 'network evaluations'}",
        "value": f"{metric.title} {best.entry.shown}".partition(" (")[0],  # spreads and counts are in the table
        "place": best.place,
        "about": f"{best.line}, {of}.".lstrip(", "),
    }


def answer(cells: Sequence[Measured], planned: int, are_means: bool = False) -> list[str]:
    """Sentences on the cell with the best value, and on the best setting at the other end of the steps. `planned` is
    the number of cells in the grid; if they are means over replicates, each setting counts once."""
    kind = "setting" if are_means else "cell"
    if not cells:
        return [f"None of {counted(planned, kind)} has a score yet."]
    protocols = {cell.comparability_key for cell in cells}
    if len(protocols) > 1:
        return [f"The cells were measured under {len(protocols)} protocols, whose numbers can't be compared."]
    best, metric = _best(cells), cells[0].table.metric
    among = counted(len(cells), kind if len(cells) >= planned else f"scored {kind}")
    more = f" ({planned:,} in the grid)" if len(cells) < planned else ""
    first = f"Of {among}{more}, {metric.title} is {_end(metric)} at {best.place}: {best.entry.shown}"
    sentences = [f"{first}{_beside(best, cells)}."]
    counts, key = {cell.at for cell in cells}, best.table.column_key
    at, end = (min(counts), "fewest") if min(counts) < best.at else (max(counts), "most")
    if at != best.at:
        column = [cell for cell in cells if cell.at == at]
        there = _best(column)
        value = f"it is {_end(metric)} with {there.line}: {there.entry.shown}"
        if len(column) == 1:
            value = f"it is {there.entry.shown} ({there.line})"
        steps = "steps" if key == "S" else key
        sentences.append(f"At {key} = {at}, the {end} {steps}, {value}{_beside(there, column)}.")
    return sentences


def _end(metric: MetricColumn) -> str:
    return "highest" if metric.higher_is_better else "lowest"


def _best(cells: Sequence[Measured]) -> Measured:
    sign = -1 if cells[0].table.metric.higher_is_better else 1
    return min(cells, key=lambda cell: sign * cell.entry.number)


def _beside(best: Measured, cells: Sequence[Measured]) -> str:
    """A clause on the cells of the same column and table that can't be distinguished from the best."""
    column = [cell for cell in cells if cell.at == best.at and cell.table is best.table]
    if len(column) < 2:
        return ""
    if not best.entry.error:
        return ", without an error bar that would tell how close the others are"
    alike = [cell.row for cell in column if INDISTINGUISHABLE in cell.entry.mark]
    if not alike:
        return ""
    named = " and ".join(filter(None, [", ".join(alike[:-1]), alike[-1]]))
    if len(alike) > MAX_NAMED:
        named = counted(len(alike), "other row")
    there = "this S" if best.table.column_key == "S" else "this number of evaluations"
    return f"; at {there}, {named} can't be told apart from it"
