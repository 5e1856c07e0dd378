"""What an event or an assignment costs grows neither with the tasks of a run nor with workers times workers.

Python's steps are counted, not seconds, so a loaded machine changes nothing. `benchmarks/scale.py` has the seconds, for
512 workers and 100,000 tasks.
"""

import gc
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import EVENTS, QUESTIONS, STATES, middle, tasks_of
from states import KINDS as STATE_KINDS

from taugrid.config import Config, validate
from taugrid.jobs import OracleNetwork
from taugrid.orchestrator.dispatch.policy.backlog import Backlog
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.policy.in_flight import Median
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.task import Task
from taugrid.workers.sample import SampleJob

SLACK = 1.6
"""A growth of 1 is none. Logarithms, and sizes that do not divide, need some room."""

FEW = 300
"""Steps that do not count."""


def steps(function, *arguments):
    """The number of bytecode instructions that a call executes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # what it finalizes would be counted too
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def assigning(state, workers, tasks):
    d, now = STATES[state](workers, tasks)
    return steps(d.assign, now)


@pytest.mark.parametrize("state", STATES)
def test_an_assignment_costs_the_same_for_eight_times_the_tasks(state):
    assert assigning(state, 32, 2560) <= SLACK * assigning(state, 32, 320) + FEW


@pytest.mark.parametrize("state", STATES)
def test_an_assignment_grows_no_faster_than_the_workers(state):
    assert assigning(state, 128, 1280) <= 4 * SLACK * assigning(state, 32, 1280) + FEW


def happening(event, workers, tasks):
    d, now = middle(workers, tasks)
    return steps(EVENTS[event], d, "w1", now)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_costs_the_same_for_eight_times_the_tasks(event):
    assert happening(event, 32, 2560) <= SLACK * happening(event, 32, 320) + FEW


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_grows_no_faster_than_the_workers(event):
    assert happening(event, 128, 1280) <= 4 * SLACK * happening(event, 32, 1280) + FEW


def test_the_end_of_a_task_costs_the_same_for_any_number_of_workers():
    assert happening("succeeded", 512, 5120) <= SLACK * happening("succeeded", 32, 5120)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("state", STATES)
def test_a_question_grows_with_the_workers_at_most(question, state):
    def asking(workers, tasks):  # the fewer of two: a finalizer or a signal of an earlier test may run within one
        return min(steps(QUESTIONS[question], *STATES[state](workers, tasks)) for _ in range(2))

    assert asking(128, 1280) <= 4 * SLACK * asking(32, 320) + FEW


PLACES = ("n0", "n1", "w0", "w1")
KINDS = ("sample", "score", "extract")


class Naive:
    """What `Backlog` does, by sorting everything every time."""

    def __init__(self, tasks):
        self.tasks, self.queue, self.closed = tasks, {}, set()
        for task in tasks:
            self.add(task.key)

    def add(self, key, failed_at=()):
        number = next(i for i, task in enumerate(self.tasks) if task.key == key)
        task = self.tasks[number]
        self.queue[key] = (bool(failed_at), KINDS.index(task.kind), -task.cost, number), frozenset(failed_at), task.kind

    def take(self, kinds, place=None):
        suited = [
            (order, key)
            for key, (order, failed_at, kind) in self.queue.items()
            if kind in kinds and place not in failed_at
        ]
        if not suited:
            return None
        del self.queue[min(suited)[1]]
        return min(suited)[1]

    def quarantine(self, key):
        self.queue.pop(key, None)


@pytest.mark.long
@settings(max_examples=200)
@given(
    costs=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 4)), min_size=1, max_size=25),
    data=st.data(),
)
def test_the_backlog_gives_what_sorting_all_that_waits_would_give(costs, data):
    tasks = [Task(f"t{i}", kind, float(cost)) for i, (kind, cost) in enumerate(costs)]
    backlog, naive, out = Backlog(tasks, KINDS), Naive(tasks), []
    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(st.sampled_from(("take", "take", "again", "give up")))
        if what == "take":
            kinds = data.draw(st.sets(st.sampled_from(KINDS), min_size=1))
            place = data.draw(st.sampled_from((None, *PLACES)))
            taken = backlog.take(kinds, place)
            assert taken == naive.take(kinds, place)
            out += [taken] if taken else []
        elif what == "again" and out:
            key, failed_at = out.pop(), data.draw(st.sets(st.sampled_from(PLACES)))
            backlog.add(key, failed_at)
            naive.add(key, failed_at)
        elif what == "give up":
            key = data.draw(st.sampled_from([task.key for task in tasks]))
            if key not in backlog.quarantined and key not in out:
                backlog.quarantine(key)
                naive.quarantine(key)
        assert len(backlog) == len(naive.queue)
        assert backlog.kinds == {kind for _, _, kind in naive.queue.values()}


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_the_running_median_is_the_median(numbers):
    from statistics import median

    running = Median()
    assert running.value is None
    for count, number in enumerate(numbers, 1):
        running.add(number)
        assert running.value == median(numbers[:count])


def test_a_task_costs_the_dispatcher_less_than_400_bytes():
    tasks = tasks_of(5_000)
    gc.collect()
    tracemalloc.start()
    d, now = Dispatcher(tasks, STATE_KINDS), 0.0
    for i in range(32):
        d.worker_joined(f"w{i}")
    while not d.finished:
        for worker, task, _ in d.assign(now):
            d.succeeded(worker, now + task.cost)
        now += 1.0
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(d.done) == 5_000
    assert held / 5_000 < 400


def test_what_a_run_holds_for_each_shard_has_no_dictionary_of_its_own():
    config = validate(Config, {"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}}, "test")
    [cell] = plan(config).cells
    network, decoder = OracleNetwork(cell.model.data), cell.model.decoder
    job = SampleJob("p", 0, 1, network, decoder, cell.settings, cell.model.diffusion, (1,), 1, {})
    for thing in (cell.shards[0], Task("sample/0", "sample", 1.0), job):
        assert not hasattr(thing, "__dict__"), type(thing)
