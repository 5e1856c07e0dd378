"""FID extrapolated to infinitely many samples: its bias falls as 1 / N, so a line in 1 / N is extended to 0.

Chong and Forsyth 2020, "Effectively Unbiased FID and Inception Score and where to find them".
"""

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.frechet import frechet_distance
from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import ROWS_AT_ONCE, Array, Moments, require_finite, symmetric_root
from taugrid.registry.metrics import Limits, MetricSettings, Sizes

POINTS = 15
"""How many subsets the line is fitted to, as in the paper."""

SMALLEST_SHARE = 10
"""The smallest subset has N / SMALLEST_SHARE samples: 5000 of 50,000 in the paper."""

SAMPLES_PER_DIMENSION = 2
"""Least samples per feature dimension in the smallest subset. The paper's 5000 samples of 2048 features are 2.4.

In simulations (Gaussians, d = 16 and 48, flat spectra, N = 4 d to 20 d) the remaining bias was -6 to -14 % of plain
FID's with 2 samples per dimension, and up to -41 % with 1: too few samples have a nearly singular covariance, which
bends the line.
"""

MIN_SPAN = 2
"""Least ratio of N to the smallest subset: over a shorter range, noise determines the slope."""


NO_ERROR = "fid_infinity has no ±: it scatters up to 2.2 times as much as FID in simulations, and can be negative"
"""The remark below tables; `benchmarks/intervals.py` has the simulations."""


def fid_infinity_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    """Whether there are enough samples to extrapolate, and a remark on the scatter."""
    return Limits(no_extrapolation(sizes.num_samples, sizes.dimensions), remark=NO_ERROR)


def compute_fid_infinity(inputs: MetricInputs) -> MetricResult:
    reference, seed = inputs.compared_with, inputs.settings.seed
    value = fid_infinity(inputs.all_features, reference.moments, reference.root, seed=seed)
    return MetricResult({"fid_infinity": value})


def no_extrapolation(num_samples: int, dimensions: int) -> str | None:
    """Why these samples are too few to extrapolate; None if they are enough."""
    least = MIN_SPAN * max(SAMPLES_PER_DIMENSION * dimensions, POINTS)
    if num_samples >= least:
        return None
    return f"{num_samples} samples of {dimensions} features: FID extrapolated to infinite N needs at least {least}"


def subset_sizes(num_samples: int, dimensions: int) -> NDArray[np.int64]:
    """The sizes (POINTS,) of the subsets, equally spaced from the smallest to N: 5000, 8214, ..., 50,000 in the paper.

    Raises:
        ValueError: for too few samples, see `no_extrapolation`.
    """
    reason = no_extrapolation(num_samples, dimensions)
    if reason is not None:
        raise ValueError(reason)
    smallest = max(num_samples // SMALLEST_SHARE, SAMPLES_PER_DIMENSION * dimensions)
    return np.linspace(smallest, num_samples, POINTS).astype(np.int64)


def fid_infinity(
    features: NDArray[np.floating[Any]], reference: Moments, root: Array | None = None, *, seed: int
) -> float:
    """The intercept of FID's least-squares line in 1 / n, over subsets drawn without replacement.

    Args:
        features: (N, d), in the order of the samples' indices, on which the draws depend.
        reference: the reference's moments, taken as exact: their own bias stays.
        root: (d, d) `symmetric_root(reference.covariance)`, if it was kept.
        seed: seeds the draws.

    Raises:
        ValueError: for too few samples, see `no_extrapolation`, or for features that are not finite.
    """
    sizes = subset_sizes(*features.shape)
    require_finite(features)
    root = symmetric_root(reference.covariance) if root is None else root
    draw = np.random.default_rng(seed)
    distances = np.empty(len(sizes))
    for i, size in enumerate(sizes):
        # Sorted for faster reading: moments depend only on the set.
        chosen = np.sort(draw.permutation(len(features))[:size])
        distances[i] = frechet_distance(_moments(features, chosen), reference, root)
    line = np.polynomial.Polynomial.fit(1 / sizes, distances, deg=1)
    return float(line(0.0))


def _moments(features: NDArray[np.floating[Any]], chosen: NDArray[np.int64]) -> Moments:
    runs = (chosen[start : start + ROWS_AT_ONCE] for start in range(0, len(chosen), ROWS_AT_ONCE))
    return reduce(Moments.merge, (Moments.of(features[run]) for run in runs))
