"""What the display knows about a session before its first task is assigned."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.grids.names import of_model
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.progress.state import GridCell
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import kinds_by_name
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS
from taugrid.registry.metrics import METRICS, MetricColumn


@dataclass(frozen=True)
class SessionSummary:
    """The work of one session on the `selected` part of a run's plan."""

    run: Run
    selected: Plan
    scoring: Scoring | None
    tasks: Mapping[str, Task]
    """The tasks by key."""

    @property
    def to_do(self) -> list[dict[str, Any]]:
        """The tasks for the event "to do": their number and cost by kind and rate key."""
        kinds, tasks, costs = kinds_by_name(), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for task in self.tasks.values():
            group = task.kind, kinds[task.kind].rate_key(task)
            tasks[group] += 1
            costs[group] += int(task.cost)
        return [
            {"kind": kind, "pace": key, "tasks": count, "cost": costs[kind, key]}
            for (kind, key), count in tasks.items()
        ]

    @property
    def metric_title(self) -> str:
        """The heading of the cells' scores; empty if none are requested."""
        return "" if self.scoring is None else shown_metric(self.run.config.evaluate.metrics).title

    def cells(self, with_scores: bool) -> dict[str, GridCell]:
        """The cells by id, as they are before the session. Reading their scores may take a while."""
        kinds, left, outdated = kinds_by_name(), Counter[str](), set()
        for task in self.tasks.values():
            if task.cell is not None and kinds[task.kind].unit == NETWORK_EVALUATIONS:
                left[task.cell.id] += int(task.cost)
            elif task.cell is not None and task.kind == "score":
                outdated.add(task.cell.id)

        def score(cell: Cell) -> float | None:
            return self.score(cell.id) if with_scores and cell.id not in outdated else None

        columns = self.run.config.report.columns
        return grid_cells(self._cells.values(), columns, left, score, self._is_of_samples)

    def score(self, cell: str) -> float | None:
        if self.scoring is None or cell not in self._cells:
            return None
        metric = shown_metric(self.run.config.evaluate.metrics)
        return score_on_disk(self.run.rundir, self._cells[cell], metric, self.scoring)

    @property
    def _is_of_samples(self) -> bool:
        """Whether networks run only for samples."""
        kinds = (kinds_by_name()[task.kind] for task in self.tasks.values())
        return all(kind.counts_images or kind.unit != NETWORK_EVALUATIONS for kind in kinds)

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        """The plan's cells by id; if there is work other than samples and scores, only the cells of that work."""
        worked = {task.cell.id: task.cell for task in self.tasks.values() if task.cell is not None}
        return {cell.id: cell for cell in self.selected.cells} if self._is_of_samples else worked


def grid_cells(
    cells: Iterable[Cell],
    across: str,
    left: Mapping[str, float],
    score: Callable[[Cell], float | None],
    of_samples: bool = True,
) -> dict[str, GridCell]:
    """Cells by id, in a table whose columns are the grid key `across`.

    `left` has the network evaluations to do: for sampling, a part of those of all samples; else all that are shown.
    """
    by_id = {}
    for cell in cells:
        to_do = left.get(cell.id, 0.0)
        total = max(to_do, cell.total_nfe) if of_samples else to_do
        row, column = position(cell, across)
        by_id[cell.id] = GridCell(row, column, total, total - to_do, score(cell))
    return by_id


def position(cell: Cell, across: str) -> tuple[str, str]:
    """A cell's row and column, in the words of its label; `across` is a grid key, perhaps its short form."""
    naming = cell.naming
    values = {"steps": cell.settings.steps, "eta": cell.settings.eta, **cell.values}
    if cell.eta is None:
        del values["eta"]
    key = next((key for key in values if across in (key, naming.short.get(key))), "steps")
    column = naming.part(key, values[key])
    of_models = [name for name in naming.keys if of_model(name)]
    shown = dict.fromkeys([*of_models, "steps", "eta", *naming.keys])  # in the order of the label
    return " ".join(naming.part(name, values[name]) for name in shown if name != key and name in values), column


def shown_metric(metrics: Iterable[str]) -> MetricColumn:
    """The number that cells are shown with: the first of the metrics that are asked for."""
    return METRICS[next(iter(metrics))].columns[0]
