"""All metrics of one set of samples, from streams of its features and logits: what a run and `evaluate` share.

Imports no torch before precision and recall are computed: the driver asks here which metrics can be given.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.features.names import ExtractorSpec
from taugrid.eval.metrics.extrapolation import fid_infinity, no_extrapolation
from taugrid.eval.metrics.kernel import kernel_distance, kid_subset_size
from taugrid.eval.metrics.statistics import (
    ROWS_AT_ONCE,
    Array,
    Frechet,
    InceptionSums,
    MeanAndSpread,
    Moments,
    inception_splits,
    merge,
    standard_error,
)
from taugrid.eval.reference import Reference
from taugrid.metrics import MetricSettings

Features = NDArray[np.float32]

Stream = Callable[[], Iterator[Features]]
"""Begins at the first sample whenever it is called; yields (n, d) float32 in the order of the samples' indices, cut
anywhere."""

METRICS = ("fid", "isc", "kid", "prc", "fid_infinity")

NEED_ALL_FEATURES = frozenset({"kid", "prc", "fid_infinity"})
"""Metrics for which all features of the samples are held in memory; for the others it does not grow with N."""

NEED_REFERENCE_FEATURES = frozenset({"kid", "prc"})
"""Metrics for which the reference's mean and covariance are not enough."""


class Feasible(NamedTuple):
    """The settings that are left, metric -> why it can't be given, and what was changed."""

    settings: MetricSettings
    reasons: dict[str, str]
    remarks: list[str]


def feasible(wanted: MetricSettings, extractor: ExtractorSpec, num_samples: int, num_reference: int | None) -> Feasible:
    """What can be given of `wanted`; KID's subsets are made as small as the smaller side.

    `num_reference` None: of the reference only mean and covariance are known.

    Raises:
        ValueError: for a metric that there is not.
    """
    unknown = sorted(set(wanted.metrics) - set(METRICS))
    if unknown:
        raise ValueError(f"there is no metric {', '.join(unknown)}; known are {', '.join(METRICS)}")
    reasons: dict[str, str] = {}
    fewest = num_samples if num_reference is None else min(num_samples, num_reference)
    if num_reference is None:
        reasons |= dict.fromkeys(NEED_REFERENCE_FEATURES, "of the reference only mean and covariance are known")
    elif fewest <= wanted.prc_neighborhood:
        reasons["prc"] = f"it needs more than prc_neighborhood {wanted.prc_neighborhood} images on both sides"
    if fewest < 2:
        reasons |= dict.fromkeys(("fid", "kid"), "it needs at least 2 images on both sides")
    if not extractor.logits_layer:
        reasons["isc"] = f"{extractor.name} has no layer of logits"
    elif num_samples < wanted.isc_splits:
        reasons["isc"] = f"{num_samples} samples can't be divided into {wanted.isc_splits} splits"
    no_infinity = no_extrapolation(num_samples, extractor.dimensions)
    if no_infinity is not None:
        reasons["fid_infinity"] = no_infinity
    metrics = tuple(metric for metric in METRICS if metric in wanted.metrics and metric not in reasons)
    subset_size = kid_subset_size(wanted.kid_subset_size, num_samples, fewest)
    remarks = []
    if "kid" in metrics and subset_size < wanted.kid_subset_size:
        remarks.append(
            f"kid_subset_size is {subset_size} here, not {wanted.kid_subset_size}: there are no more images on one side"
        )
    return Feasible(
        replace(wanted, metrics=metrics, kid_subset_size=subset_size),
        {metric: reasons[metric] for metric in METRICS if metric in reasons and metric in wanted.metrics},
        remarks,
    )


class Scores(NamedTuple):
    """What `score` found."""

    values: dict[str, float]
    """Column of a table -> number: fid, fid_se, isc_mean, isc_std, kid_mean, kid_std, precision, recall and
    fid_infinity, as far as they were asked for and can be given."""
    influence: Array | None
    """(N,): how far each sample moves FID, for paired differences; None where FID has no standard error."""
    notes: tuple[str, ...]
    """Why a number is not there."""


