"""How far tasks are, by heartbeats that do not say of which task they are."""

from taugrid.orchestrator.dispatch.in_progress import Fractions


def test_the_heartbeats_of_a_second_task_are_not_the_firsts():
    fractions = Fractions()
    assert [fractions.heard("w", "first", done, has_second=True) for done in (0.5, 0.9, 0.9, 0.1, 0.95)] == [
        0.5,
        0.9,
        0.9,
        None,
        None,
    ]
    assert fractions.heard("w", "second", 0.96, has_second=False) == 0.96, "the first is done"


def test_a_second_attempt_is_heard_from_its_start():
    """As after memory was used up, or after a failure where no other worker takes the task."""
    fractions = Fractions()
    assert [fractions.heard("w", "first", done, has_second=False) for done in (0.9, 0.1, 0.2)] == [0.9, 0.1, 0.2]
    fractions.forget("w")
    assert fractions.heard("w", "first", 0.05, has_second=True) == 0.05
