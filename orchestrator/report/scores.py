"""A cell's score on disk, where it is shown as one number."""

from contextlib import suppress
from typing import Any

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_sealed


def score_on_disk(
    rundir: RunDir, cell: Cell, metric: MetricColumn, evaluation: Evaluation | None, extractor: str | None = None
) -> float | None:
    """A cell's score at its N, as tables show it; None if it has none.

    Args:
        rundir: where it is.
        cell: the cell.
        metric: the number that is asked for.
        evaluation: how it was scored. None: not known, for that would mean opening the reference; the newest score
            counts.
        extractor: if `evaluation` is None, only scores with the extractor of this name count.
    """
    if evaluation is not None:
        score = read_sealed(rundir.score(cell, evaluation.id(cell)), rundir.storage)
    else:
        score = _newest(rundir, cell, extractor)
    value = None if score is None else score["metrics"].get(metric.name)
    return None if value is None else float(value) * metric.scale


def _newest(rundir: RunDir, cell: Cell, extractor: str | None) -> dict[str, Any] | None:
    """The score at the cell's N that was written last."""
    found = []
    for path in rundir.scores_of(cell):
        score = read_sealed(path, rundir.storage)
        if score is None or score["protocol"]["num_samples"] != cell.settings.num_samples:
            continue
        if extractor is None or score["protocol"]["extractor"]["name"] == extractor:
            with suppress(FileNotFoundError):  # it has gone since: a shard was damaged
                found.append((rundir.storage.modified(path), score))
    return max(found, key=lambda each: each[0])[1] if found else None
