"""What an event or an assignment costs grows neither with the tasks of a run nor with workers times workers.

Python's steps are counted, not seconds, so a loaded machine changes nothing. `benchmarks/scale.py` has the seconds, for
512 workers and 100,000 tasks.
"""

import gc
import sys
import tracemalloc
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.policy.tasks import Median
from tools.states import EVENTS, QUESTIONS, STATES, middle, tasks_of
from tools.states import KINDS as STATE_KINDS

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
def test_an_assignment_grows_with_the_workers_at_most_and_not_with_the_tasks(state):
    assert assigning(state, 32, 2560) <= SLACK * assigning(state, 32, 320) + FEW
    assert assigning(state, 128, 1280) <= 4 * SLACK * assigning(state, 32, 1280) + FEW


def happening(event, workers, tasks):
    d, now = middle(workers, tasks)
    return steps(EVENTS[event], d, "w1", now)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_grows_with_the_workers_at_most_and_not_with_the_tasks(event):
    """The end of a task costs the same for any number of workers, too."""
    assert happening(event, 32, 2560) <= SLACK * happening(event, 32, 320) + FEW
    assert happening(event, 128, 1280) <= 4 * SLACK * happening(event, 32, 1280) + FEW
    if event == "succeeded":
        assert happening(event, 512, 5120) <= SLACK * happening(event, 32, 5120)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("state", STATES)
def test_a_question_grows_with_the_workers_at_most(question, state):
    def asking(workers, tasks):  # the fewer of two: a finalizer or a signal of an earlier test may run within one
        return min(steps(QUESTIONS[question], *STATES[state](workers, tasks)) for _ in range(2))

    assert asking(128, 1280) <= 4 * SLACK * asking(32, 320) + FEW


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_the_running_median_is_the_median(numbers):
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
