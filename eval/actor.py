"""What an evaluating worker does: features of a sample file or of the reference, and a cell's score."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taugrid import parquet as images
from taugrid.eval.features import load as extractors
from taugrid.eval.metrics import score as metrics
from taugrid.eval.metrics.streams import Features, Stream, moments
from taugrid.eval.reference import MomentsFile, Reference, load_or_compute, read_features, read_moments
from taugrid.eval.sources import Source, batches
from taugrid.jobs import ExtractJob, ReferenceFiles, ScoreJob
from taugrid.storage import write_sealed
from taugrid.workers.data import load as data

load_extractor = lru_cache(maxsize=1)(extractors.load)


def extract(job: ExtractJob, device: str) -> tuple[int, bool]:
    """Extract the job's features and commit their file.

    Returns:
        The number of images, and whether this was the first commit of the file.

    Raises:
        taugrid.parquet.DamagedFile: if the images can't be read.
        ValueError: if the extractor does not take such images.
    """
    extractor = load_extractor(job.extractor, device)
    dimensions = (job.extractor.dimensions, job.extractor.classes)
    count = 0
    with images.PartWriter(Path(job.path), images.feature_schema(job.metadata, *dimensions)) as part:
        for index, batch in _ahead(_batches(job)):
            chunks = [extractor(chunk) for chunk in torch.split(torch.tensor(batch), job.batch_size)]
            columns: dict[str, Any] = {"index": index, "features": torch.cat([c.features for c in chunks]).numpy()}
            if job.extractor.classes is not None:
                columns["logits"] = torch.cat([c.logits for c in chunks if c.logits is not None]).numpy()
            part.write(columns)
            count += len(index)
        first = part.commit(job.replace)
    return count, first


Batch = tuple[NDArray[np.int64], NDArray[np.uint8]]


def _batches(job: ExtractJob) -> Iterator[Batch]:
    if isinstance(job.images, str):
        yield from images.read_images(Path(job.images))
    elif isinstance(job.images, Source):
        yield from batches(job.images, images.ROWS_PER_GROUP)
    else:
        assert job.images_sha256 is not None
        reference = data.load_known_images(job.images, job.images_sha256)
        for start in range(0, len(reference), images.ROWS_PER_GROUP):
            batch = reference[start : start + images.ROWS_PER_GROUP]
            yield np.arange(start, start + len(batch)), batch


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, each decoded while the network is at the one before."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def score(job: ScoreJob) -> int:
    """Compute the metrics that the job asks for and write them, with its header, to its file. Returns N.

    Raises:
        ValueError: if the features are fewer than `num_samples`, or not finite.
    """
    scores = metrics.score(
        _stream(job, "features"),
        _stream(job, "logits") if any(metric.needs_logits for metric in job.settings.chosen) else None,
        job.num_samples,
        _reference(job.reference),
        job.settings,
    )
    if scores.influence is not None:
        _write_influence(job, scores.influence)  # before the score, which says that all is there
    header = {**job.header, "metrics": scores.values, "notes": [*job.notes, *scores.notes]}
    write_sealed(Path(job.path), header)
    if not job.keep_features:
        for path in job.feature_paths:
            Path(path).unlink(missing_ok=True)
    return job.num_samples


def _stream(job: ScoreJob, column: str) -> Stream:
    """A column of the job's feature files, in the order of the indices, up to `num_samples`."""

    def chunks() -> Iterator[Features]:
        expected = 0
        for path in job.feature_paths:
            for index, values in images.read_features(Path(path), column):
                if not np.array_equal(index, np.arange(expected, expected + len(index))):
                    raise ValueError(f"{path}: indices do not follow on {expected}")
                kept = min(len(index), job.num_samples - expected)
                if kept <= 0:
                    return
                expected += kept
                yield values[:kept]

    return chunks


@lru_cache(maxsize=1)
def _reference(files: ReferenceFiles) -> Reference:
    if isinstance(files.features, MomentsFile):
        moments_file = files.features
        known, root = load_or_compute(Path(files.cache), files.key, lambda: read_moments(moments_file))
        return Reference(known, root, None)
    path, count = Path(files.features), files.num_images
    assert count is not None

    def stream() -> Iterator[Features]:
        return (values for _, values in images.read_features(path, "features"))

    known, root = load_or_compute(Path(files.cache), files.key, lambda: moments(stream(), count))
    return Reference(known, root, count, lambda: read_features(path))


def _write_influence(job: ScoreJob, influence: NDArray[np.float64]) -> None:
    schema = images.number_schema({"cell": job.header.get("cell")}, ("influence",))
    with images.PartWriter(Path(job.influence_path), schema) as part:
        part.write({"index": np.arange(len(influence)), "influence": influence})
        part.commit(replace=True)
