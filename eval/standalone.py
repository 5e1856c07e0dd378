"""Scores of external images against any reference, in this process and without a run directory.

Features are extracted by the job that a run would start (`ExtractJob`), to files in a scratch folder or in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Data
from taugrid.errors import DamagedFile, WorkerRefusal
from taugrid.eval import extract
from taugrid.eval.features.load import code_sha256, load
from taugrid.eval.metrics.floor import floor_path, keep_floors
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION, singular
from taugrid.eval.metrics.reference_statistics import MomentsFile, of_features, of_moments, read_all
from taugrid.eval.metrics.score import Feasible, feasible, score
from taugrid.eval.metrics.statistics import Array, Features, Stream, loaded
from taugrid.eval.reference import Reference
from taugrid.eval.sources import ImageSet, batches
from taugrid.hashing import digests_of
from taugrid.protocol import Protocol, on_devices
from taugrid.registry.extractors import PIXELS, ExtractorSpec
from taugrid.registry.metrics import MetricSettings, PerSample
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.device import Device, set_up, usual_device

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the activity, how many images are done, and how many there are."""

PUBLISHED_SAMPLES = 50_000
"""The number of samples behind most published FIDs, and behind most published means and covariances."""


@dataclass(frozen=True)
class Options:
    versions: Mapping[str, str]  # the software's, for the protocol
    device: str = "cpu"  # the extractor's, in torch's notation
    batch_size: int = 250  # images that the extractor gets at once
    cache: Path | None = None
    """Folder that keeps the reference's statistics, and features if a metric needs them; None keeps nothing."""
    features: Path | None = None
    """Folder that keeps the samples' features, so that a later call need not extract them; None keeps nothing."""
    progress: OnProgress = lambda what, done, total: None
    """Called at the beginning and at the end of an extraction, and meanwhile about once a second."""


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """The scores of one set of images, and what a comparison with another set needs."""

    images: ImageSet
    document: dict[str, Any]
    """`samples` and `reference` (kind, path, num_images, sha256), `metrics` (as the columns of quality.csv), `notes`
    (why a number is missing), `warnings` (threats to a fair comparison), `protocol` (the fields of a run's protocol;
    null for what is unknown about external images), `floor` (metric -> the fields of a `Floor`)."""
    influences: Mapping[str, Array]
    """Column of quality.csv -> (N,) float64, of each metric that has a standard error; see `MetricResult`."""
    order: NDArray[np.int64] | None
    """(N,): the images' positions in their source, in the order of the influences; None: as they are."""
    unsure: Mapping[str, Array] = field(default_factory=dict)
    """The influences of metrics whose standard error would rest on too few images."""

    @cached_property
    def digests(self) -> NDArray[np.int64]:
        """(N,): the first 8 bytes of the SHA-256 of each decoded image, in the order of the influences."""
        found = np.concatenate([digests_of(images) for _, images in batches(self.images, parquet.ROWS_PER_GROUP)])
        return found if self.order is None else found[self.order]


