"""The floor of a metric: what real images score against other real images of the same reference, at a run's N.

Nothing that samples the data's distribution exactly would score better, so a table's numbers are to be read from there.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.frechet import distance_from
from taugrid.eval.metrics.reference_statistics import NO_ROOT, ReferenceStatistics
from taugrid.eval.metrics.score import MetricInputs, MetricResult, own_limits
from taugrid.eval.metrics.statistics import Features, Moments, symmetric_root
from taugrid.hashing import identity
from taugrid.registry.metrics import Metric, MetricSettings, Sizes
from taugrid.storage import LOCAL, Storage, read_sealed, write_sealed

FORMAT = 1  # part of every file's name: raised when the meaning of a floor changes

DRAWS = 5

LEAST_REFERENCE = 2000
"""Metrics other than FID are unbiased or hardly depend on the reference's size, and their time grows with it, so they
get as many images of the rest as there are samples, or as many as these."""

MOST_BYTES = 2**31  # larger features of a reference have no floor: it needs all of them in memory


class Floor(NamedTuple):
    """A metric of real images against other real images."""

    mean: float
    spread: float  # the standard deviation (divisor draws - 1) over the draws
    num_samples: int
    """The number of real images that play the samples: N, or half of the reference if it has fewer than 2 N."""
    num_reference: int
    """The number of images of the same reference that they are compared with. No image is on both sides."""
    draws: int
    asked: int  # N

    @property
    def in_words(self) -> str:
        halved = f" (halved: it has fewer than 2 x {self.asked:,} images)" if self.num_samples < self.asked else ""
        return (
            f"real images against real images: {self.num_samples:,} against {self.num_reference:,} of the reference"
            f"{halved}, mean of {self.draws} draws"
        )


def floor_path(folder: Path, reference_key: str, num_samples: int, settings: MetricSettings) -> Path:
    """The file of the floors at N, beside the reference's statistics."""
    determines = {"format": FORMAT, "N": num_samples, **settings.as_dict()}
    return folder / f"{reference_key}-floor-{identity(determines)}.json"


def read_floors(path: Path, storage: Storage = LOCAL) -> dict[str, Floor] | None:
    """Column of quality.csv -> its floor; None if there is no such file, or it is damaged."""
    document = read_sealed(path, storage)
    return None if document is None else {name: Floor(**floor) for name, floor in document["floors"].items()}


def keep_floors(
    path: Path | None,
    reference: ReferenceStatistics,
    num_samples: int,
    settings: MetricSettings,
    storage: Storage = LOCAL,
) -> dict[str, Floor]:
    """The floors in the file at `path`. If it is missing or damaged, they are computed and kept there. None keeps them
    with `reference` alone. Empty if it has no features, or more of them than `MOST_BYTES`."""
    key = ("floor", num_samples, settings)
    known = reference.kept.get(key) if path is None else read_floors(path, storage)
    size = (reference.num_images or 0) * len(reference.moments.mean) * np.float32().nbytes
    if known is not None or reference.load_features is None or size > MOST_BYTES:
        return known or {}
    features = reference.features if settings.need("reference_features") else reference.load_features()
    found = floors(features, reference.moments, num_samples, settings)
    if path is None:
        reference.kept[key] = found
    else:
        write_sealed(path, {"floors": {name: floor._asdict() for name, floor in found.items()}}, storage)
    return found


def floors(features: Features, moments: Moments, num_samples: int, settings: MetricSettings) -> dict[str, Floor]:
    """Column of quality.csv -> its floor at N, of the metrics in `settings` that compare with a reference.

    `DRAWS` times, N images of the reference, `features` (m, d) with their `moments`, play the samples, and the others
    are the reference; FID, whose bias depends on the size of both, gets all of them. A reference of fewer than 2 N
    images is halved, and N is half of it: then the floor of FID is too high. A metric is left out where it would take
    too long (`Metric.floor_up_to`). The settings' `seed` also seeds the draws."""
    n = min(num_samples, len(features) // 2)
    drawn: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    stream = np.random.RandomState(settings.seed)
    for _ in range(DRAWS):
        order = stream.permutation(len(features))
        for metric in settings.chosen:
            if not metric.needs_reference or metric.sample_columns or num_samples > metric.floor_up_to:
                continue
            rest = order[n:] if metric.name == "fid" else order[n : n + max(n, LEAST_REFERENCE)]
            for name, value in _values(metric, settings, features, moments, order[:n], rest).items():
                drawn.setdefault(name, []).append(value)
                sizes[name] = len(rest)
    return {
        name: Floor(float(np.mean(values)), float(np.std(values, ddof=1)), n, sizes[name], DRAWS, num_samples)
        for name, values in drawn.items()
    }


def _values(
    metric: Metric,
    settings: MetricSettings,
    features: Features,
    moments: Moments,
    drawn: NDArray[np.int64],
    rest: NDArray[np.int64],
) -> dict[str, float]:
    """The metric's numbers of the images `drawn` against `rest`; none where there are too few."""
    if min(len(drawn), len(rest)) < metric.least_images:
        return {}
    samples = features[drawn]
    if metric.name == "fid":
        return {"fid": _frechet(samples, moments)}
    limit = own_limits(metric, settings, Sizes(len(drawn), len(rest), features.shape[1]))
    if limit.reason is not None:
        return {}
    others = features[rest]
    reference = ReferenceStatistics(moments, NO_ROOT, len(others), lambda: others)
    compute: Callable[[MetricInputs], MetricResult] = pkgutil.resolve_name(metric.compute)
    columns = {column.name for chosen in settings.chosen for column in chosen.columns}
    settings = replace(settings, **limit.changes)
    values = compute(MetricInputs(len(samples), lambda: iter((samples,)), samples, None, reference, settings)).values
    return {name: value for name, value in values.items() if name in columns}  # kid also computes kid_mean


def _frechet(features: Features, moments: Moments) -> float:
    """FID of `features` (n, d), some of the vectors of `moments`, against the others. With S = F^T F, S M has the
    eigenvalues of F M F^T. F is a Cholesky factor, or the n centred vectors if there are fewer than d: a root, as
    `frechet_distance` needs, would take twice to ten times as long, in each draw."""
    samples = Moments.of(features)
    rest = moments.without(samples)
    if len(features) <= features.shape[1]:
        factor = (features - samples.mean) / np.sqrt(len(features) - 1)
    else:
        try:
            factor = np.linalg.cholesky(samples.covariance).T
        except np.linalg.LinAlgError:  # a feature never varies
            factor = symmetric_root(samples.covariance)
    return distance_from(samples, rest, np.linalg.eigvalsh(factor @ rest.covariance @ factor.T))
