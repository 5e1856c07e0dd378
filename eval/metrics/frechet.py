"""FID (Heusel et al. 2017), each sample's influence on it, and FID extrapolated to infinitely many samples.

Everything is float64. Estimators are torch-fidelity's, so the same features give the same number.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import (
    ROWS_AT_ONCE,
    Array,
    Moments,
    moments,
    require_finite,
    runs,
    standard_error,
    symmetric_root,
)
from taugrid.registry.metrics import Limits, MetricSettings, Sizes

RANGE_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero. Rounding leaves about d * 2e-16 of it (5e-13 at d = 2048);
a direction of share r has about sqrt(r) of the largest direction's part in FID, so the omitted part is below 1e-5."""

SAMPLES_PER_DIMENSION = 10
"""Least N / d for a standard error of FID, where d counts only directions in which both distributions vary. Below it,
the inverse root of S is mostly noise: in simulations, the estimate over the true sd was 0.93 to 1.13 at N = 10 d and up
to 1.37 at 1.2 d (docs/decisions.md)."""

ROWS_OF_INFLUENCE = 1024
"""Samples whose influences are computed at a time. A product of 4096 rows of 2048 features takes as long for each, but
the steps beside it then leave the cache: 8 % more in all."""

NOTHING_VARIES = "no feature varies both in the samples and in the reference"

NO_ERROR = "no fid_se: "  # the beginning of the note that says why FID has no standard error

POINTS = 15  # how many subsets the line of `fid_infinity` is fitted to, as in the paper

SMALLEST_SHARE = 10  # the smallest subset has N / SMALLEST_SHARE samples: 5000 of 50,000 in the paper

IN_SMALLEST = 2
"""Least samples per feature dimension in the smallest subset; the paper has 2.4. In simulations the remaining bias was
-6 to -14 % of plain FID's with 2, and up to -41 % with 1: a nearly singular covariance bends the line."""

MIN_SPAN = 2  # least ratio of N to the smallest subset: over a shorter range, noise determines the slope

NO_ERROR_AT_INFINITY = (
    "fid_infinity has no ±: it scatters up to 2.2 times as much as FID in simulations, and can be negative"
)
"""The remark below tables; `benchmarks/intervals.py` of commit 3d5e3f69 has the simulations."""


def singular(count: int, side: str, dimensions: int) -> str | None:
    """What to say if `count` images (`side`: samples or references) can't span `dimensions` features; else None."""
    if count > dimensions:
        return None
    return f"{count} {side} for {dimensions} features: their covariance is singular, so FID means little"


def compute_fid(inputs: MetricInputs) -> MetricResult:
    n = inputs.num_samples
    frechet = Frechet.of(moments(inputs.features(), n), inputs.compared_with.moments, inputs.compared_with.root)
    if frechet.no_standard_error is not None:
        return MetricResult({"fid": frechet.distance}, notes=(NO_ERROR + frechet.no_standard_error,))
    influence = np.concatenate([frechet.influence(run) for run in runs(inputs.features(), n)])
    return MetricResult({"fid": frechet.distance, "fid_se": standard_error(influence)}, {"fid": influence})


def frechet_distance(samples: Moments, reference: Moments, root: Array | None = None) -> float:
    """|m - mu|^2 + tr S + tr M - 2 tr (S M)^1/2, the squared Frechet distance of two Gaussians.

    tr (S M)^1/2 is the sum of the roots of the eigenvalues of R S R; R is the `root` (d, d) of the reference's
    covariance M, computed if it is not given.
    """
    root = symmetric_root(reference.covariance) if root is None else root
    return distance_from(samples, reference, np.linalg.eigvalsh(_product(root, samples.covariance)))


def _product(root: Array, covariance: Array) -> Array:
    product = root @ covariance @ root
    return (product + product.T) / 2


def distance_from(samples: Moments, reference: Moments, eigenvalues: NDArray[np.floating[Any]]) -> float:
    """The squared Frechet distance, from the `eigenvalues` of the product of both covariances, in any order."""
    difference = samples.mean - reference.mean
    traces = np.trace(samples.covariance) + np.trace(reference.covariance)
    return float(difference @ difference + traces - 2 * np.sqrt(np.clip(eigenvalues, 0, None)).sum())


