"""What is computed from features: mergeable moments, Frechet distance and its standard error, Inception Score.

Everything is float64. FID is Heusel et al. 2017, the Inception Score Salimans et al. 2016; splits and estimators are
torch-fidelity's, so that its numbers for the same features are ours. KID is kernel.py's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

Array = NDArray[np.float64]

RANGE_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero. Rounding leaves about d * 2e-16 of it (5e-13 at d = 2048);
a direction of share r holds about sqrt(r) of the largest direction's part in FID, so what is left out is below 1e-5."""

SAMPLES_PER_DIMENSION = 10
"""Least N / d for a standard error of FID, d counting only directions in which both distributions vary. Below, the
inverse root of S is mostly noise. In simulations (Gaussians, d = 16 and 64, flat and decaying spectra, a true
difference) the estimate over the true sd was 0.93 to 1.13 at N = 10 d, up to 1.27 at 5 d and up to 1.37 at 1.2 d. Where
samples and reference follow the same distribution it is about 1.4 at any N: second-order terms rule there, and the
estimate is on the safe side."""

ROWS_AT_ONCE = 4096
"""Rows of features that are centred in float64 at a time, so that 50,000 x 2048 need no second copy in memory."""


def require_finite(features: NDArray[np.floating[Any]]) -> None:
    """ValueError, with their number, where vectors of `features` (n, d) hold nan or infinity."""
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
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"features must be a non-empty (n, d) array, not of shape {values.shape}")
        require_finite(values)
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    @property
    def covariance(self) -> Array:
        """The unbiased covariance (d, d), as `np.cov`; ValueError for fewer than two vectors."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, not {self.n}")
        return self.scatter / (self.n - 1)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union (Chan, Golub and LeVeque 1979); ValueError where dimensions differ."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and {len(b.mean)} dimensions can't be merged")
    n = a.n + b.n
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.n * b.n / n)
    return Moments(n, a.mean + delta * (b.n / n), scatter)


def symmetric_root(m: Array) -> Array:
    """The symmetric positive semi-definite root of a symmetric (d, d) `m`; eigenvalues negative by rounding are 0."""
    eigenvalues, vectors = np.linalg.eigh(m)
    root: Array = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


def frechet_distance(samples: Moments, reference: Moments, root: Array | None = None) -> float:
    """|m - mu|^2 + tr S + tr M - 2 tr (S M)^1/2, the squared Frechet distance of two Gaussians.

    tr (S M)^1/2 is the sum of the roots of the eigenvalues of R S R, which is symmetric, R being the root of the
    reference's covariance M. `root` (d, d) is `symmetric_root(reference.covariance)`, where it was kept.
    """
    root = symmetric_root(reference.covariance) if root is None else root
    return _distance(samples, reference, np.linalg.eigvalsh(_product(root, samples.covariance)))


def _product(root: Array, covariance: Array) -> Array:
    product = root @ covariance @ root
    symmetric: Array = (product + product.T) / 2
    return symmetric


def _distance(samples: Moments, reference: Moments, eigenvalues: NDArray[np.floating[Any]]) -> float:
    difference = samples.mean - reference.mean
    traces = np.trace(samples.covariance) + np.trace(reference.covariance)
    return float(difference @ difference + traces - 2 * np.sqrt(np.clip(eigenvalues, 0, None)).sum())


def _kept(eigenvalues: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which of the ascending eigenvalues are more than rounding."""
    kept: NDArray[np.bool_] = eigenvalues > RANGE_TOLERANCE * max(float(eigenvalues[-1]), 0.0)
    return kept


@dataclass(frozen=True, eq=False)
class Frechet:
    """FID of a set of samples, and how far each of them moves it: made from moments, then applied in any chunks."""

    distance: float
    """`frechet_distance`, from the same eigenvalues."""
    num_samples: int
    mean: Array
    """(d,): the samples' mean m."""
    difference: Array
    """(d,): m - mu."""
    dimensions: int
    """r, the number of directions in which both distributions vary."""
    transport_factor: Array | None
    """F (d, r), with F F^T = T; None where N is too small for a standard error, which is what it is for."""

    @classmethod
    def of(cls, samples: Moments, reference: Moments, root: Array | None = None) -> "Frechet":
        """The distance of `samples` from `reference`; `root` as for `frechet_distance`.

        Where R S R is singular (a feature that never varies) its inverse root is the pseudo-inverse's: no sample leads
        out of the range of S.
        """
        root = symmetric_root(reference.covariance) if root is None else root
        product = _product(root, samples.covariance)
        difference = samples.mean - reference.mean
        if samples.n < SAMPLES_PER_DIMENSION * len(root):  # eigenvectors take 2.6 times as long as eigenvalues alone
            eigenvalues = np.linalg.eigvalsh(product)
            dimensions = int(_kept(eigenvalues).sum())
            if samples.n < SAMPLES_PER_DIMENSION * dimensions:
                distance = _distance(samples, reference, eigenvalues)
                return cls(distance, samples.n, samples.mean, difference, dimensions, None)
        eigenvalues, vectors = np.linalg.eigh(product)
        kept = _kept(eigenvalues)
        factor = root @ (vectors[:, kept] * eigenvalues[kept] ** -0.25)
        distance = _distance(samples, reference, eigenvalues)
        return cls(distance, samples.n, samples.mean, difference, int(kept.sum()), factor)

    def influence(self, features: NDArray[np.floating[Any]]) -> Array:
        """Return phi (n,) float64 of some of the samples, `features` (n, d): what standard errors are made of.

        phi(x) = 2 (m - mu)^T (x - m) + (x - m)^T (I - T) (x - m), with T = R (R S R)^(-1/2) R, is up to a constant the
        derivative of FID towards a sample x at (m, S), the reference (mu, M) being fixed and R the root of M.
        """
        if self.transport_factor is None:
            raise ValueError(f"no influence is known: {self.no_standard_error}")
        influence = np.empty(len(features))
        for start in range(0, len(features), ROWS_AT_ONCE):
            centred = features[start : start + ROWS_AT_ONCE].astype(np.float64) - self.mean
            transported = centred @ self.transport_factor
            quadratic = np.square(centred).sum(axis=1) - np.square(transported).sum(axis=1)
            influence[start : start + ROWS_AT_ONCE] = 2 * centred @ self.difference + quadratic
        return influence

    @property
    def no_standard_error(self) -> str | None:
        """Why these samples give FID no standard error; None where they give one, see `SAMPLES_PER_DIMENSION`.

        A difference has one where both of its cells have.
        """
        if self.dimensions == 0:
            return "no feature varies both in the samples and in the reference"
        if self.num_samples < SAMPLES_PER_DIMENSION * self.dimensions:
            return (
                f"{self.num_samples} samples for {self.dimensions} varying features: a standard error of FID needs "
                f"{SAMPLES_PER_DIMENSION} samples for each"
            )
        return None


