"""Building blocks of metrics: streams of features, their moments, standard errors. Everything computed is float64."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from taugrid.words import counted
from taugrid.workers.heartbeat import alive

Array = NDArray[np.float64]

Features = NDArray[np.float32]  # (n, d), as they are extracted

FloatFeatures = NDArray[np.floating[Any]]  # (n, d), of any precision

Stream = Callable[[], Iterator[Features]]
"""Starts at the first sample at each call; yields (n, d) float32 in the order of the samples' indices, cut anywhere."""

ROWS_AT_ONCE = 4096
"""Rows of features that are centred in float64 at a time, so that 50,000 x 2048 need no second copy in memory."""

LEAST_CARRYING = 5
"""Least effective number of samples that a standard error may rest on, see `carrying`. It is low, because a limit on
the samples themselves selects: sets that happened to lack their distribution's tail have the smallest errors, the most
carrying samples and the worst coverage (docs/decisions.md)."""

LEAST_TYPICAL = 20
"""The same where the reference alone says how many typically carry it, which does not depend on that luck."""


def require_finite(features: FloatFeatures) -> None:
    """Raise ValueError if vectors of `features` (n, d) hold nan or infinity."""
    damaged = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if damaged:
        raise ValueError(f"{damaged} of {len(features)} feature vectors hold nan or infinity")


@dataclass(frozen=True, eq=False)
class Moments:
    """The number n of some feature vectors, their mean (d,), and scatter (d, d), the sum of centred outer products."""

    n: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: FloatFeatures) -> Self:
        """The moments of `features` (n, d), n >= 1; ValueError for another shape, or if they are not finite."""
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features must be a non-empty (n, d) array, not of shape {features.shape}")
        require_finite(features)
        centred = features.astype(np.float64)
        mean = centred.mean(axis=0)
        centred -= mean
        return cls(len(features), mean, centred.T @ centred)

    @property
    def covariance(self) -> Array:
        """The unbiased covariance (d, d), as `np.cov`; ValueError for fewer than two vectors."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, not {self.n}")
        return self.scatter / (self.n - 1)

    def merge(self, other: Self) -> Self:
        """The moments of the union (Chan, Golub and LeVeque 1979); ValueError if dimensions differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {len(self.mean)} and {len(other.mean)} dimensions can't be merged")
        n = self.n + other.n
        delta = other.mean - self.mean
        between = np.outer(delta, delta)
        between *= self.n * other.n / n  # in place, as below: a pass through memory is most of what a merge costs
        scatter = self.scatter + other.scatter
        scatter += between
        return type(self)(n, self.mean + delta * (other.n / n), scatter)

    def without(self, part: Self) -> Self:
        """The moments of the other vectors, if `part` is of some of these: the reverse of `merge`."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        delta = part.mean - mean
        return type(self)(n, mean, self.scatter - part.scatter - np.outer(delta, delta) * (part.n * n / self.n))


def standard_error(influence: Array) -> float:
    """sd(phi) / sqrt(N) for `influence` (N,) of all samples: the error of a metric from drawing these N samples. It
    does not include the metric's bias at this N or the spread between trainings, and takes the reference as fixed."""
    return float(influence.std(ddof=1) / np.sqrt(len(influence)))


def carrying(influence: Array) -> float:
    """The effective number of samples that a standard error rests on, given `influence` (N,) of all of them. It is N
    over the kurtosis, (sum of phi^2)^2 / (sum of phi^4), as the variance's relative error is that of so many samples: N
    / 3 for Gaussian influences, and near N p for a share p that is small."""
    squares = np.square(influence - influence.mean())
    total = float(squares.sum())
    return total**2 / float(np.square(squares).sum()) if total > 0 else 0.0


def too_few_carry(influence: Array, typical: Array | None = None) -> str | None:
    """Why `influence` (N,) of all samples gives no standard error; None if it gives one. `typical` (m,) has the tails
    of influences, but is of the reference alone: how many of N samples typically carry it."""
    n = len(influence)
    if n < (LEAST_CARRYING if typical is None else LEAST_TYPICAL):
        return f"it needs more than {counted(n, 'image')}"
    if carrying(influence) < LEAST_CARRYING:
        return (
            f"it would rest on fewer than {LEAST_CARRYING} of {n:,} samples; a larger N helps, unless a few samples "
            "are far from all others"
        )
    if typical is not None and n * carrying(typical) / len(typical) < LEAST_TYPICAL:
        return (
            f"a few rare kinds of images would decide it, fewer than {LEAST_TYPICAL} of {n:,} samples if they are like "
            "the reference; a larger N helps"
        )
    return None


def symmetric_root(m: Array) -> Array:
    """The symmetric positive semi-definite root of a symmetric (d, d) `m`; negative eigenvalues are taken as 0."""
    eigenvalues, vectors = np.linalg.eigh(m)
    root: Array = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


def runs(stream: Iterable[Features], count: int) -> Iterator[Features]:
    """The rows of `stream` in runs of `ROWS_AT_ONCE`: a sum over runs does not depend on how the stream was cut. A run
    that lies in one chunk is a view of it. Raises ValueError if there are more or fewer than `count`."""
    pending: list[Features] = []
    waiting = seen = 0
    for chunk in stream:
        alive()
        seen += len(chunk)
        while waiting + len(chunk) >= ROWS_AT_ONCE:
            cut = ROWS_AT_ONCE - waiting
            yield np.concatenate([*pending, chunk[:cut]]) if pending else chunk[:cut]
            chunk, pending, waiting = chunk[cut:], [], 0
        if len(chunk):
            pending.append(chunk)
        waiting += len(chunk)
    if seen != count:
        raise ValueError(f"there must be {count} feature vectors, not {seen}")
    if waiting:
        yield pending[0] if len(pending) == 1 else np.concatenate(pending)


def moments(stream: Iterable[Features], count: int) -> Moments:
    """The moments of `count` feature vectors, merged over runs of `ROWS_AT_ONCE`; ValueError as from `runs`."""
    return reduce(Moments.merge, map(Moments.of, runs(stream, count)))


def loaded(stream: Stream, count: int) -> Features:
    """All of a stream as one array (count, d), without a second copy; ValueError as from `runs`, or if it is empty."""
    rows: Features | None = None
    filled = 0
    for run in runs(stream(), count):
        if rows is None:
            rows = np.empty((count, run.shape[1]), np.float32)
        rows[filled : filled + len(run)] = run
        filled += len(run)
    if rows is None:
        raise ValueError("there are no features")
    return rows
