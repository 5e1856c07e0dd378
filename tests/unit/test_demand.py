"""How many workers of each sort are wanted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taugrid.orchestrator.dispatch.scaling import Crowd, demand

CROWDS = st.builds(Crowd, st.integers(0, 20), st.integers(0, 20))


@pytest.mark.parametrize(
    ("paint", "score", "busy", "room", "wanted"),
    [
        (0, 0, Crowd(0, 6), Crowd(1, 6), Crowd(0, 6)),  # the GPU's worker is not needed while spares score
        (0, 200, Crowd(0, 0), Crowd(1, 6), Crowd(1, 6)),  # but it helps if there is more to score
        (0, 194, Crowd(1, 6), Crowd(1, 6), Crowd(1, 6)),
        (0, 200, Crowd(0, 0), Crowd(0, 6), Crowd(0, 6)),  # no GPU is asked for
        (0, 200, Crowd(0, 0), Crowd(0, 0), Crowd(200, 0)),  # except where nothing else would score
        (9, 200, Crowd(0, 0), Crowd(1, 6), Crowd(9, 6)),
        (9, 3, Crowd(1, 2), Crowd(1, 6), Crowd(10, 5)),
        (9, 0, Crowd(3, 0), Crowd(4, 0), Crowd(12, 0)),
    ],
)
def test_each_task_counts_for_one_sort_of_worker(paint, score, busy, room, wanted):
    assert demand({"paint": paint, "score": score}, {"score"}, busy, room) == wanted


@given(st.integers(0, 20), st.integers(0, 20), CROWDS, CROWDS)
def test_no_more_workers_are_wanted_than_tasks_and_none_that_works_is_unwanted(paint, score, busy, room):
    full, spare = demand({"paint": paint, "score": score}, {"score"}, busy, room)
    assert full + spare <= sum(busy) + paint + score
    assert full >= busy.full + paint
    assert busy.spare <= spare <= max(busy.spare, room.spare)
