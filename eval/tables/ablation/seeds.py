"""Statistics over few seeds: Student's paired t, and Holm's correction for many comparisons.

Both take arrays whose last axis is the seeds, or the comparisons of one family.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from taugrid.eval.metrics.statistics import Array

LEVEL = 0.05
"""A p-value from which on a difference may be chance; intervals have the coverage 1 - LEVEL."""


class MeanOverSeeds(NamedTuple):
    """The mean of differences over seeds, and what chance among the seeds does to it: arrays, or float64 scalars."""

    mean: Any
    sd: Any
    """Between seeds; NaN for one seed."""
    se: Any
    """sd / sqrt(n)."""
    half_width: Any
    """Of the interval of 95 % by Student's t with n - 1 degrees of freedom."""
    p: Any
    """Two-sided; NaN where the differences do not vary."""


def mean_over_seeds(differences: Array) -> MeanOverSeeds:
    """Student's t for differences (..., n) that are paired by seed. With n = 1 only the mean is known."""
    n = differences.shape[-1]
    mean = differences.mean(axis=-1)
    unknown = np.full_like(mean, np.nan)[()]
    if n < 2:
        return MeanOverSeeds(mean, unknown, unknown, unknown, unknown)
    sd = differences.std(axis=-1, ddof=1)
    se = sd / np.sqrt(n)
    half_width = special.stdtrit(n - 1, 1 - LEVEL / 2) * se
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(se > 0, 2 * special.stdtr(n - 1, -np.abs(mean / se)), np.nan)[()]
    return MeanOverSeeds(mean, sd, se, half_width, p)


def holm(p: Array) -> NDArray[np.float64]:
    """p-values (..., m) adjusted for the m comparisons of a family (Holm 1979).

    Rejecting what is below a level keeps the probability of any false rejection below that level, however the
    comparisons depend on each other. NaN stays NaN and does not count as a comparison.
    """
    order = np.argsort(p, axis=-1)  # NaN last
    ascending = np.take_along_axis(p, order, axis=-1)
    count = np.sum(~np.isnan(p), axis=-1, keepdims=True)
    factors = np.maximum(count - np.arange(p.shape[-1]), 1)
    adjusted = np.minimum(np.fmax.accumulate(factors * ascending, axis=-1), 1.0)
    adjusted = np.where(np.isnan(ascending), np.nan, adjusted)
    back = np.empty_like(adjusted)
    np.put_along_axis(back, order, adjusted, axis=-1)
    return back


def two_sided(z: float) -> float:
    """The p-value of a normal deviate."""
    return float(2 * special.ndtr(-abs(z)))
