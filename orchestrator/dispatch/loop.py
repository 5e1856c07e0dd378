"""The loop between pool and dispatcher: passes on events and assignments, writes the events file, shows progress."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taugrid.errors import NotCommitted, RunFailed, WorkerRefusal
from taugrid.jobs import Result, WorkerInfo
from taugrid.orchestrator.dispatch.policy import Dispatcher
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined, Lost, Pool, PoolEvent
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.commits import confirm, require_here
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, Piece, WorkKind
from taugrid.words import counted, quantity

LOSSES_WITHOUT_WORK = 5
"""How many workers, beyond their number, may be lost without any work done in between before the run gives up. Then
something is wrong with all of them (memory, a broken installation), and starting more would never end."""

ALONE_SECONDS = 60.0
"""How long there may be no worker before the user is told."""

POLL_SECONDS = 0.5
"""How often the driver wakes up while nothing happens, for Ctrl-C and stragglers."""


class Loop:
    """Runs `pieces` on `pool` until everything that can be done is done."""

    def __init__(
        self,
        pieces: Mapping[str, Piece],
        kinds: Sequence[type[WorkKind]],
        pool: Pool,
        workers: int,
        embedded: bool,
        max_attempts: int,
        progress: Progress,
        events: Events,
        log: Callable[[str, str], Path],
    ) -> None:
        self._pieces = pieces
        self._kinds = {kind.name: kind for kind in kinds}
        self._pool = pool
        self._workers = workers
        self._embedded = embedded
        self._last_seen = time.monotonic()
        self._progress = progress
        self._events = events
        self._log = log
        self._dispatcher = Dispatcher((piece.task for piece in pieces.values()), list(self._kinds), max_attempts)
        self._infos: dict[str, WorkerInfo] = {}
        self._reasons: dict[str, str] = {}
        self._losses = 0
        self._done: Counter[str] = Counter()  # kind -> cost done
        self._images = 0
        self._finished: Counter[str] = Counter()  # kind -> tasks done
        self._tasks = Counter(piece.task.kind for piece in pieces.values())
        self._phase = ""
        self._totals: Counter[str] = Counter()
        for piece in pieces.values():
            self._totals[piece.task.kind] += int(piece.task.cost)

    def run(self) -> dict[str, str]:
        """Run, and return cell name -> reason for the cells that could not be finished.

        Raises:
            WorkerRefusal: if a worker met a problem that every other would meet too.
            RunFailed: if workers die faster than they work.
        """
        self._announce()
        for _ in range(self._workers):
            self._pool.start()
        while not self._dispatcher.finished:
            for event in self._pool.events(POLL_SECONDS):
                self._handle(event)
            for worker, task, speculative in self._dispatcher.assign(time.monotonic()):
                self._progress.started()
                if speculative:
                    self._events.add("duplicate", task=task.key, worker=worker)
                info = self._infos[worker]
                self._events.add("assigned", task=task.key, worker=worker, node=info.node, device=info.device)
                self._pool.give(worker, self._pieces[task.key].job)
            self._say_if_alone()
            self._show()
        self._progress.end()
        return self._problems()

    def _announce(self) -> None:
        kinds = self._kinds.values()
        evaluations = sum(self._totals[kind.name] for kind in kinds if kind.unit == NETWORK_EVALUATIONS)
        counts = [(self._tasks[kind.name], *kind.task) for kind in kinds]
        listed = ", ".join(f"{counted(number, noun)} {purpose}" for number, noun, purpose in counts if number)
        workers = counted(self._workers, "worker")
        cost = f" ({quantity(evaluations)} network evaluations)" if evaluations else ""
        self._progress.say(f"to do: {listed}{cost}; starting {workers}")
        self._show()

    def _say_if_alone(self) -> None:
        """Say so if nothing happens because the cluster is full or its nodes are gone."""
        now = time.monotonic()
        if self._dispatcher.workers:
            self._last_seen = now
        elif now - self._last_seen > ALONE_SECONDS:
            self._last_seen = now
            self._progress.say(f"no worker for {ALONE_SECONDS:.0f} s: the cluster is full, or starting one is slow")

    def _show(self) -> None:
        """Show the first kind with work left, and the counts that are always shown."""
        kind = next((kind for kind in self._kinds if self._done[kind] < self._totals[kind]), self._phase)
        if kind != self._phase:
            self._phase = kind
            self._images = 0
            self._progress.begin(self._kinds[kind].activity, self._totals[kind], self._kinds[kind].unit)
            if self._dispatcher.workers:
                self._progress.started(self._done[kind])
        counted = [kind for kind in self._kinds.values() if kind.finished and self._tasks[kind.name]]
        note = ", ".join(f"{self._finished[kind.name]} of {self._tasks[kind.name]} {kind.finished}" for kind in counted)
        self._progress.update(self._done[kind], self._images, self._dispatcher.workers, note)

    def _handle(self, event: PoolEvent) -> None:
        match event:
            case Joined(worker, info):
                self._infos[worker] = info
                self._events.add("worker", worker=worker, node=info.node, device=info.device, versions=info.versions)
                self._dispatcher.worker_joined(worker)
            case Done(worker, result):
                self._losses = 0
                if (fault := self._unseen(worker, result)) is None:
                    self._record(worker, result)
                else:
                    self._failed(Failed(worker, fault, str(fault)))
            case Failed():
                self._failed(event)
            case Lost(worker, reason, with_its_node):
                if with_its_node and self._embedded:
                    raise RunFailed("the Ray on this machine has died (out of memory?); run the same command again")
                self._lost(worker, reason)

    def _unseen(self, worker: str, result: Result) -> NotCommitted | None:
        """Why the driver does not believe that a worker's task is done; of a task that is done, a copy may be gone."""
        key = self._dispatcher.running[worker]
        if key not in self._dispatcher.done:
            try:
                confirm(self._pieces[key].job, result)
            except NotCommitted as fault:
                return fault
        return None

    def _record(self, worker: str, result: Result) -> None:
        piece = self._pieces[self._dispatcher.running[worker]]
        first = self._dispatcher.succeeded(worker, time.monotonic())
        if first:
            self._done[piece.task.kind] += int(piece.task.cost)
            self._finished[piece.task.kind] += 1
        kind, info = self._kinds[piece.task.kind], self._infos[worker]
        if kind.counts_images and first:
            self._images += result.images
        name, fields = kind.event(piece, result, first)
        self._events.add(name, **fields, worker=worker, node=info.node, device=info.device)

    def _failed(self, failure: Failed) -> None:
        worker = failure.worker
        doing = self._dispatcher.running[worker] if worker in self._infos else worker
        if isinstance(failure.cause, WorkerRefusal) and doing in self._pieces:
            require_here(self._pieces[doing].job.run, self._pieces[doing].job.storage)
        path = self._log(doing, failure.traceback)
        if isinstance(failure.cause, WorkerRefusal):
            raise failure.cause
        if worker not in self._infos:
            raise RunFailed(f"a worker can't start: {failure.summary} (details: {path})")
        self._charge(doing, f"{failure.summary} (details: {path})", self._dispatcher.failed(worker))

    def _lost(self, worker: str, reason: str) -> None:
        self._losses += 1
        path = self._log(worker, reason)
        self._events.add("lost", worker=worker, reason=reason)
        if self._losses > self._workers + LOSSES_WITHOUT_WORK:
            raise RunFailed(
                f"{self._losses} workers were lost with no work done in between; the last: {reason} ({path})"
            )
        if worker in self._infos:
            key = self._dispatcher.running.get(worker)
            quarantined = self._dispatcher.worker_lost(worker)
            self._charge(key or "nothing", f"lost {worker}, starting another: {reason}", quarantined)
        else:
            self._progress.say(f"{worker} could not be started: {reason}")
        self._pool.start()

    def _charge(self, key: str, reason: str, quarantined: bool) -> None:
        self._events.add("failed", task=key, reason=reason, quarantined=quarantined)
        self._reasons[key] = reason
        if key in self._dispatcher.done:
            then = "another copy of it is already done"
        else:
            then = "given up after too many attempts, the rest goes on" if quarantined else "will be retried"
        self._progress.say(f"{key}: {reason}; {then}" if key in self._pieces else reason)

    def _problems(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        for key in sorted(self._dispatcher.quarantined):
            cell = self._pieces[key].cell
            names = [cell.name] if cell else [p.cell.name for p in self._pieces.values() if p.cell]
            problems |= dict.fromkeys(names, f"{key}: {self._reasons[key]}")
        return problems
