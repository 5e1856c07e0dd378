"""The lines that people read while taugrid works."""

import io

import pytest
from rich.console import Console

from taugrid.orchestrator import progress
from taugrid.orchestrator.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, for rich's estimates and our plain lines."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def a_progress(clock, terminal=False):
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    shown = Progress(console)
    shown._bars.get_time = lambda: clock[0]
    return shown, console.file


def test_the_rate_leaves_out_what_an_earlier_session_did(clock):
    shown, printed = a_progress(clock)
    with shown:
        shown.begin("sampling", 1000, "network evaluations")
        shown.update(400, workers=2)
        clock[0] += 100  # workers start
        shown.started(400)
        for done in (410, 420, 430):
            clock[0] += 5
            shown.update(done, images=done - 400, workers=2, note="1 of 3 cells scored")
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("sampling: 410 of 1,000 network evaluations")
    assert lines[-1] == (
        "sampling: 430 of 1,000 network evaluations, 2/s, 2 images/s, 4 min 45 s left, 2 workers, 1 of 3 cells scored"
    )


def test_plain_lines_come_seldom_and_not_before_work_starts(clock):
    shown, printed = a_progress(clock)
    shown.begin("scoring", 10, "images")
    for _ in range(5):
        clock[0] += progress.PLAIN_INTERVAL_SECONDS
        shown.update(0, workers=1)
    assert printed.getvalue() == ""
    shown.started()
    for done in range(1, 9):
        clock[0] += progress.PLAIN_INTERVAL_SECONDS / 4
        shown.update(done, workers=1)
    assert printed.getvalue().count("\n") == 2
    shown.end()


def test_a_terminal_has_a_bar_that_goes_away(clock):
    shown, printed = a_progress(clock, terminal=True)
    shown.begin("judging [2]", 4, "cells")
    shown.started()
    shown.update(3)
    shown._bars.refresh()
    assert "judging [2]" in printed.getvalue()
    assert "3 of 4 cells" in printed.getvalue()
    shown.end()
    assert printed.getvalue().endswith("\x1b[2K")
