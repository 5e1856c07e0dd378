"""A task: one work item, such as sampling a shard."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taugrid.jobs import Job
    from taugrid.orchestrator.plan.cells import Cell


NOTHING = frozenset[str]()
"""What most tasks require. Each empty set is an object of 216 bytes, and a run may have millions of tasks."""


@dataclass(frozen=True, slots=True)
class Task:
    """A work item that the dispatcher assigns to a worker and the progress display counts."""

    key: str
    kind: str
    cost: float  # the relative cost within its kind: proportional to time, in any unit
    requires: frozenset[str] = NOTHING  # the keys of the tasks that must finish first
    does_without: bool = field(default=False, kw_only=True)  # whether it can also be done once those were given up
    cell: "Cell | None" = field(default=None, compare=False)
    """The cell that it belongs to; None: it computes the reference statistics, which all cells need."""
    given: "Job | Callable[[Task], Job] | None" = field(default=None, compare=False)
    """The job, or what makes it once it is needed: of millions of tasks few are in flight."""

    @property
    def job(self) -> "Job | None":
        """The arguments of the work; None if the task is only counted."""
        return self.given(self) if callable(self.given) else self.given