def score(
    features: Stream, logits: Stream | None, num_samples: int, reference: Reference, settings: MetricSettings
) -> Scores:
    """The metrics that `settings` (of `feasible`) ask for; numbers depend on no cut of the streams.

    Args:
        features: of the samples; FID goes through them twice, one run of `ROWS_AT_ONCE` in memory at a time.
        logits: of the samples, for the Inception Score.
        num_samples: N, which both streams must hold exactly.
        reference: with features where KID or precision and recall are asked for.
        settings: what to compute, and how.

    Raises:
        ValueError: if streams are shorter or longer than N, or hold nan or infinity.
    """
    if NEED_ALL_FEATURES & set(settings.metrics):
        held = _hold(features, num_samples)
        features = lambda: iter((held,))  # noqa: E731
    values: dict[str, float] = {}
    notes: list[str] = []
    influence = None
    if "fid" in settings.metrics:
        frechet = Frechet.of(moments(features(), num_samples), reference.moments, reference.root)
        values["fid"] = frechet.distance
        if frechet.no_standard_error is None:
            influence = np.concatenate([frechet.influence(run) for run in runs(features(), num_samples)])
            values["fid_se"] = standard_error(influence)
        else:
            notes.append(f"no fid_se: {frechet.no_standard_error}")
    if "isc" in settings.metrics and logits is not None:
        values["isc_mean"], values["isc_std"] = inception_score(logits(), num_samples, settings)
    if "kid" in settings.metrics:
        values["kid_mean"], values["kid_std"] = kernel_distance(
            held,
            reference.features,
            settings.kid_subsets,
            settings.kid_subset_size,
            settings.seed,
            reference.kernel_sums,
        )
    if "prc" in settings.metrics:
        from taugrid.eval.metrics.neighbours import precision_recall

        neighbourhood = settings.prc_neighborhood
        values["precision"], values["recall"] = precision_recall(
            held, reference.features, neighbourhood, reference.ball_radii(neighbourhood)
        )
    if "fid_infinity" in settings.metrics:
        values["fid_infinity"] = fid_infinity(held, reference.moments, reference.root, seed=settings.seed)
    return Scores(values, influence, tuple(notes))


def moments(stream: Iterable[Features], count: int) -> Moments:
    """The moments of `count` feature vectors, merged over runs of `ROWS_AT_ONCE`, however the stream is cut."""
    return reduce(merge, map(Moments.of, runs(stream, count)))


def inception_score(logits: Iterable[Features], num_samples: int, settings: MetricSettings) -> MeanAndSpread:
    """The Inception Score of `num_samples` samples by their logits."""
    split_of = inception_splits(num_samples, settings.isc_splits, settings.seed)
    sums = (
        InceptionSums.of(run, split_of[i * ROWS_AT_ONCE : i * ROWS_AT_ONCE + len(run)], settings.isc_splits)
        for i, run in enumerate(runs(logits, num_samples))
    )
    return reduce(InceptionSums.merge, sums).score()


def runs(stream: Iterable[Features], count: int) -> Iterator[Features]:
    """The rows of `stream` cut anew, into runs of `ROWS_AT_ONCE`: what is summed over runs depends on no other cut.

    Raises:
        ValueError: if there are more or fewer than `count`.
    """
    pending: list[Features] = []
    waiting = seen = 0
    for chunk in stream:
        seen += len(chunk)
        while waiting + len(chunk) >= ROWS_AT_ONCE:
            cut = ROWS_AT_ONCE - waiting
            yield np.concatenate([*pending, chunk[:cut]])
            chunk, pending, waiting = chunk[cut:], [], 0
        pending.append(chunk)
        waiting += len(chunk)
    if seen != count:
        raise ValueError(f"{seen} feature vectors where {count} were expected")
    if waiting:
        yield np.concatenate(pending)


def _hold(stream: Stream, count: int) -> Features:
    """All of a stream as one array, without a second copy."""
    held: Features | None = None
    filled = 0
    for run in runs(stream(), count):
        if held is None:
            held = np.empty((count, run.shape[1]), np.float32)
        held[filled : filled + len(run)] = run
        filled += len(run)
    if held is None:
        raise ValueError("there are no features")
    return held
