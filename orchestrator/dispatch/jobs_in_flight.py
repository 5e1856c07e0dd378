"""The jobs of tasks in flight, when workers must be stopped, and the job that does the rest of a shard then."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from taugrid.jobs import Job, Result
from taugrid.orchestrator.dispatch.policy.in_flight import InFlight
from taugrid.orchestrator.rundir.directory import Committed
from taugrid.orchestrator.task import Task
from taugrid.workers.jobs import SampleJob


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

    def is_shard(self, key: str) -> bool:
        """Whether a task samples, so that whole batches of it can be kept."""
        return isinstance(self.job(key), SampleJob)

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
