"""What a cell must exceed to count as worse than the best of its column, 95 % jointly for all cells of the column.

The best is chosen by the same data, so it is best by luck too: of 20 equal cells, most tables would have one that
differs from it by 1.96 standard errors. Here, all cells that are as good as the measured best stay below the limit with
a probability of 95 %, so what is above it is worse.
"""

from functools import cache

import numpy as np
from scipy import special

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.ablation.seeds import LEVEL, mean_over_seeds

DRAWS = 40_000
"""Simulated columns: they tell 5 % to 0.1 %."""
DRAWS_AT_ONCE = 2_000
SEED = 20_600
"""Fixed, so that the same column gets the same limit again."""
MOST_SIMULATED = 60
"""Cells of a column above which Bonferroni's bound over their pairs is the limit, which is safe but less sharp."""


def critical_range(covariance: Array) -> float:
    """C with P(max |Z_i - Z_j| / se_ij > c) = 5 % over all pairs, for Z ~ N(0, covariance (k, k)), by simulation.

    The covariance is that of the cells' errors, and se_ij^2 = v_i + v_j - 2 c_ij. Pairs of cells with the same samples,
    whose se is 0 but for rounding, don't count. c is 1.96 for two cells.
    """
    k = len(covariance)
    bound = float(-special.ndtri(LEVEL / max(k * (k - 1), 2)))
    if k <= 2 or k > MOST_SIMULATED:
        return bound
    variances = np.diag(covariance)
    squares = variances[:, None] + variances - 2 * covariance
    errors = np.where(squares > 1e-12 * variances.max(), np.sqrt(np.maximum(squares, 0)), np.inf)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    random = np.random.default_rng(SEED)
    largest = np.zeros(DRAWS)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        z = root @ random.standard_normal((k, DRAWS_AT_ONCE))
        for i in range(1, k):
            ratios = np.abs(z[:i] - z[i]) / errors[i, :i, None]
            np.maximum(largest[start : start + DRAWS_AT_ONCE], ratios.max(axis=0), out=largest[start:][:DRAWS_AT_ONCE])
    return min(max(float(np.quantile(largest, 1 - LEVEL)), float(-special.ndtri(LEVEL / 2))), bound)


@cache
def level_against_best(settings: int, seeds: int) -> float:
    """The p-value that the least of k - 1 comparisons with the measured best undercuts in 5 % of columns, if all k are
    equal: of Student's t for differences that are paired by seed, by simulation.

    The simulated settings are normal and vary alike. Settings that differ in their spread, or that correlate, undercut
    it less often, heavily skewed ones more often (docs/decisions.md).
    """
    bound = LEVEL / max(settings * (settings - 1) / 2, 1)
    if settings <= 2 or settings > MOST_SIMULATED:
        return bound
    random = np.random.default_rng(SEED)
    least = np.empty(DRAWS)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        values = random.standard_normal((DRAWS_AT_ONCE, settings, seeds))
        best = values.mean(axis=-1).argmin(axis=-1)
        p = mean_over_seeds(values - np.take_along_axis(values, best[:, None, None], axis=1)).p
        least[start : start + DRAWS_AT_ONCE] = np.nanmin(p, axis=-1)  # the best itself has none
    return max(float(np.quantile(least, LEVEL)), bound)
