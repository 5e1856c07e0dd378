"""The cells that an export takes, and their images and labels in the order of their indices."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.selection import find_cell

Chosen = tuple[list[Cell], list[str]]
"""The cells to export, and why others of the run are left out, a line for each."""


def choose(run: Run, name: str | None) -> Chosen:
    """The cell that `name` fits or, without one, all cells that have all their images.

    Raises:
        UserError: if no cell or several fit, or there is none with all its images.
    """
    wanted = run.plan.cells if name is None else [find_cell(run.plan, name)]
    problems = {cell.id: lacks(cell, run.rundir) for cell in wanted}
    cells = [cell for cell in wanted if problems[cell.id] is None]
    left_out = list(filter(None, problems.values()))
    if not cells:
        raise UserError(left_out[0])
    return cells, left_out


def lacks(cell: Cell, rundir: RunDir) -> str | None:
    """Why a cell can't be exported, and what to do; None if all its images are there and intact."""
    if rundir.has_removed_images(cell):
        return f"the images of {cell.label} were removed; delete {rundir.removal_record(cell)} and run again"
    damages: list[Damage] = []
    done = rundir.sampled(cell, None, every_byte=True, on_damage=damages.append)
    if damages or len(done) < len(cell.shards):
        number = len(cell.shards) - len(done)
        return f"{cell.label} has missing or damaged shards ({number} of {len(cell.shards)}); `taugrid run` makes them"
    return None


def pngs_of(cell: Cell, shard: Shard, rundir: RunDir) -> Iterator[bytes]:
    """The PNG bytes of a shard's images, as in Parquet, of which a row group is in memory at a time."""
    for group in parquet.read_encoded(rundir.sample_part(cell, shard), shard.stop, rundir.storage):
        yield from group


def labels_of(cell: Cell, shard: Shard, rundir: RunDir) -> NDArray[np.int64]:
    """The labels of a shard's images, (n,)."""
    read = parquet.read_numbers(rundir.sample_part(cell, shard), "label", rundir.storage)
    return np.concatenate([labels for _, labels in read])[: shard.images].astype(np.int64)
