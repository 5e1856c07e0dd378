"""Repeated sampling of models whose truth is known: what errors and intervals have to cover."""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np

from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import (
    Array,
    Features,
    Moments,
    standard_error,
    symmetric_root,
    too_few_carry,
)
from taugrid.eval.tables.seeds import shared_error
from taugrid.registry.metrics import MetricSettings

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
KINDS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed": lambda random, shape: random.standard_exponential(shape) - 1,
}
"""Distributions with mean 0 and variance 1."""

# Differences between trainings

COMPARISONS = 9
N = 100
"""Samples of a cell."""


class Effects(NamedTuple):
    """Differences of `COMPARISONS` settings from a base, whose truth is 0."""

    differences: Array
    """(repeats, comparisons, trainings)."""
    shared: Array
    """(repeats, comparisons): the error of the noise that trainings share, as estimated from influences."""


def effects(
    random: np.random.Generator, between: float, share: float, draw: Draw, trainings: int, repeats: int
) -> Effects:
    """Differences of trainings.

    Args:
        between: the standard deviation between trainings, in errors of sampling.
        share: of the variance of a sample's influence, what it has in every training.
    """
    settings = COMPARISONS + 1
    common = draw(random, (repeats, settings, 1, N))
    alone = draw(random, (repeats, settings, trainings, N))
    influences = np.sqrt(share) * common + np.sqrt(1 - share) * alone
    influences = influences[:, 1:] - influences[:, :1]
    trained = between / np.sqrt(N) * draw(random, (repeats, settings, trainings))
    of_each = influences.std(axis=-1, ddof=1) / np.sqrt(N)
    of_mean = influences.mean(axis=2).std(axis=-1, ddof=1) / np.sqrt(N)
    return Effects(influences.mean(axis=-1) + trained[:, 1:] - trained[:, :1], shared_error(of_mean, of_each))


# Metrics

FEATURES, REFERENCES = 20, 1000
PROJECTIONS = 20
"""Directions of MIND here: as many as there are features, to save time."""

MODEL = (1.3, 0.5)
"""The model's features are the data's, scaled and shifted by so much."""


class Errors(NamedTuple):
    """Of a metric, over repeats."""

    values: Array
    errors: Array
    has_error: Array
    """Whether a run would give the error: see `too_few_carry`."""


def errors_of_metrics(metrics: Sequence[str], n: int, repeats: int) -> dict[str, Errors]:
    """Scores of normal features whose standard deviations fall as 1 / sqrt(i), by column of quality.csv."""
    random = np.random.default_rng((27, FEATURES))
    scales = np.arange(1, FEATURES + 1) ** -0.5
    scales = (scales * np.sqrt(FEATURES / np.square(scales).sum())).astype(np.float32)
    to_logits = (random.standard_normal((FEATURES, 10)) * 2 / np.sqrt(FEATURES)).astype(np.float32)
    references = random.standard_normal((REFERENCES, FEATURES)).astype(np.float32) * scales
    moments = Moments.of(references)
    root = symmetric_root(moments.covariance)
    reference = ReferenceStatistics(moments, root, REFERENCES, lambda: references)
    rows: dict[str, list[tuple[float, float, bool]]] = {}
    for repeat in range(repeats):
        noise = np.random.default_rng((28, n, repeat)).standard_normal((n, FEATURES))
        features = (MODEL[0] * noise + MODEL[1]).astype(np.float32) * scales
        score = scored(features, features @ to_logits, reference, metrics)
        for name, influence in score.influences.items():
            has_error = too_few_carry(influence, score.typical_influences.get(name)) is None
            rows.setdefault(name, []).append((score.values[name], standard_error(influence), has_error))
    return {name: Errors(*np.array(column).T) for name, column in rows.items()}


def scored(
    features: Features, logits: Features, reference: ReferenceStatistics, metrics: Sequence[str]
) -> MetricResult:
    """By all metrics, with their influences, whatever they rest on."""
    settings = MetricSettings(tuple(metrics), kid_subsets=1, kid_subset_size=2, mind_projections=PROJECTIONS)
    inputs = MetricInputs(
        len(features), lambda: iter((features,)), features, lambda: iter((logits,)), reference, settings
    )
    scores = [resolve_name(metric.compute)(inputs) for metric in settings.chosen]
    values = {name: value for score in scores for name, value in score.values.items()}
    influences = {name: phi for score in scores for name, phi in score.influences.items()}
    typical = {name: phi for score in scores for name, phi in score.typical_influences.items()}
    return MetricResult(values, influences, (), {}, typical)


def single_fids(draw: Draw, power: float, model: tuple[float, float], n: int, repeats: int) -> tuple[Array, Array]:
    """FID and its error for `repeats` sets of n samples of a model, against the exact moments of the data.

    Standard deviations of the 16 features fall as i to minus `power`.
    """
    random = np.random.default_rng((32, n))
    scales = np.arange(1.0, 17) ** -power
    exact = 10**9
    reference = Moments(exact, np.zeros(16), np.diag(scales**2) * (exact - 1))
    rows = []
    for _ in range(repeats):
        features = (model[0] * draw(random, (n, 16)) + model[1]) * scales
        frechet = Frechet.of(Moments.of(features), reference)
        rows.append((frechet.distance, standard_error(frechet.influence(features))))
    values, errors = np.array(rows).T
    return values, errors


def coverage_on_scales(values: Array, errors: Array) -> dict[str, float]:
    """Coverage in % of the mean of positive `values` by intervals on them, and on their logarithms."""
    mean = values.mean()
    covered = {
        "FID": np.abs(values - mean) <= 1.96 * errors,
        "logarithm": np.abs(np.log(values / mean)) <= 1.96 * errors / values,
    }
    return {name: 100 * float(each.mean()) for name, each in covered.items()}
