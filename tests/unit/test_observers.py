"""The door for observers: what they hear of a session, also from another package, and that they can't stop it."""

import importlib
import sys

import pytest
from in_process import STAGES, PoolHere, drive, small_run
from snapshots import recorded

from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.storage import LocalStorage

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
    root = tmp_path / "run"
    with small_run(tmp_path) as opened:
        return RunDir(root), *drive(opened, root, LocalStorage(root), stages)


def test_an_observer_of_another_package_hears_of_the_whole_session_and_of_its_error(tmp_path, install, monkeypatch):
    heard = install("Tracker").heard
    rundir, outcome, _ = work(tmp_path)
    assert heard[0] == ("started", "small", rundir.shown, ["evaluate", "sample"])
    told = [(time, event) for kind, time, event in heard[1:-1]]
    assert [event for _, event in told] == list(read_events(rundir)), "what is in the file, in its order"
    assert all(event["time"] == time for time, event in told)
    assert heard[-1] == ("finished", outcome.rows, {})
    assert len(outcome.rows) == 2
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(PoolHere, "submit", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work(tmp_path / "again")
    assert (heard[-1][0], type(heard[-1][1])) == ("failed", ZeroDivisionError)


def test_an_observer_that_raises_is_dropped_with_a_line_and_the_run_goes_on(tmp_path, install):
    heard = install("Absent", "Faulty", "Tracker").heard
    _, outcome, printed = work(tmp_path)
    assert not outcome.missing
    lines = [line for line in printed.splitlines() if "observer" in line]
    recorded("\n".join(lines))
    assert [each for each in heard if each[0] == "faulty"] == [("faulty", "session")], "it is asked once"
    assert heard[-1][0] == "finished", "the others hear on"