def score_sets(
    sets: Sequence[ImageSet],
    reference: Reference,
    extractor: ExtractorSpec,
    settings: MetricSettings,
    options: Options,
    orders: Sequence[NDArray[np.int64] | None] = (),
) -> list[ScoredImages]:
    """Score each set of images against `reference`, with their influences.

    The `extractor` is for the shape of the samples. A metric that can't be computed is left out, with the reason.
    `orders` has for each set the order (N,) in which its images count, for numbers of subsets and splits and for the
    influences; None, or nothing at all: as they are in the source.

    Raises ValueError if no metric can be computed for a set, the extractor does not fit the images, the reference or
    its weights, features hold nan or infinity, images have changed meanwhile, or a cache can't be made; `DamagedFile`
    for an image or a file that can't be read."""
    possible = [_feasible(samples, reference, extractor, settings) for samples in sets]
    for folder in filter(None, (options.cache, options.features)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"can't keep references in {folder}: {error.strerror}; choose another folder") from None
    set_up()
    cache, key = options.cache, reference.cache_key(extractor, code_sha256(extractor))
    with TemporaryDirectory(prefix="taugrid-") as temporary:
        scratch = Path(temporary)
        extracted = _extracting(extractor, options)
        given = reference.given
        if isinstance(given, MomentsFile):
            compared = of_moments(given, cache, key)
        else:  # features are kept if a metric needs them, and not extracted if none does and statistics are cached
            kept = any(found.settings.need("reference_features") for found in possible)
            find = partial(extracted, given, cache if kept and cache is not None else scratch, "reference")
            load_features = (lambda: np.concatenate(list(read_all([find()])))) if kept else None
            compared = of_features(lambda: read_all([find()]), given.num_images, cache, key, load_features)
        scored = []
        for number, (samples, found) in enumerate(zip(sets, possible, strict=True)):
            n, left, order = samples.num_images, found.settings, orders[number] if orders else None
            what = "samples" if len(sets) == 1 else f"samples {number + 1}"
            path = extracted(samples, options.features or scratch, what)
            names = ("features", "logits") if left.need("logits") else ("features",)
            streams: list[Stream] = [partial(read_all, [path], column=name) for name in names]
            if order is not None:
                streams = [_in_order(stream, order) for stream in streams]
            scores = score(streams[0], streams[1] if len(streams) > 1 else None, n, compared, left)
            floors = keep_floors(None if cache is None else floor_path(cache, key, n, left), compared, n, left)
            document = _document(samples, reference, extractor, found, options)
            document |= {"metrics": scores.values, "notes": [*document["notes"], *scores.notes]}
            document |= {"floor": {name: floor._asdict() for name, floor in floors.items()}}
            scored.append(ScoredImages(samples, document, scores.influences, order, scores.unsure))
    return scored


def _feasible(samples: ImageSet, reference: Reference, extractor: ExtractorSpec, settings: MetricSettings) -> Feasible:
    """What can be computed of a set of images; ValueError if that is nothing."""
    found = feasible(settings, extractor, samples.num_images, reference.num_images, PerSample(()))
    if not found.settings.metrics:
        details = "; ".join(f"{metric}: {reason}" for metric, reason in found.reasons.items())
        raise ValueError(f"none of the metrics can be given ({details})")
    reference.require_same_features(extractor.name, extractor.dimensions, extractor.precision)
    if extractor.name == PIXELS and reference.shape not in (None, samples.shape):
        raise ValueError(
            f"{PIXELS} compares images of one shape only: samples are {_shape(samples.shape)}, the reference "
            f"{_shape(reference.shape)}; choose another extractor"
        )
    return found


def _extracting(extractor: ExtractorSpec, options: Options) -> Callable[[ImageSet, Path, str], Path]:
    """A function that returns the file in a folder with the features of a set, made if it is missing or damaged."""
    activity, count, code = "", 0, code_sha256(extractor)

    def heartbeat(done: float, of: float, doing: str = "") -> None:
        options.progress(activity, min(int(done), count), count)

    device, size = Device(options.device, heartbeat), options.batch_size

    def extracted(images: ImageSet, folder: Path, what: str) -> Path:
        nonlocal activity, count
        key = Reference(images).cache_key(extractor, code)
        path = folder / f"{key}.parquet"
        try:
            part = parquet.inspect(path)
            if (part.start, part.stop) == (0, images.num_images):
                return path
        except (FileNotFoundError, DamagedFile):
            path.unlink(missing_ok=True)
        activity, count = what, images.num_images
        options.progress(what, 0, count)
        job = extract.ExtractJob(str(path), images, images.sha256, extractor, size, {"key": key}, 0, count, size)
        try:
            extract.run(job, device)
        except WorkerRefusal as error:  # no other node is at fault: this process opened the images
            raise error.__cause__ or error from None
        options.progress(what, count, count)
        return path

    return extracted


