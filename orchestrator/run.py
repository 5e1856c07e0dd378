"""A run: its config, its plan and its directory."""

from dataclasses import dataclass

from taugrid.config import Config
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.rundir.directory import RunDir


@dataclass(frozen=True, eq=False)
class Run:
    """A config with its plan and its run directory, made by `opened.py`.

    `RunDir` is the directory alone; `RunView` (view/run.py) is the read-only view of a run in the Python API.
    """

    config: Config
    plan: Plan
    rundir: RunDir
