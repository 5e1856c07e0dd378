"""Where each task failed, when that is enough to quarantine it, and which tasks may kill their workers. Pure."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

UNPROVEN_NODES = 8
"""Enough to quarantine a task while no node has done any: then it is likelier that all tasks fail than that all nodes
do, and to try each on every node of a large cluster would take long."""


@dataclass(slots=True)
class TaskHistory:
    errors: Counter[str] = field(default_factory=Counter)
    """Node -> how often it raised an error of its own there."""
    losses: Counter[str] = field(default_factory=Counter)
    """Node -> how many workers died of it, or hung, there."""
    losses_in_a_row: int = 0
    """With no other worker lost in between: where workers die all the time, a death says little about the task."""
    failed_at: set[str] = field(default_factory=set)
    """Nodes and workers where it failed, for whatever reason: it goes elsewhere if it can."""

    @property
    def attempts(self) -> int:
        """How many failures count against it."""
        return self.errors.total() + self.losses.total()

    @property
    def evidence(self) -> Counter[str]:
        """Node -> failures that count together. Beside errors, a single death may be an accident."""
        if not self.errors:
            return self.losses
        return self.errors + Counter({node: count for node, count in self.losses.items() if count > 1})


def suffices(failures: Counter[str], max_attempts: int, usable: Set[str], proven: Set[str]) -> bool:
    """Whether a task is to blame for its `failures` by node: on min(`max_attempts`, usable nodes) nodes.

    On a single node, there must be `max_attempts`. One of the nodes must be `proven`, or all may be bad. A task that
    has failed on every usable node needs no such witness, nor does one that has failed on `UNPROVEN_NODES` where no
    node is proven yet. `health.py` defines the words.
    """
    tried = failures.keys() & usable
    if len(tried) < max(1, min(max_attempts, len(usable))):
        return False
    if len(tried) == 1 and failures[next(iter(tried))] < max_attempts:
        return False
    if tried == usable:
        return True
    if witnesses := proven & usable:
        return bool(tried & witnesses)
    return len(tried) >= UNPROVEN_NODES


class PoisonTasks:
    """Keys of tasks that may kill their workers: they wait for all others, and only one of them runs at a time."""

    def __init__(self) -> None:
        self._all: set[str] = set()
        self._waiting: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._all

    def next_trial(self, running: Iterable[str]) -> str | None:
        """The one to try next, if none of them is `running`."""
        # `running` is all that runs, and nearly always nothing waits
        return self.first_waiting if self._waiting and self._all.isdisjoint(running) else None

    @property
    def first_waiting(self) -> str | None:
        return next(iter(self._waiting), None)

    def add(self, key: str) -> None:
        """Suspect a task that is not queued."""
        self._all.add(key)

    def queue(self, key: str) -> None:
        """Let a task wait, before all others: it was on trial."""
        self._waiting[key] = None
        self._waiting.move_to_end(key, last=False)

    def begin(self, key: str) -> None:
        del self._waiting[key]

    def drop(self, keys: Iterable[str]) -> None:
        """Clear tasks that are done or quarantined."""
        for key in self._all.intersection(keys):
            self._all.discard(key)
            self._waiting.pop(key, None)
