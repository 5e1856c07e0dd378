"""A task: what the dispatcher knows of a piece of work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A piece of work: `cost` in any unit that is proportional to time within its kind; `requires` names tasks."""

    key: str
    kind: str
    cost: float
    requires: frozenset[str] = frozenset()
