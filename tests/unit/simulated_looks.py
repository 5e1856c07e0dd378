"""Simulated runs of `--until told-apart`.

A score is its true value plus the mean of the samples' influences, which are linear here: columns of cells whose
influences correlate by 0.8, as those of cells with one seed do. Errors are estimated from the same samples. N doubles
from 500 to 8,000, in at most five looks.
"""

from collections.abc import Callable, Mapping

import numpy as np

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.alike import Contenders, look
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import FID

LEAST, LOOKS = 500, 5
CORRELATION = 0.8

SHAPES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda random, size: random.standard_normal(size),
    "skewed": lambda random, size: random.exponential(size=size) - 1,
    "heavy": lambda random, size: random.standard_t(5, size) / np.sqrt(5 / 3),
}
"""Distributions of influences, with mean 0 and variance 1."""


def is_wrong(random: np.random.Generator, values: Array, shape: str, level_divided_by: float) -> bool:
    """Whether a run tells any cell apart from a best whose true value is not smaller; `values` (columns, cells)."""
    count, most = values.size, LEAST * 2 ** (LOOKS - 1)
    draw = SHAPES[shape]
    noise = np.sqrt(CORRELATION) * draw(random, (1, most)) + np.sqrt(1 - CORRELATION) * draw(random, (count, most))
    names = [str(number) for number in range(count)]
    true = dict(zip(names, values.ravel(), strict=True))
    groups: list[Contenders] = [list(part) for part in np.array_split(names, len(values))]
    n = LEAST
    while groups and n <= most:
        alive = {cell for group in groups for cell in group}
        rows = {
            cell: {"cell": cell, "num_samples": n, FID.name: true[cell] + noise[int(cell), :n].mean()} for cell in alive
        }
        evidence = Evidence({cell: noise[int(cell), :n] for cell in alive}, dict.fromkeys(names, 0), {})
        outcome = look(groups, rows, evidence, FID, level_divided_by)
        for group in groups:
            best = min(group, key=lambda cell: rows[cell][FID.name])
            if any(true[cell] <= true[best] for cell in set(group) - outcome.undecided - {best}):
                return True
        groups = outcome.groups
        n *= 2
    return False
