"""A task: one work item, from the plan to the progress display."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taugrid.jobs import Job
    from taugrid.orchestrator.plan.cells import Cell


@dataclass(frozen=True, slots=True)
class Task:
    """What the dispatcher hands to a worker, and the display counts."""

    key: str
    kind: str
    cost: float
    """In any unit proportional to time within its kind."""
    requires: frozenset[str] = frozenset()
    """Keys of the tasks that must be done before."""
    cell: "Cell | None" = field(default=None, compare=False)
    """None: it is for the reference, which all cells need."""
    job: "Job | None" = field(default=None, compare=False)
    """What the worker does; None where it is only counted, as in a view of another driver's session."""
