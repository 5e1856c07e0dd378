"""Compares cells with the best of them, by the influences of the samples: for the marks in tables, for `--until`, and
for the figure of checkpoints.

Runs that sample more images of undecided cells alone look again at growing N (`look`). That would make a false
difference ever more likely, so each look has 5 % / their largest number, jointly for all pairs that are still compared,
in every column: at most 5 % of procedures tell any two cells apart in the wrong order (docs/decisions.md).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from taugrid.eval.metrics.statistics import Array, standard_error
from taugrid.eval.tables.differences import Evidence, uncertainty_of
from taugrid.eval.tables.long_form import Row
from taugrid.eval.tables.seeds import (
    LEVEL,
    Averaged,
    Replicate,
    critical_range,
    level_against_best,
    mean_over_seeds,
    shared_error,
)
from taugrid.eval.tables.table import ROUNDING, Table
from taugrid.registry.metrics import MetricColumn

Cells = tuple[str, str]  # the ids of two cells, whose difference is the second minus the first
Contenders = Sequence[str]
"""The ids of cells that are compared with the best of them: those of a table's column, or two neighbours."""


class AgainstBest(NamedTuple):
    """How cells compare with the best of them. Those that no list has are worse."""

    best: str
    alike: list[str]  # chance explains their difference from the best
    same: list[str]  # they have the same samples as the best
    untested: list[str]  # their difference from the best has no standard error


class Marks(NamedTuple):
    """The cells of a table that are not shown to be worse than the best of their column, besides the best itself."""

    alike: frozenset[str] = frozenset()  # those that can't be distinguished from it, or have the same samples
    untested: frozenset[str] = frozenset()


def against_best(
    cells: Contenders, rows: Mapping[str, Row], evidence: Evidence, metric: MetricColumn, limit: float
) -> AgainstBest:
    """Compare scored cells with the best of them. `rows` are those of quality.csv by cell, and `evidence` is of
    `metric`. `limit` is the `joint_limit` of all comparisons that are made at once."""
    sign = -1 if metric.higher_is_better else 1
    best = min(cells, key=lambda cell: sign * float(rows[cell][metric.name]))
    result = AgainstBest(best, [], [], [])
    for cell in cells:
        if cell == best:
            continue
        difference = float(rows[cell][metric.name]) - float(rows[best][metric.name])
        uncertainty = uncertainty_of(difference, rows[best], rows[cell], evidence)
        if uncertainty.se is None:
            result.untested.append(cell)
        elif uncertainty.z is None:
            result.same.append(cell)
        elif abs(uncertainty.z) < limit:
            result.alike.append(cell)
    return result


def joint_limit(groups: Sequence[Contenders], evidence: Evidence, level: float = LEVEL) -> float:
    """The |z| that a pair within any group exceeds with the probability `level`, if all cells are equal. Cells without
    influences don't count, since nothing tests them."""
    cells = list(dict.fromkeys(cell for group in groups for cell in group if cell in evidence.influences))
    place = {cell: i for i, cell in enumerate(cells)}
    counted = np.zeros((len(cells), len(cells)), dtype=bool)
    for group in groups:
        tested = [cell for cell in group if cell in place]
        for a, b in combinations(tested, 2):  # the best is best by luck too, so any pair may be compared
            counted[place[a], place[b]] = counted[place[b], place[a]] = True
    return critical_range(_covariance(cells, evidence), level, counted)


def _covariance(cells: Sequence[str], evidence: Evidence) -> Array:
    """The covariance (k, k) of the cells' errors, which is 0 between cells that share no noise."""
    noise = defaultdict[Hashable, list[int]](list)
    for i, cell in enumerate(cells):
        noise[evidence.pairings[cell], len(evidence.influences[cell])].append(i)
    covariance = np.zeros((len(cells), len(cells)))
    for places in noise.values():
        influences = np.stack([evidence.influences[cells[i]] for i in places])
        covariance[np.ix_(places, places)] = np.cov(influences) / influences.shape[1]
    return covariance


def marks_of(table: Table, means: Averaged, rows: Mapping[str, Row], evidence: Evidence) -> Marks:
    """The marks of a table by its metric.

    Of the cells of a column that are as good as its best, all are alike with a probability of 95 %. Replicates are
    compared by their means, with Student's t over the seeds that both have; those that share fewer than two seeds are
    not tested. The best itself is not among the cells, nor is one that equals it.

    `table` has `means` as values. `rows` are those of quality.csv by cell, and `evidence` is of the table's metric."""
    alike = set[str]()
    untested = set[str]()
    for best, others in table.contests():
        if means.over:
            result = _over_seeds(best, others, means.members, rows, evidence, table.metric)
        else:
            column = [best, *others]
            result = against_best(column, rows, evidence, table.metric, joint_limit([column], evidence))
        alike.update(result.alike, result.same)
        untested.update(result.untested)
    return Marks(frozenset(alike), frozenset(untested))


