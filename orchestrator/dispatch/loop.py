"""The loop between pool and dispatcher: passes on events and assignments, and reports them to the user."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

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
from taugrid.orchestrator.dispatch.policy.dispatcher import Charge, Dispatcher, Fault
from taugrid.orchestrator.dispatch.pool import Alive, Done, Failed, Joined, Located, Lost, Pool, PoolEvent
from taugrid.orchestrator.dispatch.worker_manager import Outputs, WorkerManager
from taugrid.orchestrator.rundir.directory import Committed, confirm, require_in_place
from taugrid.orchestrator.rundir.history import Maker, RunHistory, maker_of
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.parquet import OTHER_BYTES
from taugrid.storage import READS_TOGETHER
from taugrid.words import counted, duration, quantity
from taugrid.workers.jobs import SampleJob

POLL_SECONDS = 0.5  # how often it wakes up while nothing happens, for Ctrl-C, stragglers, hangs and cooldowns that end

# A turn takes about a second. During one that takes this long, because a disk hangs or the driver was stopped, no
# heartbeats were received, and no worker must be killed for that.
AWAY_SECONDS = 30.0

KEEP_SECONDS = 2.5  # how long an interrupted driver waits for commits, of the grace period of `ending`

FINAL = NotFinite | SamplerFault | DoesNotFit  # the same job, and all others of its cell, would raise it again


class Loop:
    """Runs `tasks` on `pool` until everything that can be done is done. An `embedded` cluster has `workers` from
    beginning to end. On a cluster that the run joined they are the maximum; None: as many as fit. `permanent_failures`
    are the names of cells that failed and would fail again."""

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
        self._tasks, self._pool, self._embedded, self._config = tasks, pool, embedded, config
        self._kinds = {kind.name: kind for kind in kinds}
        self._progress, self._events, self._log, self._committed = outputs
        scored = frozenset(kind.name for kind in kinds if not kind.needs_network)
        left_to_scorers = scored if pool.scorer is not None else ()
        self._dispatcher = Dispatcher(
            tasks.values(),
            list(self._kinds),
            config.max_attempts,
            config.hang_seconds,
            queues_ahead=True,
            left_to_scorers=left_to_scorers,
            pace=lambda task: self._kinds[task.kind].pace(task),
        )
        self._manager = WorkerManager(pool, self._dispatcher, workers, not embedded, scored, config, outputs)
        self._jobs: dict[str, Job] = {}  # task -> its job, or the rest of it, from when it is given until it is done
        self._makers: set[Maker] = set()  # the kinds of worker of this session
        self._stopped: set[str] = set()  # workers
        self._new: list[Committed] = []  # not yet passed to `committed`
        self._received: deque[PoolEvent] = deque()  # not yet handled
        self._looking = ThreadPoolExecutor(READS_TOGETHER)  # up to 64 KiB of each file are kept
        self._looks: dict[tuple[str, str], Future[Committed]] = {}  # worker and key of `_received`, in an object store
        self._writing = ThreadPoolExecutor(1)  # after an interrupt, a write waits for the one before
        self._reasons: dict[str, str] = {}
        self._told: set[str] = set()  # what is said once in a run
        self._listened = time.monotonic()
        self.permanent_failures: set[str] = set()

    def run(self) -> dict[str, str]:
        """Run, and return cell name -> reason for the cells that could not be finished. Raises `UserError` or
        `RunFailed` as `WorkerManager` does, or if workers die faster than they work."""
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
            self._progress.tick(self._manager.snapshot, at_once=True)
            problems: dict[str, str] = {}
            # Tasks without a reason were given up with another of their cell, which has one.
            for key in sorted(self._dispatcher.quarantined & self._reasons.keys()):
                cell = self._tasks[key].cell
                names = [cell.name] if cell else [task.cell.name for task in self._tasks.values() if task.cell]
                problems |= dict.fromkeys(names, f"{key}: {self._reasons[key]}")
            return problems
        finally:
            self._looking.shutdown(wait=False, cancel_futures=True)
            self._writing.shutdown(wait=False)

    def _commit_partial_shards(self) -> None:
        """Have workers commit the complete batches of their shards; `ending` tells how many images they are."""
        in_flight, end = self._dispatcher.in_flight, time.monotonic() + KEEP_SECONDS
        shards = {
            key for worker in in_flight.running for key in in_flight.keys(worker)
            if isinstance(self._job(key), SampleJob)
        }  # fmt: skip
        kept = {running.key: 0 for running in in_flight.running.values() if running.key in shards}
        ended = {event.key for event in self._received if isinstance(event, Done | Failed)}
        waited_for = shards & {*self._pool.stop(), *ended} if shards else set[str | None]()
        while True:
            images = counted(sum(kept.values()), "image")
            ending.lost = f"{counted(len(kept), 'shard')} in progress: {images} kept" if kept else ""
            left = end - time.monotonic()
            if not waited_for or left <= 0:
                return
            for event in self._new_events(left):
                if isinstance(event, Lost):
                    waited_for -= set(in_flight.keys(event.worker))
                elif isinstance(event, Done | Failed) and event.key in waited_for:
                    waited_for -= {event.key}
                    with suppress(NotCommitted, FileConflict):
                        if isinstance(event, Done):
                            self._record(*event)
                            kept[event.key] = event.result.images

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
        self._stop_on_leaving_nodes(now)
        assignments = self._dispatcher.assign(now)
        for worker, task, speculative in assignments:
            if speculative:
                self._events.note("duplicate", task=task.key, worker=worker)
            info = self._manager.info(worker)
            self._events.note("assigned", task=task.key, worker=worker, node=info.node, device=info.device)
        self._flush()  # before a job begins: if this driver dies, the device of its file must be known
        for worker, task, _ in assignments:
            failed_before = self._dispatcher.attempts(task.key) > 0
            self._pool.submit(worker, replace(self._job(task.key), failed_before=failed_before), task.key)
        self._progress.tick(self._manager.snapshot)

    def _stop_on_leaving_nodes(self, now: float) -> None:
        """Stop the workers, each once, whose jobs do not end before their nodes are taken away: others go on."""
        for worker, gone_at in self._manager.leaving.items():
            running = self._dispatcher.in_flight.running.get(worker)
            if running is None or worker in self._stopped:
                continue
            job, batches = self._job(running.key), 1
            if isinstance(job, SampleJob):
                batches = math.ceil((job.stop - job.start - job.kept) / job.settings.batch_size)
            if running.must_stop(now, gone_at, batches):
                self._stopped.add(worker)
                self._pool.stop([worker])

    def _new_events(self, seconds: float) -> Iterator[PoolEvent]:
        """The events since the last call, and those that an interrupt left over. In an object store a look at a file is
        a request. Those of all files that are new are made together, and each fails or is tried again alone."""
        self._received += self._pool.events(0.0 if self._received else seconds)
        if not self._events.storage.on_disk:
            for event in self._received:
                if not isinstance(event, Done) or event.key in self._dispatcher.done:
                    continue
                copy = (event.worker, event.key)
                if copy not in self._looks:
                    self._looks[copy] = self._looking.submit(confirm, self._job(event.key), event.result)
        while self._received:
            event = self._received[0]
            if self._manager.has(event.worker):  # an earlier event may have ended it
                yield event
            self._received.popleft()  # not before it was handled: an interrupt may come in between

    def _flush(self) -> None:
        """Write the events of this turn and, at the same time, what was committed in it."""
        new, self._new = self._new, []
        written = self._writing.submit(self._committed, new) if new else None
        self._events.flush()
        if written is not None:
            written.result()

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
        in_flight = self._dispatcher.in_flight
        match event:
            case Located():
                self._manager.located(event)
            case Joined():
                self._manager.joined(event)
                self._makers.add(maker_of(event.info.made_by))
            case Alive(worker):
                if (running := in_flight.running.get(worker)) is None:
                    return
                self._dispatcher.heartbeat(worker, time.monotonic())
                if event.key != running.key:
                    return  # of its second task, which computes while the first is written
                running.doing = event.doing
                if event.of:
                    running.fraction = min(1.0, event.done / event.of)
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
                if worker in in_flight.running:
                    self._lost(event)
                else:
                    self._manager.lost(event)

    def _job(self, key: str) -> Job:
        """The job of a task; of a shard that was given back, it does the rest."""
        if key not in self._jobs:
            job = self._tasks[key].job
            assert job is not None
            self._jobs[key] = job
        return self._jobs[key]

    def _found(self, worker: str, result: Result, key: str) -> Committed | None:
        """The file of a task, as the driver sees it. None: the task was done before, and its copies may differ. Raises
        `NotCommitted` or `FileConflict` if the driver does not find it, or finds one that nothing explains."""
        is_done, look = key in self._dispatcher.done, self._looks.pop((worker, key), None)
        found = None
        try:
            if not is_done:
                found = confirm(self._job(key), result) if look is None else look.result()
            if result.conflict is not None:
                self._judge(worker, key, result.conflict)
        except (NotCommitted, FileConflict) as fault:
            if not is_done:
                raise
            self._events.note("late copy", task=key, worker=worker, reason=str(fault))
            self._say_once("late copy", f"{key}: {fault}; it was already done, and nothing is done again")
        return found

    def _judge(self, worker: str, key: str, conflict: str) -> None:
        """Keep the file that `worker` found, with a note, if its maker may round differently; else `FileConflict`. So
        may one whose device, software or threads differ, where the run has had workers of several kinds, and equal ones
        that extract features in batches of different sizes, because memory decides these."""
        job = self._job(key)
        if conflict != OTHER_BYTES:
            raise FileConflict(
                f"{job.path} was made by another driver or worker meanwhile, and it {conflict}; compare their devices "
                "and versions, or remove it"
            )
        info = self._manager.info(worker)
        device = info.device
        others = (self._recorded_makers | self._makers) - {maker_of(info.made_by)}
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

    @cached_property
    def _recorded_makers(self) -> set[Maker]:
        """The kinds of worker of all sessions until now. Read once: a run may have a million events."""
        return RunHistory.of(self._events.so_far()).makers

    def _say_once(self, about: str, message: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._progress.say(message)

    def _record(self, worker: str, result: Result, key: str) -> None:
        found, task = self._found(worker, result, key), self._tasks[key]
        if is_short := self._keep_part(key, result, found):
            self._dispatcher.gave_back(worker, time.monotonic(), key)
        first_copy = not is_short and self._dispatcher.succeeded(worker, time.monotonic(), key)
        info = self._manager.info(worker)
        name, fields = self._kinds[task.kind].event(task, result, first_copy)
        given_back = {"given_back": True} if is_short else {}
        self._events.note(name, **fields, **given_back, worker=worker, node=info.node, device=info.device)
        if first_copy and found is not None:
            self._new.append(found)
        if key in self._dispatcher.done:
            self._jobs.pop(key, None)

    def _keep_part(self, key: str, result: Result, found: Committed | None) -> bool:
        """Whether a shard's worker was stopped after some of its batches: the next job continues from them. `found` is
        the file: that part, or a longer copy by another worker. None: the task is done."""
        job, part = self._job(key), result.part
        if not isinstance(job, SampleJob) or part is None or part.stop >= job.stop:
            return False
        if found is not None:
            stop = max(part.stop, min(found.part.stop, job.stop - 1) if found.part else 0)
            in_batches = (stop - job.start) // job.settings.batch_size * job.settings.batch_size
            self._jobs[key] = replace(job, kept=in_batches, replaces=found.version)
        return True

    def _failed(self, failure: Failed) -> None:
        worker, cause = failure.worker, failure.cause
        doing = failure.key or self._dispatcher.in_flight.running[worker].key
        if isinstance(cause, Stopped):  # before a batch was done
            self._dispatcher.gave_back(worker, time.monotonic(), doing)
            self._events.note("given back", task=doing, worker=worker)
            return
        job = self._job(doing)
        if isinstance(cause, OSError) and cause.errno in FULL and job.run_id is not None:
            is_for_all = Path(str(cause.filename)).is_relative_to(job.run_id.root)
            if is_for_all:
                raise RunFailed(in_one_line(cause))
        if isinstance(cause, WorkerRefusal):
            require_in_place(job.run_id, job.storage)
        path = self._log(doing, failure.traceback)
        self._manager.failed(failure)
        reason = str(cause) if isinstance(cause, UserError | DoesNotFit) else failure.summary
        if is_accelerator_error(cause):  # the process is of no more use, and the task may do the same to the next
            self._pool.kill(worker)
            self._lost(Lost(worker, reason, False), doing)
            return
        fault = fault_of(cause)
        charge = self._dispatcher.failed(worker, time.monotonic(), fault, reason, doing)
        self._charge(worker, charge, f"{reason} (details: {path})")
        kind, cell = self._tasks[doing].kind, self._tasks[doing].cell
        if charge.quarantined and cell is not None:
            if fault is Fault.FINAL and (given_up := self._dispatcher.quarantine(self._of_cells[kind, cell.id])):
                self._events.note("given up", tasks=sorted(given_up), because=doing)
                self._progress.say(f"{counted(len(given_up), 'other task')} of its cell given up")
            # NaN from the network, a sampler that breaks its contract, and a failing metric come again.
            of_a_metric = kind == ScoreWork.name and not isinstance(cause, OSError | DamagedFile | DoesNotFit)
            if isinstance(cause, NotFinite | SamplerFault) or (of_a_metric and fault is Fault.TASK):
                self.permanent_failures.add(cell.name)
        self._manager.cools_down(charge.cooldown, reason)

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


def fault_of(cause: BaseException) -> Fault:
    """What to charge an error to."""
    if isinstance(cause, FINAL):
        return Fault.FINAL
    if isinstance(cause, WorkerRefusal):
        return Fault.REFUSAL
    return Fault.ENVIRONMENT if is_environment_error(cause) else Fault.TASK
