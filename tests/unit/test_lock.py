"""One driver at a time in a run directory, by its lease."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from snapshots import raises, recorded

from taugrid import retries
from taugrid.config.load import load
from taugrid.errors import Exit, RunFailed, UserError
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.run_id import FORMAT, claim
from taugrid.storage import LOCAL, LocalStorage

HOLD = """
import signal, sys
from pathlib import Path
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli import main
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir
lease.HEARTBEAT_SECONDS = 0.1
ending.GRACE_SECONDS = 0.3

def hold(**_):
    with RunDir(Path(sys.argv[1])).lock():
        print("locked", flush=True)
        try:
            signal.pause()
        finally:
            if "stuck" in sys.argv:  # as if Ray's shutdown waited for a cluster that does not answer
                signal.pause()

main.cli.main = hold
main.main()
"""


@contextmanager
def held(root, *how):
    """Another process has the run directory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.4)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)


def leave_lease(rundir, **changed):
    """A lease as another driver left it."""
    with rundir.lock():
        found = lease_of(rundir.root)
    rundir.lease.write_text(json.dumps(found | {"session": "another"} | changed))


def no_process():
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def wait_for(condition):
    """Wait until it holds, however long that takes on a busy machine."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lease_of(root):
    return json.loads((root / "lease.json").read_text())


ELSEWHERE = {"host": "elsewhere", "boot": "another"}


def test_a_second_driver_is_refused_and_a_killed_one_lets_go(tmp_path):
    rundir = RunDir(tmp_path / "run")
    with held(rundir.root) as holder:
        with raises(UserError) as caught, rundir.lock(say=pytest.fail):  # it does not wait
            raise AssertionError
        assert f" {holder.pid} on " in str(caught.value)
    with rundir.lock():
        pass
    assert not rundir.lease.exists()


def test_status_says_who_is_at_work(tmp_path):
    """A dead driver is none."""
    root = tmp_path / "run"
    root.mkdir()
    claim(root, LOCAL)
    (root / "config.json").write_text(load("gaussian").model_dump_json())

    def said(*more):
        printed = CliRunner().invoke(cli, ["status", str(root), *more], catch_exceptions=False)
        return json.loads(printed.stdout) if more else printed.stdout

    recorded(said(), "running")
    with held(root) as holder:
        recorded(said(), "process")
        at_work = said("--json")
        assert (at_work["driver"]["host"], at_work["driver"]["process"]) == (socket.gethostname(), holder.pid)
    recorded(said(), "running")
    assert said("--json")["driver"] is None


def test_a_second_interrupt_of_a_notebook_leaves_nothing_behind(tmp_path, monkeypatch):
    """The first one waits for a silent store. Planted once: `over` reset without `finally`; `_held` after the wait."""

    def pressed(thread, seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt), RunDir(tmp_path).lock():
        patch.setattr("threading.Thread.join", pressed)
        raise RunFailed("planted")
    assert not retries.over.is_set()
    with RunDir(tmp_path).lock():
        pass


def test_a_second_driver_in_one_process_is_refused_and_an_error_inside_lets_go(tmp_path):
    with suppress(ZeroDivisionError), RunDir(tmp_path).lock():
        raise ZeroDivisionError
    with RunDir(tmp_path).lock(), raises(UserError), RunDir(tmp_path).lock():
        raise AssertionError
    with RunDir(tmp_path).lock():
        pass


@pytest.mark.parametrize(
    ("what", "code"),
    [("pathlib.Path.mkdir", errno.EACCES), ("taugrid.storage.local.make_folder", errno.EROFS), ("os.link", 13)],
)
def test_a_run_that_may_only_be_read_is_a_user_error_that_does_not_say_again(tmp_path, monkeypatch, code, what):
    """Nothing changes by running the command again: the folder must become writable, or another be given."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(what, Mock(side_effect=OSError(code, os.strerror(code), str(tmp_path))))
    with raises(UserError), RunDir(tmp_path).lock():
        raise AssertionError
    assert not list(tmp_path.glob("lease.json"))