def _kept(eigenvalues: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    return eigenvalues > RANGE_TOLERANCE * max(float(eigenvalues[-1]), 0.0)


@dataclass(frozen=True, eq=False)
class Frechet:
    """FID of a set of samples, and how far each sample moves it: made from moments, then applied to chunks."""

    distance: float
    num_samples: int
    mean: Array  # (d,): the samples' mean m
    difference: Array  # (d,): m - mu
    dimensions: int  # r, the number of directions in which both distributions vary
    curvature: Array | None
    """U (d, d), upper triangular, with U + U^T = I - T, for the standard error; None if N is too small for one."""

    @classmethod
    def of(cls, samples: Moments, reference: Moments, root: Array | None = None) -> "Frechet":
        """The distance of `samples` from `reference`; `root` as for `frechet_distance`. If R S R is singular (a feature
        never varies), its inverse root is that of the pseudo-inverse: no sample is outside the range of S."""
        root = symmetric_root(reference.covariance) if root is None else root
        product = _product(root, samples.covariance)
        difference = samples.mean - reference.mean
        if samples.n < SAMPLES_PER_DIMENSION * len(root):  # eigenvectors take 2.6 times as long as eigenvalues alone
            eigenvalues = np.linalg.eigvalsh(product)
            dimensions = int(_kept(eigenvalues).sum())
            if samples.n < SAMPLES_PER_DIMENSION * dimensions:
                distance = distance_from(samples, reference, eigenvalues)
                return cls(distance, samples.n, samples.mean, difference, dimensions, None)
        eigenvalues, vectors = np.linalg.eigh(product)
        kept = _kept(eigenvalues)
        factor = root @ (vectors[:, kept] * eigenvalues[kept] ** -0.25)
        distance = distance_from(samples, reference, eigenvalues)
        curvature = np.triu(np.eye(len(root)) - factor @ factor.T)
        curvature[np.diag_indices_from(curvature)] /= 2
        return cls(distance, samples.n, samples.mean, difference, int(kept.sum()), curvature)

    def influence(self, features: NDArray[np.floating[Any]]) -> Array:
        """Return phi (n,) float64 of some of the samples, `features` (n, d), from which standard errors are computed.
        phi(x) = 2 (m - mu)^T (x - m) + (x - m)^T (I - T) (x - m), with T = R (R S R)^(-1/2) R, is the derivative of FID
        towards a sample x at (m, S), up to a constant, with the reference (mu, M) fixed and R the root of M."""
        from scipy.linalg.blas import dtrmm  # late: a plan needs this module's limits, and SciPy takes 0.2 s

        if self.curvature is None:
            raise ValueError(f"the influences are unknown: {self.no_standard_error}")
        influence = np.empty(len(features))
        for start in range(0, len(features), ROWS_OF_INFLUENCE):
            rows = slice(start, start + ROWS_OF_INFLUENCE)
            centred = features[rows].astype(np.float64)
            centred -= self.mean
            # BLAS counts columns first, so it sees both transposed. A triangle takes half the time of a full product.
            product = dtrmm(2.0, self.curvature.T, centred.T, lower=1).T
            influence[rows] = centred @ (2 * self.difference) + np.einsum("nd,nd->n", product, centred)
        return influence

    @property
    def no_standard_error(self) -> str | None:
        """Why these samples give FID no standard error; None if they do, see `SAMPLES_PER_DIMENSION`."""
        if self.dimensions == 0:
            return NOTHING_VARIES
        needed = SAMPLES_PER_DIMENSION * self.dimensions
        if self.num_samples >= needed:
            return None
        return (
            f"{self.num_samples} samples for {self.dimensions} varying features: a standard error of FID needs "
            f"{SAMPLES_PER_DIMENSION} samples for each, that is N of at least {needed:,}"
        )


def fid_infinity_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    return Limits(no_extrapolation(sizes.num_samples, sizes.dimensions), remark=NO_ERROR_AT_INFINITY)


def compute_fid_infinity(inputs: MetricInputs) -> MetricResult:
    reference, seed = inputs.compared_with, inputs.settings.seed
    value = fid_infinity(inputs.all_features, reference.moments, reference.root, seed=seed)
    return MetricResult({"fid_infinity": value})


def no_extrapolation(num_samples: int, dimensions: int) -> str | None:
    """Why these samples are too few to extrapolate; None if they are enough."""
    least = MIN_SPAN * max(IN_SMALLEST * dimensions, POINTS)
    if num_samples >= least:
        return None
    return f"{num_samples} samples of {dimensions} features: FID extrapolated to infinite N needs at least {least}"


def subset_sizes(num_samples: int, dimensions: int) -> NDArray[np.int64]:
    """The sizes (POINTS,) of the subsets, equally spaced from the smallest to N: 5000, 8214, ..., 50,000 in the paper;
    raises ValueError if there are too few samples."""
    reason = no_extrapolation(num_samples, dimensions)
    if reason is not None:
        raise ValueError(reason)
    smallest = max(num_samples // SMALLEST_SHARE, IN_SMALLEST * dimensions)
    return np.linspace(smallest, num_samples, POINTS).astype(np.int64)


def fid_infinity(
    features: NDArray[np.floating[Any]], reference: Moments, root: Array | None = None, *, seed: int
) -> float:
    """The intercept of FID's least-squares line in 1 / n, over subsets drawn without replacement.

    FID's bias falls as 1 / N (Chong and Forsyth 2020, "Effectively Unbiased FID and Inception Score and where to find
    them"). The bias of the reference's moments stays. `features` (N, d) are in the order of the samples' indices, on
    which the draws depend; raises ValueError for too few of them, or if they are not finite."""
    sizes = subset_sizes(*features.shape)
    require_finite(features)
    root = symmetric_root(reference.covariance) if root is None else root
    draw = np.random.default_rng(seed)
    distances = np.empty(len(sizes))
    for i, size in enumerate(sizes):
        # Sorted for faster reading: moments depend only on the set.
        chosen = np.sort(draw.permutation(len(features))[:size])
        parts = (chosen[start : start + ROWS_AT_ONCE] for start in range(0, size, ROWS_AT_ONCE))
        subset = reduce(Moments.merge, (Moments.of(features[part]) for part in parts))
        distances[i] = frechet_distance(subset, reference, root)
    line = np.polynomial.Polynomial.fit(1 / sizes, distances, deg=1)
    return float(line(0.0))
