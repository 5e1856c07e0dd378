"""A second task queued for a worker: who gets one, who is charged, and that none is kept from an idle worker."""

import pytest

from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher, Fault
from taugrid.orchestrator.task import Task

KINDS = ("sample", "score")
HANG_SECONDS = 600.0


def dispatcher(tasks, workers=1, max_attempts=3, kind="sample"):
    """All workers are on nodes of their own; the tasks are called 0, 1, 2, ... and go out in that order."""
    d = Dispatcher(
        [Task(str(i), kind, 1.0) for i in range(tasks)], KINDS, max_attempts, HANG_SECONDS, queues_ahead=True
    )
    for i in range(workers):
        d.worker_joined(f"w{i}")
    return d


def given(d, now):
    return {(worker, task.key) for worker, task, _ in d.assign(now)}


@pytest.fixture
def busy():
    """One worker with two tasks of ten."""
    d = dispatcher(10)
    assert given(d, 0.0) == {("w0", "0")}
    assert given(d, 0.0) == set(), "the first must have begun"
    assert given(d, 0.1) == {("w0", "1")}
    assert given(d, 0.2) == set()
    return d


def test_the_second_follows_the_first_and_a_third_is_given(busy):
    assert busy.succeeded("w0", 1.0, "0")
    assert busy.in_flight.keys("w0") == ["1"]
    assert given(busy, 1.1) == {("w0", "2")}
    assert busy.succeeded("w0", 1.5, "1")
    assert busy.in_flight.running["w0"].since == 1.5


def test_there_are_seconds_only_while_more_are_ready_than_there_are_workers():
    d = dispatcher(tasks=7, workers=3)
    d.assign(0.0)
    assert len(given(d, 0.1)) == 1, "of four that were left, three may soon be somebody's first"
    assert given(d, 0.2) == set()
    assert len(d.backlog) == 3


def test_a_second_is_of_the_kind_of_the_first():
    tasks = [Task("a", "sample", 1.0), *(Task(str(i), "score", 1.0) for i in range(9))]
    d = Dispatcher(tasks, KINDS, queues_ahead=True)
    d.worker_joined("w0")
    assert given(d, 0.0) == {("w0", "a")}
    assert given(d, 0.1) == set()


def test_nothing_follows_a_task_that_has_been_in_trouble():
    later = [Task(f"later {i}", "sample", 1.0, frozenset({"gate"})) for i in range(9)]
    d = Dispatcher([Task("0", "sample", 3.0), Task("gate", "sample", 2.0), *later], KINDS, queues_ahead=True)
    for worker in ("w0", "w1"):
        d.worker_joined(worker)
    assert given(d, 0.0) == {("w0", "0"), ("w1", "gate")}
    d.failed("w0", 1.0, Fault.TASK, "ValueError", "0")
    assert given(d, 1.0) == {("w0", "0")}
    d.succeeded("w1", 2.0, "gate")
    assert given(d, 2.0) == {("w1", "later 0")}
    assert given(d, 2.1) == {("w1", "later 1")}


def test_a_task_that_kills_behind_others_is_given_up_and_no_other_is_charged():
    d, now, number = dispatcher(30), 0.0, 0
    while not d.finished:
        now += 1.0
        d.assign(now)
        d.assign(now + 0.1)
        for worker, running in dict(d.in_flight.running).items():
            if "1" in d.in_flight.keys(worker):  # it kills as soon as the first only writes, which is not known
                number += 1
                d.worker_lost(worker, now + 0.2, "killed")
                d.worker_joined(f"again-{number}", now=now + 0.2)
            else:
                d.succeeded(worker, now + 0.5, running.key)
    assert d.quarantined == {"1"}
    assert len(d.done) == 29
    assert number == 4, "the first time it was not alone"
    assert all(d.attempts(str(i)) == 0 for i in range(30) if i != 1)


@pytest.mark.parametrize("failed", ["0", "1"])
def test_of_two_the_one_that_fails_is_charged_alone_and_the_other_goes_on(busy, failed):
    other = "1" if failed == "0" else "0"
    assert busy.failed("w0", 1.0, Fault.TASK, "ValueError", failed).key == failed
    assert (busy.attempts(failed), busy.attempts(other)) == (1, 0)
    assert busy.in_flight.keys("w0") == [other]


@pytest.mark.parametrize(("how", "charged"), [({"culprit": "0"}, 1), ({"with_its_node": True}, 0)])
def test_a_worker_that_was_killed_for_its_first_or_gone_with_its_node_is_not_charged_to_its_second(busy, how, charged):
    busy.worker_lost("w0", 1.0, "silent", **how)
    assert (busy.attempts("0"), busy.attempts("1")) == (charged, 0)
    busy.worker_joined("w1", now=1.0)
    busy.assign(2.0)
    busy.assign(2.1)
    assert busy.in_flight.keys("w1") == (["2", "3"] if charged else ["0", "1"])


@pytest.mark.parametrize("second", ["done", "failed"])
def test_a_first_that_hangs_while_it_writes_is_found_whatever_became_of_the_second(busy, second):
    """The heartbeats of a third would be taken for its own."""
    busy.succeeded("w0", 1.0, "1") if second == "done" else busy.failed("w0", 1.0, Fault.TASK, "ValueError", "1")
    for now in (1.1, 5.0):
        assert given(busy, now) == set()
    assert busy.overdue(1.0 + HANG_SECONDS) == ["w0"]
    assert busy.worker_lost("w0", 700.0, "silent", culprit="0").key == "0"
    assert ("1" in busy.done) == (second == "done")


def test_an_idle_worker_takes_a_copy_of_what_waits_behind_another():
    d = dispatcher(tasks=6, workers=2)
    d.assign(0.0)
    d.assign(0.1)
    assert [d.in_flight.keys(worker) for worker in ("w0", "w1")] == [["0", "2"], ["1", "3"]]
    now = 1.0
    while len(d.backlog):
        d.succeeded("w1", now, d.in_flight.keys("w1")[0])
        d.assign(now)
        now += 1.0
    now = 20.0
    for key in d.in_flight.keys("w1"):
        d.succeeded("w1", now, key)
    assert d.demand_by_kind(now)["sample"] == 2, "what waits, and what is late"
    assert [(worker, task.key, copy) for worker, task, copy in d.assign(now)] == [("w1", "2", True)]
    assert d.assign(now) == []
    d.failed("w1", now, Fault.TASK, "ValueError", "2")
    assert len(d.backlog) == 0, "it still waits behind the other"
    assert d.succeeded("w0", now, "0")
    assert d.succeeded("w0", now, "2")
    assert d.finished


def test_of_a_cell_that_is_given_up_what_is_in_flight_is_not(busy):
    assert busy.quarantine(["0", "1", "2"]) == {"2"}


def test_the_health_of_a_worker_that_cools_down_is_checked_only_once_it_is_idle():
    d = dispatcher(40)
    d.worker_joined("other")
    now = 0.0
    cooldown = None
    while cooldown is None:
        now += 1.0
        d.assign(now)
        d.assign(now + 0.1)
        if d.in_flight.keys("w0"):
            cooldown = d.failed("w0", now, Fault.ENVIRONMENT, "read-only").cooldown
    assert d.in_flight.keys("w0"), "its second goes on"
    later = now + cooldown.seconds + 1.0
    assert d.due_for_health_check(later) == []
    assert d.failed("w0", later, Fault.ENVIRONMENT, "read-only").cooldown is None, "it cools down already"
    assert d.due_for_health_check(later) == ["w0"]