def test_a_killed_driver_is_replaced_at_once(tmp_path, monkeypatch):
    with held(tmp_path):
        pass
    said, slept = [], []
    monkeypatch.setattr(lease, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    with RunDir(tmp_path).lock(say=said.append):
        pass
    assert (len(said), sum(slept)) == (1, lease.POLL_SECONDS), "it does not wait"
    recorded(said[0], "directory")


def test_a_lease_from_elsewhere_that_is_refreshed_is_respected(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 60.0)
    rundir = RunDir(tmp_path)
    leave_lease(rundir, **ELSEWHERE)

    def beats(text):
        assert "elsewhere" in text
        rundir.lease.write_text(json.dumps(lease_of(tmp_path) | {"heartbeat": "2020-01-01T00:00:00+00:00"}))

    with raises(UserError), rundir.lock(say=beats):
        raise AssertionError


@pytest.mark.parametrize("clock", ["2020-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00"])
def test_a_lease_from_elsewhere_is_watched_for_its_full_time_whatever_its_clock_says(tmp_path, monkeypatch, clock):
    rundir, said = RunDir(tmp_path), []
    leave_lease(rundir, **ELSEWHERE, heartbeat=clock)
    looks = []
    monkeypatch.setattr(lease, "time", SimpleNamespace(sleep=looks.append, monotonic=lambda: sum(looks)))
    with rundir.lock(say=said.append):
        assert sum(looks) >= lease.EXPIRY_SECONDS
        assert lease_of(tmp_path)["process"] == os.getpid()
    assert ["elsewhere" in text for text in said] == [True, True]


def test_a_driver_elsewhere_whose_lease_has_expired_is_not_at_work(tmp_path):
    rundir = RunDir(tmp_path)
    for heartbeat, is_at_work in (("2020-01-01T00:00:00+00:00", False), ("2100-01-01T00:00:00+00:00", True)):
        leave_lease(rundir, **ELSEWHERE, heartbeat=heartbeat)
        assert (lease.Lease(rundir).live_holder() is not None) == is_at_work
        rundir.lease.unlink()


def test_a_stopped_driver_keeps_its_directory_and_a_later_process_of_its_number_does_not(tmp_path, monkeypatch):
    rundir, said = RunDir(tmp_path), []
    with held(tmp_path) as holder:
        holder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)
        assert lease.Lease(rundir).live_holder().process == holder.pid
        with pytest.raises(UserError, match=f"process {holder.pid} on "), rundir.lock():
            raise AssertionError
        rundir.lease.write_text(json.dumps(lease_of(tmp_path) | {"heartbeat": "2020-01-01T00:00:00+00:00"}))
        with rundir.lock(say=said.append):
            assert len(said) == 1, "it does not wait"


@pytest.mark.parametrize("is_left", [True, False])
def test_of_two_that_take_a_directory_in_one_moment_one_goes_on(tmp_path, quick, monkeypatch, is_left):
    """A disk can't compare and rename in one step: both see a dead driver's lease or none, and the later one stays."""
    rundir = RunDir(tmp_path)
    if is_left:
        leave_lease(rundir, process=no_process())

    def commit_and_lose(storage, path, *given, commit=LocalStorage.commit):
        assert commit(storage, path, *given)
        path.write_text(json.dumps(lease_of(tmp_path) | ELSEWHERE | {"session": "the other"}))
        return True

    with monkeypatch.context() as patch, raises(UserError):
        patch.setattr(LocalStorage, "commit", commit_and_lose)
        rundir.lock().__enter__()
    assert lease_of(tmp_path)["session"] == "the other"


def test_a_dead_process_counts_only_on_its_own_host_and_boot(tmp_path, quick):
    rundir, pid, said = RunDir(tmp_path), no_process(), []
    leave_lease(rundir)  # that this process could not delete, or a container with its process id
    with rundir.lock(say=said.append):
        assert len(said) == 1
    for changed, waits in (({}, False), ({"boot": "before the reboot"}, True), ({"host": "elsewhere"}, True)):
        said = []
        leave_lease(rundir, process=pid, **changed)
        with rundir.lock(say=said.append):
            pass
        assert len(said) == 1 + waits