def first_features(reference: Reference, extractor: ExtractorSpec, count: int) -> tuple[Features, str]:
    """The features (n, d) of the first `count` images of a reference, extracted anew, and the device and threads."""
    assert not isinstance(reference.given, MomentsFile)
    device = usual_device()
    set_up()
    batch = next(batches(reference.given, count))
    extraction = load(extractor, device)(torch.from_numpy(batch.images))
    extraction.wait()
    return extraction.features.numpy(), f"{device}, {torch.get_num_threads()} threads"


def _in_order(stream: Stream, order: NDArray[np.int64]) -> Stream:
    rows = loaded(stream, len(order))[order]
    return lambda: iter((rows,))


def _document(
    samples: ImageSet, reference: Reference, extractor: ExtractorSpec, possible: Feasible, options: Options
) -> dict[str, Any]:
    """What is known of a set of images before it is scored, in the order of a `ScoredImages.document`."""
    protocol = Protocol(  # without the settings of their sampling, which are unknown
        reference=reference.identity(),
        num_samples=samples.num_images,
        weights=None,
        tau=None,
        clip=None,
        precision=None,
        rounding=None,
        extractor=extractor.describe(),
        metrics=possible.settings,
        versions=options.versions,
    )
    return {
        "samples": _identity(samples),
        "reference": _identity(reference.given),
        "metrics": {},
        "notes": [*(f"no {metric}: {reason}" for metric, reason in possible.reasons.items()), *possible.remarks],
        "warnings": warnings(samples, reference, extractor),
        "protocol": on_devices(protocol.as_dict(), {"scored": [kind_of(options.device)]}),
    }


def _identity(side: ImageSet | MomentsFile) -> dict[str, Any]:
    if isinstance(side, MomentsFile):
        return {"kind": "moments", "path": side.path, "dataset": None, "num_images": None, "sha256": side.sha256}
    dataset = side.given.name_and_split if isinstance(side.given, Data) else None
    about = {"kind": side.kind, "path": side.place, "dataset": dataset}
    return {**about, "num_images": side.num_images, "sha256": side.sha256}


def warnings(samples: ImageSet, reference: Reference, extractor: ExtractorSpec) -> list[str]:
    """Threats to a fair comparison, one line each."""
    lines = [f"samples: {warning}" for warning in samples.warnings]
    if not isinstance(reference.given, MomentsFile):
        lines += [f"reference: {warning}" for warning in reference.given.warnings]
        if samples.sha256 == reference.sha256:
            lines.append("samples and reference are the same images")
        if samples.shape != reference.shape:
            lines.append(
                f"samples are {_shape(samples.shape)}, the reference {_shape(reference.shape)}: the extractor compares "
                "differently resized images, or grey with colour"
            )
        if samples.num_images != reference.num_images:
            lines.append(
                f"{samples.num_images} samples against {reference.num_images} references: compare this FID only with "
                "FIDs of the same N and reference"
            )
    elif samples.num_images != PUBLISHED_SAMPLES:
        lines.append(f"{samples.num_images} samples, but most published FIDs use {PUBLISHED_SAMPLES}: FID depends on N")
    counts = {"samples": samples.num_images, "references": reference.num_images}
    for side, count in counts.items():
        if count is not None and (warning := singular(count, side, extractor.dimensions)) is not None:
            lines.append(warning)
    needed = SAMPLES_PER_DIMENSION * extractor.dimensions
    if extractor.dimensions <= (reference.num_images or needed) < needed:
        lines.append(
            f"{reference.num_images:,} references for {extractor.dimensions:,} features: every number depends much on "
            f"which images these are, and no ± says how much; give {needed:,} or more"
        )
    return lines


def _shape(shape: tuple[int, int, int] | None) -> str:
    return "x".join(str(side) for side in shape or ())
