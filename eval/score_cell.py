"""Scores one cell: from its feature files and the reference to a JSON file of metrics, or label by label to Parquet."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Data
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.floor import keep_floors
from taugrid.eval.metrics.reference_statistics import (
    NO_ROOT,
    MomentsFile,
    ReferenceStatistics,
    of_feature_files,
    of_moments,
    read_all,
)
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.metrics.statistics import Features, Moments, Stream, loaded, symmetric_root
from taugrid.jobs import Job, Result
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import MetricSettings, PerSample
from taugrid.storage import Storage, write_sealed
from taugrid.workers.data.load import load_known_labels
from taugrid.workers.heartbeat import alive

if TYPE_CHECKING:
    from taugrid.workers.device import Device

INFLUENCE_COLUMNS = {"fid": "influence"}
"""The column of a file of influences for those metrics that it does not hold under their own name."""

NUM_SAMPLES, NUM_REFERENCE = "num_samples", "num_reference"  # the columns with the numbers of images of a label


@dataclass(frozen=True)
class ReferenceFiles:
    """The reference's files, as a worker reads them."""

    features: tuple[str, ...] | MomentsFile  # feature files in the order of the images, or only a mean and a covariance
    num_images: int | None  # None if unknown
    cache: str  # the folder that caches its statistics
    key: str  # the name of the statistics in `cache`


@dataclass(frozen=True)
class ScoringJob(Job):
    """What jobs that compute metrics of one cell have in common."""

    feature_paths: tuple[str, ...]  # the cell's feature files in the order of sample indices
    num_samples: int
    reference: ReferenceFiles
    settings: MetricSettings
    header: dict[str, Any]  # the cell and how it is scored; written together with the metrics
    sample_paths: tuple[str, ...]
    """The files of samples, in the order of their indices, if a metric needs a column of them."""


@dataclass(frozen=True)
class ScoreJob(ScoringJob):
    """Compute a cell's metrics from its feature files; write them as JSON, with the samples' influences next to it."""

    entry_point = "taugrid.eval.score_cell:run"

    influence_path: str
    notes: tuple[str, ...]  # why requested metrics are missing
    floor_path: str | None = None
    """The file that is to hold the reference's floors at this N; None: it does, or another job makes it."""


@dataclass(frozen=True)
class ByLabelJob(ScoringJob):
    """Compute a cell's metrics label by label, against the reference's images of that label; a row for each."""

    entry_point = "taugrid.eval.score_cell:run_by_label"

    extractor: ExtractorSpec
    samples: PerSample
    classes: int
    labels: tuple[Data, str] | None
    """The reference's data set and the driver's `Labels.sha256`; None: its labels are not known, and only metrics
    without a reference are computed."""


def run(job: ScoreJob, device: "Device") -> Result:
    """Compute the job's metrics and write them, with its header, to its file. What another job wrote is kept. Raises
    `DamagedFile` if a file holds the features of a different cell, or can't be read; ValueError if there are fewer
    features than `num_samples`, or some are not finite."""
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
    """Kept for the next job: all cells of a run share one reference."""
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


class Extracted(NamedTuple):
    """Images by their features and logits, in the order of their indices; None: they are not needed."""

    features: Features
    logits: Features | None
    labels: NDArray[np.int64]

    def of(self, label: int) -> "Extracted":
        rows = self.labels == label
        return Extracted(self.features[rows], None if self.logits is None else self.logits[rows], self.labels[rows])


def run_by_label(job: ByLabelJob, device: "Device") -> Result:
    """Compute the metrics of each label and commit their file. What another job wrote is kept. Raises as `run`, and
    `WorkerRefusal` if the reference's labels differ on this node."""
    began, n = time.perf_counter(), job.num_samples
    logits = loaded(read_stream(job, "logits"), n) if job.settings.need("logits") else None
    labels = read_column(job, "label").astype(np.int64)
    samples, reference = Extracted(loaded(read_stream(job, "features"), n), logits, labels), None
    if job.settings.need("reference") and job.labels and not isinstance(job.reference.features, MomentsFile):
        of_reference = load_known_labels(*job.labels).of_images.astype(np.int64)
        paths = [Path(path) for path in job.reference.features]
        reference = Extracted(np.concatenate(list(read_all(paths, job.storage))), None, of_reference)
    rows: list[dict[str, float]] = []
    notes: dict[str, list[str]] = {}
    for label in range(job.classes):
        alive()
        own, others = samples.of(label), None if reference is None else reference.of(label)
        values, missing = of_label(own, others, job.settings, job.extractor, job.samples)
        rows.append({NUM_SAMPLES: len(own.labels), NUM_REFERENCE: 0 if others is None else len(others.labels)} | values)
        if missing:
            notes[str(label)] = missing
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
    schema = parquet.number_schema({**job.header, "columns": names, "notes": notes}, names)
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        part.write({"index": np.arange(job.classes), **columns})
        created = part.commit(replace=False)
    return Result.of(part, created, time.perf_counter() - began, n)


def of_label(
    own: Extracted, reference: Extracted | None, wanted: MetricSettings, extractor: ExtractorSpec, samples: PerSample
) -> tuple[dict[str, float], list[str]]:
    """The metrics of one label's images, with a note for each that can't be computed. FID needs more images than
    features on both sides: of fewer, the covariance is singular, and FID mostly bias."""
    n, m = len(own.labels), None if reference is None else len(reference.labels)
    if n == 0:
        return {}, ["no image has this label"]
    reasons: dict[str, str] = {}
    if reference is None:
        unlabelled = [metric.name for metric in wanted.chosen if metric.needs_reference]
        reasons = dict.fromkeys(unlabelled, "the labels of the reference are not known")
    left = tuple(name for name in wanted.metrics if name not in reasons)
    settings, others, _ = feasible(replace(wanted, metrics=left), extractor, n, m, samples)
    if "fid" in settings.metrics and min(n, n if m is None else m) <= extractor.dimensions:
        settings = replace(settings, metrics=tuple(name for name in settings.metrics if name != "fid"))
        reasons["fid"] = f"it needs more than {extractor.dimensions} images on both sides, as many as features"
    notes = [f"no {name}: {reason}" for name, reason in (reasons | others).items()]
    if not settings.metrics:
        return {}, notes
    statistics = None
    if reference is not None and settings.need("reference"):
        features, moments = reference.features, Moments.of(reference.features)
        root = symmetric_root(moments.covariance) if "fid" in settings.metrics else NO_ROOT
        statistics = ReferenceStatistics(moments, root, len(features), lambda: features)
    logits = None if own.logits is None else _stream(own.logits)
    columns = {"label": own.labels.astype(np.float64)}
    scores = score(_stream(own.features), logits, n, statistics, settings, columns)
    return scores.values, [*notes, *scores.notes]


def _stream(rows: Features) -> Stream:
    return lambda: iter((rows,))


def read_by_label(path: Path, storage: Storage) -> tuple[list[dict[str, Any]], Mapping[str, list[str]]]:
    """The numbers of each label by column, without those that it lacks; and label -> why metrics are missing."""
    metadata = parquet.inspect(path, every_byte=False, storage=storage).metadata
    columns = {
        name: np.concatenate([values for _, values in parquet.read_numbers(path, name, storage)])
        for name in metadata["columns"]
    }
    rows = [
        {name: float(values[label]) for name, values in columns.items() if not math.isnan(values[label])}
        for label in range(len(columns[NUM_SAMPLES]))
    ]
    return rows, metadata["notes"]
