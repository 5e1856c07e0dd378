"""All metrics of one set of samples, from streams of its features and logits, for runs and external images alike.

Functions that compute a metric take `MetricInputs` and return a `MetricResult`. Torch is imported only when a metric
needs it, because the driver asks this module which metrics are possible.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.statistics import Array, Features, Stream, loaded, standard_error, too_few_carry
from taugrid.registry.extractors import EXTRACTORS, ExtractorSpec
from taugrid.registry.metrics import METRICS, UNLABELLED, Limits, Metric, MetricSettings, PerSample, Sizes
from taugrid.words import counted


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """The samples of one cell and the reference, as far as the requested metrics need them."""

    num_samples: int
    features: Stream  # the samples' features, N of them
    in_memory: Features | None  # (N, d): the same in memory, if a requested metric needs all of them at once
    logits: Stream | None  # the samples' logits; None if the extractor has none
    reference: ReferenceStatistics | None  # None: no requested metric needs it
    settings: MetricSettings
    columns: Mapping[str, Array] = field(default_factory=dict)
    """Name -> (N,) float64: the columns of the sample files that the requested metrics name."""

    @property
    def compared_with(self) -> ReferenceStatistics:
        assert self.reference is not None
        return self.reference

    @property
    def all_features(self) -> Features:
        assert self.in_memory is not None
        return self.in_memory


class MetricResult(NamedTuple):
    values: dict[str, float]  # column of a table -> number
    influences: Mapping[str, Array] = {}
    """Column of a table -> (N,): how far each sample moves that number, up to a constant, for its error and for paired
    differences; without those that have no standard error."""
    notes: tuple[str, ...] = ()  # why a number is missing
    reference_influences: Mapping[str, Array] = {}
    """Column of a table -> (m,): how far each reference image moves that number, up to a constant."""
    typical_influences: Mapping[str, Array] = {}
    """Column of a table -> (m,): of each reference image, a number with the tails that influences have. They decide
    whether N samples carry an error, and must not depend on the samples."""
    unsure: Mapping[str, Array] = {}
    """As `influences`, of those that have no standard error because it would rest on too few samples."""


class Feasible(NamedTuple):
    settings: MetricSettings
    reasons: dict[str, str]  # metric -> why it can't be computed
    remarks: list[str]


def feasible(
    wanted: MetricSettings,
    extractor: ExtractorSpec,
    num_samples: int,
    num_reference: int | None,
    samples: PerSample = UNLABELLED,
) -> Feasible:
    """The metrics in `wanted` that can be computed from N samples, and their settings; ValueError for an unknown one.
    `num_reference` is None if only the mean and covariance of the reference are known."""
    unknown = sorted(set(wanted.metrics) - METRICS.keys())
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; known metrics: {', '.join(METRICS)}")
    sizes = Sizes(num_samples, num_reference, extractor.dimensions)
    settings, reasons, remarks = wanted, {}, []
    for metric in wanted.chosen:
        reason, limit = _reason(metric, extractor, sizes, samples), Limits()
        if reason is None:
            limit = own_limits(metric, wanted, sizes)
            reason = limit.reason
        if reason is not None:
            reasons[metric.name] = reason
            continue
        settings = replace(settings, **limit.changes)
        remarks += [limit.remark] if limit.remark else []
    left = tuple(metric.name for metric in wanted.chosen if metric.name not in reasons)
    return Feasible(replace(settings, metrics=left), reasons, remarks)


def _reason(metric: Metric, extractor: ExtractorSpec, sizes: Sizes, samples: PerSample) -> str | None:
    """Why what a metric's entry says that it needs is not there; None if it is."""
    if lacking := [column for column in metric.sample_columns if column not in samples.columns]:
        return f"it needs the {' and '.join(lacking)} of each sample, and these images have none"
    if metric.needs_logits and not extractor.logits_layer:
        return f"{extractor.name} has no layer of logits"
    images, sides = (sizes.fewest, " on both sides") if metric.needs_reference else (sizes.num_samples, "")
    if images < metric.least_images:
        return f"it needs at least {counted(metric.least_images, 'image')}{sides}"
    if metric.needs_reference_features and sizes.num_reference is None:
        return "only mean and covariance of the reference are known"
    if metric.needs_label_order:  # logit k must be of label k
        own = EXTRACTORS[extractor.name].label_order if extractor.name in EXTRACTORS else None
        if own is None:
            return f"the classes of {extractor.name} are not known to be in the order of a data set's labels"
        if own != samples.label_order:
            theirs = samples.label_order or "others"
            return f"the classes of {extractor.name} are those of {own}, and the labels are {theirs}"
    return None


def own_limits(metric: Metric, settings: MetricSettings, sizes: Sizes) -> Limits:
    """What the metric's own function of limits says."""
    if metric.limits is None:
        return Limits()
    limits: Callable[[MetricSettings, Sizes], Limits] = pkgutil.resolve_name(metric.limits)
    return limits(settings, sizes)


def score(
    features: Stream,
    logits: Stream | None,
    num_samples: int,
    reference: ReferenceStatistics | None,
    settings: MetricSettings,
    columns: Mapping[str, Array] = {},
) -> MetricResult:
    """The numbers of all metrics in `settings` (from `feasible`). They don't depend on how the streams are cut. FID
    reads the features twice, with `ROWS_AT_ONCE` of them in memory at a time. The `reference` has features if a metric
    needs them. Raises ValueError if streams are shorter or longer than N, or hold nan or infinity."""
    in_memory = loaded(features, num_samples) if settings.need("all_features") else None
    stream = features if in_memory is None else lambda: iter((in_memory,))
    inputs = MetricInputs(num_samples, stream, in_memory, logits, reference, settings, columns)
    values: dict[str, float] = {}
    influences: dict[str, Array] = {}
    unsure: dict[str, Array] = {}
    notes: list[str] = []
    for metric in settings.chosen:
        compute: Callable[[MetricInputs], MetricResult] = pkgutil.resolve_name(metric.compute)
        found = compute(inputs)
        values |= found.values
        values |= {f"{name}_reference_se": standard_error(phi) for name, phi in found.reference_influences.items()}
        influences |= found.influences
        notes += found.notes
        for column in metric.columns:
            # FID gives its error itself: it has its own rule, which depends on the number of features.
            if column.sampling_error is None or column.sampling_error in values or column.name not in influences:
                continue
            reason = too_few_carry(influences[column.name], found.typical_influences.get(column.name))
            if reason is None:
                values[column.sampling_error] = standard_error(influences[column.name])
            else:
                unsure[column.name] = influences.pop(column.name)
                notes.append(f"no {column.sampling_error}: {reason}")
    return MetricResult(values, influences, tuple(notes), unsure=unsure)
