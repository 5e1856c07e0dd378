"""What the driver hears from actors of a real Ray."""

import itertools
import os
import signal
import threading
import time
from collections import deque
from pathlib import Path

import pytest
import ray
from command import wait_until_gone
from ray.exceptions import RaySystemError
from snapshots import recorded

from taugrid.errors import UserError, WorkerRefusal
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch.pool import Alive, Done, Failed, Joined, Located, Lost, Pool
from taugrid.workers.actor import HeartbeatActor, Probe, Worker


class Heard(Pool):
    """A pool that keeps the events that a test has not asked for yet."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.unheard = deque()


def next_event(pool, kind=Joined | Failed | Lost | Done, seconds=120):
    """The next event of some kind."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while pool.unheard:
            if isinstance(event := pool.unheard.popleft(), kind):
                return event
        pool.unheard += pool.events(1.0)
    raise AssertionError(f"nothing was heard in {seconds} s")


def well():
    """A class whose health is well and tells its process; made in a function, so that it travels by value."""

    class Well(HeartbeatActor):
        def check_health(self, probe):
            return WorkerInfo("here", str(os.getpid()), {})

    return Well


@pytest.fixture
def started(ray_session, tmp_path):
    """Starts a pool with one worker of a class; returns it and what it says first."""
    pools = []

    def start(actor, arguments, probe):
        pools.append(Heard(actor, arguments, 1, 0, probe))
        pools[-1].start()
        return pools[-1], next_event(pools[-1])

    yield start
    for pool in pools:
        pool.close()


def test_an_error_arrives_as_what_was_raised(started, tmp_path):
    errors = [WorkerRefusal("w does not fit"), UserError("no data"), ValueError("two\nlines")]

    class Raising(well()):
        def do(self, job):
            raise errors[int(job.path)]

    pool, first = started(Raising, (), tmp_path)
    assert isinstance(first, Joined)
    for number, error in enumerate(errors):
        pool.submit("worker-0", Job(str(number)), "task")
        failure = next_event(pool)
        assert isinstance(failure, Failed)
        assert type(failure.cause) is type(error)
        assert str(failure.cause) == str(error)
        assert failure.summary == f"{type(error).__name__}: {str(error).splitlines()[-1]}"
        assert "Traceback" not in failure.summary
        assert "raise errors[int(job.path)]" in failure.traceback


def beating():
    """A class that beats until its job's file is there."""

    class Beating(well()):
        def do(self, job):
            for beats in itertools.takewhile(lambda _: not Path(job.path).exists(), itertools.count()):
                self.beat(beats, 20)
                time.sleep(0.1)
            return Result(0.0, 0, True)

    return Beating


def test_heartbeats_are_heard_while_a_job_runs(started, tmp_path):
    pool, _ = started(beating(), (), None)
    pool.submit("worker-0", Job(str(tmp_path / "heard")), "task")
    beats = [next_event(pool, Alive) for _ in range(6)]
    (tmp_path / "heard").touch()
    assert isinstance(next_event(pool), Done)
    assert all((beat.key, beat.of) == ("task", 20) for beat in beats)
    assert [beat.done for beat in beats] == sorted({beat.done for beat in beats})


def writing():
    """A class of jobs that say when they began and ended. `free` lets the next begin; others wait a moment for it."""

    class Writing(well()):
        def __init__(self):
            super().__init__()
            self._another, self._begun, self._moments = threading.Condition(), 0, itertools.count()

        def do(self, job):
            began = next(self._moments)
            with self._another:
                self._begun = number = self._begun + 1
                self._another.notify_all()
            if job.path == "free":
                self._compute_lock.release()
            with self._another:
                seconds = 60 if job.path in ("free", "long") else 0.4
                self._another.wait_for(lambda: self._begun > number, seconds)
            if job.path == "fail":
                raise ValueError("planted")
            return Result(began, next(self._moments), True)

    return Writing


@pytest.mark.long
def test_a_second_job_begins_once_the_first_only_writes(started):
    pool, _ = started(writing(), (), None)
    for path in ("free", "kept"):
        pool.submit("worker-0", Job(path), "first")
        pool.submit("worker-0", Job("kept"), "second")
        first, second = sorted((next_event(pool), next_event(pool)), key=lambda done: done.key)
        assert (first.key, second.key) == ("first", "second")
        assert (second.result.seconds < first.result.images) == (path == "free")


