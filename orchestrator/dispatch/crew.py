"""The crew of a run: keeps its workers started, greeted and watched, and ends the run when no node is fit.

It acts on what the dispatcher decides about workers and nodes; `loop.py` does so for tasks.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from taugrid.errors import RunFailed, UserError, of_the_accelerator
from taugrid.jobs import WorkerInfo
from taugrid.orchestrator.dispatch.health import Benching
from taugrid.orchestrator.dispatch.policy import Dispatcher
from taugrid.orchestrator.dispatch.pool import Failed, Joined, Located, Lost, Pool
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

PLACES_SECONDS = 5.0
"""How often Ray is asked which nodes there are, while some are unfit."""

ALONE_SECONDS = 60.0
"""How long there may be no worker that is fit before the user is told."""

REPLACEMENT_SECONDS = 600.0
"""How long a run whose workers are all on unfit nodes waits for room on another: perhaps another job ends there."""


class Crew:
    """`size` workers of a pool, as the dispatcher's decisions want them."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        size: int,
        hang_seconds: float,
        progress: Progress,
        events: Events,
        log: Callable[[str, str], Path],
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._size = size
        self._hang_seconds = hang_seconds
        self._progress = progress
        self._events = events
        self._log = log
        self.infos: dict[str, WorkerInfo] = {}
        """Of the workers that have passed a hello."""
        self._nodes: dict[str, str] = {}  # worker -> id of its node
        self._names: dict[str, str] = {}  # id of a node -> its name for people
        self._causes: dict[str, BaseException] = {}  # id of a node -> its last error
        self._starting: set[str] = set()
        self._greeted: dict[str, float] = {}  # since when it owes its hello
        self._starts: list[float] = []  # when to start another worker
        self._replaced: set[str] = set()
        self._in_vain = 0  # losses since a task was done
        self._not_started = 0  # losses since another worker joined
        self._has_worked = False
        self._deaths: deque[float] = deque(maxlen=size + DEATHS_IN_VAIN)  # when the last workers died of tasks
        self._places: tuple[float, set[str]] = (-PLACES_SECONDS, set())
        self._last_seen = time.monotonic()
        self._unfit_since: float | None = None

    def begin(self) -> None:
        """Start all workers."""
        for _ in range(self._size):
            self._start()

    def located(self, event: Located) -> None:
        """A worker's process is there."""
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
            self._events.add("worker", worker=worker, node=info.node, device=info.device, versions=info.versions)
        if worker in self._starting:
            self._starting.discard(worker)
            self._not_started = 0
            self._dispatcher.worker_joined(worker, node, time.monotonic())
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
            self._dispatcher.worker_joined(worker, node, now)
        said = _in_words(event)
        if of_the_accelerator(event.cause):  # a new process may be better
            self._progress.say(f"{self._name(node)}: {said}; starting another worker (details: {path})")
            self._pool.kill(worker)
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
        self._events.add("benched", worker=benching.worker, node=node, seconds=seconds, reason=reason)
        self._progress.say(f"{reason}; {who} gets no work for {duration(seconds)}")

    def lost(self, event: Lost) -> None:
        """A worker that had no task is gone. Another is started."""
        worker, now = event.worker, time.monotonic()
        self._log(worker, event.reason)
        self._events.add("lost", worker=worker, reason=event.reason)
        if worker in self._starting:
            self._starting.discard(worker)
            self._progress.say(f"{worker} could not be started: {event.reason}")
        else:
            self.benched(
                self._dispatcher.worker_lost(worker, now, event.reason, event.with_its_node).benching, event.reason
            )
            self._progress.say(f"lost {worker}, which was idle: {event.reason}")
        self._forget(worker)
        if event.with_its_node:
            self._starts.append(now)
        else:
            self._another_in_vain(event.reason)

    def gone(self, worker: str, reason: str) -> None:
        """A worker that had a task is gone, as the dispatcher knows. Another is started.

        Raises:
            RunFailed: if so many died that it must be all tasks or all nodes.
        """
        now = time.monotonic()
        self._forget(worker)
        self._starts.append(now)
        self._deaths.append(now)
        full = len(self._deaths) == self._deaths.maxlen
        if full and not self._has_worked and self._dispatcher.oldest > self._deaths[0]:
            died = counted(len(self._deaths), "worker")
            raise RunFailed(f"{died} died of their tasks, and no task was done; the last: {reason}")

    def worked(self) -> None:
        """A task was done: not all is in vain."""
        self._in_vain = 0
        self._has_worked = True

    def tend(self, now: float) -> None:
        """Start, greet and end workers as it is time to.

        Raises:
            UserError: if no node is fit because each lacks what the driver has.
            RunFailed: if no node is fit for another reason.
        """
        for when in [when for when in self._starts if when <= now]:
            self._starts.remove(when)
            self._start()
        for worker in self._dispatcher.due(now):
            self._greeted[worker] = now
            self._pool.greet(worker)
        for worker in [w for w, since in self._greeted.items() if now - since >= self._hang_seconds]:
            self._pool.kill(worker)
            self.lost(Lost(worker, f"it has not answered hello for {duration(self._hang_seconds)}", False))
        self._replace_unfit(now)
        unfit = self._dispatcher.unfit()
        self._say_if_alone(now, bool(unfit))
        if not unfit:
            self._unfit_since = None
            return
        since = self._unfit_since = now if self._unfit_since is None else self._unfit_since
        if not (self._starting and self._elsewhere(now)) or now - since >= REPLACEMENT_SECONDS:
            raise self._end(unfit)

    def _start(self) -> None:
        avoid = self._dispatcher.avoided()
        elsewhere = bool(avoid) and bool(self._elsewhere(time.monotonic()))
        self._starting.add(self._pool.start(avoid if elsewhere else ()))

    def _replace_unfit(self, now: float) -> None:
        """Start a worker elsewhere for each on an unfit node, which goes on being asked to say hello."""
        unfit = self._dispatcher.avoided()
        stranded = [w for w, node in self._nodes.items() if node in unfit and w not in self._replaced]
        if stranded and self._elsewhere(now):
            for worker in stranded:
                self._replaced.add(worker)
                self._start()

    def _elsewhere(self, now: float) -> set[str]:
        """The nodes that could have workers and are not unfit."""
        if now - self._places[0] >= PLACES_SECONDS:
            self._places = now, self._pool.places()
        return self._places[1] - self._dispatcher.avoided()

    def _another_in_vain(self, reason: str) -> None:
        """Start another worker, later each time, after one that did nothing."""
        self._in_vain += 1
        if self._in_vain > self._size + LOSSES_IN_VAIN and not self._dispatcher.running:
            raise RunFailed(f"{counted(self._in_vain, 'worker')} died with no work done in between; the last: {reason}")
        self._not_started += 1
        beyond = self._not_started - self._size
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(beyond - 1, 16)) if beyond > 0 else 0.0
        self._starts.append(time.monotonic() + pause)

    def _forget(self, worker: str) -> None:
        self._greeted.pop(worker, None)
        self._nodes.pop(worker, None)
        self._replaced.discard(worker)

    def _name(self, node: str) -> str:
        return self._names.get(node, node)

    def _say_if_alone(self, now: float, all_unfit: bool) -> None:
        """Say so if nothing happens because the cluster is full or its nodes are gone."""
        if self._dispatcher.workers and not all_unfit:
            self._last_seen = now
        elif now - self._last_seen > ALONE_SECONDS:
            self._last_seen = now
            some = "no worker on a fit node" if all_unfit else "no worker"
            self._progress.say(f"{some} for {ALONE_SECONDS:.0f} s: the cluster is full, or starting one is slow")

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
