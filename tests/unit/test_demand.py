"""How many workers with and without a GPU are wanted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taugrid.orchestrator.dispatch.scaling import Counts, demand

COUNTS = st.builds(Counts, st.integers(0, 20), st.integers(0, 20))


@pytest.mark.parametrize(
    ("paint", "score", "busy", "room", "wanted"),
    [
        (0, 0, Counts(0, 6), Counts(1, 6), Counts(0, 6)),  # the GPU's worker is not needed while CPUs score
        (0, 200, Counts(0, 0), Counts(1, 6), Counts(1, 6)),  # but it helps if there is more to score
        (0, 194, Counts(1, 6), Counts(1, 6), Counts(1, 6)),
        (0, 200, Counts(0, 0), Counts(0, 6), Counts(0, 6)),  # no GPU is asked for
        (0, 200, Counts(0, 0), Counts(0, 0), Counts(200, 0)),  # except where nothing else would score
        (9, 200, Counts(0, 0), Counts(1, 6), Counts(9, 6)),
        (9, 3, Counts(1, 2), Counts(1, 6), Counts(10, 5)),
        (9, 0, Counts(3, 0), Counts(4, 0), Counts(12, 0)),
    ],
)
def test_each_task_counts_for_one_sort_of_worker(paint, score, busy, room, wanted):
    assert demand({"paint": paint, "score": score}, {"score"}, busy, room) == wanted


@given(st.integers(0, 20), st.integers(0, 20), COUNTS, COUNTS)
def test_no_more_workers_are_wanted_than_tasks_and_none_that_works_is_unwanted(paint, score, busy, room):
    general, cpu_only = demand({"paint": paint, "score": score}, {"score"}, busy, room)
    assert general + cpu_only <= sum(busy) + paint + score
    assert general >= busy.general + paint
    assert busy.cpu_only <= cpu_only <= max(busy.cpu_only, room.cpu_only)
