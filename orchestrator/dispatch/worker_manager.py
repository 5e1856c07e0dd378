"""Starts, checks, replaces and releases the workers of a run, as the dispatcher's decisions and the nodes want it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError, is_accelerator_error
from taugrid.jobs import WorkerInfo
from taugrid.orchestrator.dispatch.capacity import Node, no_capacity
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.policy.health import Cooldown
from taugrid.orchestrator.dispatch.pool import SCORER_BYTES, Failed, Joined, Located, Lost, Pool
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.state import Busy, SessionSnapshot
from taugrid.orchestrator.rundir.directory import Committed
from taugrid.orchestrator.rundir.events import Events
from taugrid.words import counted, duration

# Workers beyond their number that may fail to start, or die while idle, with no task done in between, before the run
# gives up: something is wrong with all of them, and starting more would never end.
FRUITLESS_RESTARTS = 5

# Workers beyond their number that may die of their tasks while no task at all is done: more than the costliest cell has
# bad shards, as a rule, but far fewer than a queue of which every task kills has tasks.
FRUITLESS_DEATHS = 40

MAX_PAUSE_SECONDS = 60.0  # between two attempts to start a worker; it doubles from 1 s while none succeeds
RESIZE_SECONDS = 0.5  # with hundreds of workers, their number is not adjusted after every event
NODE_POLL_SECONDS = 5.0
MESSAGE_SECONDS = 60.0  # how often a message says that no worker is usable

# How long there may be more workers than work for them. The next stage of a cell may come a moment later, and another
# start of torch takes seconds; an autoscaler waits for minutes itself.
RELEASE_SECONDS = 30.0


class Outputs(NamedTuple):
    """The outputs by which a run reports."""

    progress: Progress
    events: Events
    log: Callable[[str, str], Path]  # writes the text about a worker or task to a file in logs/, and returns its path
    committed: Callable[[Sequence[Committed]], None] = lambda files: None


@dataclass
class _ManagedWorker:
    is_scorer: bool
    is_taken_over: bool = False  # an earlier loop started it
    places: frozenset[str] = frozenset()  # ids of the nodes on which a scorer may start
    node: str | None = None  # id; None until its process has started
    info: WorkerInfo | None = None  # None until it has passed a health check
    is_starting: bool = True  # its first health check is not over
    checked_since: float | None = None  # when its current health check began
    started: float = field(default_factory=time.monotonic)


class WorkerManager:
    """The workers of a pool.

    `elastic`: the run joined a running cluster, whose nodes may come and go. Then workers follow the work and the
    nodes: those that wait for room tell Ray what is needed, nodes that join get work, idle workers are released, and
    nodes that drain are left; `max_workers` is their maximum (None: as many as fit, at least one). An embedded cluster
    has `max_workers` from beginning to end. Scorers are workers without a GPU, in a pool whose other workers have one;
    they do only tasks of the kinds `scored`."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        max_workers: int | None,
        elastic: bool,
        scored: Set[str],
        config: Cluster,
        outputs: Outputs,
    ) -> None:
        self._pool, self._dispatcher = pool, dispatcher
        self._max_workers, self._elastic, self._scored = max_workers, elastic, scored
        self._config, self._events, self._log, self._say = config, outputs.events, outputs.log, outputs.progress.say
        self._workers: dict[str, _ManagedWorker] = {}  # in the order in which they were started
        self._names: dict[str, str] = {}  # id of a node -> its name for people
        self._causes: dict[str, BaseException] = {}  # id of a node -> its last error
        self._said: dict[str, str] = {}  # a node's name -> the reason that was last given for not using it
        self._pauses: list[float] = []  # until when a worker that did nothing is not replaced
        self._fruitless = 0  # workers that did nothing, since a task was done
        self._not_started = 0  # the same, since another worker joined
        self._has_worked = False
        self._lost = 0  # workers that are gone, and were not released
        self._deaths = 0  # workers that died of tasks
        self._largest = 1  # the most workers that there should have been at a time
        self._resized = 0.0  # when that was
        self._too_many_since: float | None = None
        self._nodes: dict[str, Node] = {}  # by id, as at the last poll
        self._gone_at: dict[str, float] = {}  # id of a node that drains -> when it is taken away, if that is known
        self._polled_at = float("-inf")
        self._polled_this_turn = False
        self._last_worker_at = self._last_message_at = time.monotonic()
        self._had_worker = False

    def begin(self) -> int:
        """Take over the idle workers of an earlier loop, and start those that are lacking. Returns how many started."""
        now = time.monotonic()
        self._poll_nodes(now)
        for event, is_scorer in self._pool.take_over():
            self._workers[event.worker] = _ManagedWorker(is_scorer, is_taken_over=True)
            self.located(event)
            self._pool.check_health(event.worker)
        self._resize(now)
        return sum(worker.node is None for worker in self._workers.values())

    def has(self, worker: str) -> bool:
        """Whether a worker is there, or is being started: not lost, killed or released."""
        return worker in self._workers

    def info(self, worker: str) -> WorkerInfo:
        """The info of a worker that has passed a health check."""
        info = self._workers[worker].info
        assert info is not None
        return info

    def located(self, event: Located) -> None:
        worker = self._workers[event.worker]
        self._names.setdefault(event.node_id, event.node)
        worker.node, worker.checked_since = event.node_id, time.monotonic()

    def joined(self, event: Joined) -> None:
        """A worker passed its health check, the first or one after a cooldown."""
        worker, info = self._workers[event.worker], event.info
        worker.checked_since = None
        worker.node = worker.node or info.node_id or info.node
        self._names.setdefault(worker.node, info.node)
        if worker.info is None:
            worker.info = info
            self._events.note("worker", worker=event.worker, node=info.node, **info.made_by)
        if worker.is_starting:
            self._not_started = 0
            self._enlist(event.worker)
        else:
            self._dispatcher.health.readmitted(event.worker)

    def unhealthy(self, event: Failed) -> None:
        """A worker did not pass its health check: it stays, cools down, and is checked again."""
        name, worker = event.worker, self._workers[event.worker]
        worker.node, worker.checked_since = worker.node or name, None
        self._causes[worker.node] = event.cause
        if worker.is_starting:
            self._enlist(name)
        reason = str(event.cause) if isinstance(event.cause, UserError) else event.summary
        if is_accelerator_error(event.cause):  # a new process may be better
            self._pool.kill(name)
            self.lost(Lost(name, reason, False, event.traceback))
        else:
            self._log(name, event.traceback)
            self.cools_down(self._dispatcher.health.unhealthy(name, time.monotonic(), reason), reason)

    def failed(self, event: Failed) -> None:
        """A worker failed a task: record the error, in case its node is unfit."""
        self._causes[self._workers[event.worker].node or event.worker] = event.cause

    def cools_down(self, cooldown: Cooldown | None, reason: str) -> None:
        """Report a worker or node that is not used for a time."""
        if cooldown is None:
            return
        node, seconds = self._name(cooldown.node), cooldown.seconds
        who = f"node {node}" if cooldown.whole_node else f"{cooldown.worker} on node {node}"
        whole_node = {"whole_node": True} if cooldown.whole_node else {}
        about = {"worker": cooldown.worker, "node": node, "seconds": seconds, "reason": reason}
        self._events.note("benched", **about, **whole_node)
        then = f"{who} gets no work for {duration(seconds)}"
        self._say(f"{then}, for the same reason" if self._said.get(node) == reason else f"{reason}; {then}")
        self._said[node] = reason

    def lost(self, event: Lost) -> None:
        """A worker without a task is gone."""
        name, reason = event.worker, event.reason
        self._lost += 1
        self._log(name, event.details or reason)
        self._events.note("lost", worker=name, reason=reason)
        worker = self._workers.pop(name)
        if not worker.is_starting:
            charge = self._dispatcher.worker_lost(name, time.monotonic(), reason, event.with_its_node)
            self.cools_down(charge.cooldown, reason)
        if worker.is_starting and not worker.is_taken_over:
            self._say(f"{name} could not be started: {reason}")
        else:
            self._say(f"lost {name}, which was idle: {reason}")
        if not event.with_its_node:
            self._restart(reason)

    def died(self, worker: str, reason: str) -> None:
        """A worker that had a task is gone, as the dispatcher knows; raises `RunFailed` if too many died."""
        del self._workers[worker]
        self._lost += 1
        self._deaths += 1
        if self._deaths == 1:
            self._first_death = time.monotonic()
        oldest = min((task.since for task in self._dispatcher.in_flight.running.values()), default=inf)
        is_over = self._deaths >= self._largest + FRUITLESS_DEATHS and not self._has_worked
        if is_over and oldest > self._first_death:  # a task that has run since then may be sound
            died = counted(self._deaths, "worker")
            raise RunFailed(f"{died} died of their tasks, and no task was done; the last: {reason}")

    def grant_grace(self, seconds: float) -> None:
        """Ignore this time, in which the driver received nothing, when the durations of health checks and of the wait
        for a worker are measured."""
        self._last_worker_at += seconds
        for worker in self._workers.values():
            if worker.checked_since is not None:
                worker.checked_since += seconds

    def worked(self) -> None:
        self._fruitless = 0
        self._has_worked = True

    def is_leaving(self, worker: str) -> bool:
        """Whether a worker's node drains or is gone: then its loss says nothing about its task or its node."""
        node = self._workers[worker].node if worker in self._workers else None
        if node is None:
            return False
        if not self._polled_this_turn:  # the pool heard of all losses of a turn before the first is handled
            self._poll_nodes(time.monotonic(), at_once=True)
            self._polled_this_turn = True
        return self._elastic and (node not in self._nodes or self._nodes[node].draining)

    @property
    def leaving(self) -> dict[str, float]:
        """The workers whose node will be taken away at a known time, each with that time."""
        there = {name: worker.node for name, worker in self._workers.items()}
        return {name: self._gone_at[node] for name, node in there.items() if node in self._gone_at}

    @property
    def _draining(self) -> set[str]:
        return {node.id for node in self._nodes.values() if node.draining}

    @property
    def _avoided(self) -> set[str]:
        """The ids of the nodes on which no further worker should be started."""
        return self._dispatcher.health.broken_nodes().keys() | self._draining if self._elastic else set()

    @property
    def _usable(self) -> list[Node]:
        avoided = self._avoided
        return [node for node in self._nodes.values() if node.id not in avoided]

    @property
    def _large(self) -> int:
        """The number of usable nodes that are large enough for a worker."""
        return sum(node.capacity(self._pool.size) > 0 for node in self._usable)

    def snapshot(self) -> SessionSnapshot:
        """How far the session is, for the progress display."""
        in_flight, backlog, health = self._dispatcher.in_flight, self._dispatcher.backlog, self._dispatcher.health
        cooling_down = len(in_flight.idle.keys() & health.cooling.keys())
        starting = [worker.started for worker in self._workers.values() if worker.is_starting]
        return SessionSnapshot(
            done=backlog.done,
            given_up=backlog.quarantined | backlog.unreachable,
            busy=[Busy(each.task, each.fraction, each.doing) for each in in_flight.running.values()],
            idle=len(in_flight.idle) - cooling_down,
            cooling_down=cooling_down,
            starting=len(starting),
            waited=time.monotonic() - min(starting) if starting else 0.0,
            lost=self._lost,
        )

    def tend(self, now: float) -> None:
        """Start, check, release and end workers as it is time to. Raises `UserError` if no node is fit because each
        lacks what the driver has, or none was ever large enough; `RunFailed` if no node is fit for another reason, or
        all are full or gone."""
        self._polled_this_turn = False
        self._poll_nodes(now)
        for worker in self._dispatcher.due_for_health_check(now):
            self._workers[worker].checked_since = now
            self._pool.check_health(worker)
        unfit = self._dispatcher.broken_nodes()
        if unfit or now - self._resized >= RESIZE_SECONDS:
            limit = self._config.hang_seconds
            for name, since in {name: worker.checked_since for name, worker in self._workers.items()}.items():
                if since is not None and now - since >= limit:
                    self._pool.kill(name)
                    self.lost(Lost(name, f"it has not answered its health check for {duration(limit)}", False))
            self._resize(now)
        self._wait(now, unfit)

    def _wait(self, now: float, unfit: Mapping[str, str]) -> None:
        """While the run waits for a worker that is there and fit, say so now and then; raise once it has too long.
        `unfit` is node -> why, if there are workers, but all of them are on unfit nodes."""
        only_scores = self._dispatcher.startable_kinds <= self._scored
        placed = (worker for worker in self._workers.values() if worker.node is not None)
        no_worker = not any(only_scores or not worker.is_scorer for worker in placed)
        self._had_worker = self._had_worker or not no_worker
        if not no_worker and not unfit:
            self._last_worker_at = self._last_message_at = now
            return
        has_waited = now - self._last_worker_at >= self._config.max_wait_seconds
        limit = f"{duration(self._config.max_wait_seconds)} (cluster.max_wait_seconds)"
        is_starting = any(worker.is_starting for worker in self._workers.values())
        if unfit and (has_waited or not (is_starting and self._large)):
            causes, text = [self._causes.get(node) for node in unfit], "; ".join(dict.fromkeys(unfit.values()))
            if not all(isinstance(cause, UserError) for cause in causes):
                raise RunFailed(f"no node is fit for work: {text}")
            raise causes[0] if len(unfit) == 1 and isinstance(causes[0], UserError) else UserError(text)
        if no_worker and has_waited:
            if not self._elastic:
                raise RunFailed(f"no worker started in {limit}; see Ray's logs, or set cluster.max_wait_seconds higher")
            if self._large or self._had_worker:
                room = f"no room for a worker of {self._pool.size} in {limit}"
                raise RunFailed(f"{room}; run the same command again when there is")
            raise no_capacity(self._pool.size, self._config, f", nor has one joined in {limit}")
        if now - self._last_message_at >= MESSAGE_SECONDS:
            self._last_message_at = now
            if self._elastic:
                waits = f"waiting for room for a worker of {self._pool.size}"
                self._say(f"{waits} (nodes large enough: {self._large}); at most {limit}")
            else:
                self._say(f"no worker for {MESSAGE_SECONDS:.0f} s: starting one is slow")

    def _poll_nodes(self, now: float, at_once: bool = False) -> None:
        """Poll Ray for the cluster's nodes, now and then, and report those that have begun to drain."""
        if not self._elastic and (self._pool.scorer is None or self._nodes):
            return
        if now - self._polled_at < NODE_POLL_SECONDS and not at_once:
            return
        is_first, before = self._polled_at == float("-inf"), self._draining
        self._polled_at = now
        if (nodes := self._pool.nodes()) is None:
            return
        self._nodes = {node.id: node for node in nodes}
        seconds_left = {node.id: node.seconds_left for node in nodes if node.draining}
        self._gone_at = {node: now + seconds for node, seconds in seconds_left.items() if seconds < inf}
        if is_first and not self._usable:
            self._last_message_at = now - MESSAGE_SECONDS  # so that the first message comes at once
        self._dispatcher.health.set_draining(self._draining)
        for node in sorted(self._draining - before):
            name = self._name(node)
            self._events.note("draining", node=name)
            if any(worker.node == node for worker in self._workers.values()):
                left = duration(max(0.0, seconds_left[node])) if node in self._gone_at else ""
                rest = f"; others do what its workers can't finish in {left}" if left else ""
                self._say(f"node {name} will be taken away: it gets no more work{rest}")

    def _wanted(self, now: float, busy: Mapping[bool, int], has_scorer: bool) -> dict[bool, int]:
        """How many workers there should be on usable nodes: False -> those of all kinds of tasks, True -> scorers. On a
        cluster that was joined, one for each task that could start, besides those that are `busy`. Scores alone must
        not make an autoscaler buy GPUs: for them there is one worker of all kinds, until a scorer is there."""
        places, ready = self._scorer_places, self._dispatcher.demand_by_kind(now)
        scores = sum(ready[kind] for kind in self._scored) if places else 0
        scorers = min(sum(places.values()), busy[True] + scores)
        if not self._elastic:
            return {False: self._max_workers or 1, True: scorers}
        others = max(busy[False] + ready.total() - scores, int(scores > 0 and not has_scorer))
        most = self._max_workers or max(1, sum(node.capacity(self._pool.size) for node in self._usable))
        return {False: min(most, others), True: scorers}

    @property
    def _scorer_places(self) -> dict[str, int]:
        """Node id -> the most scorers that it should have, for usable nodes. They take no CPUs as Ray counts. On a node
        with GPUs, half of its CPUs are left to other workers. More than its memory holds would wait for good, and an
        autoscaler would count them as demand."""
        if self._pool.scorer is None:
            return {}
        most, on_cpu_nodes = self._config.score.workers_per_node, self._config.use_cpus
        cpus = {node: min(most, node.cpus // 2) if node.gpus else node.cpus * on_cpu_nodes for node in self._usable}
        places = {node.id: int(min(number, node.memory / SCORER_BYTES)) for node, number in cpus.items()}
        return {node: number for node, number in places.items() if number}

    def _enlist(self, name: str) -> None:
        worker = self._workers[name]
        worker.is_starting = False
        kinds = self._scored if worker.is_scorer else None
        self._dispatcher.worker_joined(name, worker.node, time.monotonic(), kinds)

    def _resize(self, now: float) -> None:
        """Start the workers that are lacking; release those on nodes that drain, and those without work."""
        self._resized = now
        running, draining, avoided = self._dispatcher.in_flight.running, self._draining, self._avoided
        drained = [name for name, worker in self._workers.items() if worker.node in draining and name not in running]
        self._release(drained, now, "its node drains")
        places = frozenset(self._scorer_places)
        waiting = {name: worker.places for name, worker in self._workers.items() if worker.places and not worker.node}
        self._release([name for name in waiting if waiting[name].isdisjoint(places)], now, "its node is gone")
        fit = [name for name, worker in self._workers.items() if worker.node not in avoided]
        busy = Counter(self._workers[name].is_scorer for name in fit if name in running)
        has_scorer = any(worker.is_scorer and worker.node is not None for worker in self._workers.values())
        wanted, too_many = self._wanted(now, busy, has_scorer), list[str]()
        self._largest = max(self._largest, sum(wanted.values()))
        self._pauses = [until for until in self._pauses if until > now]
        busy_nodes = Counter(self._workers[name].node for name in running)
        for is_scorer, number in wanted.items():
            there = [name for name in fit if self._workers[name].is_scorer == is_scorer]
            for _ in range(number - len(there) - len(self._pauses)):
                name = self._pool.start_scorer(places) if is_scorer else self._pool.start(avoided)
                self._events.note("starting", worker=name, **({"cpu_only": True} if is_scorer else {}))
                self._workers[name] = _ManagedWorker(is_scorer, places=places if is_scorer else frozenset())
            idle = [name for name in there if name not in running]
            # First those that wait for room, then those whose node is the sooner without any.
            idle.sort(key=lambda name: (self._workers[name].node is not None, busy_nodes[self._workers[name].node]))
            too_many += idle[: max(0, len(there) - number)]
        since = self._too_many_since = (self._too_many_since or now) if too_many and self._elastic else None
        if since is not None and now - since >= RELEASE_SECONDS:
            self._release(too_many, now, "there is no work for it")

    def _release(self, names: Iterable[str], now: float, why: str) -> None:
        for name in names:
            worker = self._workers.pop(name)
            self._pool.kill(name)
            self._events.note("released", worker=name, node=self._name(worker.node or ""), reason=why)
            if not worker.is_starting:
                self._dispatcher.worker_released(name, now)

    def _restart(self, reason: str) -> None:
        """Start a worker in place of one that did nothing, with a longer pause each time."""
        self._fruitless += 1
        if self._fruitless > self._largest + FRUITLESS_RESTARTS and not self._dispatcher.in_flight.running:
            died = counted(self._fruitless, "worker")
            raise RunFailed(f"{died} died with no work done in between; the last: {reason}")
        self._not_started += 1
        beyond = self._not_started - self._largest
        if beyond > 0:
            self._pauses.append(time.monotonic() + min(MAX_PAUSE_SECONDS, 2.0 ** min(beyond - 1, 16)))

    def _name(self, node: str) -> str:
        return self._names.get(node, node)
