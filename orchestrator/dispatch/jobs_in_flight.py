"""The jobs of tasks in flight, and when workers must be stopped.

Of a shard whose worker was stopped: what is kept, and the job that does the rest.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from taugrid.jobs import Job, Result
from taugrid.orchestrator.dispatch.policy.in_flight import InFlight
from taugrid.orchestrator.rundir.directory import Committed
from taugrid.orchestrator.task import Task
from taugrid.words import counted, duration, listed
from taugrid.workers.sample import SampleJob


class InProgress(NamedTuple):
    """A shard that was in progress when the run was interrupted."""

    cell: str
    """The label of its cell."""
    images: float
    """Images done at the last heartbeat; an image in progress counts as a fraction."""
    seconds: float
    """Time since the shard was begun."""
    kept: int = 0
    """Images in complete batches that were committed."""

    @property
    def seconds_lost(self) -> float:
        """The share of its time that was spent on images that are not kept; all of it if none is."""
        return self.seconds * max(0.0, 1 - self.kept / (self.images or 1))


class JobsInFlight:
    """The jobs of the tasks in flight; those of shards that were given back do the rest."""

    def __init__(self, tasks: Mapping[str, Task], in_flight: InFlight) -> None:
        self._tasks, self._in_flight = tasks, in_flight
        self._jobs: dict[str, Job] = {}  # task -> its job, or the rest of it, from when it is given until it is done
        self._stopped: set[str] = set()  # workers

    def job(self, key: str) -> Job:
        """The job of a task; of a shard that was given back, it does the rest."""
        if key not in self._jobs:
            job = self._tasks[key].job
            assert job is not None
            self._jobs[key] = job
        return self._jobs[key]

    def done(self, key: str) -> None:
        """A task's job is needed no longer."""
        self._jobs.pop(key, None)

    def keep(self, key: str, result: Result, found: Committed | None) -> bool:
        """Whether a shard's worker was stopped after some of its batches: the next job continues from them.

        `found` is the file: that part, or a longer copy by another worker. None: the task is done.
        """
        job, part = self.job(key), result.part
        if not isinstance(job, SampleJob) or part is None or part.stop >= job.stop:
            return False
        if found is not None:
            stop = max(part.stop, min(found.part.stop, job.stop - 1) if found.part else 0)
            in_batches = (stop - job.start) // job.settings.batch_size * job.settings.batch_size
            self._jobs[key] = replace(job, kept=in_batches, replaces=found.version)
        return True

    def to_stop(self, leaving: Mapping[str, float], now: float) -> Iterator[str]:
        """The workers to stop now, because their jobs do not end before their nodes are taken away; each once.

        `leaving` is worker -> when its node is taken away. Others go on with these jobs at once.
        """
        for worker, gone_at in leaving.items():
            running = self._in_flight.running.get(worker)
            if running is None or worker in self._stopped:
                continue
            job, batches = self.job(running.key), 1
            if isinstance(job, SampleJob):
                batches = math.ceil((job.stop - job.start - job.kept) / job.settings.batch_size)
            if running.must_stop(now, gone_at, batches):
                self._stopped.add(worker)
                yield worker

    def in_progress(self, now: float) -> Iterator[tuple[str, InProgress]]:
        """The shards in flight, by key; of a queued one it is not known whether it has begun."""
        for worker, running in self._in_flight.running.items():
            for key in self._in_flight.keys(worker):
                job, cell = self.job(key), self._tasks[key].cell
                if isinstance(job, SampleJob) and cell is not None:
                    is_first = key == running.key
                    seconds, done = (now - running.since, running.fraction) if is_first else (0.0, 0.0)
                    yield key, InProgress(cell.label, done * (job.stop - job.start - job.kept), seconds)


def interruption(shards: Iterable[InProgress]) -> str:
    """A phrase that says how much is kept and lost; empty if no shard was in progress."""
    begun = [shard for shard in shards if shard.seconds or shard.kept]
    if not begun:
        return ""
    cells = list(dict.fromkeys(shard.cell for shard in begun))
    kept, seconds = sum(shard.kept for shard in begun), sum(shard.seconds_lost for shard in begun)
    lost = sum(max(0.0, shard.images - shard.kept) for shard in begun)
    at_work = f"{counted(len(begun), 'shard')} in progress ({listed(cells, 2, 'cell')})"
    of_work = f"{duration(seconds)} of work (about {counted(round(lost), 'image')})"
    if kept and round(lost) == 0:  # no heartbeat was newer than what is kept
        of_work = "less than a batch"
    return f"{at_work}: {counted(kept, 'image')} kept, {of_work} lost"
