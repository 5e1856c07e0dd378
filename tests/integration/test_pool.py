"""What the driver hears from actors of a real Ray."""

import pytest

from taugrid.errors import RunDirectoryNotSeen, UserError, WrongWeights
from taugrid.jobs import Job, WorkerInfo
from taugrid.orchestrator.dispatch.pool import Failed, Joined, Pool
from taugrid.workers.actor import Worker


def next_event(pool):
    while True:
        for event in pool.events(1.0):
            return event


@pytest.fixture
def started(ray_session, tmp_path):
    """Starts a pool with one worker of a class; returns it and what it says first."""
    pools = []

    def start(actor, arguments, probe):
        pools.append(Pool(actor, arguments, 1, 0, str(probe)))
        pools[-1].start()
        return pools[-1], next_event(pools[-1])

    yield start
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("error", [WrongWeights("w does not fit"), UserError("no data"), ValueError("two\nlines")])
def test_an_error_arrives_as_what_was_raised(started, tmp_path, error):
    class Raising:  # inside a function, so that it travels by value
        def hello(self, probe):
            return WorkerInfo("here", "cpu", {})

        def do(self, job):
            raise error

    pool, first = started(Raising, (), tmp_path)
    assert isinstance(first, Joined)
    pool.give("worker-0", Job("unused"))
    failure = next_event(pool)
    assert isinstance(failure, Failed)
    assert type(failure.cause) is type(error)
    assert str(failure.cause) == str(error)
    assert failure.summary == f"{type(error).__name__}: {str(error).splitlines()[-1]}"
    assert "Traceback" not in failure.summary
    assert "raise error" in failure.traceback


def test_a_node_that_does_not_see_the_run_directory_is_named(started, tmp_path):
    _, failure = started(Worker, (1,), tmp_path / "elsewhere" / ".probe")
    assert isinstance(failure, Failed)
    assert isinstance(failure.cause, RunDirectoryNotSeen)
    assert str(tmp_path / "elsewhere") in str(failure.cause)