def _over_seeds(
    best: str,
    others: Sequence[str],
    members: Mapping[str, Sequence[Replicate]],
    rows: Mapping[str, Row],
    evidence: Evidence,
    metric: MetricColumn,
) -> AgainstBest:
    """Compare settings with the best of their column by the spread between seeds."""
    values = {cell: row.get(metric.name) for cell, row in rows.items()}
    parts = {name: _by_first_seed(members[best], members[name], values) for name in others}
    tested = {name: pairs for name, pairs in parts.items() if len(pairs) > 1}
    result = AgainstBest(best, [], [], [name for name in others if name not in tested])
    if not tested:
        return result
    level = level_against_best(len(tested) + 1, max(map(len, tested.values())))
    for name, pairs in tested.items():
        differences = [np.mean([float(values[b] or 0) - float(values[a] or 0) for a, b in part]) for part in pairs]
        shared = shared_sampling_error(pairs, evidence) if evidence.influences else None
        if mean_over_seeds(np.array(differences), shared or 0.0).p >= level:
            result.alike.append(name)
    return result


def _by_first_seed(
    first: Sequence[Replicate], second: Sequence[Replicate], values: Mapping[str, float | None]
) -> list[list[Cells]]:
    """The pairs of scored cells with the same seeds, for each value of their first seed."""
    cells = {member.seeds: member.cell for member in first}
    pairs: dict[Hashable, list[Cells]] = defaultdict(list)
    for member in second:
        pair = (cells.get(member.seeds, ""), member.cell)
        scores = [values.get(cell) for cell in pair]
        if all(score is not None and math.isfinite(score) for score in scores):
            pairs[member.seeds[0]].append(pair)
    return list(pairs.values())


def sampling_error(pairs: Sequence[Cells], evidence: Evidence) -> float | None:
    """The standard error of the mean difference of a metric over sampling; None if a cell has no influences. Cells with
    the same x_T are added up sample by sample, so what their noise shares cancels or adds up as it does in the mean;
    groups with other noise are independent."""
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


def shared_sampling_error(parts: Sequence[Sequence[Cells]], evidence: Evidence) -> float | None:
    """The standard error of the sampling noise that replicates share, see `shared_error`; None if it is unknown.
    `parts` are the pairs of each replicate, equally many for each, so that all have the same weight in the mean."""
    noise = [{evidence.pairings[cell] for pair in part for cell in pair} for part in parts]
    if len(set().union(*noise)) == sum(map(len, noise)):  # no two of them start from the same
        return 0.0
    of_mean = sampling_error([pair for part in parts for pair in part], evidence)
    if of_mean is None:
        return None
    return float(shared_error(of_mean, np.array([sampling_error(part, evidence) for part in parts])))


class Decided(NamedTuple):
    """What one look at the scores decides."""

    groups: list[Contenders]
    """Of each group with undecided cells: its best, and the cells whose order against it is undecided."""
    same: set[str]  # cells with the same samples as the best of their group, which no N can tell apart
    untested: set[str]
    """Cells without a standard error at this N, and the best of the others, since their order is not known."""

    @property
    def undecided(self) -> set[str]:
        """The cells that a larger N may tell apart."""
        return {cell for group in self.groups for cell in group}


def columns(tables: Sequence[Table]) -> list[Contenders]:
    """The cells of each column, where several compete."""
    return [[best, *others] for table in tables for best, others in table.contests()]


def look(
    groups: Sequence[Contenders], rows: Mapping[str, Row], evidence: Evidence, metric: MetricColumn, looks: float
) -> Decided:
    """Compare the cells of each group with its best; `groups` are those that earlier looks left undecided. `rows` are
    those of quality.csv by cell, all of one N. `evidence` is of `metric`, and cells without influences are left out.
    `looks` is their largest possible number, known before the first."""
    decided = Decided([], set(), set())
    tested = [[cell for cell in group if cell in evidence.influences] for group in groups]
    limit = joint_limit(tested, evidence, LEVEL / looks)
    for group, cells in zip(groups, tested, strict=True):
        if not cells:
            decided.untested.update(group)
            continue
        result = against_best(cells, rows, evidence, metric, limit)
        decided.same.update(result.same)
        if result.alike:
            decided.groups.append([result.best, *result.alike])
        if len(cells) < len(group):
            decided.untested.update(set(group) - set(cells), [result.best])
    return decided
