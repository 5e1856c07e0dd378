"""The best checkpoint for each S and eta, and those that can't be told apart from it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taugrid.eval.tables.differences import Evidence, pair
from taugrid.eval.tables.entries import Z_95
from taugrid.eval.tables.long_form import CHECKPOINT, axes
from taugrid.eval.tables.rows import as_text


class BestCheckpoint(NamedTuple):
    """Of cells that differ in nothing but the checkpoint."""

    steps: int
    cell: str
    checkpoint: str
    alike: tuple[str, ...]
    """Checkpoints whose paired difference to the best is |z| < `Z_95`, in the order of the rows."""


def best_checkpoints(rows: Sequence[Mapping[str, Any]], evidence: Evidence) -> list[BestCheckpoint]:
    """One for each group of at least two scored cells that differ in nothing but the checkpoint.

    Args:
        rows: rows of quality.csv in the order of the grid.
        evidence: covers the cells and protocols of all rows.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get(CHECKPOINT) is not None and row["fid"] is not None:
            names = ["steps", "eta", "sigma", "spacing", "clip", "num_samples", *axes(row)]
            groups[tuple(as_text(row.get(name)) for name in names if name != CHECKPOINT)].append(row)
    return [_best(group, evidence) for group in groups.values() if len(group) > 1]


def _best(group: Sequence[Mapping[str, Any]], evidence: Evidence) -> BestCheckpoint:
    best = min(group, key=lambda row: float(row["fid"]))
    alike = tuple(str(row[CHECKPOINT]) for row in group if row is not best and _is_alike(best, row, evidence))
    return BestCheckpoint(best["steps"], best["cell"], str(best[CHECKPOINT]), alike)


def _is_alike(best: Mapping[str, Any], row: Mapping[str, Any], evidence: Evidence) -> bool:
    try:
        found = pair(best, row, evidence)
    except ValueError:  # another protocol or other noise
        return False
    return found["se"] is not None and (found["z"] is None or abs(found["z"]) < Z_95)
