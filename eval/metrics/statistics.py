"""Building blocks of metrics: mergeable moments of features, the root of a covariance. Everything is float64."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROWS_AT_ONCE = 4096
"""Rows of features that are centred in float64 at a time, so that 50,000 x 2048 need no second copy in memory."""


def require_finite(features: NDArray[np.floating[Any]]) -> None:
    """Raise ValueError, with their number, if vectors of `features` (n, d) hold nan or infinity."""
    damaged = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if damaged:
        raise ValueError(f"{damaged} of {len(features)} feature vectors hold nan or infinity")


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean (d,) and scatter (d, d), the sum of centred outer products, of n feature vectors."""

    n: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]]) -> "Moments":
        """The moments of `features` (n, d), n >= 1, of any float type.

        Raises:
            ValueError: for another shape, or for features that are not finite.
        """
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


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union (Chan, Golub and LeVeque 1979); ValueError if dimensions differ."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and {len(b.mean)} dimensions can't be merged")
    n = a.n + b.n
    delta = b.mean - a.mean
    between = np.outer(delta, delta)
    between *= a.n * b.n / n  # in place, as below: a pass through memory is most of what a merge costs
    scatter = a.scatter + b.scatter
    scatter += between
    return Moments(n, a.mean + delta * (b.n / n), scatter)


def symmetric_root(m: Array) -> Array:
    """The symmetric positive semi-definite root of a symmetric (d, d) `m`; negative eigenvalues are taken as 0."""
    eigenvalues, vectors = np.linalg.eigh(m)
    root: Array = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


class MeanAndSpread(NamedTuple):
    """Mean over splits or subsets, and their standard deviation (divisor n, as torch-fidelity's)."""

    mean: float
    std: float