def test_what_workers_write_is_needed_by_nobody_once_those_of_this_driver_are_dead(tmp_path, monkeypatch):
    """But for another driver that takes the directory now, or from which it was taken by force."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 60.0)
    rundir = RunDir(tmp_path)
    with rundir.lock() as ours:
        (tmp_path / "written").touch()
        time.sleep(0.01)
        assert ours.dead_before() > (tmp_path / "written").stat().st_mtime
        rundir.lease.write_text(json.dumps(lease_of(tmp_path) | {"session": "another"}))
        assert ours.dead_before() == ours.began
    leave_lease(rundir)
    with rundir.lock(break_lock=True) as ours:
        assert ours.dead_before() == 0


@pytest.mark.parametrize("how", ["", "stuck"])
def test_break_lock_takes_a_live_one_and_the_other_driver_stops_and_says_so_even_if_only_by_force(tmp_path, how):
    with held(tmp_path, how) as holder:
        with RunDir(tmp_path).lock(break_lock=True) as ours:
            assert ours.began is None, "the other one may still write: nothing of it is removed"
            assert holder.wait(60) == Exit.FAILED
        said = holder.stderr.read()
    recorded(said, "taugrid")
    assert said.count("\n") == 1
    with RunDir(tmp_path).lock() as ours:
        assert ours.began is not None


CHANGES = [
    {"heartbeat": "2026-01-01T00:00:00"}, {"heartbeat": "2026-01-01"}, {"heartbeat": 5}, {"process": "1"},
    {"process": 2**70}, {"session": []}, {"host": None},
]  # fmt: skip


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", "null", "[" * 10_000, '{"host": "x"}', *CHANGES])
def test_a_lease_that_makes_no_sense_is_no_lease(tmp_path, content):
    rundir = RunDir(tmp_path)
    leave_lease(rundir, **content) if isinstance(content, dict) else rundir.lease.write_text(content)
    assert lease.Lease(rundir).live_holder() is None
    with rundir.lock():
        assert lease_of(tmp_path)["process"] == os.getpid()


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "planted"), RuntimeError("planted")])
def test_a_lease_is_refreshed_although_that_fails_once_and_names_the_run(tmp_path, quick, monkeypatch, fault):
    (tmp_path / "run.json").write_text(json.dumps({"run": "abc0" * 8, "format": FORMAT}))
    commit, faults = LocalStorage.commit, [fault]

    def fails_once(*given):
        if faults:
            raise faults.pop()
        return commit(*given)

    with RunDir(tmp_path).lock():
        first = lease_of(tmp_path)
        assert first["run"] == "abc0" * 8
        monkeypatch.setattr(LocalStorage, "commit", fails_once)
        wait_for(lambda: not faults and lease_of(tmp_path)["heartbeat"] > first["heartbeat"])


def test_a_lease_that_can_not_be_refreshed_ends_the_driver_before_another_takes_over(tmp_path, quick, monkeypatch):
    def fails(*given):
        raise RuntimeError("planted")

    def drive():
        with RunDir(tmp_path).lock():
            monkeypatch.setattr(LocalStorage, "commit", fails)
            time.sleep(60)

    with pytest.raises(RunFailed, match="planted"):
        drive()


def test_a_lease_that_was_deleted_is_written_again_and_ends_nobody(tmp_path, quick):
    """Nobody has taken it over: someone has tidied up."""
    rundir = RunDir(tmp_path)
    with rundir.lock():
        rundir.lease.unlink()
        wait_for(rundir.lease.exists)
        again = lease_of(tmp_path)
        assert again["process"] == os.getpid()
        wait_for(lambda: lease_of(tmp_path)["heartbeat"] > again["heartbeat"])
    assert not rundir.lease.exists()


def test_a_taken_lease_ends_the_driver_that_had_it(tmp_path, quick):
    """A driver that was stopped for longer than a lease lasts must not go on beside the one that took over."""
    rundir = RunDir(tmp_path)

    def drive():
        with rundir.lock():
            found = lease_of(tmp_path)
            theirs = rundir.root / "theirs"
            for _ in range(1_200):  # it writes its heartbeats, too: one of ours may just have been on its way
                theirs.write_text(json.dumps(found | ELSEWHERE | {"session": "another", "process": 7}))
                theirs.replace(rundir.lease)
                time.sleep(lease.HEARTBEAT_SECONDS)

    with raises(RunFailed):
        drive()
    assert lease_of(tmp_path)["session"] == "another"
