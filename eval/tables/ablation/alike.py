"""Which cells have an FID that can't be told from the best of their column: 95 % jointly, see joint.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taugrid.eval.tables.ablation.joint import critical_range
from taugrid.eval.tables.ablation.one_table import USUAL, Layout, one_table
from taugrid.eval.tables.ablation.replicates import alike_over_seeds, averaged
from taugrid.eval.tables.ablation.sampling_errors import shared_sampling_error
from taugrid.eval.tables.differences import Evidence, paired_error
from taugrid.eval.tables.long_form import FID, in_grid_order
from taugrid.eval.tables.pivots import against_best


def indistinguishable(
    rows: Sequence[Mapping[str, Any]], evidence: Evidence, joined: bool = False, layout: Layout = USUAL
) -> frozenset[str]:
    """Cells whose FID can't be distinguished from the best of their column, or that have the same samples.

    Of the cells of a column that are as good as its best, all are found with a probability of 95 %. Replicates are
    compared by their means, with Student's t over the seeds that both have. The best itself is not among the cells, nor
    is one that equals it, has no paired standard error, or shares fewer than two seeds with it.

    Args:
        rows: rows of quality.csv, in the order of the grid.
        evidence: covers the cells and protocols of all rows.
        joined: whether columns mix protocols, as the tables' columns do with `join_protocols`.
        layout: of the tables.
    """
    if not rows:
        return frozenset()
    by_cell = {row["cell"]: row for row in rows}
    values = {cell: row["fid"] for cell, row in by_cell.items()}
    protocols = {} if joined else evidence.protocols
    frame = in_grid_order(rows)
    means = averaged(frame, protocols)
    alike: set[str] = set()
    for table in one_table(frame, FID, protocols, layout):
        for best, others in against_best(table, FID.higher_is_better):
            if means.over:
                members = {cell: means.members[cell] for cell in others}
                alike |= alike_over_seeds(
                    means.members[best], members, values, lambda parts: shared_sampling_error(parts, evidence) or 0.0
                )
            else:
                alike |= _alike(by_cell[best], [by_cell[cell] for cell in others], evidence)
    return frozenset(alike)


def _alike(best: Mapping[str, Any], others: Sequence[Mapping[str, Any]], evidence: Evidence) -> set[str]:
    """The cells of a column whose difference from `best` chance among the samples explains."""
    found = {row["cell"]: paired_error(row["fid"] - best["fid"], best, row, evidence) for row in others}
    tested = {cell: paired for cell, paired in found.items() if paired.se is not None}
    if not tested:
        return set()
    limit = _limit([best["cell"], *tested], evidence)
    return {cell for cell, paired in tested.items() if paired.z is None or abs(paired.z) < limit}


def _limit(cells: Sequence[str], evidence: Evidence) -> float:
    """The critical |z| for cells that share their noise and their N."""
    influences = np.stack([evidence.influences[cell] for cell in cells])
    return critical_range(np.cov(influences) / influences.shape[1])
