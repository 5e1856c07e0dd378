"""The cells of a run as a table that fills in: where each stands, and the score that it is shown with."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress.state import GridCell
from taugrid.orchestrator.progress.todo import KnownTask
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.registry.metrics import METRICS, MetricColumn


def grid_cells(
    cells: Iterable[Cell],
    across: str,
    left: Mapping[str, float],
    score: Callable[[Cell], float | None],
    of_samples: bool = True,
) -> dict[str, GridCell]:
    """Cells by id, in a table whose columns are the grid key `across`.

    `left` has each one's network evaluations to do: of sampling, part of what its samples take, else all that is shown.
    """
    found = {}
    for cell in cells:
        to_do = left.get(cell.id, 0.0)
        total = max(to_do, cell.settings.num_samples * len(cell.tau)) if of_samples else to_do
        row, column = place(cell, across)
        found[cell.id] = GridCell(row, column, total, total - to_do, score(cell))
    return found


def place(cell: Cell, across: str) -> tuple[str, str]:
    """A cell's row and column, in the words of its label; `across` is a grid key, perhaps its short form."""
    naming = cell.naming
    values = {"steps": cell.settings.steps, "eta": cell.settings.eta, **cell.values}
    key = next((key for key in values if across in (key, naming.short.get(key))), "steps")
    column = naming.part(key, values[key])
    of_model = [name for name in naming.keys if "." in name]
    shown = dict.fromkeys([*of_model, "steps", "eta", *naming.keys])  # in the order of the label
    return " ".join(naming.part(name, values[name]) for name in shown if name != key and name in values), column


def evaluations_left(found: Iterable[KnownTask], kinds: Mapping[str, type[WorkKind]]) -> dict[str, float]:
    """Cell -> network evaluations that a session has to do."""
    left = Counter[str]()
    for item in found:
        if item.cell is not None and kinds[item.kind].unit == NETWORK_EVALUATIONS:
            left[item.cell] += int(item.cost)
    return dict(left)


def shown_metric(metrics: Iterable[str]) -> MetricColumn:
    """The number that cells are shown with: the first of the metrics that are asked for."""
    return METRICS[next(iter(metrics))].columns[0]
