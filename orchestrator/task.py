"""A task: what the dispatcher knows about a piece of work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work. `cost` is in any unit proportional to time within its kind; `requires` holds keys of tasks."""

    key: str
    kind: str
    cost: float
    requires: frozenset[str] = frozenset()
