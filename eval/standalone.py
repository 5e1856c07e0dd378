"""Scores of external images against any reference, in this process and without a run directory."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Data
from taugrid.eval.features.load import Extraction, code_sha256, load
from taugrid.eval.metrics.floor import floor_path, keep_floors
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION, singular
from taugrid.eval.metrics.reference_statistics import (
    MomentsFile,
    ReferenceStatistics,
    cached_features,
    of_feature_files,
    of_features,
    of_moments,
    read_all,
)
from taugrid.eval.metrics.score import Feasible, feasible, score
from taugrid.eval.metrics.statistics import ROWS_AT_ONCE, Array, Features, Stream, loaded
from taugrid.eval.reference import Reference, image_batches, reference_of
from taugrid.eval.sources import Source, batches
from taugrid.hashing import digests_of
from taugrid.protocol import Protocol, on_devices
from taugrid.registry.extractors import PIXELS, ExtractorSpec
from taugrid.registry.metrics import MetricSettings, PerSample
from taugrid.threads import one_ahead
from taugrid.workers.accelerator.policy import kind_of
from taugrid.workers.accelerator.transfer import completed
from taugrid.workers.device import set_up, usual_device

Columns = Mapping[str, Features]
"""An extraction: `features` (B, d) and, of a classifier, `logits` (B, k), both float32."""

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the activity, how many images are done, and how many there are."""

PUBLISHED_SAMPLES = 50_000
"""The number of samples behind most published FIDs, and behind most published means and covariances."""

BYTES_IN_MEMORY = 2**28
"""Larger features go to an unnamed file that vanishes with the process, so memory does not grow with N."""


@dataclass(frozen=True)
class Options:
    versions: Mapping[str, str]
    """The software's versions, for the protocol."""
    device: str = "cpu"
    """The extractor's device, in torch's notation."""
    batch_size: int = 250
    """Images that the extractor gets at once."""
    cache: Path | None = None
    """Folder that keeps the reference's statistics, and features if a metric needs them; None keeps nothing."""
    features: Path | None = None
    """Folder that keeps the samples' features, so that a later call need not extract them; None keeps nothing."""
    progress: OnProgress = lambda what, done, total: None
    """Called at the beginning of an activity, and after each batch."""


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """The scores of one set of images, and what a comparison with another set needs."""

    images: Source
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
    sets: Sequence[Source],
    reference: Reference,
    extractor: ExtractorSpec,
    settings: MetricSettings,
    options: Options,
    orders: Sequence[NDArray[np.int64] | None] = (),
) -> list[ScoredImages]:
    """Score each set of images against `reference`, with their influences.

    Args:
        sets: the images to judge.
        reference: external images, a data set, or their mean and covariance in features of the same extractor.
        extractor: for the shape of the samples, as `eval.features.resolve.resolve` returns it.
        settings: the metrics and their settings. A metric that can't be computed is left out, with the reason.
        options: device, batch size, caches and progress.
        orders: for each set, the order (N,) in which its images count, for numbers of subsets and splits and for the
            influences; None, or nothing at all: as they are in the source.

    Raises:
        ValueError: if no metric can be computed for a set, the extractor does not fit the images, the reference or its
            weights, features hold nan or infinity, images have changed meanwhile, or a cache can't be made.
        taugrid.errors.DamagedFile: for an image or a file that can't be read.
    """
    possible = [_possible(samples, reference, extractor, settings) for samples in sets]
    for samples in sets:
        _require_fit(samples, reference, extractor)
    for folder in filter(None, (options.cache, options.features)):
        _make_folder(folder)
    set_up()
    extracting = _Extracting(load(extractor, options.device), options)
    with_features = any(one.settings.need("reference_features") for one in possible)
    compared = _statistics(reference, extractor, with_features, extracting)
    scored = []
    for number, (samples, possibility) in enumerate(zip(sets, possible, strict=True)):
        left, order = possibility.settings, orders[number] if orders else None
        what = "samples" if len(sets) == 1 else f"samples {number + 1}"
        wanted = ("features", "logits") if left.need("logits") else ("features",)
        with _extracted(samples, extractor, wanted, extracting, what) as streams:
            features, *logits = streams if order is None else (_in_order(stream, order) for stream in streams)
            scores = score(features, logits[0] if logits else None, samples.num_images, compared, left)
        about = _document(samples, reference, extractor, possibility, options)
        n, cache, key = samples.num_images, options.cache, reference.cache_key(extractor, code_sha256(extractor))
        floors = keep_floors(None if cache is None else floor_path(cache, key, n, left), compared, n, left)
        document = about | {"metrics": scores.values, "notes": [*about["notes"], *scores.notes]}
        document |= {"floor": {name: floor._asdict() for name, floor in floors.items()}}
        scored.append(ScoredImages(samples, document, scores.influences, order, scores.unsure))
    return scored


