"""The scheduling policy as a pure state machine: no clock, no Ray, no files. It takes events and gives assignments.

`backlog.py` holds the tasks, `hands.py` who has which, `health.py` judges workers and nodes; here they meet. A worker
that is not benched, on a node that will stay, never idles while a task is ready that it takes: a task prefers a node
that has not failed it, then a worker that has not, then any.

What a failure is charged to:
- an error of the surroundings: to the worker and its node. The task is queued again.
- any other error: to the task, and to the worker until other nodes agree that it is the task.
- a worker's death, a hang, or an accelerator's error, after which a worker is replaced: to the task that ran there,
  and to the node. A task whose workers died twice is a suspect: it waits until nothing else is ready, and runs as the
  only suspect at that time.
- the loss of a node: to nobody.

A worker that is at a task may have a second one in hand, which it begins by itself when the first only writes or is
done: then nothing waits for the driver. It gets one only while more are ready than there are workers, so that none is
kept from an idle one, and only if neither has ever been in trouble. Which of the two a worker died of cannot be known,
so neither is charged; both have been in trouble from then on, and a task that kills will do so alone.

`history.suffices` says when a task is quarantined. Once the queue has nothing for it, an idle worker takes a copy of
a task that waits behind another, or of the oldest one that runs much longer than similar ones or is silent. Commits are
idempotent, so the first copy counts.

No event and no assignment costs time that grows with the number of tasks or with workers times workers; docs/scale.md
has the figures for 512 workers.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

from taugrid.orchestrator.dispatch.policy.backlog import Backlog
from taugrid.orchestrator.dispatch.policy.hands import Hands
from taugrid.orchestrator.dispatch.policy.health import Benching, Health
from taugrid.orchestrator.dispatch.policy.history import Suspects, TaskHistory, suffices
from taugrid.orchestrator.dispatch.policy.pace import Pace
from taugrid.orchestrator.task import Task

MOST_COPIES = 3
"""Of one task at a time. A second copy may hang as the first does; a task that hangs everywhere must not take all."""

LOSSES_OF_A_SUSPECT = 2
"""One worker's death is an accident. A second with the same task makes it a suspect."""


class Fault(Enum):
    """What a job's error is due to."""

    TASK = auto()
    SURROUNDINGS = auto()
    """See `taugrid.errors.is_environment_error`."""
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
    key: str | None
    """The task that the worker had, if any."""
    quarantined: bool
    """The task is given up."""
    benching: Benching | None
    """A worker or node is not to be used for a time."""


