"""Errors of mean differences of FID over sampling, from the influences of the samples of all their cells."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from taugrid.eval.metrics.frechet import standard_error
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.ablation.seeds import shared_error
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.entries import ROUNDING

Cells = tuple[str, str]
"""The ids of two cells, whose difference is the second minus the first."""


def sampling_error(pairs: Sequence[Cells], evidence: Evidence) -> float | None:
    """The standard error of the mean difference of FID over sampling; None if a cell has no influences.

    Cells with the same x_T are added up sample by sample, so what their noise shares cancels or adds up as it does in
    the mean; groups with other noise are independent.
    """
    sums: dict[Hashable, Array] = {}
    sizes: list[float] = []
    for pair in pairs:
        for sign, cell in zip((-1, 1), pair, strict=True):
            phi = evidence.influences.get(cell)
            if phi is None:
                return None
            noise = (evidence.pairings[cell], len(phi))
            sums[noise] = sums.get(noise, np.zeros(len(phi))) + sign / len(pairs) * phi
            sizes.append(standard_error(phi))
    error = math.sqrt(sum(standard_error(total) ** 2 for total in sums.values()))
    return error if error > ROUNDING * max(sizes) else 0.0


def share_noise(parts: Sequence[Sequence[Cells]], evidence: Evidence) -> bool:
    """Whether any two of `parts`, the pairs of each replicate, have samples that start from the same noise."""
    noise = [{evidence.pairings[cell] for pair in part for cell in pair} for part in parts]
    return len(set().union(*noise)) < sum(map(len, noise))


def shared_sampling_error(parts: Sequence[Sequence[Cells]], evidence: Evidence) -> float | None:
    """The standard error of the sampling noise that replicates share, see `shared_error`; None if it is unknown.

    Args:
        parts: the pairs of each replicate, as many for each, so that all count alike in their mean.
        evidence: covers their cells.
    """
    if not share_noise(parts, evidence):
        return 0.0
    of_mean = sampling_error([pair for part in parts for pair in part], evidence)
    if of_mean is None:
        return None
    return float(shared_error(of_mean, np.array([sampling_error(part, evidence) for part in parts])))
