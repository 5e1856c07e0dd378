"""What a session has to do, what is done, by kind of work, and how long the rest takes. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taugrid.orchestrator.progress.remaining import Rates, Span, Waiting, seconds_left
from taugrid.orchestrator.progress.workforce import WorkerState


class KnownTask(NamedTuple):
    kind: str
    cost: float
    pace: str
    """Tasks of one pace take equal time for equal cost."""
    cell: str | None = None
    images: int = 0
    """How many it makes, for kinds of work whose images are counted."""


@dataclass
class Amount:
    tasks: int = 0
    cost: float = 0.0

    def add(self, tasks: int, cost: float) -> None:
        """Add tasks, or take them away with negative numbers."""
        self.tasks += tasks
        self.cost += cost


class Left(NamedTuple):
    seconds: float | None
    """None: nothing is known yet."""
    unknown: tuple[str, ...] = ()
    """The kinds of work that it does not include, because none of it was measured."""


@dataclass
class Todo:
    items: Mapping[str, KnownTask] = field(default_factory=dict)
    """By key. Not all are known if the session is watched from its directory."""
    all: dict[str, Amount] = field(default_factory=dict)
    """Kind -> what there is to do."""
    done: dict[str, Amount] = field(default_factory=dict)
    """Kind -> what is done."""
    rates: Rates = field(default_factory=Rates)
    _open: dict[tuple[str, str], Amount] = field(default_factory=dict)  # kind and pace -> what is not done
    _closed: set[str] = field(default_factory=set)

    def begin(self, work: Iterable[Mapping[str, Any]]) -> None:
        for entry in work:
            amount = entry["tasks"], entry["cost"]
            self.all.setdefault(entry["kind"], Amount()).add(*amount)
            self.done.setdefault(entry["kind"], Amount())
            self._open.setdefault((entry["kind"], entry["pace"]), Amount()).add(*amount)

    def item(self, key: str, event: Mapping[str, Any]) -> KnownTask:
        """A task: from the plan, or else estimated from others of its kind and the event that says it is done."""
        if key in self.items:
            return self.items[key]
        kind, images = key.split("/")[0], event.get("images", 0)
        pace = next((pace for name, pace in self._open if name == kind), kind)
        amount = self.all.get(kind, Amount(1, images))
        cost = amount.cost / max(1, amount.tasks)
        return KnownTask(kind, cost, pace, images=images if event["event"] == "shard" else 0)

    def finish(self, key: str, item: KnownTask) -> bool:
        """Count a task as done. Returns False if it was counted before."""
        if key in self._closed:
            return False
        self.done.setdefault(item.kind, Amount()).add(1, item.cost)
        self._close(key, item)
        return True

    def give_up(self, key: str) -> KnownTask | None:
        """Count a task as one that will not be done, and return it; None if it is not known, or no longer open."""
        if (item := self.items.get(key)) is None or key in self._closed:
            return None
        self._close(key, item)
        return item

    @property
    def open_kinds(self) -> set[str]:
        return {kind for (kind, _), amount in self._open.items() if amount.tasks > 0}

    def is_open(self, key: str) -> bool:
        """Whether a task is neither done nor given up."""
        return key not in self._closed

    def _close(self, key: str, item: KnownTask) -> None:
        self._closed.add(key)
        if (amount := self._open.get((item.kind, item.pace))) is not None:
            amount.add(-1, -item.cost)

    def left(self, running: Mapping[str, WorkerState], workers: int, at: float) -> Left:
        """How long `workers` need for the rest; `running` are the known tasks that they are doing."""
        in_hand = [(self.items[key], worker) for key, worker in running.items()]
        paces = self._paces(in_hand)
        begun, taken = [], Counter[tuple[str, str]]()
        for item, worker in in_hand:
            taken[item.kind, item.pace] += 1
            if (pace := paces.get(item.pace)) is not None:
                seen = worker.last.at if worker.last else worker.since
                begun.append(max(0.0, (1 - worker.fraction) * item.cost * pace - max(0.0, at - seen)))
        waiting, unknown = [], []
        for (kind, name), amount in self._open.items():
            known = paces[name]
            if amount.tasks > 0 and known is None:
                unknown.append(kind)
            elif amount.tasks > taken[kind, name] and known is not None:
                waiting.append(Waiting(amount.tasks - taken[kind, name], amount.cost / amount.tasks * known))
        if not workers or not (begun or waiting):
            return Left(None, tuple(unknown))
        return Left(seconds_left(begun, waiting, max(workers, len(begun))), tuple(unknown))

    def _paces(self, running: Iterable[tuple[KnownTask, WorkerState]]) -> dict[str, float | None]:
        """Seconds per unit of cost by pace, with what heartbeats report."""
        heard: dict[str, list[Span]] = {}
        for item, worker in running:
            if worker.first and worker.last:
                done = (worker.last.fraction - worker.first.fraction) * item.cost
                heard.setdefault(item.pace, []).append(Span(worker.last.at - worker.first.at, done))
        return {pace: self.rates.seconds(pace, heard.get(pace, ())) for _, pace in self._open}