def _document(
    samples: Source, reference: Reference, extractor: ExtractorSpec, possible: Feasible, options: Options
) -> dict[str, Any]:
    """What is known of a set of images before it is scored, in the order of a `ScoredImages.document`."""
    protocol = _protocol(samples, reference, extractor, possible.settings, options.versions)
    return {
        "samples": _identity(samples),
        "reference": _identity_of_reference(reference),
        "metrics": {},
        "notes": [*(f"no {metric}: {reason}" for metric, reason in possible.reasons.items()), *possible.remarks],
        "warnings": warnings(samples, reference, extractor),
        "protocol": on_devices(protocol.as_dict(), {"scored": [kind_of(options.device)]}),
    }


def _possible(samples: Source, reference: Reference, extractor: ExtractorSpec, settings: MetricSettings) -> Feasible:
    found = feasible(settings, extractor, samples.num_images, reference.num_images, PerSample(()))
    if not found.settings.metrics:
        details = "; ".join(f"{metric}: {reason}" for metric, reason in found.reasons.items())
        raise ValueError(f"none of the metrics can be given ({details})")
    return found


def _require_fit(samples: Source, reference: Reference, extractor: ExtractorSpec) -> None:
    reference.require_same_features(extractor.name, extractor.dimensions, extractor.precision)
    if extractor.name == PIXELS and reference.shape not in (None, samples.shape):
        raise ValueError(
            f"{PIXELS} compares images of one shape only: samples are {_shape(samples.shape)}, the reference "
            f"{_shape(reference.shape)}; choose another extractor"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"can't keep references in {folder}: {error.strerror}; choose another folder") from None


@dataclass(frozen=True)
class _Extracting:
    """Extracts features of images: while a GPU works on a batch, the next one is read and sent to it."""

    extract: Callable[[torch.Tensor], Extraction]
    options: Options

    def __call__(self, images: Source | Data, count: int, what: str) -> Iterator[Columns]:
        """The extractions of all `count` images, a batch at a time; progress is reported as that of `what`."""
        done = 0
        self.options.progress(what, 0, count)
        read = one_ahead(image_batches(images, self.options.batch_size))
        begun = (self.extract(torch.from_numpy(batch)) for batch in read)
        for extraction in completed(begun):
            logits = {} if extraction.logits is None else {"logits": extraction.logits.numpy()}
            yield {"features": extraction.features.numpy(), **logits}
            done += len(extraction.features)
            self.options.progress(what, done, count)


def _statistics(
    reference: Reference, spec: ExtractorSpec, with_features: bool, extracting: _Extracting
) -> ReferenceStatistics:
    key, cache = reference.cache_key(spec, code_sha256(spec)), extracting.options.cache
    given, count = reference.given, reference.num_images
    if isinstance(given, MomentsFile):
        return of_moments(given, cache, key)
    assert count is not None, "only of moments it is unknown"
    extracted = partial(extracting, given, count, "reference")

    def features() -> Iterator[Features]:
        return (columns["features"] for columns in extracted())

    if not with_features:
        return of_features(features, count, cache, key)
    if cache is not None:
        return of_feature_files([cached_features(cache, key, count, extracted)], count, cache, key)
    held = np.concatenate(list(features()))
    return of_features(lambda: iter([held]), count, None, key, lambda: held)


def first_features(reference: Reference, extractor: ExtractorSpec, count: int) -> Features:
    """The features (n, d) of the first `count` images of a reference, extracted anew."""
    assert not isinstance(reference.given, MomentsFile)
    device = usual_device()
    set_up()
    images = next(image_batches(reference.given, count))
    extraction = load(extractor, device)(torch.from_numpy(images))
    extraction.wait()
    features: Features = extraction.features.numpy()
    return features