def standard_error(influence: Array) -> float:
    """sd(phi) / sqrt(N) for `influence` (N,) of all samples: the error of FID from drawing these N.

    It is neither FID's bias at this N nor the spread between trainings, and the reference counts as fixed.
    """
    return float(influence.std(ddof=1) / np.sqrt(len(influence)))


def difference_standard_error(influence_a: Array, influence_b: Array) -> float:
    """sd(phi_a - phi_b) / sqrt(N): the error of FID_a - FID_b where sample n of both cells came of the same noise.

    Args:
        influence_a: (N,), of one cell's samples in the order of their indices.
        influence_b: (N,), of the other's, with the same indices.

    Raises:
        ValueError: for unequal numbers of samples, which can't be paired.
    """
    if influence_a.shape != influence_b.shape:
        raise ValueError(f"{len(influence_a)} and {len(influence_b)} samples can't be paired")
    return standard_error(influence_a - influence_b)


class MeanAndSpread(NamedTuple):
    """Mean over splits or subsets, and their standard deviation (divisor n, as torch-fidelity's)."""

    mean: float
    std: float


def inception_splits(num_samples: int, splits: int, seed: int) -> NDArray[np.int64]:
    """The split (N,) in 0..splits-1 of every sample index: torch-fidelity's shuffle with `seed`, cut into runs.

    Raises:
        ValueError: for more splits than samples.
    """
    if not 1 <= splits <= num_samples:
        raise ValueError(f"{num_samples} samples can't be divided into {splits} splits of the Inception Score")
    order = np.random.RandomState(seed).permutation(num_samples)
    bounds = np.arange(splits + 1) * num_samples // splits
    split_of = np.empty(num_samples, dtype=np.int64)
    split_of[order] = np.repeat(np.arange(splits), np.diff(bounds))
    return split_of


@dataclass(frozen=True, eq=False)
class InceptionSums:
    """What the Inception Score needs of the samples seen so far, by split."""

    counts: NDArray[np.int64]
    """(splits,)."""
    probabilities: Array
    """(splits, k): sums of p(y | x)."""
    negative_entropies: Array
    """(splits,): sums over x of sum_y p log p."""

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]], split_of: NDArray[np.int64], splits: int) -> "InceptionSums":
        """The sums over `logits` (n, k), of samples in the splits `split_of` (n,), see `inception_splits`."""
        if logits.ndim != 2 or len(logits) != len(split_of):
            raise ValueError(f"logits of shape {logits.shape} don't fit {len(split_of)} samples")
        if not np.isfinite(logits).all():
            raise ValueError("logits hold nan or infinity")
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        p = np.exp(log_p)
        members = np.equal.outer(np.arange(splits), split_of).astype(np.float64)
        return cls(np.bincount(split_of, minlength=splits), members @ p, members @ (p * log_p).sum(axis=1))

    def merge(self, other: "InceptionSums") -> "InceptionSums":
        """The sums over both sets of samples."""
        return InceptionSums(
            self.counts + other.counts,
            self.probabilities + other.probabilities,
            self.negative_entropies + other.negative_entropies,
        )

    def score(self) -> MeanAndSpread:
        """The score: exp of the mean KL(p(y | x) || p(y)), p(y) being a split's mean; ValueError for an empty split.

        KL's mean is the mean of sum p log p minus sum p(y) log p(y), so sums are all it takes.
        """
        if not self.counts.all():
            raise ValueError("a split of the Inception Score has no samples")
        marginal = self.probabilities / self.counts[:, None]
        scores = np.exp(self.negative_entropies / self.counts - xlogy(marginal, marginal).sum(axis=1))
        return MeanAndSpread(float(scores.mean()), float(scores.std()))
