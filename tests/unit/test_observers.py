"""The door for observers: what they hear of a session, also from another package, and that they can't stop it."""

import importlib
import io
import sys

import pytest
from in_process import STAGES, small_run
from rich.console import Console
from snapshots import recorded

from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.session import Session

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

TRACKER = """
from taugrid.orchestrator.observers import Observer

heard = []


class Tracker(Observer):
    def session_started(self, config, directory, stages):
        heard.append(("started", config.name, directory, stages))

    def happened(self, time, event):
        heard.append(("happened", time.isoformat(timespec="milliseconds"), event))

    def session_finished(self, rows, missing):
        heard.append(("finished", rows, missing))

    def session_failed(self, error):
        heard.append(("failed", error))


class Faulty(Observer):
    def happened(self, time, event):
        heard.append(("faulty", event["event"]))
        raise RuntimeError("no server\\nat port 1")


class Absent:
    def __init__(self):
        raise ImportError("no such client")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with observers on Python's path, as pip would, and returns its module."""

    def installed(*names):
        site = tmp_path / "site"
        about = site / "tracker-1.0.dist-info"
        about.mkdir(parents=True)
        (site / "a_tracker.py").write_text(TRACKER)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tracker\nVersion: 1.0\n")
        lines = [f"{name.lower()} = a_tracker:{name}" for name in names]
        (about / "entry_points.txt").write_text("\n".join(["[taugrid.observers]", *lines]))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "a_tracker", raising=False)
        return importlib.import_module("a_tracker")

    return installed


def work(tmp_path, stages=STAGES):
    """Does a small run; returns its directory, the outcome and what was printed."""
    printed = io.StringIO()
    with small_run(tmp_path) as opened:
        run = Run(opened.config, opened.plan, RunDir(tmp_path / "run"))
        outcome = Session(run, "local", Progress(Console(file=printed, soft_wrap=True))).do(stages)
    return run.rundir, outcome, printed.getvalue()


def test_an_observer_of_another_package_hears_of_the_whole_session(tmp_path, install):
    heard = install("Tracker").heard
    rundir, outcome, _ = work(tmp_path)
    assert heard[0] == ("started", "small", rundir.shown, ["evaluate", "sample"])
    told = [(time, event) for kind, time, event in heard[1:-1]]
    assert [event for _, event in told] == list(read_events(rundir)), "what is in the file, in its order"
    assert all(event["time"] == time for time, event in told)
    assert heard[-1] == ("finished", outcome.rows, {})
    assert len(outcome.rows) == 2


def test_an_observer_that_raises_is_dropped_with_a_line_and_the_run_goes_on(tmp_path, install):
    heard = install("Absent", "Faulty", "Tracker").heard
    _, outcome, printed = work(tmp_path)
    assert not outcome.missing
    lines = [line for line in printed.splitlines() if "observer" in line]
    recorded("\n".join(lines))
    assert [each for each in heard if each[0] == "faulty"] == [("faulty", "session")], "it is asked once"
    assert heard[-1][0] == "finished", "the others hear on"


def test_observers_hear_of_the_error_that_ends_a_session(tmp_path, install, monkeypatch):
    heard = install("Tracker").heard
    monkeypatch.setattr(Session, "_work", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work(tmp_path)
    assert heard[-1][0] == "failed"
    assert isinstance(heard[-1][1], ZeroDivisionError)
