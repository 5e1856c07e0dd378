"""The critical value of a night: the quantile of the largest of many correlated normal variables.

A night has many cells, each judged by one metric or several, and one verdict. If each were tested at alpha alone, 20
independent cells would raise a false alarm in 18 % of nights at alpha = 1 %. The quantile of the largest keeps the
whole night at alpha, and loses less power than Bonferroni's bound where tests are correlated, as the cells of one
network and the metrics of one cell are.
"""

from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from taugrid.eval.metrics.statistics import Array

DRAWS = 200_000
"""Simulated nights. At alpha = 1 % they give the quantile to 0.01 standard errors, and alpha to 2 % of itself."""

DRAWS_AT_ONCE = 20_000
"""Simulated nights in memory at a time."""

SEED = 20_600
"""Fixed, so that the same night always gets the same critical value."""


def correlation(influences: Sequence[Array], seed_sets: Sequence[Hashable]) -> Array:
    """(k, k), the correlation of the mean influences of k cells, or metrics of them: the errors of their differences.

    Args:
        influences: (N_i,) for each: how far each sample moves the difference, in the order of the indices.
        seed_sets: the seed set of each cell. Samples n of two cells with equal seed sets share their noise; others are
            independent. Cells with one seed set may differ in N: they share the first samples.

    Raises:
        ValueError: if a cell's influences do not vary.
    """
    unit = []
    for influence in influences:
        centred = influence - influence.mean()
        length = float(np.linalg.norm(centred))
        if length == 0:
            raise ValueError("a cell's influences do not vary, so its difference has no error")
        unit.append(centred / length)
    correlations = np.eye(len(unit))
    for i, first in enumerate(unit):
        for j in range(i):
            if seed_sets[i] == seed_sets[j]:
                common = min(len(first), len(unit[j]))
                correlations[i, j] = correlations[j, i] = first[:common] @ unit[j][:common]
    return correlations


def critical_value(correlations: Array, alpha: float, draws: int = DRAWS) -> float:
    """The c with P(max Z > c) = alpha for Z ~ N(0, R): by simulation, and never beyond Bonferroni's bound.

    Args:
        correlations: (k, k), R. It may be singular: cells can have the same samples.
        alpha: the probability of at least one false alarm in the whole night, in (0, 1).
        draws: simulated nights.
    """
    k = len(correlations)
    alone, bound = -NormalDist().inv_cdf(alpha), -NormalDist().inv_cdf(alpha / k)
    if k == 1:
        return alone
    values, vectors = np.linalg.eigh(correlations)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    random = np.random.default_rng(SEED)
    largest = np.concatenate(
        [
            (random.standard_normal((min(DRAWS_AT_ONCE, draws - start), k)) @ root.T).max(axis=1)
            for start in range(0, draws, DRAWS_AT_ONCE)
        ]
    )
    return min(max(float(np.quantile(largest, 1 - alpha)), alone), bound)
