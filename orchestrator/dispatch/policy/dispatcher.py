"""The scheduling policy as a pure state machine: no clock, no Ray, no files. It takes events and gives assignments.

`tasks.py` holds the tasks, `health.py` judges workers, nodes and tasks. What a failure is charged to:
- an error of the environment: to the worker and its node. The task is queued again.
- any other error: to the task, and to the worker until other nodes agree that it is the task.
- a worker's death, a hang, or an accelerator's error, after which a worker is replaced: to the task that ran there,
  and to the node. If a second task was queued behind it, to neither, but both count as having failed from then on.
- the loss of a node, or a task that a worker gives back because its node will be lost: to neither.

No event and no assignment costs time that grows with the number of tasks or with workers times workers; docs/scale.md
has the figures for 512 workers.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple

from taugrid.orchestrator.dispatch.policy.health import Cooldown, Health, TaskHistory, suffices
from taugrid.orchestrator.dispatch.policy.tasks import Backlog, InFlight, Median, Running
from taugrid.orchestrator.task import Task

# Copies of one task at a time. A second may hang as the first does; a task that hangs everywhere must not take all
# workers.
MAX_COPIES = 3

# One worker's death is an accident. After a second with the same task, the task may be poison.
LOSSES_OF_POISON = 2

# A running task is late once it takes this many times as long as its cost, the finished tasks of its pace and
# the speed of its worker suggest. docs/decisions.md, "Stragglers", says why.
SPECULATION_SLOWNESS = 1.5

# A worker may be this many times as slow as others before its tasks are late for that alone, and may be so as long
# as it has finished no task. An older GPU is slow, and its tasks are sound. The last task of a worker that is slower
# still would hold up the run.
TOLERATED_SLOWNESS = 4.0


class Fault(Enum):
    """The reason for a job's error."""

    TASK = auto()
    ENVIRONMENT = auto()  # see `taugrid.errors.is_environment_error`
    REFUSAL = auto()  # the environment for certain: see `taugrid.errors.WorkerRefusal`
    FINAL = auto()  # the task, and trying again can't help


class Assignment(NamedTuple):
    worker: str
    task: Task
    speculative: bool = False  # another worker already has it


class Charge(NamedTuple):
    """The consequences of a failure."""

    key: str | None  # the task that the worker had, if any
    quarantined: bool  # whether the task will not be tried again
    cooldown: Cooldown | None  # of a worker or node that is not to be used for a time