class Dispatcher:
    """Decides which worker gets which task. Times are seconds on any one clock.

    Raises:
        ValueError: as `Backlog`.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        kinds: Sequence[str],
        max_attempts: int = 3,
        hang_seconds: float = 600.0,
        second: bool = False,
    ) -> None:
        """`second`: whether a worker may have a second task in hand."""
        self._backlog = Backlog(tasks, kinds)
        self._health = Health()
        self._max_attempts = max_attempts
        self._hang_seconds = hang_seconds
        self._kinds = frozenset(kinds)
        self._hands = Hands()
        self._gives_second = second
        self._histories: dict[str, TaskHistory] = {}
        self._suspects = Suspects()
        self._lost_last: str | None = None
        self._pace = Pace(kinds)
        self._none_overdue_until = float("-inf")

    @property
    def finished(self) -> bool:
        """Whether nothing is left that can be done. Superfluous copies may still be running."""
        return self._backlog.finished

    @property
    def done(self) -> set[str]:
        return self._backlog.done

    @property
    def quarantined(self) -> set[str]:
        return self._backlog.quarantined

    @property
    def unreachable(self) -> set[str]:
        """The keys of tasks that require one that is given up, directly or indirectly."""
        return self._backlog.unreachable

    @property
    def running(self) -> Mapping[str, str]:
        """Worker -> key of its current task."""
        return MappingProxyType(self._hands.keys)

    def since(self, worker: str) -> float:
        """When `worker` began the task that it is at."""
        return self._hands.running[worker].since

    def in_hand(self, worker: str) -> list[str]:
        """The keys of the tasks that `worker` has, the one that it is at first."""
        return self._hands.of(worker)

    @property
    def oldest(self) -> float:
        """Since when the task runs that has run longest; infinity if none runs."""
        return min((running.since for running in self._hands.running.values()), default=float("inf"))

    @property
    def workers(self) -> int:
        """Number of workers that have joined and are not lost."""
        return len(self._hands)

    @property
    def ready(self) -> int:
        """Number of tasks that could start now, without suspects."""
        return len(self._backlog)

    def attempts(self, key: str) -> int:
        """How many failures count against a task."""
        return self._histories[key].attempts if key in self._histories else 0

    def worker_joined(
        self, worker: str, node: str | None = None, now: float = 0.0, kinds: Collection[str] | None = None
    ) -> None:
        """`worker` is ready for tasks of `kinds` (None: of all) on `node` (None: a node of its own)."""
        self._hands.join(worker)
        takes = self._kinds if kinds is None else frozenset(kinds)
        self._health.joined(worker, worker if node is None else node, now, takes)

    def draining(self, nodes: Collection[str]) -> None:
        """`nodes`, and no others, will soon be gone: their workers get no new task."""
        self._health.draining(nodes)

    def beat(self, worker: str, now: float) -> None:
        if worker in self._hands.running:
            self._hands.running[worker].heard = now

    def excuse(self, seconds: float) -> None:
        """For so long nobody could be heard: that is no silence of the tasks that run."""
        for running in self._hands.running.values():
            running.heard += seconds

    def overdue(self, now: float) -> list[str]:
        """The workers whose task has been silent for `hang_seconds`: kill them and call `worker_lost`."""
        if now < self._none_overdue_until:
            return []
        oldest = min((running.heard for running in self._hands.running.values()), default=now)
        self._none_overdue_until = oldest + self._hang_seconds  # beats only put it off
        return [worker for worker, running in self._hands.running.items() if now - running.heard >= self._hang_seconds]

    def assign(self, now: float) -> list[Assignment]:
        """Assign tasks to idle workers, as far as there are any; they count as running from `now`."""
        assignments = []
        if self._hands.idle:
            assignments = [self._begin(worker, key, now) for worker, key in self._ready()]
            assignments += [self._begin(worker, key, now) for worker, key in self._trial(now)]
            assignments += [self._begin(worker, key, now, speculative=True) for worker, key in self._copies(now)]
        return assignments + list(self._seconds(now)) if self._gives_second else assignments

    def succeeded(self, worker: str, now: float, key: str | None = None) -> bool:
        """`worker` finished the task `key` (None: the one that it was at). True if it was the first to do so."""
        running, overtook = self._hands.finish(worker, key, now)
        key, node = running.task.key, self._health.node(worker)
        self._health.succeeded(worker)
        if key in self.done or key in self.quarantined:
            return False
        if key in self._histories:
            for other in self._histories[key].evidence.keys() - {node}:
                self._health.convict(other)
        self._suspects.clear(key)
        if not overtook:
            self._pace.add(running.task, now - running.since)
        self._backlog.complete(key)
        return True

    def failed(
        self, worker: str, now: float, fault: Fault = Fault.TASK, reason: str = "", key: str | None = None
    ) -> Charge:
        """`worker` failed the task `key` (None: the one that it was at) but is alive."""
        key, node = self._hands.finish(worker, key, now).running.task.key, self._health.node(worker)
        history = self._histories.setdefault(key, TaskHistory())
        agreed = bool(self._health.proven() & (history.errors.keys() - {node}))
        history.met |= {worker, node}
        if fault in (Fault.TASK, Fault.FINAL):
            history.errors[node] += 1
        if history.errors.total() >= self._max_attempts:
            self._suspects.add(key)
        to_blame = fault is Fault.TASK and self._suffices(key, history, now)
        quarantined = self._settle(key, to_blame or fault is Fault.FINAL)
        if fault is Fault.FINAL or (fault is Fault.TASK and agreed):
            return Charge(key, quarantined, None)
        if fault is Fault.REFUSAL:
            return Charge(key, quarantined, self._health.refused(worker, now, reason))
        return Charge(key, quarantined, self._health.failed(worker, now, reason, fault is Fault.SURROUNDINGS))

    def give_up(self, keys: Iterable[str]) -> set[str]:
        """Quarantine those of `keys` that nobody runs and that are open; returns which."""
        closed = (self.done, self.quarantined, self.unreachable)
        waiting = {key for key in keys if not any(key in some for some in (self._hands, *closed))}
        self._suspects.drop(waiting)
        for key in waiting:
            if key not in self.unreachable:  # because of another one
                self._backlog.give_up(key)
        return waiting

    def worker_lost(
        self, worker: str, now: float, reason: str = "", with_its_node: bool = False, certain: bool = False
    ) -> Charge:
        """`worker` is gone, and its work with it. `certain`: due to the task that it was at, not to a second one."""
        running, waited = self._hands.lose(worker)
        if waited is not None:
            if not with_its_node:
                self._histories.setdefault(waited, TaskHistory()).met |= {worker, self._health.node(worker)}
            self._settle(waited, False)
        key, node = running.task.key if running else None, self._health.node(worker)
        benching = None
        if not with_its_node and (key is None or key not in self._suspects):
            benching = self._health.lost(worker, now, reason)
        self._health.left(worker, now, with_its_node)
        if key is None or with_its_node:
            self._lost_last = None
            return Charge(key, key is not None and self._settle(key, False), benching)
        history = self._histories.setdefault(key, TaskHistory())
        history.met |= {worker, node}
        if waited is not None and not certain:
            self._lost_last = None
            return Charge(key, self._settle(key, False), benching)
        history.losses[node] += 1
        history.losses_in_a_row = history.losses_in_a_row + 1 if self._lost_last == key else 1
        self._lost_last = key
        if history.losses.total() >= LOSSES_OF_A_SUSPECT:
            self._suspects.add(key)
        convincing = bool(history.errors) or history.losses_in_a_row >= self._max_attempts
        to_blame = convincing and self._suffices(key, history, now)
        return Charge(key, self._settle(key, to_blame), benching)

    def worker_left(self, worker: str, now: float) -> None:
        """`worker`, which is idle, was sent away."""
        self._hands.lose(worker)
        self._health.left(worker, now)

    def openings(self, now: float) -> Counter[str]:
        """Kind -> how many more workers could be at tasks of it: one for each ready task.

        Where none of a kind is ready: one for each late task of it. Of suspects, only one is ready at a time.
        """
        ready = self._backlog.ready
        may_be_late = any(running.task.kind not in ready for running in self._hands.running.values())
        late = [self._backlog.task(key).kind for key in self._late(now)] if may_be_late else []
        found = Counter(ready) + Counter(kind for kind in late if kind not in ready)
        found += Counter(self._backlog.task(key).kind for key in self._waiting())
        if (suspect := self._next_on_trial) is not None:
            found[self._backlog.task(suspect).kind] += 1
        return found

    def due(self, now: float) -> list[str]:
        """The benched workers that are to say hello now: call `readmitted` or `refused` (or `worker_lost`) then."""
        running = self._hands.running
        at_once = not running and bool(wanted := self.startable) and not self._health.able(self._hands.idle, wanted)
        return self._health.due(now, at_once, running)

    def readmitted(self, worker: str) -> None:
        """`worker` passed its hello."""
        self._health.readmitted(worker)

    def refused(self, worker: str, now: float, reason: str) -> Benching:
        """`worker` did not pass its hello."""
        return self._health.refused(worker, now, reason)

    def unfit(self) -> dict[str, str]:
        """Node -> why, if nobody works and no node that has workers is fit to do what is ready. Otherwise empty."""
        unfit = self._health.unfit()
        if not unfit or self._hands.running:
            return {}
        wanted = self.startable
        return {} if not wanted or self._health.may_yet(self._hands.idle, wanted) else dict(unfit)

    def avoided(self) -> set[str]:
        """The nodes on which no further worker should be started."""
        return set(self._health.unfit())

    def bring_forward(self, worker: str, key: str, now: float) -> None:
        """If `key` is the second task of `worker`, which has overtaken the first, let it be the first."""
        self._hands.bring_forward(worker, key, now)

    def _begin(self, worker: str, key: str, now: float, speculative: bool = False) -> Assignment:
        task = self._backlog.task(key)
        self._hands.begin(worker, task, now)
        return Assignment(worker, task, speculative)

    def _seconds(self, now: float) -> Iterator[Assignment]:
        """Workers that are at a task, each with a second one of the same kind."""
        plenty = len(self._backlog) - self.workers
        if plenty <= 0:
            return
        kinds = self._backlog.kinds
        for worker in self._health.able(self._hands.single, kinds):
            running = self._hands.running[worker]
            if running.since == now or running.task.key in self._histories:  # the first must begin first
                continue
            if plenty > 0 and (key := self._backlog.take_fresh(running.task.kind)) is not None:
                plenty -= 1
                task = self._backlog.task(key)
                self._hands.give_second(worker, task)
                yield Assignment(worker, task, False)

    def _waiting(self) -> list[str]:
        """The tasks that wait behind another, and that nobody is at."""
        return [key for key in self._hands.behind if key not in self._hands.runners and key not in self.done]

    def _settle(self, key: str, to_blame: bool) -> bool:
        """Quarantine a task that is to blame, or queue it again unless a copy is running. True if quarantined."""
        if key in self.done or key in self.quarantined:
            return False
        if to_blame:
            self._suspects.clear(key)
            self._backlog.give_up(key)
            return True
        if key not in self._hands:
            if key in self._suspects:
                self._suspects.queue(key)
            else:
                self._backlog.add(key, self._histories[key].met if key in self._histories else ())
        return False

    def _suffices(self, key: str, history: TaskHistory, now: float) -> bool:
        """Whether a task that failed is to blame; not as long as a copy of it runs."""
        if key in self._hands.runners:
            return False
        fit = self._health.fit(now, self._backlog.task(key).kind)
        return suffices(history.evidence, self._max_attempts, fit, self._health.proven())

    @property
    def startable(self) -> set[str]:
        """The kinds of the tasks that could start now."""
        suspect = self._suspects.first
        return self._backlog.kinds | (set() if suspect is None else {self._backlog.task(suspect).kind})

    def _ready(self) -> Iterator[tuple[str, str]]:
        """Idle workers, the healthiest first, each with the ready task that it gets."""
        workers = self._health.able(self._hands.idle, self._backlog.kinds)
        for place in (self._health.node, str, _anywhere):
            left = []
            for worker in workers:
                if (key := self._backlog.take(self._health.takes(worker), place(worker))) is not None:
                    yield worker, key
                elif self._backlog:
                    left.append(worker)
                else:
                    return
            workers = left

    def _trial(self, now: float) -> Iterator[tuple[str, str]]:
        """The first suspect, if none is running, with a worker whose node has failed it least, of all fit ones."""
        if (suspect := self._next_on_trial) is None:
            return
        kind, failures = self._backlog.task(suspect).kind, self._histories[suspect].evidence
        fewest = min((failures[node] for node in self._health.fit(now, kind)), default=0)
        for worker in self._health.able(self._hands.idle, {kind}):
            if failures[self._health.node(worker)] <= fewest:
                yield worker, self._suspects.take()
                return

    @property
    def _next_on_trial(self) -> str | None:
        """The first suspect that waits, if none is running."""
        if self._suspects.first is None or self._suspects.any_of(self._hands.keys.values()):
            return None
        return self._suspects.first

    def _copies(self, now: float) -> Iterator[tuple[str, str]]:
        """Idle workers, each with the oldest late task that it may copy, if possible one that its node does not run."""
        late = {key: {self._health.node(self._hands.behind[key])} for key in self._waiting()} | self._late(now)
        kinds = {key: self._backlog.task(key).kind for key in late}
        for worker in self._health.able(self._hands.idle, set(kinds.values())):
            node, takes = self._health.node(worker), self._health.takes(worker)
            if (key := _first(key for key in late if kinds[key] in takes and node not in late[key])) is None:
                key = _first(key for key in late if kinds[key] in takes)
            if key is not None:
                yield worker, key
                late[key].add(node)
                if not self._may_be_copied(key, now):
                    del late[key]

    def _late(self, now: float) -> dict[str, set[str]]:
        """The tasks that are late and may be copied, the oldest first, each with the nodes where it runs."""
        return {
            one.task.key: {self._health.node(runner) for runner in self._hands.runners[one.task.key]}
            for one in self._pace.late(self._hands.running.values(), now)
            if self._may_be_copied(one.task.key, now)
        }

    def _may_be_copied(self, key: str, now: float) -> bool:
        """One more copy, if one at most is not silent. None once the attempts are used up: failing copies must end."""
        if key in self.done or key in self.quarantined or key in self._suspects:
            return False
        copies = [self._hands.running[runner] for runner in self._hands.runners[key]]
        audible = sum(not copy.is_silent(now) for copy in copies) + (key in self._hands.behind)
        return audible <= 1 and len(copies) < MOST_COPIES and self.attempts(key) < self._max_attempts


def _first(keys: Iterator[str]) -> str | None:
    return next(keys, None)


def _anywhere(worker: str) -> None:
    return None
