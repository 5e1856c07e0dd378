"""Which cells' order is undecided, for runs that sample more images of these alone until it is decided.

Looking again at growing N would make a false difference ever more likely, so the level of 5 % is shared among the
looks: each has 5 % / their largest number. Within a look, the limit holds jointly for all pairs that are still
compared, in every column. So at most 5 % of procedures tell any two cells apart in the wrong order
(docs/decisions.md).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from taugrid.eval.tables.ablation.seeds import LEVEL, critical_range
from taugrid.eval.tables.differences import Evidence, paired_error
from taugrid.eval.tables.pivots import Pivot
from taugrid.eval.tables.rows import Row
from taugrid.registry.metrics import MetricColumn

Contenders = Sequence[str]
"""The ids of cells that are compared with the best of them: those of a table's column, or two neighbours."""


class Decided(NamedTuple):
    """What one look at the scores decides."""

    groups: list[Contenders]
    """Of each group with undecided cells: its best, and the cells whose order against it is undecided."""
    same: set[str]
    """Cells with the same samples as the best of their group, which no N can tell apart."""

    @property
    def undecided(self) -> set[str]:
        return {cell for group in self.groups for cell in group}


def columns(tables: Sequence[Pivot]) -> list[Contenders]:
    """The cells of each column, where several compete."""
    return [[best, *others] for table in tables for best, others in table.against_best()]


def look(
    groups: Sequence[Contenders], rows: Mapping[str, Row], evidence: Evidence, metric: MetricColumn, looks: float
) -> Decided:
    """Compare the cells of each group with its best.

    Args:
        groups: those that earlier looks left undecided.
        rows: the rows of quality.csv, by cell, all of one N.
        evidence: of `metric`, with influences of all cells in `groups`, which share their noise.
        metric: what is compared.
        looks: the largest possible number of looks, known before the first.
    """
    if not groups:
        return Decided([], set())
    limit = _limit(groups, evidence, LEVEL / looks)
    found = Decided([], set())
    sign = -1 if metric.higher_is_better else 1
    for group in groups:
        best = min(group, key=lambda cell: sign * float(rows[cell][metric.name]))
        undecided = []
        for cell in group:
            difference = float(rows[cell][metric.name]) - float(rows[best][metric.name])
            paired = paired_error(difference, rows[best], rows[cell], evidence)
            if cell == best:
                continue
            if paired.z is None:
                found.same.add(cell)
            elif abs(paired.z) < limit:
                undecided.append(cell)
        if undecided:
            found.groups.append([best, *undecided])
    return found


def _limit(groups: Sequence[Contenders], evidence: Evidence, level: float) -> float:
    """The |z| that a pair within any group exceeds with the probability `level`, if all cells are equal."""
    cells = list(dict.fromkeys(cell for group in groups for cell in group))
    place = {cell: i for i, cell in enumerate(cells)}
    counted = np.zeros((len(cells), len(cells)), dtype=bool)
    for group in groups:
        for a, b in combinations(group, 2):  # the best is best by luck too, so any pair may be compared
            counted[place[a], place[b]] = counted[place[b], place[a]] = True
    influences = np.stack([evidence.influences[cell] for cell in cells])
    return critical_range(np.cov(influences) / influences.shape[1], level, counted)