class Dispatcher:
    """Decides which worker gets which task. Times are seconds on any one clock. `queues_ahead`: whether a worker that
    runs a task may have another one queued. `left_to_scorers`: kinds that workers of all kinds leave, while there is
    other work, to those that do no others. `pace`: what tasks share that take equal time for equal cost. Raises
    `ValueError` as `Backlog` does."""

    def __init__(
        self,
        tasks: Iterable[Task],
        kinds: Sequence[str],
        max_attempts: int = 3,
        hang_seconds: float = 600.0,
        queues_ahead: bool = False,
        left_to_scorers: Iterable[str] = (),
        pace: Callable[[Task], Hashable] = lambda task: task.kind,
    ) -> None:
        self.backlog = Backlog(tasks, kinds)
        self.done, self.quarantined = self.backlog.done, self.backlog.quarantined
        self.health = Health()
        self.in_flight = InFlight()
        self._pace = pace
        # Pace -> the seconds for each unit of cost that finished tasks took.
        self._usual = defaultdict[Hashable, Median](Median)
        # Worker -> the pace of the last task that it finished, and its seconds for each unit of cost.
        self._last_seconds: dict[str, tuple[Hashable, float]] = {}
        self._kinds, self._left_to_scorers = frozenset(kinds), frozenset(left_to_scorers)
        self._max_attempts, self._hang_seconds, self._queues_ahead = max_attempts, hang_seconds, queues_ahead
        self._histories = defaultdict[str, TaskHistory](TaskHistory)
        # Tasks that may kill their workers: they wait for all others, and only one of them runs at a time.
        self._poison: set[str] = set()
        self._waiting_poison: OrderedDict[str, None] = OrderedDict()
        self._lost_last: str | None = None  # the task that the last lost worker ran
        self._none_overdue_until = float("-inf")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do. Superfluous copies may still be running."""
        return self.backlog.finished

    def attempts(self, key: str) -> int:
        """How many failures count against a task."""
        return self._histories[key].attempts if key in self._histories else 0

    def worker_joined(
        self, worker: str, node: str | None = None, now: float = 0.0, kinds: Collection[str] | None = None
    ) -> None:
        """`worker` is ready for tasks of `kinds` (None: of all) on `node` (None: a node of its own)."""
        self.in_flight.join(worker)
        takes = self._kinds if kinds is None else frozenset(kinds)
        self.health.joined(worker, worker if node is None else node, now, takes)

    def worker_released(self, worker: str, now: float) -> None:
        """`worker`, which is idle, was ended because it is not needed."""
        self.in_flight.lose(worker)
        self.health.left(worker, now)

    def heartbeat(self, worker: str, now: float) -> None:
        if worker in self.in_flight.running:
            self.in_flight.running[worker].heartbeat = now

    def grant_grace(self, seconds: float) -> None:
        """Ignore this time, in which the driver received no heartbeats, when the silence of tasks is measured."""
        for running in self.in_flight.running.values():
            running.heartbeat += seconds

    def overdue(self, now: float) -> list[str]:
        """The workers whose task has been silent for `hang_seconds`: kill them and call `worker_lost`."""
        if now < self._none_overdue_until:
            return []
        running = self.in_flight.running
        oldest = min((each.heartbeat for each in running.values()), default=now)
        self._none_overdue_until = oldest + self._hang_seconds  # heartbeats only put it off
        return [worker for worker, each in running.items() if now - each.heartbeat >= self._hang_seconds]

    def succeeded(self, worker: str, now: float, key: str | None = None) -> bool:
        """`worker` finished the task `key` (None: the one that it ran). True if it was the first to do so."""
        running, overtook = self.in_flight.finish(worker, key, now)
        key, node = running.key, self.health.node(worker)
        self.health.succeeded(worker)
        if key in self.done or key in self.quarantined:
            return False
        if key in self._histories:
            for other in self._histories[key].evidence.keys() - {node}:
                self.health.blame(other)
        self._clear([key])
        if not overtook:
            pace = self._pace(running.task)
            seconds = (now - running.since) / max(running.task.cost, 1e-12)
            self._usual[pace].add(seconds)
            self._last_seconds[worker] = pace, seconds
        self.backlog.complete(key, worker)
        return True

    def gave_back(self, worker: str, now: float, key: str) -> None:
        """`worker` was stopped before the task `key` was done. Others do it, and nobody is charged."""
        self.in_flight.finish(worker, key, now)
        self._quarantine_or_requeue(key, False)

    def failed(
        self, worker: str, now: float, fault: Fault = Fault.TASK, reason: str = "", key: str | None = None
    ) -> Charge:
        """`worker` failed the task `key` (None: the one that it ran) but is alive."""
        key = self.in_flight.finish(worker, key, now)[0].key
        node, history = self.health.node(worker), self._histories[key]
        others_agree = bool(self.health.proven() & (history.errors.keys() - {node}))
        history.failed_at |= {worker, node}
        if fault in (Fault.TASK, Fault.FINAL):
            history.errors[node] += 1
        if history.errors.total() >= self._max_attempts:
            self._poison.add(key)
        to_blame = fault is Fault.FINAL or (fault is Fault.TASK and self._is_to_blame(key, now))
        quarantined = self._quarantine_or_requeue(key, to_blame)
        cooldown = None
        if fault is Fault.REFUSAL:
            cooldown = self.health.unhealthy(worker, now, reason)
        elif fault is Fault.ENVIRONMENT or (fault is Fault.TASK and not others_agree):
            cooldown = self.health.failed(worker, now, reason, fault is Fault.ENVIRONMENT)
        return Charge(key, quarantined, cooldown)

    def worker_lost(
        self, worker: str, now: float, reason: str = "", with_its_node: bool = False, culprit: str | None = None
    ) -> Charge:
        """`worker` is gone, and its work with it. `culprit`: the task that is known to be the reason, if any is."""
        tasks, node = self.in_flight.lose(worker), self.health.node(worker)
        key = culprit or next(iter(tasks), None)
        cooldown = None
        if not with_its_node and (key is None or key not in self._poison):
            cooldown = self.health.lost(worker, now, reason)
        self.health.left(worker, now, with_its_node)
        if not with_its_node:
            for each in tasks:
                self._histories[each].failed_at |= {worker, node}
        to_blame = False
        if key is not None and not with_its_node and (culprit is not None or len(tasks) == 1):
            to_blame = self._died_of(key, node, now)
        else:
            self._lost_last = None
        for each in tasks:
            if each != key:
                self._quarantine_or_requeue(each, False)
        return Charge(key, key is not None and self._quarantine_or_requeue(key, to_blame), cooldown)

    def _died_of(self, key: str, node: str, now: float) -> bool:
        """Charge a task with a worker's death. True if the task is to blame."""
        history = self._histories[key]
        history.losses[node] += 1
        history.losses_in_a_row = history.losses_in_a_row + 1 if self._lost_last == key else 1
        self._lost_last = key
        if history.losses.total() >= LOSSES_OF_POISON:
            self._poison.add(key)
        convincing = bool(history.errors) or history.losses_in_a_row >= self._max_attempts
        return convincing and self._is_to_blame(key, now)

    def _is_to_blame(self, key: str, now: float) -> bool:
        """Whether a task that failed is to blame; not as long as a copy of it runs."""
        if self.in_flight.copies(key):
            return False
        usable = self.health.usable_nodes(now, self._kind(key))
        return suffices(self._histories[key].evidence, self._max_attempts, usable, self.health.proven())

    def _quarantine_or_requeue(self, key: str, to_blame: bool) -> bool:
        """Quarantine a task that is to blame, or queue it again unless a worker has it. True if quarantined."""
        if key in self.done or key in self.quarantined:
            return False
        if to_blame:
            self._clear([key])
            self.backlog.quarantine(key)
            return True
        if key not in self.in_flight:
            if key in self._poison:
                self._waiting_poison[key] = None
                self._waiting_poison.move_to_end(key, last=False)  # before all others: it was on trial
            else:
                self.backlog.add(key, self._histories[key].failed_at if key in self._histories else ())
        return False

    def quarantine(self, keys: Iterable[str]) -> set[str]:
        """Quarantine those of `keys` that no worker has and that are open; returns which."""
        closed = (self.done, self.quarantined, self.backlog.unreachable)
        waiting = {key for key in keys if not any(key in some for some in (self.in_flight, *closed))}
        self._clear(waiting)
        for key in waiting:
            if key not in self.backlog.unreachable:  # because of another one
                self.backlog.quarantine(key)
        return waiting

    def demand_by_kind(self, now: float) -> Counter[str]:
        """Kind -> how many more workers could run tasks of it: one for each that is ready, or that may be copied."""
        ready = self.backlog.ready
        demand = Counter(ready)
        demand.update(self._kind(key) for key in self._only_queued())
        demand.update(kind for key in self._late(now) if (kind := self._kind(key)) not in ready)
        if (key := self._next_trial) is not None:
            demand[self._kind(key)] += 1
        return demand

    @property
    def startable_kinds(self) -> set[str]:
        """The kinds of the tasks that could start now."""
        return self.backlog.kinds | {self._kind(key) for key in islice(self._waiting_poison, 1)}

    def due_for_health_check(self, now: float) -> list[str]:
        """The workers whose health is to be checked now: call `health.readmitted` or `unhealthy`, or `worker_lost`."""
        running, idle = self.in_flight.running, self.in_flight.idle
        at_once = not running and bool(wanted := self.startable_kinds) and not self.health.available(idle, wanted)
        return self.health.due_for_health_check(now, at_once, running)

    def broken_nodes(self) -> dict[str, str]:
        """Node -> why, if no worker has a task and no node that has workers is fit for what is ready. Else empty."""
        unfit = self.health.broken_nodes()
        if not unfit or self.in_flight.running or not (wanted := self.startable_kinds):
            return {}
        return {} if self.health.may_become_available(self.in_flight.idle, wanted) else unfit

    def assign(self, now: float) -> list[Assignment]:
        """Assign tasks to idle workers, as far as there are any; they count as running from `now`."""
        assignments = []
        if self.in_flight.idle:
            assignments += [self._begin(worker, key, now) for worker, key in self._ready()]
            assignments += [self._begin(worker, key, now) for worker, key in self._trial(now)]
            assignments += [self._begin(worker, key, now)._replace(speculative=True) for worker, key in self._copy(now)]
        if self._queues_ahead:
            assignments += self._queue_second_tasks(now)
        return assignments

    def _begin(self, worker: str, key: str, now: float) -> Assignment:
        task = self.backlog.task(key)
        self.in_flight.begin(worker, task, now)
        return Assignment(worker, task)

    def _ready(self) -> Iterator[tuple[str, str]]:
        """Idle workers, the healthiest first, each with the ready task that it gets. A task prefers a node that has not
        failed it, then a worker that has not, then any. As long as there are other tasks, or may be some, only scorers
        get those that they do: a GPU should not wait for a score."""
        workers = self.health.available(self.in_flight.idle, self.backlog.kinds)
        workers.sort(key=lambda worker: self.health.takes(worker) == self._kinds)  # scorers first; stable
        there = self.backlog.kinds | {running.task.kind for running in self.in_flight.running.values()}
        left_kinds = self._left_to_scorers if there - self._left_to_scorers else frozenset[str]()
        places: tuple[Callable[[str], str | None], ...] = (self.health.node, str, lambda worker: None)
        for place in places:
            left = []
            for worker in workers:
                takes = self.health.takes(worker)
                takes = takes - left_kinds if takes == self._kinds else takes
                if (key := self.backlog.take(takes, place(worker), worker)) is not None:
                    yield worker, key
                elif self.backlog:
                    left.append(worker)
                else:
                    return
            workers = left

    def _trial(self, now: float) -> Iterator[tuple[str, str]]:
        """The task that is tried for poison, with a worker whose node has failed it least, of all usable ones."""
        if (key := self._next_trial) is None:
            return
        kind, failures = self._kind(key), self._histories[key].evidence
        fewest = min((failures[node] for node in self.health.usable_nodes(now, kind)), default=0)
        for worker in self.health.available(self.in_flight.idle, {kind}):
            if failures[self.health.node(worker)] <= fewest:
                del self._waiting_poison[key]
                yield worker, key
                return

    @property
    def _next_trial(self) -> str | None:
        """The first task that waits to be tried for poison, if none is on trial."""
        if not self._waiting_poison or any(run.key in self._poison for run in self.in_flight.running.values()):
            return None
        return next(iter(self._waiting_poison))

    def _clear(self, keys: Iterable[str]) -> None:
        """Suspect tasks no longer that are done or quarantined."""
        for key in self._poison.intersection(keys):
            self._poison.discard(key)
            self._waiting_poison.pop(key, None)

    def _copy(self, now: float) -> Iterator[tuple[str, str]]:
        """Idle workers, each with the oldest late task that it may copy, if possible one that its node does not run."""
        if not self.in_flight.idle:
            return
        late = {key: {self.health.node(worker)} for key, worker in self._only_queued().items()} | self._late(now)
        kinds = {key: self._kind(key) for key in late}
        for worker in self.health.available(self.in_flight.idle, set(kinds.values())):
            node, takes = self.health.node(worker), self.health.takes(worker)
            key = next((key for key in late if kinds[key] in takes and node not in late[key]), None)
            key = key or next((key for key in late if kinds[key] in takes), None)
            if key is not None:
                yield worker, key
                late[key].add(node)
                if not self._may_be_copied(key, now):
                    del late[key]

    def _only_queued(self) -> dict[str, str]:
        """Key -> worker, of the tasks that are queued behind another, and that no worker runs or has done."""
        queued = {task.key: worker for worker, task in self.in_flight.queued.items()}
        return {key: at for key, at in queued.items() if key not in self.done and not self.in_flight.copies(key)}

    def _late(self, now: float) -> dict[str, set[str]]:
        """The tasks that are late and may be copied, the oldest first, each with the nodes where it runs."""
        late = [
            running
            for worker, running in self.in_flight.running.items()
            if running.is_silent(now) or self._is_slow(worker, running, now)
        ]
        late.sort(key=lambda running: (running.since, running.key))
        return {
            one.key: {self.health.node(worker) for worker in self.in_flight.copies(one.key)}
            for one in late
            if self._may_be_copied(one.key, now)
        }

    def _is_slow(self, worker: str, running: Running, now: float) -> bool:
        """Whether a task takes far longer than others of its pace, and than its worker's last task suggests. A worker
        that has not finished one may be as slow as is tolerated. Never before a task of its pace is finished."""
        usual = self._usual[self._pace(running.task)].value
        if usual is None:
            return False
        excess = (now - running.since) / max(SPECULATION_SLOWNESS * usual * running.task.cost, 1e-12)
        if excess <= 1:
            return False
        if worker not in self._last_seconds:
            return excess > TOLERATED_SLOWNESS
        pace, seconds = self._last_seconds[worker]
        slowness = seconds / max(self._usual[pace].value or 0.0, 1e-12)
        return excess > min(max(1.0, slowness), TOLERATED_SLOWNESS)

    def _may_be_copied(self, key: str, now: float) -> bool:
        """Whether one more copy may start: at most one has a recent heartbeat, and the task has attempts left."""
        if key in self.done or key in self.quarantined or key in self._poison:
            return False
        copies = self.in_flight.copies(key).values()
        heard = sum(not copy.is_silent(now) for copy in copies) + self.in_flight.is_queued(key)
        return heard <= 1 and len(copies) < MAX_COPIES and self.attempts(key) < self._max_attempts

    def _queue_second_tasks(self, now: float) -> Iterator[Assignment]:
        """Workers that run a task, each with a second one of the same kind: its accelerator won't wait for the driver.
        Only while more are ready than there are workers, so that none is kept from an idle one, and only if neither has
        ever failed, since which of the two a worker died of cannot be known."""
        plenty = len(self.backlog) - len(self.in_flight)
        if plenty <= 0:
            return
        for worker in self.health.available(self.in_flight.may_queue, self.backlog.kinds):
            running = self.in_flight.running[worker]
            if running.since == now or running.key in self._histories:  # the first must begin first
                continue
            if plenty > 0 and (key := self.backlog.take_fresh(running.task.kind, worker)) is not None:
                plenty -= 1
                task = self.backlog.task(key)
                self.in_flight.queue(worker, task)
                yield Assignment(worker, task)

    def _kind(self, key: str) -> str:
        return self.backlog.task(key).kind
