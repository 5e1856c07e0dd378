"""The workers of a session, and what each is doing. Pure: fed with lines of the events file and with heartbeats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Beaten(NamedTuple):
    """A heartbeat that reported some of a task as done."""

    at: float
    fraction: float


@dataclass
class Hand:
    """A worker."""

    since: float
    """When it was started or got its task."""
    joined: bool = False
    benched: bool = False
    task: str | None = None
    second: str | None = None
    """The task that it will go on with, if it has one in hand already."""
    first: Beaten | None = None
    """The first heartbeat that reported some of its task as done: loading and warming up come before."""
    last: Beaten | None = None
    warm: set[str] = field(default_factory=set)
    """The paces of the tasks that it has done: what such tasks need is loaded."""

    def begin(self, at: float, task: str | None) -> None:
        """It is at `task` from now on, or at nothing."""
        self.task, self.since, self.first, self.last = task, at, None, None

    @property
    def fraction(self) -> float:
        """How much of its task is done, by its last heartbeat."""
        return self.last.fraction if self.last else 0.0


@dataclass
class Hands:
    """All workers of a session."""

    by_name: dict[str, Hand] = field(default_factory=dict)
    lost: int = 0

    def observe(self, at: float, event: Mapping[str, Any]) -> None:
        """Take a line of the events file. Those that are not about workers are ignored."""
        name, worker = event["event"], event.get("worker", "")
        if name == "starting":
            self.by_name[worker] = Hand(at)
        elif name == "worker":
            self._hand(at, worker).joined = True
        elif name == "assigned":
            hand = self._hand(at, worker)
            hand.joined, hand.benched = True, False
            if hand.task is None:
                hand.begin(at, event["task"])
            else:
                hand.second = event["task"]
        elif name == "benched" and worker in self.by_name:
            self.by_name[worker].benched = True
        elif name == "failed":
            self.release(at, worker, event["task"])
        elif name in ("lost", "released"):
            self.lost += name == "lost"
            self.by_name.pop(worker, None)

    def heard(self, at: float, worker: str, fraction: float) -> None:
        """A worker's task is done to `fraction`."""
        hand = self.by_name.get(worker)
        if hand is not None and fraction > 0:
            hand.last = Beaten(at, fraction)
            hand.first = hand.first or hand.last

    def release(self, at: float, worker: str, task: str | None = None) -> None:
        """A worker's task has ended: `task`, or the one that it was at."""
        hand = self.by_name.get(worker)
        if hand is not None and task is not None and task == hand.second:
            hand.second = None
        elif hand is not None:
            following, hand.second = hand.second, None
            hand.begin(at, following)

    @property
    def joined(self) -> int:
        """How many have joined."""
        return sum(hand.joined for hand in self.by_name.values())

    @property
    def usable(self) -> int:
        """How many have joined and get work."""
        return sum(hand.joined and not hand.benched for hand in self.by_name.values())

    @property
    def starting(self) -> list[Hand]:
        """Those that have not joined yet."""
        return [hand for hand in self.by_name.values() if not hand.joined]

    @property
    def running(self) -> dict[str, Hand]:
        """Task -> the worker that is farthest with it."""
        found: dict[str, Hand] = {}
        for hand in self.by_name.values():
            if hand.task is not None and (hand.task not in found or found[hand.task].fraction < hand.fraction):
                found[hand.task] = hand
        return found

    def _hand(self, at: float, worker: str) -> Hand:
        return self.by_name.setdefault(worker, Hand(at))
