"""What an evaluating worker does: features of a sample file or of the reference, and a cell's score."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval import extractors, statistics
from workers import data, images
from workers.files import write_sealed
from workers.jobs import ExtractJob, ScoreJob

ROWS_AT_ONCE = 4096
"""Statistics are merged over runs of this many indices, wherever shards begin: a number depends on no shard size."""

load_extractor = lru_cache(maxsize=1)(extractors.load)

Features = NDArray[np.float32]


def extract(job: ExtractJob, device: str) -> tuple[int, bool]:
    """Extract the job's features and commit their file.

    Returns:
        The number of images, and whether this was the first commit of the file.

    Raises:
        workers.images.DamagedFile: if the sample file can't be read.
        ValueError: if the extractor does not take such images.
    """
    extractor = load_extractor(job.extractor, device)
    dimensions = (job.extractor.dimensions, job.extractor.classes)
    count = 0
    with images.PartWriter(Path(job.path), images.feature_schema(job.metadata, *dimensions)) as part:
        for index, batch in _batches(job):
            chunks = [extractor(chunk) for chunk in torch.split(torch.tensor(batch), job.batch_size)]
            columns: dict[str, Any] = {"index": index, "features": torch.cat([c.features for c in chunks]).numpy()}
            if job.extractor.classes is not None:
                columns["logits"] = torch.cat([c.logits for c in chunks if c.logits is not None]).numpy()
            part.write(columns)
            count += len(index)
        first = part.commit(job.replace)
    return count, first


def _batches(job: ExtractJob) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    if job.sample_path is not None:
        yield from images.read_images(Path(job.sample_path))
        return
    reference = data.load_images(job.data)
    for start in range(0, len(reference), images.ROWS_PER_GROUP):
        batch = reference[start : start + images.ROWS_PER_GROUP]
        yield np.arange(start, start + len(batch)), batch


class Reference(NamedTuple):
    """The side of the comparison that all cells share."""

    features: Features
    moments: statistics.Moments
    root: NDArray[np.float64]


@lru_cache(maxsize=1)
def _reference(path: str, modified: float) -> Reference:
    features = _column([path], "features", None)
    moments = _moments(features)
    return Reference(features, moments, statistics.symmetric_root(moments.covariance))


def score(job: ScoreJob) -> int:
    """Compute the metrics that the job asks for and write them, with its header, to its file. Returns N.

    Raises:
        ValueError: if the features are fewer than `num_samples`, or not finite.
    """
    features = _column(job.feature_paths, "features", job.num_samples)
    reference = _reference(job.reference_path, Path(job.reference_path).stat().st_mtime)
    metrics: dict[str, float] = {}
    notes: list[str] = list(job.notes)
    wanted = job.header["protocol"]["metrics"]
    if "fid" in wanted:
        moments = _moments(features)
        metrics["fid"] = statistics.frechet_distance(moments, reference.moments, reference.root)
        error = statistics.frechet_standard_error(features, moments, reference.moments, reference.root)
        if error.value is not None:
            metrics["fid_se"] = error.value
        else:
            notes.append(f"no fid_se: {error.reason}")
    if "isc" in wanted:
        logits = _column(job.feature_paths, "logits", job.num_samples)
        metrics["isc_mean"], metrics["isc_std"] = _inception_score(logits, job)
    if "kid" in wanted:
        kid = statistics.kernel_distance(
            features,
            reference.features,
            job.evaluate.kid_subsets,
            job.header["protocol"]["kid_subset_size"],
            job.evaluate.seed,
        )
        metrics["kid_mean"], metrics["kid_std"] = kid
    write_sealed(Path(job.path), {**job.header, "metrics": metrics, "notes": notes})
    return job.num_samples


def _column(paths: Sequence[str], column: str, count: int | None) -> Features:
    """(N, d) float32 in the order of the indices; all rows, or those with an index below `count`."""
    parts = [part for path in paths for part in images.read_features(Path(path), column)]
    index = np.concatenate([index for index, _ in parts])
    values = np.concatenate([values for _, values in parts])
    if not np.array_equal(index, np.arange(len(index))) or (count is not None and len(index) < count):
        raise ValueError(f"{len(index)} rows of {column} where indices 0 to {count} were expected")
    return values[:count]


def _moments(features: Features) -> statistics.Moments:
    chunks = (features[i : i + ROWS_AT_ONCE] for i in range(0, len(features), ROWS_AT_ONCE))
    return reduce(statistics.merge, map(statistics.Moments.of, chunks))


def _inception_score(logits: Features, job: ScoreJob) -> statistics.MeanAndSpread:
    splits = job.header["protocol"]["isc_splits"]
    split_of = statistics.inception_splits(job.num_samples, splits, job.evaluate.seed)
    sums = (
        statistics.InceptionSums.of(logits[i : i + ROWS_AT_ONCE], split_of[i : i + ROWS_AT_ONCE], splits)
        for i in range(0, len(logits), ROWS_AT_ONCE)
    )
    return reduce(statistics.InceptionSums.merge, sums).score()
