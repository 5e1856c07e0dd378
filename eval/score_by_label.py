"""Scores the images of each label of one cell by themselves, against the reference's images of that label."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Data
from taugrid.eval.metrics.reference_statistics import NO_ROOT, MomentsFile, ReferenceStatistics, read_all
from taugrid.eval.metrics.score import Feasible, feasible, score
from taugrid.eval.metrics.statistics import Features, Moments, loaded, symmetric_root
from taugrid.eval.score_cell import ReferenceFiles, ScoringJob, read_column, read_stream
from taugrid.jobs import Result
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import MetricSettings, PerSample
from taugrid.storage import Storage
from taugrid.workers.data.load import load_known_labels
from taugrid.workers.device import Device
from taugrid.workers.heartbeat import alive

NUM_SAMPLES, NUM_REFERENCE = "num_samples", "num_reference"
"""The columns with the numbers of images of a label."""

NO_LABELS = "the labels of the reference are not known"


@dataclass(frozen=True)
class LabelledReference:
    """Where the labels of the reference's images are."""

    data: Data
    sha256: str
    """`Labels.sha256` of the driver's."""


@dataclass(frozen=True)
class ByLabelJob(ScoringJob):
    """Compute a cell's metrics label by label; write them as Parquet, a row for each label."""

    entry_point = "taugrid.eval.score_by_label:run"

    extractor: ExtractorSpec
    samples: PerSample
    classes: int
    labels: LabelledReference | None
    """None: they are not known, and only metrics without a reference are computed."""


class OfLabel(NamedTuple):
    metrics: dict[str, float]
    notes: list[str]
    """Why metrics are missing."""


class Extracted(NamedTuple):
    """Extracted by their features and logits, in the order of their indices; None: they are not needed."""

    features: Features
    logits: Features | None
    labels: NDArray[np.int64]

    def of(self, label: int) -> "Extracted":
        rows = self.labels == label
        return Extracted(self.features[rows], None if self.logits is None else self.logits[rows], self.labels[rows])


def run(job: ByLabelJob, device: Device) -> Result:
    """Compute the metrics of each label and commit their file. What another job wrote is kept.

    Raises:
        DamagedFile, ContentMismatch: if a file can't be read, or the reference's labels differ on this node.
    """
    began, n = time.perf_counter(), job.num_samples
    logits = loaded(read_stream(job, "logits"), n) if job.settings.need("logits") else None
    labels = read_column(job, "label").astype(np.int64)
    samples = Extracted(loaded(read_stream(job, "features"), n), logits, labels)
    reference = _reference(job.reference, job.labels, job.storage) if job.settings.need("reference") else None
    found: list[OfLabel] = []
    sizes: list[tuple[int, int]] = []
    for label in range(job.classes):
        alive()
        own, others = samples.of(label), None if reference is None else reference.of(label)
        sizes.append((len(own.labels), 0 if others is None else len(others.labels)))
        found.append(of_label(own, others, job.settings, job.extractor, job.samples))
    return _write(job, found, sizes, began)


def of_label(
    own: Extracted, reference: Extracted | None, wanted: MetricSettings, extractor: ExtractorSpec, samples: PerSample
) -> OfLabel:
    """The metrics of one label's images, with a reason for each that can't be computed.

    FID needs more images than features on both sides: of fewer, the covariance is singular, and FID mostly bias.
    """
    n, m = len(own.labels), None if reference is None else len(reference.labels)
    if n == 0:
        return OfLabel({}, ["no image has this label"])
    unlabelled = [metric.name for metric in wanted.chosen if metric.needs_reference and reference is None]
    left = replace(wanted, metrics=tuple(name for name in wanted.metrics if name not in unlabelled))
    possible = _without_singular(feasible(left, extractor, n, m, samples), n if m is None else min(n, m), extractor)
    reasons = {**dict.fromkeys(unlabelled, NO_LABELS), **possible.reasons}
    notes = [f"no {name}: {reason}" for name, reason in reasons.items()]
    if not possible.settings.metrics:
        return OfLabel({}, notes)
    compared = None
    if reference is not None and possible.settings.need("reference"):
        compared = _statistics(reference.features, with_root="fid" in possible.settings.metrics)
    logits, columns = own.logits, {"label": own.labels.astype(np.float64)}
    streams = (lambda: iter((own.features,)), None if logits is None else lambda: iter((logits,)))
    scores = score(*streams, n, compared, possible.settings, columns)
    return OfLabel(scores.values, [*notes, *scores.notes])


def _without_singular(possible: Feasible, fewest: int, extractor: ExtractorSpec) -> Feasible:
    """What is possible of `fewest` images on the smaller side without a FID of a singular covariance."""
    if "fid" not in possible.settings.metrics or fewest > extractor.dimensions:
        return possible
    left = tuple(name for name in possible.settings.metrics if name != "fid")
    reason = f"it needs more than {extractor.dimensions} images on both sides, as many as features"
    return possible._replace(
        settings=replace(possible.settings, metrics=left), reasons={"fid": reason, **possible.reasons}
    )


def _statistics(features: Features, with_root: bool) -> ReferenceStatistics:
    moments = Moments.of(features)
    root = symmetric_root(moments.covariance) if with_root else NO_ROOT
    return ReferenceStatistics(moments, root, len(features), lambda: features)


def _reference(files: ReferenceFiles, labelled: LabelledReference | None, storage: Storage) -> Extracted | None:
    """The reference's images; None without their labels."""
    if labelled is None or isinstance(files.features, MomentsFile):
        return None
    labels = load_known_labels(labelled.data, labelled.sha256).of_images.astype(np.int64)
    features = np.concatenate(list(read_all([Path(path) for path in files.features], storage)))
    return Extracted(features, None, labels)


def _write(job: ByLabelJob, found: Sequence[OfLabel], sizes: Sequence[tuple[int, int]], began: float) -> Result:
    names = list(dict.fromkeys(name for label in found for name in label.metrics))
    notes = {str(label): of_it.notes for label, of_it in enumerate(found) if of_it.notes}
    metadata = {**job.header, "columns": [NUM_SAMPLES, NUM_REFERENCE, *names], "notes": notes}
    own = [dict(zip((NUM_SAMPLES, NUM_REFERENCE), size, strict=True)) | label.metrics
           for label, size in zip(found, sizes, strict=True)]  # fmt: skip
    columns = {name: np.array([row.get(name, math.nan) for row in own]) for name in metadata["columns"]}
    schema = parquet.number_schema(metadata, metadata["columns"])
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        part.write({"index": np.arange(job.classes), **columns})
        created = part.commit(replace=False)
    return Result.of(part, created, time.perf_counter() - began, job.num_samples)


def read(path: Path, storage: Storage) -> tuple[list[dict[str, Any]], Mapping[str, list[str]]]:
    """The numbers of each label by column, without those that it lacks; and label -> why metrics are missing."""
    metadata = parquet.inspect(path, every_byte=False, storage=storage).metadata
    columns = {
        name: np.concatenate([values for _, values in parquet.read_numbers(path, name, storage)])
        for name in metadata["columns"]
    }
    rows = [{name: float(values[label]) for name, values in columns.items() if not math.isnan(values[label])}
            for label in range(len(columns[NUM_SAMPLES]))]  # fmt: skip
    return rows, metadata["notes"]
