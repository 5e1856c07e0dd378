"""The crew of a run: keeps as many workers as there is work and room for, greeted and watched; ends a run without hope.

It acts on what the dispatcher decides about workers and nodes; `loop.py` does so for tasks. On a cluster that the run
joined, the crew follows the cluster: workers that wait for room tell Ray what is needed, nodes that join get work, idle
workers are released, and nodes that drain are left.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError, is_accelerator_error
from taugrid.jobs import WorkerInfo
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.policy.health import Benching
from taugrid.orchestrator.dispatch.pool import Failed, Joined, Located, Lost, Pool
from taugrid.orchestrator.dispatch.scaling import Crowd, Room
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.events import Events
from taugrid.words import counted, duration

LOSSES_IN_VAIN = 5
"""How many workers, beyond their number, may fail to start, or die while idle, with no task done in between, before the
run gives up. Then something is wrong with all of them (memory, a broken installation), and starting more would never
end."""

DEATHS_IN_VAIN = 40
"""How many workers, beyond their number, may die of their tasks while no task at all is done: more than the costliest
cell has bad shards, as a rule, but far fewer than a queue of which every task kills has tasks."""

LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts to start a worker; it begins at 0 and doubles from 1 s while none succeeds."""

RESIZE_SECONDS = 0.5
"""How often it is asked whether there are too few workers or too many: with hundreds, not after every event."""

RELEASE_SECONDS = 30.0
"""How long there may be more workers than work for them, before the superfluous ones are released. The next stage of a
cell may come a moment later, and another start of torch takes seconds; an autoscaler waits for minutes itself."""


