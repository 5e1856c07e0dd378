"""A run: its config, its plan and its directory."""

from dataclasses import dataclass

from taugrid.config import Config
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.rundir.directory import RunDir


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as every command and the Python API pass it on. `opened.py` makes it."""

    config: Config
    plan: Plan
    rundir: RunDir
