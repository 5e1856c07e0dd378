"""Scores one cell: from its feature files and the reference to a JSON file of metrics."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.floor import keep_floors
from taugrid.eval.metrics.reference_statistics import MomentsFile, ReferenceStatistics, of_feature_files, of_moments
from taugrid.eval.metrics.score import score
from taugrid.eval.metrics.statistics import Features, Stream
from taugrid.jobs import Job, Result
from taugrid.registry.metrics import MetricSettings
from taugrid.storage import Storage, write_sealed

if TYPE_CHECKING:
    from taugrid.workers.device import Device

INFLUENCE_COLUMNS = {"fid": "influence"}
"""The column of a file of influences for those metrics that it does not hold under their own name."""


@dataclass(frozen=True)
class ReferenceFiles:
    """The reference's files, as a worker reads them."""

    features: tuple[str, ...] | MomentsFile
    """Feature files in the order of the images, or only a mean and a covariance."""
    num_images: int | None
    """The number of images; None if unknown."""
    cache: str
    """The folder that caches its statistics."""
    key: str
    """The name of the statistics in `cache`."""


@dataclass(frozen=True)
class ScoringJob(Job):
    """What jobs that compute metrics of one cell have in common."""

    feature_paths: tuple[str, ...]
    """The cell's feature files in the order of sample indices."""
    num_samples: int
    reference: ReferenceFiles
    settings: MetricSettings
    header: dict[str, Any]
    """The cell and how it is scored; written together with the metrics."""
    sample_paths: tuple[str, ...]
    """The files of samples, in the order of their indices, if a metric needs a column of them."""


@dataclass(frozen=True)
class ScoreJob(ScoringJob):
    """Compute a cell's metrics from its feature files; write them as JSON, with the samples' influences next to it."""

    entry_point = "taugrid.eval.score_cell:run"

    influence_path: str
    notes: tuple[str, ...]
    """Why requested metrics are missing."""
    floor_path: str | None = None
    """The file that is to hold the reference's floors at this N; None: it does, or another job makes it."""


def run(job: ScoreJob, device: "Device") -> Result:
    """Compute the job's metrics and write them, with its header, to its file. What another job wrote is kept.

    Raises:
        DamagedFile: if a file holds the features of a different cell, or can't be read.
        ValueError: if there are fewer features than `num_samples`, or some are not finite.
    """
    began = time.perf_counter()
    reference = _statistics(job.reference, job.storage) if job.settings.need("reference") else None
    scores = score(
        read_stream(job, "features"),
        read_stream(job, "logits") if job.settings.need("logits") else None,
        job.num_samples,
        reference,
        job.settings,
        {name: read_column(job, name) for name in job.settings.sample_columns},
    )
    if reference is not None and job.floor_path is not None:
        job.check_run()
        keep_floors(Path(job.floor_path), reference, job.num_samples, job.settings, job.storage)
    influences, conflict = {**scores.influences, **scores.unsure}, None
    if influences:
        conflict = _write_influences(job, influences)  # before the score, which marks the cell as complete
        if conflict is not None and not job.storage.exists(Path(job.path)):  # their worker died before it wrote that
            job.storage.delete(Path(job.influence_path))
            conflict = _write_influences(job, influences)
    if conflict is None:
        header = {**job.header, "metrics": scores.values, "notes": [*job.notes, *scores.notes]}
        job.check_run()
        conflict = None if write_sealed(Path(job.path), header, job.storage, once=True) else parquet.OTHER_BYTES
    return Result(time.perf_counter() - began, job.num_samples, created_file=conflict is None, conflict=conflict)


def read_stream(job: ScoringJob, column: str) -> Stream:
    """A column of the job's feature files, in the order of the indices, up to `num_samples`."""

    def chunks() -> Iterator[Features]:
        expected = 0
        for path in job.feature_paths:
            require_own(job, Path(path))
            for index, values in parquet.read_features(Path(path), column, job.storage):
                kept = min(len(index), job.num_samples - expected)
                if kept <= 0:  # N was lowered: no later row group counts
                    return
                if not np.array_equal(index, np.arange(expected, expected + len(index))):
                    raise ValueError(f"{path}: its indices must continue from {expected}")
                expected += kept
                yield values[:kept]

    return chunks


def read_column(job: ScoringJob, name: str) -> NDArray[np.float64]:
    """A column of the job's sample files, (`num_samples`,)."""
    parts = []
    for path in map(Path, job.sample_paths):
        require_own(job, path)
        parts += [values for _, values in parquet.read_numbers(path, name, job.storage)]
    return np.concatenate(parts)[: job.num_samples]


def require_own(job: ScoringJob, path: Path) -> None:
    """Raise `DamagedFile` if a file is not of this cell, which its indices alone would not show."""
    found = parquet.inspect(path, every_byte=False, storage=job.storage).metadata.get("cell")
    if found != job.header["cell"]:
        raise DamagedFile(f"{path}: it is of cell {found}, not of {job.header['cell']}")


@lru_cache(maxsize=1)
def _statistics(files: ReferenceFiles, storage: Storage) -> ReferenceStatistics:
    """The reference's statistics, kept for the next job: all cells of a run share one reference."""
    cache = Path(files.cache)
    if isinstance(files.features, MomentsFile):
        return of_moments(files.features, cache, files.key, storage)
    assert files.num_images is not None
    return of_feature_files([Path(path) for path in files.features], files.num_images, cache, files.key, storage)


def _write_influences(job: ScoreJob, influences: Mapping[str, NDArray[np.float64]]) -> str | None:
    """Write the file of influences. Returns what is different about one that is there already, which is kept."""
    columns = {INFLUENCE_COLUMNS.get(name, name): values for name, values in influences.items()}
    schema = parquet.number_schema({"cell": job.header.get("cell")}, list(columns))
    with parquet.PartWriter(Path(job.influence_path), schema, job.storage, job.check_run) as part:
        part.write({"index": np.arange(job.num_samples), **columns})
        part.commit(replace=False)
        return part.conflict
