"""The influences of a scored cell: how far each of its samples moves each metric."""

from collections.abc import Mapping

import numpy as np

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.score_cell import INFLUENCE_COLUMNS
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.metrics import SAMPLED


def influences_of(
    rundir: RunDir, cell: Cell, scoring_id: str, metrics: Mapping[str, float], unsure: bool = False
) -> dict[str, Array]:
    """Column of quality.csv -> (N,), of each number in `metrics` (a score's) that has a standard error of sampling.

    With `unsure`, of those that have none (`MetricResult.unsure`). Those that are missing or damaged are left out.
    """
    path, n = rundir.influence(cell, scoring_id), cell.settings.num_samples
    wanted = [column.name for column in SAMPLED
              if column.name in metrics and (column.sampling_error in metrics) is not unsure]  # fmt: skip
    if not wanted or not rundir.has_intact_file(path, n, lambda damage: None, expected={"cell": cell.id}):
        return {}
    found = {}
    for name in wanted:
        try:
            parts = [
                values for _, values in parquet.read_numbers(path, INFLUENCE_COLUMNS.get(name, name), rundir.storage)
            ]
        except DamagedFile:
            continue
        found[name] = np.concatenate(parts)[:n]
    return found
