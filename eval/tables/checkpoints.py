"""The best of cells that differ only in the checkpoint, for the figure of checkpoints."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from taugrid.eval.tables.alike import Contenders, against_best, columns, joint_limit
from taugrid.eval.tables.arrangement import pivot_tables
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import CHECKPOINT, FID, has_values
from taugrid.eval.tables.quality import QualityTable
from taugrid.registry.metrics import MetricColumn


class BestCheckpoint(NamedTuple):
    """The best of cells that differ only in the checkpoint. Other checkpoints are in the order of the rows."""

    steps: int
    cell: str
    checkpoint: str
    alike: tuple[str, ...]  # checkpoints that can't be distinguished from it, or have the same samples
    untested: tuple[str, ...] = ()  # those whose difference from it has no standard error, if any has one


def best_checkpoints(quality: QualityTable, metric: MetricColumn = FID) -> list[BestCheckpoint]:
    """The best by `metric` of each group of at least two scored cells that differ only in the checkpoint.

    A group is tested with the limit of its column in the quality table, so that figure and table say the same of two
    cells. Means over seeds have other tests: then a group is a family of its own."""
    rows = {row["cell"]: row for row in quality.rows}
    places = {cell: place for place, cell in enumerate(rows)}
    evidence = quality.evidence.of(metric.name)
    limits = {} if quality.means.over else _limits(columns(quality.section(metric).tables), evidence)
    has_tests = has_values(quality.long, metric.sampling_error)
    result: list[BestCheckpoint] = []
    for group in _groups(quality, metric):
        cells = sorted(group, key=places.__getitem__)
        known = [limits[cell] for cell in cells if cell in limits]
        limit = max(known) if known else joint_limit([cells], evidence)
        found = against_best(cells, rows, evidence, metric, limit)
        alike = [cell for cell in cells if cell in (*found.alike, *found.same)]
        untested = found.untested if has_tests else []
        best = rows[found.best]
        result.append(
            BestCheckpoint(
                steps=best["steps"],
                cell=found.best,
                checkpoint=best[CHECKPOINT],
                alike=tuple(rows[cell][CHECKPOINT] for cell in alike),
                untested=tuple(rows[cell][CHECKPOINT] for cell in untested),
            )
        )
    return result


def _limits(of_columns: Sequence[Contenders], evidence: Evidence) -> Mapping[str, float]:
    """Cell -> the limit of its column."""
    limits: dict[str, float] = {}
    for column in of_columns:
        limits |= dict.fromkeys(column, joint_limit([column], evidence))
    return limits


def _groups(quality: QualityTable, metric: MetricColumn) -> list[list[str]]:
    """The scored cells that differ only in the checkpoint, and can be compared."""
    with_checkpoint = {row["cell"] for row in quality.rows if row.get(CHECKPOINT) is not None}
    groups = defaultdict[Hashable, list[str]](list)
    for table in pivot_tables(quality.long, metric, quality.used_protocols):
        heading = table.heading_without(CHECKPOINT)
        for place, value in table.values.items():
            if value.cell in with_checkpoint and not math.isnan(value.number):
                groups[heading, place].append(value.cell)
    return [group for group in groups.values() if len(group) > 1]
