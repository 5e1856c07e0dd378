"""The scheduling policy as a pure state machine: no clock, no Ray, no files. It takes events and gives assignments.

`backlog.py` holds the tasks, `health.py` judges workers and nodes; here the two meet. A worker that is not benched
never idles while a task is ready: a task prefers a node that has not failed it, then a worker that has not, then any.

What a failure is charged to:
- an error of the surroundings: to the worker and its node. The task is queued again.
- any other error: to the task, and to the worker until other nodes agree that it is the task.
- a worker's death, a hang, or an accelerator's error, after which a worker is replaced: to the task that ran there,
  and to the node. A task whose workers died twice is a suspect: it waits until nothing else is ready, and runs as the
  only suspect at that time.
- the loss of a node: to nobody.

`_suffices` says when a task is quarantined. Once the queue is empty, an idle worker takes a copy of the oldest task
that runs much longer than similar ones, or is silent. Commits are idempotent, so the first copy counts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import NamedTuple

from taugrid.orchestrator.dispatch.backlog import Backlog
from taugrid.orchestrator.dispatch.health import Benching, Health
from taugrid.orchestrator.dispatch.pace import Pace, Running
from taugrid.orchestrator.task import Task

MOST_COPIES = 3
"""Of one task at a time. A second copy may hang as the first does; a task that hangs everywhere must not take all."""

LOSSES_OF_A_SUSPECT = 2
"""One worker's death is an accident. A second with the same task makes it a suspect."""

UNPROVEN_NODES = 8
"""Enough to quarantine a task while no node has done any: then it is likelier that all tasks fail than that all nodes
do, and to try each on every node of a large cluster would take long."""


class Fault(Enum):
    """What a job's error is due to."""

    TASK = auto()
    SURROUNDINGS = auto()
    """See `taugrid.errors.of_the_surroundings`."""
    REFUSAL = auto()
    """The surroundings for certain: see `taugrid.errors.WorkerRefusal`."""
    FINAL = auto()
    """The task, and trying again can't help."""


class Assignment(NamedTuple):
    """`worker` should do `task`; `speculative` if another worker is already doing it."""

    worker: str
    task: Task
    speculative: bool


class Charge(NamedTuple):
    """What a failure led to."""

    key: str | None
    """The task that the worker had, if any."""
    quarantined: bool
    """The task is given up."""
    benching: Benching | None
    """A worker or node is not to be used for a time."""


@dataclass
class _History:
    """A task's failures."""

    errors: Counter[str] = field(default_factory=Counter)
    """Node -> how often it raised an error of its own there."""
    losses: Counter[str] = field(default_factory=Counter)
    """Node -> how many workers died of it, or hung, there."""
    losses_in_a_row: int = 0
    """With no other worker lost in between: where workers die all the time, a death says little about the task."""
    met: set[str] = field(default_factory=set)
    """Nodes and workers where it did not go well, whoever was to blame: it goes elsewhere if it can."""

    @property
    def evidence(self) -> Counter[str]:
        """Node -> failures that count together. Beside errors, a single death may be an accident."""
        if not self.errors:
            return self.losses
        return self.errors + Counter({node: count for node, count in self.losses.items() if count > 1})


