"""What the display is told about a session before its first task goes out."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.config import Config
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.progress.state import GridCell
from taugrid.orchestrator.progress.todo import KnownTask
from taugrid.orchestrator.rates import pace, seconds_by_pace
from taugrid.orchestrator.report.up_to_date import score_on_disk
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import kinds_by_name
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.registry.metrics import METRICS, MetricColumn


@dataclass(frozen=True)
class Briefing:
    """The work of one session on `plan`."""

    config: Config
    plan: Plan
    rundir: RunDir
    scoring: Evaluation | None
    tasks: Mapping[str, Task]

    @cached_property
    def items(self) -> dict[str, KnownTask]:
        return known_tasks(self.tasks, kinds_by_name())

    @property
    def to_do(self) -> list[dict[str, Any]]:
        return work_to_do(self.items.values())

    @cached_property
    def earlier(self) -> dict[tuple[str, str], float]:
        """Seconds per unit of cost in earlier sessions, by pace and device."""
        return seconds_by_pace(read_events(self.rundir), self.plan.cells)

    @property
    def metric_title(self) -> str:
        """The heading of the cells' scores; empty if none are asked for."""
        return "" if self.scoring is None else shown_metric(self.config.evaluate.metrics).title

    def cells(self, with_scores: bool) -> dict[str, GridCell]:
        """The cells by id, as they are before the session. Reading their scores may take a while."""
        left = evaluations_left(self.items.values(), kinds_by_name())
        outdated = {item.cell for item in self.items.values() if item.kind == "score"}

        def score(cell: Cell) -> float | None:
            return self.score(cell.id) if with_scores and cell.id not in outdated else None

        return grid_cells(self._cells.values(), self.config.report.columns, left, score, self._is_of_samples)

    def score(self, cell: str) -> float | None:
        if self.scoring is None or cell not in self._cells:
            return None
        metric = shown_metric(self.config.evaluate.metrics)
        return score_on_disk(self.rundir, self._cells[cell], metric, self.scoring)

    @property
    def _is_of_samples(self) -> bool:
        """Whether no network runs but for samples."""
        kinds = (kinds_by_name()[item.kind] for item in self.items.values())
        return all(kind.counts_images or kind.unit != NETWORK_EVALUATIONS for kind in kinds)

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        """The plan's cells by id or, if other work than samples and scores is done, those that it is done on."""
        worked = {task.cell.id: task.cell for task in self.tasks.values() if task.cell is not None}
        return {cell.id: cell for cell in self.plan.cells} if self._is_of_samples else worked


def known_tasks(tasks: Mapping[str, Task], kinds: Mapping[str, type[WorkKind]]) -> dict[str, KnownTask]:
    return {key: _item(task, kinds[task.kind]) for key, task in tasks.items()}


def _item(task: Task, kind: type[WorkKind]) -> KnownTask:
    cell, cost = task.cell, task.cost
    if cell is None:
        return KnownTask(kind.name, cost, pace(kind.name, None))
    images = round(cost / len(cell.tau)) if kind.counts_images else 0
    model = cell.model.id if kind.unit == NETWORK_EVALUATIONS else None
    return KnownTask(kind.name, cost, pace(kind.name, model), cell.id, images)


def work_to_do(found: Iterable[KnownTask]) -> list[dict[str, Any]]:
    """The tasks as the event "to do" has them: their number and cost by kind and pace."""
    tasks, costs = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for item in found:
        tasks[item.kind, item.pace] += 1
        costs[item.kind, item.pace] += int(item.cost)
    return [
        {"kind": kind, "pace": name, "tasks": count, "cost": costs[kind, name]} for (kind, name), count in tasks.items()
    ]


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
