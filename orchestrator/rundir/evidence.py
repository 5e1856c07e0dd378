"""What is read beside scores: how far each sample moves a metric, and what real images score against others."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.floor import Floor, floor_path, read_floors
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.score_cell import INFLUENCE_COLUMNS
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import Storage


def influences_of(
    rundir: RunDir, cell: Cell, scoring_id: str, metrics: Mapping[str, float], listing: Listing, unsure: bool = False
) -> dict[str, Array]:
    """Column of quality.csv -> (N,), of each number in `metrics` (a score's) that has a standard error of sampling.
    With `unsure`, of those that have none (`MetricResult.unsure`). Those that are missing or damaged are left out."""
    path, n = rundir.influence(cell, scoring_id), cell.settings.num_samples
    wanted = [column.name for column in SAMPLED
              if column.name in metrics and (column.sampling_error in metrics) is not unsure]  # fmt: skip
    there, expected = listing.scores(cell), {"cell": cell.id}
    if not wanted or not rundir.has_intact_file(path, n, lambda damage: None, 0, expected, there):
        return {}
    return read_influences(path, n, wanted, rundir.storage)


def read_influences(path: Path, n: int, metrics: Iterable[str], storage: Storage) -> dict[str, Array]:
    """Column of quality.csv -> (N,), of those of `metrics` that an intact file of influences has. A bucket gets one
    request: by ranges it would get one for each row group of each column."""
    found = {}
    with storage.local_path(path) as local:
        for name in metrics:
            try:
                parts = [values for _, values in parquet.read_numbers(local, INFLUENCE_COLUMNS.get(name, name))]
            except DamagedFile:
                continue
            found[name] = np.concatenate(parts)[:n]
    return found


def path_of_floors(rundir: RunDir, scoring: Scoring, num_samples: int) -> Path:
    """The file of the floors at N, beside the features of the reference."""
    folder = rundir.extractor_folder(scoring.extractor)
    part = rundir.reference_part(folder, scoring.reference.sha256, 0)
    return floor_path(part.parent, scoring.reference_key, num_samples, scoring.feasible(num_samples).settings)


def floors_of(rundir: RunDir, scoring: Scoring, num_samples: int) -> dict[str, Floor]:
    """Column of quality.csv -> its floor at N. Empty if none is known: the run was scored before there were floors, or
    its reference is only a mean and a covariance."""
    return read_floors(path_of_floors(rundir, scoring, num_samples), rundir.storage) or {}