class Dispatcher:
    """Decides which worker gets which task. Times are seconds on any one clock.

    Raises:
        ValueError: as `Backlog`.
    """

    def __init__(
        self, tasks: Iterable[Task], kinds: Sequence[str], max_attempts: int = 3, hang_seconds: float = 600.0
    ) -> None:
        self._backlog = Backlog(tasks, kinds)
        self._health = Health()
        self._max_attempts = max_attempts
        self._hang_seconds = hang_seconds
        self._idle: dict[str, None] = {}  # an ordered set
        self._running: dict[str, Running] = {}
        self._runners: dict[str, set[str]] = {}
        self._histories: dict[str, _History] = {}
        self._suspects: list[str] = []  # those that wait, the one on trial first
        self._suspected: set[str] = set()
        self._lost_last: str | None = None
        self._pace = Pace(kinds)

    @property
    def finished(self) -> bool:
        """Whether nothing is left that can be done. Superfluous copies may still be running."""
        return self._backlog.finished

    @property
    def done(self) -> set[str]:
        """The keys of tasks that are done."""
        return self._backlog.done

    @property
    def quarantined(self) -> set[str]:
        """The keys of tasks that are given up."""
        return self._backlog.quarantined

    @property
    def unreachable(self) -> set[str]:
        """The keys of tasks that require one that is given up, directly or indirectly."""
        return self._backlog.unreachable

    @property
    def running(self) -> Mapping[str, str]:
        """Worker -> key of its current task."""
        return {worker: running.key for worker, running in self._running.items()}

    @property
    def oldest(self) -> float:
        """Since when the task runs that has run longest; infinity if none runs."""
        return min((running.since for running in self._running.values()), default=float("inf"))

    @property
    def workers(self) -> int:
        """Number of workers that have joined and are not lost."""
        return len(self._idle) + len(self._running)

    @property
    def ready(self) -> int:
        """Number of tasks that could start now, without suspects."""
        return len(self._backlog)

    def attempts(self, key: str) -> int:
        """How many failures count against a task."""
        history = self._histories.get(key, _History())
        return history.errors.total() + history.losses.total()

    def worker_joined(self, worker: str, node: str | None = None, now: float = 0.0) -> None:
        """`worker` is ready for work on `node` (None: a node of its own)."""
        if worker in self._idle or worker in self._running:
            raise ValueError(f"worker {worker!r} joined twice")
        self._idle[worker] = None
        self._health.joined(worker, worker if node is None else node, now)

    def beat(self, worker: str, now: float) -> None:
        """The task of `worker` goes on."""
        if worker in self._running:
            self._running[worker].heard = now

    def overdue(self, now: float) -> list[str]:
        """The workers whose task has been silent for `hang_seconds`: kill them and call `worker_lost`."""
        return [worker for worker, running in self._running.items() if now - running.heard >= self._hang_seconds]

    def assign(self, now: float) -> list[Assignment]:
        """Assign tasks to idle workers, as far as there are any; they count as running from `now`."""
        idle = sorted(filter(self._health.may_work, self._idle), key=self._health.rank)
        assignments: list[Assignment] = []

        def give(choose: Callable[[str], str | None], speculative: bool = False) -> None:
            for worker in list(idle):
                if (key := choose(worker)) is not None:
                    idle.remove(worker)
                    assignments.append(self._start(worker, key, now, speculative))

        for suits in (self._is_new_to_node, self._is_new_to_worker, _anything):
            if idle and self._backlog:
                give(partial(self._take, suits))
        give(partial(self._next_suspect, now))
        give(partial(self._straggler, now), speculative=True)
        return assignments

    def succeeded(self, worker: str, now: float) -> bool:
        """`worker` finished its task. True if it was the first to do so."""
        running = self._release(worker)
        key, node = running.key, self._health.node(worker)
        self._idle[worker] = None
        self._health.succeeded(worker)
        if key in self.done or key in self.quarantined:
            return False
        for other in self._histories.get(key, _History()).evidence.keys() - {node}:
            self._health.convict(other)
        self._suspected.discard(key)
        self._pace.add(self._backlog.tasks[key], now - running.since)
        self._backlog.complete(key)
        return True

    def failed(self, worker: str, now: float, fault: Fault = Fault.TASK, reason: str = "") -> Charge:
        """`worker` failed its task but is alive."""
        key, node = self._release(worker).key, self._health.node(worker)
        self._idle[worker] = None
        history = self._histories.setdefault(key, _History())
        agreed = bool(self._health.proven() & (history.errors.keys() - {node}))
        history.met |= {worker, node}
        if fault in (Fault.TASK, Fault.FINAL):
            history.errors[node] += 1
        if history.errors.total() >= self._max_attempts:
            self._suspected.add(key)
        to_blame = fault is Fault.TASK and self._suffices(key, history.evidence, now)
        quarantined = self._settle(key, to_blame or fault is Fault.FINAL)
        if fault is Fault.FINAL or (fault is Fault.TASK and agreed):
            return Charge(key, quarantined, None)
        if fault is Fault.REFUSAL:
            return Charge(key, quarantined, self._health.refused(worker, now, reason))
        return Charge(key, quarantined, self._health.failed(worker, now, reason, fault is Fault.SURROUNDINGS))

    def give_up(self, keys: Iterable[str]) -> set[str]:
        """Quarantine those of `keys` that nobody runs and that are open; returns which."""
        closed = self.done | self.quarantined | self.unreachable
        waiting = {key for key in keys if key not in closed and not self._runners.get(key)}
        self._backlog.remove(waiting)
        self._suspects = [key for key in self._suspects if key not in waiting]
        self._suspected -= waiting
        for key in waiting:
            if key not in self.unreachable:  # because of another one
                self._backlog.quarantine(key)
        return waiting

    def worker_lost(self, worker: str, now: float, reason: str = "", with_its_node: bool = False) -> Charge:
        """`worker` is gone, and its work with it."""
        running = self._release(worker) if worker in self._running else None
        self._idle.pop(worker, None)
        key, node = running.key if running else None, self._health.node(worker)
        benching = None
        if not with_its_node and key not in self._suspected:
            benching = self._health.lost(worker, now, reason)
        self._health.left(worker, now, with_its_node)
        if key is None or with_its_node:
            self._lost_last = None
            return Charge(key, key is not None and self._settle(key, False, charged=False), benching)
        history = self._histories.setdefault(key, _History())
        history.met |= {worker, node}
        history.losses[node] += 1
        history.losses_in_a_row = history.losses_in_a_row + 1 if self._lost_last == key else 1
        self._lost_last = key
        if history.losses.total() >= LOSSES_OF_A_SUSPECT:
            self._suspected.add(key)
        convincing = bool(history.errors) or history.losses_in_a_row >= self._max_attempts
        to_blame = convincing and self._suffices(key, history.evidence, now)
        return Charge(key, self._settle(key, to_blame), benching)

    def due(self, now: float) -> list[str]:
        """The benched workers that are to say hello now: call `readmitted` or `refused` (or `worker_lost`) then."""
        able = bool(self._running) or any(map(self._health.may_work, self._idle))
        return self._health.due(now, at_once=not able and bool(self._backlog or self._suspects))

    def readmitted(self, worker: str) -> None:
        """`worker` passed its hello."""
        self._health.readmitted(worker)

    def refused(self, worker: str, now: float, reason: str) -> Benching:
        """`worker` did not pass its hello."""
        return self._health.refused(worker, now, reason)

    def unfit(self) -> dict[str, str]:
        """Node -> why, if nobody works and no node that has workers is fit to. Otherwise empty."""
        unfit = self._health.unfit()
        if self._running or any(self._health.node(worker) not in unfit for worker in self._idle):
            return {}
        return unfit

    def avoided(self) -> set[str]:
        """The nodes on which no further worker should be started."""
        return set(self._health.unfit())

    def _start(self, worker: str, key: str, now: float, speculative: bool) -> Assignment:
        del self._idle[worker]
        self._running[worker] = Running(key, now, now)
        self._runners.setdefault(key, set()).add(worker)
        return Assignment(worker, self._backlog.tasks[key], speculative)

    def _take(self, suits: Callable[[str, str], bool], worker: str) -> str | None:
        return self._backlog.take(partial(suits, worker))

    def _release(self, worker: str) -> Running:
        running = self._running.pop(worker)
        self._runners[running.key].discard(worker)
        return running

    def _settle(self, key: str, to_blame: bool, charged: bool = True) -> bool:
        """Quarantine a task that is to blame, or queue it again unless a copy is running. True if quarantined."""
        if key in self.done or key in self.quarantined:
            return False
        if to_blame:
            self._suspected.discard(key)
            self._backlog.quarantine(key)
            return True
        if not self._runners[key]:
            if key in self._suspected:
                self._suspects.insert(0, key)
            else:
                self._backlog.add(key, after_all=charged or key in self._histories)
        return False

    def _suffices(self, key: str, failures: Counter[str], now: float) -> bool:
        """Whether a task is to blame for its `failures` by node: on min(`max_attempts`, fit nodes) nodes.

        On a single node, there must be `max_attempts`. One of the nodes must have done a task in this run, or all may
        be bad. A task that has failed on every fit node needs no such witness, nor does one that has failed on
        `UNPROVEN_NODES` where no node has done anything yet.
        """
        if self._runners[key]:
            return False
        fit = self._health.fit(now)
        tried = failures.keys() & fit
        if len(tried) < max(1, min(self._max_attempts, len(fit))):
            return False
        if len(tried) == 1 and failures[next(iter(tried))] < self._max_attempts:
            return False
        if tried == fit:
            return True
        if proven := self._health.proven() & fit:
            return bool(tried & proven)
        return len(tried) >= UNPROVEN_NODES

    def _is_new_to_node(self, worker: str, key: str) -> bool:
        return key not in self._histories or self._health.node(worker) not in self._histories[key].met

    def _is_new_to_worker(self, worker: str, key: str) -> bool:
        return key not in self._histories or worker not in self._histories[key].met

    def _next_suspect(self, now: float, worker: str) -> str | None:
        """The first suspect, if none is running and it has failed least on this worker's node, of all fit ones."""
        if not self._suspects or self._suspected & {running.key for running in self._running.values()}:
            return None
        failures = self._histories[self._suspects[0]].evidence
        fewest = min((failures[node] for node in self._health.fit(now)), default=0)
        return self._suspects.pop(0) if failures[self._health.node(worker)] <= fewest else None

    def _straggler(self, now: float, worker: str) -> str | None:
        """The oldest task that is late and may be copied, if possible one that no worker of the same node runs."""
        node = self._health.node(worker)
        late = [
            (node in {self._health.node(runner) for runner in self._runners[running.key]}, running.since, running.key)
            for running in self._running.values()
            if self._pace.is_late(self._backlog.tasks[running.key], running, now)
            and self._may_be_copied(running.key, now)
        ]
        return min(late)[-1] if late else None

    def _may_be_copied(self, key: str, now: float) -> bool:
        """One more copy, if one at most is not silent. None once the attempts are used up: failing copies must end."""
        if key in self.done or key in self.quarantined or key in self._suspected:
            return False
        copies = [self._running[runner] for runner in self._runners[key]]
        audible = sum(not copy.is_silent(now) for copy in copies)
        return audible <= 1 and len(copies) < MOST_COPIES and self.attempts(key) < self._max_attempts


def _anything(worker: str, key: str) -> bool:
    return True
