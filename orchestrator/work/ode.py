"""What reconstruction and interpolation share: ddim cells of the ODE (eta = 0, nothing clipped, float32, uncompiled).

Cells that differ in nothing else share one cell of the ODE.
"""

from typing import Any

from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.orchestrator.rundir.directory import Damage

OF_THE_ODE = {"sampler": "ddim", "eta": 0.0, "clip": "none", "precision": "float32", "compile": "none"}


def ode_cells(plan: Plan, **changes: Any) -> list[Cell]:
    """The plan's cells with the settings of the ODE and `changes`, without duplicates."""
    cells = (with_settings(cell, OF_THE_ODE | changes) for cell in plan.cells)
    return list({cell.id: cell for cell in cells}.values())


def ignore_damage(damage: Damage) -> None:
    """For a second look at files: damage was reported at the first."""
