"""All metrics of one set of samples, from streams of its features and logits: what a run and `evaluate` share.

Imports no torch before a metric that needs it is computed: the driver asks here which metrics can be computed.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from taugrid.eval.metrics.inputs import MetricInputs, MetricResult
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.streams import Stream, hold
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import METRICS, Limits, Metric, MetricSettings, Sizes


class Feasible(NamedTuple):
    """What can be computed of the metrics that were asked for."""

    settings: MetricSettings
    reasons: dict[str, str]
    """Metric -> why it can't be computed."""
    remarks: list[str]
    """What was changed in the settings."""


def feasible(wanted: MetricSettings, extractor: ExtractorSpec, num_samples: int, num_reference: int | None) -> Feasible:
    """What can be computed of `wanted`, and the settings to do it with.

    `num_reference` None: only the mean and covariance of the reference are known.

    Raises:
        ValueError: for an unknown metric.
    """
    unknown = sorted(set(wanted.metrics) - METRICS.keys())
    if unknown:
        raise ValueError(f"there is no metric {', '.join(unknown)}; known are {', '.join(METRICS)}")
    sizes = Sizes(num_samples, num_reference, extractor.dimensions)
    settings, reasons, remarks = wanted, {}, []
    for metric in wanted.chosen:
        found = _limits(metric, wanted, extractor, sizes)
        if found.reason is not None:
            reasons[metric.name] = found.reason
            continue
        settings = replace(settings, **found.changes)
        remarks += [found.remark] if found.remark else []
    left = tuple(metric.name for metric in wanted.chosen if metric.name not in reasons)
    return Feasible(replace(settings, metrics=left), reasons, remarks)


def _limits(metric: Metric, wanted: MetricSettings, extractor: ExtractorSpec, sizes: Sizes) -> Limits:
    if metric.needs_logits and not extractor.logits_layer:
        return Limits(f"{extractor.name} has no layer of logits")
    if sizes.fewest < metric.least_images:
        return Limits(f"it needs at least {metric.least_images} images on both sides")
    if metric.needs_reference_features and sizes.num_reference is None:
        return Limits("of the reference only mean and covariance are known")
    if metric.limits is None:
        return Limits()
    limits: Callable[[MetricSettings, Sizes], Limits] = pkgutil.resolve_name(metric.limits)
    return limits(wanted, sizes)


def score(
    features: Stream, logits: Stream | None, num_samples: int, reference: ReferenceStatistics, settings: MetricSettings
) -> MetricResult:
    """The numbers of all metrics that `settings` (of `feasible`) ask for. They don't depend on how streams are cut.

    Args:
        features: of the samples. FID goes through them twice, one run of `ROWS_AT_ONCE` in memory at a time.
        logits: of the samples, for the Inception Score.
        num_samples: N, which both streams must hold exactly.
        reference: with features where a metric needs them.
        settings: what to compute, and how.

    Raises:
        ValueError: if streams are shorter or longer than N, or hold nan or infinity.
    """
    held = hold(features, num_samples) if any(metric.needs_all_features for metric in settings.chosen) else None
    stream = features if held is None else lambda: iter((held,))
    inputs = MetricInputs(num_samples, stream, held, logits, reference, settings)
    together = MetricResult({})
    for metric in settings.chosen:
        compute: Callable[[MetricInputs], MetricResult] = pkgutil.resolve_name(metric.compute)
        values, influence, notes = compute(inputs)
        together = MetricResult(
            together.values | values,
            together.influence if influence is None else influence,
            together.notes + notes,
        )
    return together
