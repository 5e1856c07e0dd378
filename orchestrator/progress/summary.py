"""What a session is about to do, as it is shown: its tasks by kind, and its cells in a table."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from taugrid.grids import of_model
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.progress.state import GridCell, KindProgress, SessionState
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import kinds_by_name
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS
from taugrid.registry.metrics import METRICS, MetricColumn


def state_before(
    run: Run, selected: Plan, scoring: Scoring | None, tasks: Mapping[str, Task], with_scores: bool
) -> SessionState:
    """The state of a session before its `tasks` on the `selected` part of a run's plan. Without `with_scores` no score
    is read, now or later."""
    of_kinds = {name: [task for task in tasks.values() if task.kind == name] for name in kinds_by_name()}
    kinds = {name: kind for name, kind in kinds_by_name().items() if of_kinds[name]}
    networks = [name for name, kind in kinds.items() if kind.unit == NETWORK_EVALUATIONS]
    of_samples = all(kinds[name].counts_images for name in networks)
    worked = {task.cell.id: task.cell for task in tasks.values() if task.cell is not None}
    cells = {cell.id: cell for cell in selected.cells} if of_samples else worked
    left = Counter[str]()
    for task in (task for name in networks for task in of_kinds[name]):
        if task.cell is not None:
            left[task.cell.id] += int(task.cost)
    outdated = {task.cell.id for task in of_kinds["score"] if task.cell is not None}
    metric = shown_metric(run.config.evaluate.metrics)

    def read_score(cell: str) -> float | None:
        with suppress(OSError):  # a number that can't be read now must not end the run
            if scoring is not None and with_scores and cell in cells:
                return score_on_disk(run.rundir, cells[cell], metric, scoring)
        return None

    def score(cell: Cell) -> float | None:
        return None if cell.id in outdated else read_score(cell.id)

    shown = grid_cells(cells.values(), run.config.report.columns, left, score, of_samples)
    before = sum(cell.done for cell in shown.values())
    scored = sum(cell.value is not None for cell in shown.values())
    work = {}
    for name, kind in kinds.items():
        done = before if name in networks and of_samples else scored if name == "score" else 0
        to_do = len(of_kinds[name]) if kind.finished_noun else sum(task.cost for task in of_kinds[name])
        work[name] = KindProgress(kind, done + to_do, done, len(of_kinds[name]))
    return SessionState(work, shown, "" if scoring is None else metric.title, dict(tasks), read_score)


def grid_cells(
    cells: Iterable[Cell],
    across: str,
    left: Mapping[str, float],
    score: Callable[[Cell], float | None],
    of_samples: bool = True,
) -> dict[str, GridCell]:
    """Cells by id, in a table whose columns are the grid key `across`. `left` has the network evaluations to do: for
    sampling, a part of those of all samples; else all that are shown."""
    by_id = {}
    for cell in cells:
        to_do = left.get(cell.id, 0.0)
        total = max(to_do, cell.total_nfe) if of_samples else to_do
        row, column = position(cell, across)
        by_id[cell.id] = GridCell(row, column, total, total - to_do, value=score(cell))
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
