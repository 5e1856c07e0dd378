"""The loop between pool and dispatcher: passes on events and assignments, and reports them to the user."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from taugrid import retries
from taugrid.config import Cluster
from taugrid.errors import (
    FULL,
    DamagedFile,
    DoesNotFit,
    FileConflict,
    NotCommitted,
    NotFinite,
    RunFailed,
    SamplerFault,
    Stopped,
    UserError,
    WorkerRefusal,
    in_one_line,
    is_accelerator_error,
    is_environment_error,
)
from taugrid.eval.extract import ExtractJob
from taugrid.jobs import Job, Result
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch.jobs_in_flight import JobsInFlight, interruption
from taugrid.orchestrator.dispatch.policy.dispatcher import Charge, Dispatcher, Fault
from taugrid.orchestrator.dispatch.pool import Alive, Done, Failed, Joined, Located, Lost, Pool, PoolEvent
from taugrid.orchestrator.dispatch.scaling import Scaling
from taugrid.orchestrator.dispatch.worker_manager import Outputs, WorkerManager
from taugrid.orchestrator.rundir.directory import Committed, confirm, require_in_place
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.shard_sizes import LongShards
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.parquet import OTHER_BYTES
from taugrid.storage import READS_TOGETHER
from taugrid.words import counted, duration, quantity

POLL_SECONDS = 0.5
"""How often the driver wakes up while nothing happens, for Ctrl-C, stragglers, hangs and cooldowns that end."""

AWAY_SECONDS = 30.0
"""A turn takes about a second. One that takes this long was held up, by a disk that hangs or because the driver was
stopped. The driver received no heartbeats during it, and must not kill workers for that."""

KEEP_SECONDS = 2.5
"""How long an interrupted driver waits for its workers to commit; it must end within the grace period of `ending`."""

FINAL = NotFinite | SamplerFault | DoesNotFit
"""Errors that the same job, and all others of its cell, would raise again."""


class Loop:
    """Runs `tasks` on `pool` until everything that can be done is done.

    An `embedded` cluster has `workers` from beginning to end. On a cluster that the run joined they are the maximum;
    None: as many as fit.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        kinds: Sequence[type[WorkKind]],
        pool: Pool,
        workers: int | None,
        embedded: bool,
        config: Cluster,
        outputs: Outputs,
    ) -> None:
        self._tasks = tasks
        self._kinds = {kind.name: kind for kind in kinds}
        self._pool = pool
        self._embedded = embedded
        self._config = config
        self._progress, self._events, self._log, self._committed = outputs
        names = list(self._kinds)
        self._dispatcher = Dispatcher(
            tasks.values(), names, config.max_attempts, config.hang_seconds, queues_ahead=True
        )
        cpu_kinds = frozenset(kind.name for kind in kinds if not kind.needs_network)
        scaling = Scaling(pool, self._dispatcher, workers, not embedded, cpu_kinds, config.max_wait_seconds)
        self._manager = WorkerManager(pool, self._dispatcher, scaling, config, outputs)
        self._new: list[Committed] = []  # not yet passed to `committed`
        self._received: deque[PoolEvent] = deque()  # not yet handled
        self._looking = ThreadPoolExecutor(READS_TOGETHER)  # up to 64 KiB of each file are kept
        self._looks: dict[tuple[str, str], Future[Committed]] = {}  # worker and key of `_received`, in an object store
        self._writing = ThreadPoolExecutor(1)  # after an interrupt, a write waits for the one before
        self._reasons: dict[str, str] = {}
        self._long_shards = LongShards()
        self._told: set[str] = set()  # what is said once in a run
        self._jobs = JobsInFlight(tasks, self._dispatcher.in_flight)
        self._listened = time.monotonic()
        self.permanent_failures: set[str] = set()
        """Names of cells that failed and would fail again (`_is_permanent`)."""

    def run(self) -> dict[str, str]:
        """Run, and return cell name -> reason for the cells that could not be finished.

        Raises:
            UserError: if no node is fit because each lacks what the driver has, or none was ever large enough.
            RunFailed: if no node is fit for another reason, all are full or gone, or workers die faster than they work.
        """
        try:
            self._announce(self._manager.begin())
            while not self._dispatcher.finished:
                self._turn()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and ending.failure is None:
                with suppress(Exception):  # it may have come in the middle of anything, and must end the run
                    self._commit_partial_shards()
            retries.over.set()  # the threads of `_looking` stop, too
            with suppress(OSError):  # a store that fails as well must not hide what ended the run
                self._flush()
            raise
        else:
            self._flush()
            return self._problems()
        finally:
            self._looking.shutdown(wait=False, cancel_futures=True)
            self._writing.shutdown(wait=False)

    def _commit_partial_shards(self) -> None:
        """Have workers commit the complete batches of their shards; `ending` tells what is lost."""
        now = time.monotonic()
        shards = dict(self._jobs.in_progress(now))
        ending.lost = interruption(shards.values())
        ended = {event.key for event in self._received if isinstance(event, Done | Failed)}
        waited_for = shards.keys() & {*self._pool.stop(), *ended} if shards else set()
        while waited_for and (left := now + KEEP_SECONDS - time.monotonic()) > 0:
            for event in self._new_events(left):
                if isinstance(event, Lost):
                    waited_for -= set(self._dispatcher.in_flight.keys(event.worker))
                elif isinstance(event, Done | Failed) and event.key in waited_for:
                    waited_for -= {event.key}
                    with suppress(NotCommitted, FileConflict):
                        if isinstance(event, Done):
                            self._record(*event)
                            shards[event.key] = shards[event.key]._replace(kept=event.result.images)
        ending.lost = interruption(shards.values())

    def _turn(self) -> None:
        """Handle the events since the last turn, and give tasks to idle workers."""
        for event in self._new_events(POLL_SECONDS):
            self._handle(event)
        now = time.monotonic()
        away, self._listened = now - self._listened, now
        if away >= AWAY_SECONDS:
            self._dispatcher.grant_grace(away)
            self._manager.grant_grace(away)
        for worker in self._dispatcher.overdue(now):
            self._pool.kill(worker)
            silent = duration(self._config.hang_seconds)
            reason = f"killed after {silent} without a heartbeat (cluster.hang_seconds)"
            self._lost(Lost(worker, reason, False), self._dispatcher.in_flight.running[worker].key)
        self._manager.tend(now)
        for worker in self._jobs.to_stop(self._manager.leaving, now):
            self._pool.stop([worker])
        assignments = self._dispatcher.assign(now)
        for worker, task, speculative in assignments:
            if speculative:
                self._events.note("duplicate", task=task.key, worker=worker)
            info = self._manager.info(worker)
            self._events.note("assigned", task=task.key, worker=worker, node=info.node, device=info.device)
        self._flush()  # before a job begins: if this driver dies, the device of its file must be known
        for worker, task, _ in assignments:
            failed_before = self._dispatcher.attempts(task.key) > 0
            self._pool.submit(worker, replace(self._jobs.job(task.key), failed_before=failed_before), task.key)
        self._progress.tick()

    def _new_events(self, seconds: float) -> Iterator[PoolEvent]:
        """The events since the last call, and those that an interrupt left over.

        In an object store a look at a file is a request. Those of all files that are new are made together, and each
        fails or is tried again alone.
        """
        self._received += self._pool.events(0.0 if self._received else seconds)
        if not self._events.storage.on_disk:
            for event in self._received:
                if isinstance(event, Done) and event.key not in self._dispatcher.done:
                    look = self._looking.submit(confirm, self._jobs.job(event.key), event.result)
                    self._looks.setdefault((event.worker, event.key), look)
        while self._received:
            event = self._received[0]
            if self._manager.has(event.worker):  # an earlier event may have ended it
                yield event
            self._received.popleft()  # not before it was handled: an interrupt may come in between

    def _flush(self) -> None:
        """Write the events of this turn, and what was committed in it: in an object store two requests, together."""
        if self._events.storage.on_disk:
            self._events.flush()
            self._add_to_ledger()
        else:
            written = self._writing.submit(self._add_to_ledger)
            self._events.flush()
            written.result()

    def _add_to_ledger(self) -> None:
        if self._new:
            new, self._new = self._new, []
            self._committed(new)

    def _announce(self, workers: int) -> None:
        kinds, todo = self._kinds.values(), self._tasks.values()
        costs = (task.cost for task in todo if self._kinds[task.kind].unit == NETWORK_EVALUATIONS)
        tasks, evaluations = Counter(task.kind for task in todo), sum(costs)
        counts = [(tasks[kind.name], *kind.task_in_words) for kind in kinds]
        work = ", ".join(f"{counted(number, noun)} {purpose}" for number, noun, purpose in counts if number)
        total = self._progress.state.evaluations if self._progress.state is not None else 0
        of = f" of {quantity(total)}" if total > evaluations else ""
        cost = f" ({quantity(evaluations)}{of} network evaluations)" if evaluations else ""
        self._progress.say(f"to do: {work}{cost}; starting {counted(workers, 'worker')}")

    def _handle(self, event: PoolEvent) -> None:
        match event:
            case Located():
                self._manager.located(event)
            case Joined():
                self._manager.joined(event)
            case Alive():
                if event.worker in self._dispatcher.in_flight.running:
                    self._heard(event)
            case Done(worker, result, key):
                self._manager.worked()
                try:
                    self._record(worker, result, key)
                except (NotCommitted, FileConflict) as fault:
                    self._failed(Failed(worker, fault, str(fault), key))
            case Failed():
                if event.key is not None:
                    self._failed(event)
                else:
                    self._manager.unhealthy(event)
            case Lost(worker, _, with_its_node):
                if with_its_node and self._embedded:
                    raise RunFailed("the Ray on this machine has died (out of memory?); run the same command again")
                if not with_its_node and self._manager.is_leaving(worker):
                    event = event._replace(with_its_node=True)
                if worker in self._dispatcher.in_flight.running:
                    self._lost(event)
                else:
                    self._manager.lost(event)

    def _heard(self, event: Alive) -> None:
        worker, now = event.worker, time.monotonic()
        self._dispatcher.heartbeat(worker, now)
        running = self._dispatcher.in_flight.running[worker]
        if event.key != running.key:
            return  # of its second task, which computes while the first is written
        fraction = running.fraction = min(1.0, event.done / event.of) if event.of else 0.0
        self._progress.heard(worker, fraction, event.doing)
        if event.doing:
            return  # its time says nothing of the rest
        if (message := self._long_shards.warning(worker, self._jobs.job(event.key), fraction, now)) is not None:
            self._progress.say(message)

    def _found(self, worker: str, result: Result, key: str) -> Committed | None:
        """The file of a task, as the driver sees it. None: the task was done before, and its copies may differ.

        Raises:
            NotCommitted, FileConflict: if the driver does not find it, or finds one that nothing explains.
        """
        is_done, look = key in self._dispatcher.done, self._looks.pop((worker, key), None)
        found = None
        try:
            if not is_done:
                found = confirm(self._jobs.job(key), result) if look is None else look.result()
            if result.conflict is not None:
                self._judge(worker, key, result.conflict)
        except (NotCommitted, FileConflict) as fault:
            if not is_done:
                raise
            self._events.note("late copy", task=key, worker=worker, reason=str(fault))
            self._say_once("late copy", f"{key}: {fault}; it was already done, and nothing is done again")
        return found

    def _judge(self, worker: str, key: str, conflict: str) -> None:
        """Keep the file that `worker` found, with a note, if its maker may round differently.

        So may one whose device, software or threads differ, where the run has had workers of several kinds, and equal
        ones that extract features in batches of different sizes, because memory decides these.

        Raises:
            FileConflict: if not.
        """
        job = self._jobs.job(key)
        if conflict != OTHER_BYTES:
            raise FileConflict(
                f"{job.path} was made by another driver or worker meanwhile, and it {conflict}; compare their devices "
                "and versions, or remove it"
            )
        device = self._manager.info(worker).device
        history = RunHistory.of(self._events.so_far())
        others = history.makers - {history.workers[worker]}
        if not others and not isinstance(job, ExtractJob):
            raise FileConflict(
                f"{job.path} {conflict}, although it was made with the same software and threads, on the same kind of "
                f"device ({device}): something is not deterministic, such as a custom network or sampler; it is kept"
            )
        first = sorted({maker.device for maker in others}) or [device]
        self._events.note("other bytes", task=key, worker=worker, device=device, first=first)
        why = "device, processor, software or threads differ" if others else "memory decides the size of a batch"
        self._say_once(
            "other bytes",
            f"{key} was made twice, with other bytes on {' or '.join(first)} than on {device} ({why}); the first "
            "counts, here and wherever it happens again",
        )

    def _say_once(self, about: str, message: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._progress.say(message)

    def _record(self, worker: str, result: Result, key: str) -> None:
        found, task = self._found(worker, result, key), self._tasks[key]
        if is_short := self._jobs.keep(key, result, found):
            self._dispatcher.gave_back(worker, time.monotonic(), key)
        first_copy = not is_short and self._dispatcher.succeeded(worker, time.monotonic(), key)
        kind, info = self._kinds[task.kind], self._manager.info(worker)
        name, fields = kind.event(task, result, first_copy)
        given_back = {"given_back": True} if is_short else {}
        self._events.note(name, **fields, **given_back, worker=worker, node=info.node, device=info.device)
        if first_copy and found is not None:
            self._new.append(found)
        if key in self._dispatcher.done:
            self._jobs.done(key)

    def _failed(self, failure: Failed) -> None:
        worker, cause = failure.worker, failure.cause
        doing = failure.key or self._dispatcher.in_flight.running[worker].key
        if isinstance(cause, Stopped):  # before a batch was done
            self._dispatcher.gave_back(worker, time.monotonic(), doing)
            self._events.note("given back", task=doing, worker=worker)
            return
        if _is_disk_full(cause, self._jobs.job(doing)):
            raise RunFailed(in_one_line(cause))
        if isinstance(cause, WorkerRefusal):
            require_in_place(self._jobs.job(doing).run_id, self._jobs.job(doing).storage)
        path = self._log(doing, failure.traceback)
        self._manager.failed(failure)
        reason = str(cause) if isinstance(cause, UserError | DoesNotFit) else failure.summary
        if is_accelerator_error(cause):  # the process is of no more use, and the task may do the same to the next
            self._pool.kill(worker)
            self._lost(Lost(worker, reason, False), doing)
            return
        charge = self._dispatcher.failed(worker, time.monotonic(), fault_of(cause), reason, doing)
        self._charge(worker, charge, f"{reason} (details: {path})")
        cell = self._tasks[doing].cell
        if charge.quarantined and cell is not None:
            if isinstance(cause, FINAL):
                self._quarantine(self._of_cells[self._tasks[doing].kind, cell.id], doing)
            if self._is_permanent(cause, doing):
                self.permanent_failures.add(cell.name)
        self._manager.cools_down(charge.cooldown, reason)

    def _is_permanent(self, cause: BaseException, key: str) -> bool:
        """Whether a retry can't help: NaN from the network, a sampler that breaks its contract, or a failing metric."""
        is_metrics = self._kinds[self._tasks[key].kind].name == ScoreWork.name
        of_a_metric = is_metrics and not isinstance(cause, OSError | DamagedFile | DoesNotFit)
        return isinstance(cause, NotFinite | SamplerFault) or (of_a_metric and fault_of(cause) is Fault.TASK)

    def _lost(self, event: Lost, culprit: str | None = None) -> None:
        """A worker that had a task is gone. `culprit`: the task that certainly caused it, if any."""
        worker, reason = event.worker, event.reason
        path = self._log(worker, event.details or reason)
        self._events.note("lost", worker=worker, reason=reason)
        charge = self._dispatcher.worker_lost(worker, time.monotonic(), reason, event.with_its_node, culprit)
        details = f" (details: {path})" if event.details else ""
        self._charge(worker, charge, f"lost {worker}, starting another: {reason}{details}")
        self._manager.cools_down(charge.cooldown, f"its workers die ({reason})")
        self._manager.died(worker, reason)

    def _charge(self, worker: str, charge: Charge, reason: str) -> None:
        key = str(charge.key)
        self._events.note("failed", task=key, worker=worker, reason=reason, quarantined=charge.quarantined)
        self._reasons[key] = reason
        if key in self._dispatcher.done:
            then = "a different copy of it is already done"
        else:
            then = "given up, the rest goes on" if charge.quarantined else "will be retried"
        cell = self._tasks[key].cell
        of = f" ({cell.label})" if cell else ""
        self._progress.say(f"{key}{of}: {reason}; {then}")

    @cached_property
    def _of_cells(self) -> dict[tuple[str, str], list[str]]:
        """Kind and cell -> its tasks. Made once it is needed: a cell of NaN may fail on every worker at once."""
        keys: dict[tuple[str, str], list[str]] = {}
        for key, task in self._tasks.items():
            if task.cell is not None:
                keys.setdefault((task.kind, task.cell.id), []).append(key)
        return keys

    def _quarantine(self, keys: Sequence[str], key: str) -> None:
        """Give up those of `keys` that wait: their cell can't be finished without `key`."""
        if given_up := self._dispatcher.quarantine(keys):
            self._events.note("given up", tasks=sorted(given_up), because=key)
            self._progress.say(f"{counted(len(given_up), 'other task')} of its cell given up")

    def _problems(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        # Tasks without a reason were given up with another of their cell, which has one.
        for key in sorted(self._dispatcher.quarantined & self._reasons.keys()):
            cell = self._tasks[key].cell
            names = [cell.name] if cell else [task.cell.name for task in self._tasks.values() if task.cell]
            problems |= dict.fromkeys(names, f"{key}: {self._reasons[key]}")
        return problems


def fault_of(cause: BaseException) -> Fault:
    if isinstance(cause, FINAL):
        return Fault.FINAL
    if isinstance(cause, WorkerRefusal):
        return Fault.REFUSAL
    return Fault.ENVIRONMENT if is_environment_error(cause) else Fault.TASK


def _is_disk_full(cause: BaseException, job: Job) -> TypeGuard[OSError]:
    """Whether the run directory is full, for every node."""
    if not isinstance(cause, OSError) or cause.errno not in FULL or job.run_id is None:
        return False
    return Path(str(cause.filename)).is_relative_to(job.run_id.root)