class Spool:
    """Feature vectors that are written once and read in order any number of times; small sets stay in memory.

    A standard error of FID reads the features twice, and extracting them twice would take twice the time.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(BYTES_IN_MEMORY)  # noqa: SIM115, for this is one
        self._dimensions = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, chunk: Features) -> None:
        """Add (n, d) float32; d is the same for all chunks."""
        self._dimensions = chunk.shape[1]
        self._file.write(np.ascontiguousarray(chunk, dtype=np.float32).tobytes())

    def chunks(self) -> Iterator[Features]:
        """All vectors from the beginning, as (n, d) float32, n at most `ROWS_AT_ONCE`."""
        bytes_at_once = ROWS_AT_ONCE * self._dimensions * np.float32().nbytes
        self._file.seek(0)
        while data := self._file.read(bytes_at_once):
            yield np.frombuffer(data, np.float32).reshape(-1, self._dimensions)


@contextmanager
def _extracted(
    samples: Source, spec: ExtractorSpec, wanted: Sequence[str], extracting: _Extracting, what: str
) -> Iterator[list[Stream]]:
    """The columns `wanted` of the samples' extractions, within the block."""
    extract = partial(extracting, samples, samples.num_images, what)
    with ExitStack() as stack:
        if (folder := extracting.options.features) is not None:
            key = reference_of(samples).cache_key(spec, code_sha256(spec))
            path = cached_features(folder, key, samples.num_images, extract, spec.classes)
            yield [partial(read_all, [path], column=name) for name in wanted]
            return
        spools = {name: stack.enter_context(Spool()) for name in wanted}
        for columns in extract():
            for name, spool in spools.items():
                spool.append(columns[name])
        yield [spool.chunks for spool in spools.values()]


def _in_order(stream: Stream, order: NDArray[np.int64]) -> Stream:
    rows = loaded(stream, len(order))[order]
    return lambda: iter((rows,))


def warnings(samples: Source, reference: Reference, extractor: ExtractorSpec) -> list[str]:
    """Threats to a fair comparison, one line each."""
    lines = [f"samples: {warning}" for warning in samples.warnings]
    if isinstance(reference.given, Source):
        lines += [f"reference: {warning}" for warning in reference.given.warnings]
    if not isinstance(reference.given, MomentsFile):
        lines += _warnings_of_both(samples, reference)
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


def _warnings_of_both(samples: Source, reference: Reference) -> list[str]:
    found = []
    if samples.sha256 == reference.sha256:
        found.append("samples and reference are the same images")
    if samples.shape != reference.shape:
        found.append(
            f"samples are {_shape(samples.shape)}, the reference {_shape(reference.shape)}: the extractor compares "
            "differently resized images, or grey with colour"
        )
    if samples.num_images != reference.num_images:
        found.append(
            f"{samples.num_images} samples against {reference.num_images} references: compare this FID only with FIDs "
            "of the same N and reference"
        )
    return found


def _shape(shape: tuple[int, int, int] | None) -> str:
    return "x".join(str(side) for side in shape or ())


def _identity(side: Source | MomentsFile) -> dict[str, Any]:
    fields = asdict(side)
    kept = {key: fields.get(key) for key in ("path", "dataset", "num_images", "sha256")}
    return {"kind": fields.get("kind", "moments"), **kept}


def _identity_of_reference(reference: Reference) -> dict[str, Any]:
    given = reference.given
    if not isinstance(given, Data):
        return _identity(given)
    about = {"dataset": f"{given.full_name}/{given.split}", "num_images": reference.num_images}
    return {"kind": "dataset", "path": given.root, **about, "sha256": reference.sha256}


def _protocol(
    samples: Source,
    reference: Reference,
    extractor: ExtractorSpec,
    settings: MetricSettings,
    versions: Mapping[str, str],
) -> Protocol:
    """The protocol of external images, without the settings of their sampling, which are unknown."""
    return Protocol(
        reference=reference.identity(),
        num_samples=samples.num_images,
        weights=None,
        tau=None,
        clip=None,
        precision=None,
        rounding=None,
        extractor=extractor.describe(),
        metrics=settings,
        versions=versions,
    )
