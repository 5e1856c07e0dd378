"""What reconstruction and interpolation share: cells of the ODE (eta = 0, no clipping), and pictures for figures.

Cells that differ only in eta or clip share one cell of the ODE.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.images import decode_png, to_pictures
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.integrity import Damage


def ode_cells(plan: Plan, **changes: Any) -> list[Cell]:
    """The plan's cells with eta = 0, no clipping and `changes`, without duplicates."""
    cells = (with_settings(cell, {"eta": 0.0, "clip": "none", **changes}) for cell in plan.cells)
    return list({cell.id: cell for cell in cells}.values())


def first_pictures(rundir: RunDir, paths: list[Path], count: int) -> NDArray[np.uint8]:
    """The first `count` pictures of the files, in the order of their indices, as figures need them."""
    found: dict[int, bytes] = {}
    for path in paths:
        if len(found) < count:
            found |= parquet.read_png(path, range(count), rundir.storage)
    return to_pictures([decode_png(found[i]) for i in sorted(found)])


def ignore_damage(damage: Damage) -> None:
    """For a second look at files: damage was reported at the first."""
