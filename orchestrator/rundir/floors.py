"""The floors of a run's metrics: what real images score against others of the run's reference."""

from pathlib import Path

from taugrid.eval.metrics.floor import Floor, floor_path, read_floors
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.rundir.directory import RunDir


def path_of_floors(rundir: RunDir, scoring: Scoring, num_samples: int) -> Path:
    """The file of the floors at N, beside the features of the reference."""
    folder = rundir.extractor_folder(scoring.extractor)
    part = rundir.reference_part(folder, scoring.reference.sha256, 0)
    return floor_path(part.parent, scoring.reference_key, num_samples, scoring.feasible(num_samples).settings)


def floors_of(rundir: RunDir, scoring: Scoring, num_samples: int) -> dict[str, Floor]:
    """Column of quality.csv -> its floor at N.

    Empty if none is known: the run was scored before there were floors, or its reference is only a mean and a
    covariance.
    """
    return read_floors(path_of_floors(rundir, scoring, num_samples), rundir.storage) or {}
