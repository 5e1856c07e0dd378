"""A cell's score on disk, where it is shown as one number."""

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.report.up_to_date import Asked
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_sealed


def score_on_disk(rundir: RunDir, cell: Cell, metric: MetricColumn, wanted: Evaluation | Asked) -> float | None:
    """A cell's score at its N, as tables show it; None if it has none.

    `wanted` is an `Evaluation`, which has opened the reference, or what is known of it without that.
    """
    if isinstance(wanted, Evaluation):
        score = read_sealed(rundir.score(cell, wanted.id(cell)), rundir.storage)
    else:
        score = wanted.score(cell)
    value = None if score is None else score["metrics"].get(metric.name)
    return None if value is None else float(value) * metric.scale