@pytest.mark.long
def test_a_first_job_that_fails_lets_the_second_begin_and_a_death_ends_both(started):
    pool, joined = started(writing(), (), None)
    pool.submit("worker-0", Job("fail"), "first")
    pool.submit("worker-0", Job("kept"), "second")
    failed, done = next_event(pool), next_event(pool)
    assert (type(failed), failed.key, type(done), done.key) == (Failed, "first", Done, "second")
    for key in ("third", "fourth"):
        pool.submit("worker-0", Job("long"), key)
    os.kill(int(joined.info.device), signal.SIGKILL)
    assert isinstance(next_event(pool), Lost)
    assert [*pool.unheard, *pool.events(0.5)] == [], "one death is told once"


def test_the_death_of_an_idle_worker_is_heard_at_once(started):
    pool, joined = started(beating(), (), None)
    pool.submit("worker-0", Job("/"), "task")
    assert isinstance(next_event(pool), Done)
    list(pool.events(0.1))
    os.kill(int(joined.info.device), signal.SIGKILL)
    lost = next_event(pool, seconds=10)  # the next health check or job would tell much later, or never
    assert isinstance(lost, Lost)
    assert not lost.with_its_node
    recorded(lost.reason, "killed")
    assert "exit type" in lost.details, "Ray's own words are for the logs"
    assert "exit type" not in lost.reason


def test_the_next_loop_takes_over_idle_workers_and_those_at_work_are_killed(started, tmp_path):
    pool, idle = started(beating(), (), None)
    pool.start()
    busy = next_event(pool)
    pool.submit("worker-1", Job(str(tmp_path / "never")), "copy")
    assert [(event.worker, is_scorer) for event, is_scorer in pool.take_over()] == [("worker-0", False)]
    wait_until_gone([int(busy.info.device)])
    pool.check_health("worker-0")
    assert next_event(pool) == idle, "in the same process"
    pool.stop(["worker-0"])
    assert pool.take_over() == [], "it can do no more jobs"


def test_a_head_that_was_replaced_between_two_loops_knows_no_worker_to_kill(started, tmp_path, monkeypatch):
    pool, _ = started(beating(), (), None)
    pool.submit("worker-0", Job(str(tmp_path / "never")), "copy")

    def refuse(handle):
        raise RaySystemError("Failed to kill actor: it is not registered")

    with monkeypatch.context() as patch:
        patch.setattr(ray, "kill", refuse)
        assert pool.take_over() == []
    (tmp_path / "never").touch()


@pytest.mark.long
def test_a_worker_that_died_between_two_loops_is_not_taken_over(started):
    pool, joined = started(beating(), (), None)
    list(pool.events(0.1))
    os.kill(int(joined.info.device), signal.SIGKILL)
    wait_until_gone([int(joined.info.device)])
    time.sleep(2.0)  # until Ray has told
    assert pool.take_over() == []


@pytest.mark.long
def test_a_worker_tells_where_it_is_before_its_health_check_and_is_kept_off_nodes(started):
    pool, _ = started(beating(), (), None)
    [here] = [node.id for node in pool.nodes()]
    pool.start()
    assert next_event(pool, Located | Joined) == Located("worker-1", "127.0.0.1", here)
    assert isinstance(next_event(pool, Located | Joined), Joined)
    pool.start(avoid={here})
    assert not [event for event in pool.events(2.0) if event.worker == "worker-2"]


def test_a_scorer_is_on_one_of_its_nodes(ray_session):
    pool = Heard(beating(), (), 1, 0, None, {"ray.io/node-id": "!elsewhere"}, ())
    try:
        [here] = pool.nodes()
        worker = pool.start_scorer([here.id, "0" * 56])
        assert next_event(pool, Located | Joined) == Located(worker, "127.0.0.1", here.id)
        assert isinstance(next_event(pool, Located | Joined), Joined)
    finally:
        pool.close()


@pytest.mark.long
def test_jobs_have_the_threads_that_the_worker_was_given(started, tmp_path):
    """They run in another thread than the actor starts in, and OpenMP keeps a number for each."""

    class Counting(Worker):
        def do(self, job):
            import torch
            from threadpoolctl import threadpool_info

            self._set_up()
            torch.ones(8) @ torch.ones(8)
            openmp = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"]
            return Result(0.0, min(torch.get_num_threads(), *openmp, 99), True)

    probe = tmp_path / ".probe"
    probe.touch()
    pool, first = started(Counting, (3,), Probe(str(probe)))
    assert isinstance(first, Joined)
    pool.submit("worker-0", Job("unused"), "task")
    assert next_event(pool).result.images == 3
    assert list(tmp_path.iterdir()) == [probe], "a health check leaves nothing behind"
