"""FID (Heusel et al. 2017): the Frechet distance of two Gaussians, its standard error, and each sample's influence.

Everything is float64. Estimators are torch-fidelity's, so the same features give the same number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import Array, Moments, moments, runs, standard_error, symmetric_root

RANGE_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero. Rounding leaves about d * 2e-16 of it (5e-13 at d = 2048);
a direction of share r has about sqrt(r) of the largest direction's part in FID, so the omitted part is below 1e-5."""

SAMPLES_PER_DIMENSION = 10
"""Least N / d for a standard error of FID, where d counts only directions in which both distributions vary. Below it,
the inverse root of S is mostly noise. In simulations (Gaussians, d = 16 and 64, flat and decaying spectra, a true
difference) the estimate over the true sd was 0.93 to 1.13 at N = 10 d, up to 1.27 at 5 d and up to 1.37 at 1.2 d. Where
samples and reference follow the same distribution it is about 1.4 at any N: second-order terms dominate there, and the
estimate errs on the safe side."""

ROWS_OF_INFLUENCE = 1024
"""Samples whose influences are computed at a time. A product of 4096 rows of 2048 features takes as long for each, but
the steps beside it then leave the cache: 8 % more in all."""

NOTHING_VARIES = "no feature varies both in the samples and in the reference"
"""Why FID has no standard error where all samples, or all references, have the same features."""

NO_ERROR = "no fid_se: "
"""The beginning of the note that says why FID has no standard error."""


def singular(count: int, side: str, dimensions: int) -> str | None:
    """What to say if `count` images (`side`: samples or references) can't span `dimensions` features; else None."""
    if count > dimensions:
        return None
    return f"{count} {side} for {dimensions} features: their covariance is singular, so FID means little"


def compute_fid(inputs: MetricInputs) -> MetricResult:
    """FID, and its standard error if N is large enough for one. Reads the features twice."""
    n = inputs.num_samples
    frechet = Frechet.of(moments(inputs.features(), n), inputs.compared_with.moments, inputs.compared_with.root)
    if frechet.no_standard_error is not None:
        return MetricResult({"fid": frechet.distance}, notes=(NO_ERROR + frechet.no_standard_error,))
    influence = np.concatenate([frechet.influence(run) for run in runs(inputs.features(), n)])
    return MetricResult({"fid": frechet.distance, "fid_se": standard_error(influence)}, {"fid": influence})


def frechet_distance(samples: Moments, reference: Moments, root: Array | None = None) -> float:
    """|m - mu|^2 + tr S + tr M - 2 tr (S M)^1/2, the squared Frechet distance of two Gaussians.

    tr (S M)^1/2 is the sum of the roots of the eigenvalues of R S R, which is symmetric; R is the root of the
    reference's covariance M. `root` (d, d) is `symmetric_root(reference.covariance)`, if it was kept.
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
    """Which of the ascending eigenvalues are more than rounding."""
    return eigenvalues > RANGE_TOLERANCE * max(float(eigenvalues[-1]), 0.0)


@dataclass(frozen=True, eq=False)
class Frechet:
    """FID of a set of samples, and how far each sample moves it: made from moments, then applied to chunks."""

    distance: float
    """`frechet_distance`, from the same eigenvalues."""
    num_samples: int
    mean: Array
    """(d,): the samples' mean m."""
    difference: Array
    """(d,): m - mu."""
    dimensions: int
    """r, the number of directions in which both distributions vary."""
    curvature: Array | None
    """U (d, d), upper triangular, with U + U^T = I - T, for the standard error; None if N is too small for one."""

    @classmethod
    def of(cls, samples: Moments, reference: Moments, root: Array | None = None) -> "Frechet":
        """The distance of `samples` from `reference`; `root` as for `frechet_distance`.

        If R S R is singular (a feature never varies), its inverse root is that of the pseudo-inverse: no sample is
        outside the range of S.
        """
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

        phi(x) = 2 (m - mu)^T (x - m) + (x - m)^T (I - T) (x - m), with T = R (R S R)^(-1/2) R, is the derivative of
        FID towards a sample x at (m, S), up to a constant, with the reference (mu, M) fixed and R the root of M.
        """
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
        """Why these samples give FID no standard error; None if they do, see `SAMPLES_PER_DIMENSION`.

        A difference has a standard error if both of its cells do.
        """
        if self.dimensions == 0:
            return NOTHING_VARIES
        needed = SAMPLES_PER_DIMENSION * self.dimensions
        if self.num_samples < needed:
            return (
                f"{self.num_samples} samples for {self.dimensions} varying features: a standard error of FID needs "
                f"{SAMPLES_PER_DIMENSION} samples for each, that is N of at least {needed:,}"
            )
        return None