class Crew:
    """The workers of a pool, as the dispatcher's decisions want them, where there is `room`."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        room: Room,
        limits: Cluster,
        progress: Progress,
        events: Events,
        log: Callable[[str, str], Path],
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._room = room
        self._hang_seconds = limits.hang_seconds
        self._max_wait_seconds = limits.max_wait_seconds
        self._progress = progress
        self._events = events
        self._log = log
        self.infos: dict[str, WorkerInfo] = {}
        """Of the workers that have passed a hello."""
        self._workers: dict[str, None] = {}  # those that were started and are not gone, in that order
        self._spares: dict[str, str] = {}  # spare worker -> id of the node that it is for
        self._nodes: dict[str, str] = {}  # worker -> id of its node, once it is there
        self._names: dict[str, str] = {}  # id of a node -> its name for people
        self._causes: dict[str, BaseException] = {}  # id of a node -> its last error
        self._starting: set[str] = set()
        self._greeted: dict[str, float] = {}  # since when it owes its hello
        self._pauses: list[float] = []  # until when a worker that was lost in vain is not replaced
        self._in_vain = 0  # losses since a task was done
        self._not_started = 0  # losses since another worker joined
        self._has_worked = False
        self._deaths: deque[float] = deque()  # when the last workers died of tasks
        self._largest = 1  # the most workers that there should have been at a time
        self._resized = 0.0  # when that was
        self._too_many_since: float | None = None
        self._unfit_since: float | None = None

    def begin(self) -> int:
        """Start workers. Returns their number."""
        now = time.monotonic()
        self._look(now)
        self._resize(now)
        return len(self._workers)

    def located(self, event: Located) -> None:
        node = event.node_id
        twins = [other for other, name in self._names.items() if name.split()[0] == event.node and other != node]
        self._names.setdefault(node, f"{event.node} ({node[:8]})" if twins else event.node)
        self._nodes[event.worker] = node
        self._greeted[event.worker] = time.monotonic()

    def joined(self, event: Joined) -> None:
        """A worker passed its hello, the first or after it was benched."""
        worker, info = event.worker, event.info
        self._greeted.pop(worker, None)
        node = self._nodes.setdefault(worker, info.node_id or info.node)
        self._names.setdefault(node, info.node)
        if worker not in self.infos:
            self.infos[worker] = info
            made_by = {"device": info.device, "versions": info.versions, "threads": info.threads}
            self._events.note("worker", worker=worker, node=info.node, **made_by)
        if worker in self._starting:
            self._starting.discard(worker)
            self._not_started = 0
            self._enlist(worker, node)
        else:
            self._dispatcher.readmitted(worker)

    def refused(self, event: Failed) -> None:
        """A worker did not pass its hello: it stays, benched, and is asked again."""
        worker, now = event.worker, time.monotonic()
        path = self._log(worker, event.traceback)
        node = self._nodes.setdefault(worker, worker)
        self._causes[node] = event.cause
        self._greeted.pop(worker, None)
        if worker in self._starting:
            self._starting.discard(worker)
            self._enlist(worker, node)
        said = _in_words(event)
        if is_accelerator_error(event.cause):  # a new process may be better
            self._progress.say(f"{self._name(node)}: {said}; starting another worker (details: {path})")
            self._pool.kill(worker)
            self._events.note("lost", worker=worker, reason=said)
            self._dispatcher.worker_lost(worker, now, said)
            self._forget(worker)
            self._another_in_vain(said)
        else:
            self.benched(self._dispatcher.refused(worker, now, said), said)

    def failed(self, event: Failed) -> None:
        """A worker failed a task: remember why, in case its node is unfit."""
        self._causes[self._nodes.get(event.worker, event.worker)] = event.cause

    def benched(self, benching: Benching | None, reason: str) -> None:
        """Tell of a worker or node that is not used for a time."""
        if benching is None:
            return
        node, seconds = self._name(benching.node), benching.seconds
        who = f"node {node}" if benching.whole_node else f"{benching.worker} on node {node}"
        whole_node = {"whole_node": True} if benching.whole_node else {}
        self._events.note("benched", worker=benching.worker, node=node, seconds=seconds, reason=reason, **whole_node)
        self._progress.say(f"{reason}; {who} gets no work for {duration(seconds)}")

    def lost(self, event: Lost) -> None:
        """A worker that had no task is gone."""
        worker, now = event.worker, time.monotonic()
        self._log(worker, event.details or event.reason)
        self._events.note("lost", worker=worker, reason=event.reason)
        if worker in self._starting:
            self._starting.discard(worker)
            self._progress.say(f"{worker} could not be started: {event.reason}")
        else:
            self.benched(
                self._dispatcher.worker_lost(worker, now, event.reason, event.with_its_node).benching, event.reason
            )
            self._progress.say(f"lost {worker}, which was idle: {event.reason}")
        self._forget(worker)
        if not event.with_its_node:
            self._another_in_vain(event.reason)

    def gone(self, worker: str, reason: str) -> None:
        """A worker that had a task is gone, as the dispatcher knows.

        Raises:
            RunFailed: if so many died that it must be all tasks or all nodes.
        """
        now = time.monotonic()
        self._forget(worker)
        self._deaths.append(now)
        while len(self._deaths) > self._largest + DEATHS_IN_VAIN:
            self._deaths.popleft()
        full = len(self._deaths) == self._largest + DEATHS_IN_VAIN
        if full and not self._has_worked and self._dispatcher.oldest > self._deaths[0]:
            died = counted(len(self._deaths), "worker")
            raise RunFailed(f"{died} died of their tasks, and no task was done; the last: {reason}")

    def excuse(self, seconds: float) -> None:
        """For so long no hello could be heard."""
        self._greeted = {worker: since + seconds for worker, since in self._greeted.items()}

    def worked(self) -> None:
        """A task was done: not all is in vain."""
        self._in_vain = 0
        self._has_worked = True

    def is_leaving(self, worker: str) -> bool:
        """Whether a worker's node drains or is gone: then nobody is to blame if the worker is lost."""
        if worker not in self._nodes:
            return False
        self._look(time.monotonic(), at_once=True)
        return not self._room.keeps(self._nodes[worker])

    def tend(self, now: float) -> None:
        """Start, greet, release and end workers as it is time to.

        Raises:
            UserError: if no node is fit because each lacks what the driver has, or none was ever large enough.
            RunFailed: if no node is fit for another reason, or all are full or gone.
        """
        self._look(now)
        for worker in self._dispatcher.due(now):
            self._greeted[worker] = now
            self._pool.check_health(worker)
        for worker in [w for w, since in self._greeted.items() if now - since >= self._hang_seconds]:
            self._pool.kill(worker)
            self.lost(Lost(worker, f"it has not answered hello for {duration(self._hang_seconds)}", False))
        unfit = self._dispatcher.unfit()
        if unfit or now - self._resized >= RESIZE_SECONDS:
            self._resize(now)
        spares_do = self._dispatcher.startable <= self._room.spare_kinds
        nobody = not any(spares_do or worker not in self._spares for worker in self._nodes)
        if (said := self._room.wait(now, nobody, bool(unfit))) is not None:
            self._progress.say(said)
        if not unfit:
            self._unfit_since = None
            return
        since = self._unfit_since = now if self._unfit_since is None else self._unfit_since
        if not (self._starting and self._room.large) or now - since >= self._max_wait_seconds:
            raise self._end(unfit)

    def _look(self, now: float, at_once: bool = False) -> None:
        for node in self._room.look(now, at_once):
            name = self._name(node)
            self._events.note("draining", node=name)
            if node in self._nodes.values():
                self._progress.say(f"node {name} will be taken away: it gets no more work")

    def _enlist(self, worker: str, node: str) -> None:
        kinds = self._room.spare_kinds if worker in self._spares else None
        self._dispatcher.worker_joined(worker, node, time.monotonic(), kinds)

    def _resize(self, now: float) -> None:
        """Start the workers that are lacking; release those on nodes that drain, and those without work."""
        self._resized = now
        running, draining, avoided = self._dispatcher.running, self._room.draining, self._room.avoided
        for worker in [w for w, node in self._nodes.items() if node in draining and w not in running]:
            self._release(worker, now, "its node drains")
        busy = Counter(worker in self._spares for worker in running if self._nodes[worker] not in avoided)
        wanted, rooms = self._room.wanted(now, Crowd(busy[False], busy[True])), self._room.spare_rooms
        for worker in [w for w, node in self._spares.items() if w not in self._nodes and node not in rooms]:
            self._release(worker, now, "its node is gone")
        fit = [worker for worker in self._workers if self._nodes.get(worker) not in avoided]
        spares = [worker for worker in fit if worker in self._spares]
        self._largest = max(self._largest, sum(wanted))
        self._pauses = [until for until in self._pauses if until > now]
        for _ in range(wanted.full - (len(fit) - len(spares)) - len(self._pauses)):
            self._start(self._pool.start(avoided))
        taken = Counter(self._spares.values())
        places = [node for node, room in rooms.items() for _ in range(room - taken[node])]
        for node in places[: max(0, wanted.spare - len(spares) - len(self._pauses))]:
            worker = self._pool.start_spare(node)
            self._spares[worker] = node
            self._start(worker)
        too_many = self._too_many(fit, wanted) if self._room.elastic else []
        since = self._too_many_since = (self._too_many_since or now) if too_many else None
        if since is not None and now - since >= RELEASE_SECONDS:
            for worker in too_many:
                self._release(worker, now, "there is no work for it")

    def _too_many(self, fit: list[str], wanted: Crowd) -> list[str]:
        """Workers that have nothing to do, beyond those that are wanted.

        First come those that wait for room, then those whose node is the sooner without any.
        """
        running = self._dispatcher.running
        busy = Counter(self._nodes[worker] for worker in running)
        idle = sorted(
            (worker for worker in fit if worker not in running),
            key=lambda worker: busy[self._nodes[worker]] if worker in self._nodes else -1,
        )
        found = []
        for are_spare, number in ((False, wanted.full), (True, wanted.spare)):
            beyond = sum((worker in self._spares) == are_spare for worker in fit) - number
            found += [worker for worker in idle if (worker in self._spares) == are_spare][: max(0, beyond)]
        return found

    def _start(self, worker: str) -> None:
        self._events.note("starting", worker=worker)
        self._workers[worker] = None
        self._starting.add(worker)

    def _release(self, worker: str, now: float, why: str) -> None:
        """End a worker that has nothing to do."""
        self._pool.kill(worker)
        self._events.note("released", worker=worker, node=self._name(self._nodes.get(worker, "")), reason=why)
        if worker not in self._starting:
            self._dispatcher.worker_left(worker, now)
        self._forget(worker)

    def _another_in_vain(self, reason: str) -> None:
        """Have another worker started, later each time, after one that did nothing."""
        self._in_vain += 1
        if self._in_vain > self._largest + LOSSES_IN_VAIN and not self._dispatcher.running:
            raise RunFailed(f"{counted(self._in_vain, 'worker')} died with no work done in between; the last: {reason}")
        self._not_started += 1
        beyond = self._not_started - self._largest
        if beyond > 0:
            self._pauses.append(time.monotonic() + min(LONGEST_PAUSE_SECONDS, 2.0 ** min(beyond - 1, 16)))

    def _forget(self, worker: str) -> None:
        self._greeted.pop(worker, None)
        self._nodes.pop(worker, None)
        self._starting.discard(worker)
        self._spares.pop(worker, None)
        del self._workers[worker]

    def _name(self, node: str) -> str:
        return self._names.get(node, node)

    def _end(self, unfit: dict[str, str]) -> Exception:
        """What ends a run without a fit node. Where all nodes say the same, it is said once."""
        causes = [self._causes.get(node) for node in unfit]
        if len(set(unfit.values())) == 1:
            text = next(iter(unfit.values()))
        else:
            text = "; ".join(
                reason if self._name(node) in reason else f"node {self._name(node)}: {reason}"
                for node, reason in sorted(unfit.items())
            )
        if not all(isinstance(cause, UserError) for cause in causes):
            return RunFailed(f"no node is fit for work: {text}")
        return causes[0] if len(unfit) == 1 and isinstance(causes[0], UserError) else UserError(text)


def _in_words(event: Failed) -> str:
    """A refusal says it all; another error needs its type."""
    return str(event.cause) if isinstance(event.cause, UserError) else event.summary
