"""One driver at a time in a run directory, by its lease."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from snapshots import raises, recorded

import taugrid
from taugrid import retries
from taugrid.config.load import load
from taugrid.errors import Exit, RunFailed, UserError
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir

HOLD = """
import sys, time
from pathlib import Path
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli import main
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir
lease.HEARTBEAT_SECONDS = 0.1

def hold():
    with RunDir(Path(sys.argv[1])).lock():
        print("locked", flush=True)
        try:
            time.sleep(240)
        finally:
            if "stuck" in sys.argv:  # as if Ray's shutdown waited for a cluster that does not answer
                time.sleep(240)

if "stuck" in sys.argv:
    ending.GRACE_SECONDS = 0.3
    with main._interruptible():
        hold()
else:
    hold()
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
        found = json.loads(rundir.lease.read_text())
    rundir.lease.write_text(json.dumps(found | {"session": "another"} | changed))


def no_process():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


ELSEWHERE = {"host": "elsewhere", "boot": "another"}


def test_a_second_driver_is_refused_and_a_killed_one_lets_go(tmp_path):
    rundir = RunDir(tmp_path / "run")
    waits = []
    with held(rundir.root) as holder:
        with pytest.raises(UserError) as caught, rundir.lock(say=waits.append):
            raise AssertionError
        assert waits == []
        for said in (str(rundir.root), "--out", "--break-lock"):
            assert said in str(caught.value)
        assert f" {holder.pid} on " in str(caught.value)
        recorded(str(caught.value))
    with rundir.lock():
        pass
    assert not rundir.lease.exists()


def test_status_says_who_is_at_work(tmp_path):
    """In text and in JSON, where the key is the last; `plan` has no such key. A dead driver is none."""
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.json").write_text(load("gaussian").model_dump_json())

    def said(*more):
        printed = CliRunner().invoke(cli, ["status", str(root), *more], catch_exceptions=False)
        return json.loads(printed.stdout) if more else printed.stdout

    recorded(said(), "running")
    assert said("--json")["driver"] is None
    assert said().splitlines()[1].startswith("driver: "), "below the name of the run"
    with held(root) as holder:
        recorded(said(), "process")
        at_work = said("--json")
        assert list(at_work)[-1] == "driver"
        assert (at_work["driver"]["host"], at_work["driver"]["process"]) == (socket.gethostname(), holder.pid)
        assert taugrid.open(root).status()["driver"].keys() == {"host", "process", "last_seen"}
        assert "driver" not in taugrid.plan("gaussian", root)
    recorded(said(), "running")
    assert said("--json")["driver"] is None


def test_status_of_a_directory_that_a_driver_lost_does_not_call_the_driver_killed(tmp_path):
    """Moved away under it, so that it could not release it: it ended by itself, and the lease looks alike."""
    root, moved = tmp_path / "run", tmp_path / "moved"
    with RunDir(root).lock():
        (root / "config.json").write_text(load("gaussian").model_dump_json())
        root.rename(moved)
    printed = CliRunner().invoke(cli, ["status", str(moved)], catch_exceptions=False).stdout
    recorded(printed, "directory")


def test_a_second_interrupt_of_a_notebook_leaves_nothing_behind(tmp_path, monkeypatch):
    """The first one waits for a silent store. Planted once: `over` reset without `finally`; `_held` after the wait."""

    def pressed(seconds):
        raise KeyboardInterrupt

    def run():
        with RunDir(tmp_path).lock() as ours:
            monkeypatch.setattr(ours._thread, "join", pressed)
            raise RunFailed("planted")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not retries.over.is_set()
    with RunDir(tmp_path).lock():
        pass


def test_a_second_driver_in_one_process_is_refused(tmp_path):
    with RunDir(tmp_path).lock(), raises(UserError), RunDir(tmp_path).lock():
        raise AssertionError
    with RunDir(tmp_path).lock():
        pass


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), RunDir(tmp_path).lock():
        raise RuntimeError("boom")
    with RunDir(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"), RunDir(tmp_path / "file" / "run").lock():
        raise AssertionError


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("what", ["pathlib.Path.mkdir", "taugrid.storage.local.make_folder", "os.link"])
def test_a_run_that_may_only_be_read_is_a_user_error_that_does_not_say_again(tmp_path, monkeypatch, code, what):
    """Nothing changes by running the command again: the folder must become writable, or another be given."""

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code), str(tmp_path))

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(what, refuse)
    with pytest.raises(UserError, match=os.strerror(code)) as caught, RunDir(tmp_path).lock():
        raise AssertionError
    assert "writable" in str(caught.value)
    assert "command again" not in str(caught.value)
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
        leave = json.loads(rundir.lease.read_text())
        rundir.lease.write_text(json.dumps(leave | {"heartbeat": "2020-01-01T00:00:00+00:00"}))

    with raises(UserError), rundir.lock(say=beats):
        raise AssertionError


def test_a_heartbeat_that_fails_once_is_not_the_last(tmp_path, quick, monkeypatch):
    answers = iter([True, OSError(errno.EIO, "planted")])

    def put(self, if_version, put=lease.Lease._put):
        if isinstance(answer := next(answers, True), OSError):
            raise answer
        return put(self, if_version)

    monkeypatch.setattr(lease.Lease, "_put", put)
    with RunDir(tmp_path).lock() as held_here:
        taken, end = held_here.holder().heartbeat, time.monotonic() + 60
        while held_here.holder().heartbeat == taken and time.monotonic() < end:
            time.sleep(0.01)
        assert held_here.holder().heartbeat > taken


@pytest.mark.parametrize("clock", ["2020-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00"])
def test_a_lease_from_elsewhere_is_watched_for_its_full_time_whatever_its_clock_says(tmp_path, quick, clock):
    rundir, said = RunDir(tmp_path), []
    leave_lease(rundir, **ELSEWHERE, heartbeat=clock)
    began = time.monotonic()
    with rundir.lock(say=said.append):
        assert time.monotonic() - began >= lease.EXPIRY_SECONDS
        assert json.loads(rundir.lease.read_text())["process"] == os.getpid()
    assert "waiting" in said[0]
    assert "elsewhere" in said[1]


def test_a_driver_elsewhere_whose_lease_has_expired_is_not_at_work(tmp_path):
    rundir = RunDir(tmp_path)
    for heartbeat, is_at_work in (("2020-01-01T00:00:00+00:00", False), ("2100-01-01T00:00:00+00:00", True)):
        leave_lease(rundir, **ELSEWHERE, heartbeat=heartbeat)
        assert (lease.Lease(rundir).live_holder() is not None) == is_at_work
        rundir.lease.unlink()


def test_a_stopped_driver_keeps_its_directory_and_a_later_process_of_its_number_does_not(tmp_path, quick):
    rundir, said = RunDir(tmp_path), []
    with held(tmp_path) as holder:
        holder.send_signal(signal.SIGSTOP)
        time.sleep(2 * lease.EXPIRY_SECONDS)
        assert lease.Lease(rundir).live_holder().process == holder.pid
        with pytest.raises(UserError, match=f"process {holder.pid} on "), rundir.lock():
            raise AssertionError
        left = json.loads(rundir.lease.read_text())
        rundir.lease.write_text(json.dumps(left | {"heartbeat": "2020-01-01T00:00:00+00:00"}))
        with rundir.lock(say=said.append):
            assert len(said) == 1, "it does not wait"


@pytest.mark.parametrize("is_left", [True, False])
def test_of_two_that_take_a_directory_in_one_moment_one_goes_on(tmp_path, quick, monkeypatch, is_left):
    """A disk can't compare and rename in one step: both see a dead driver's lease or none, and the later one stays."""
    rundir = RunDir(tmp_path)
    if is_left:
        leave_lease(rundir, process=no_process())
    put = lease.Lease._put

    def put_and_lose(self, if_version):
        assert put(self, if_version)
        theirs = json.loads(rundir.lease.read_text()) | ELSEWHERE | {"session": "the other"}
        rundir.lease.write_text(json.dumps(theirs))
        return True

    monkeypatch.setattr(lease.Lease, "_put", put_and_lose)
    with raises(UserError), rundir.lock():
        raise AssertionError
    assert json.loads(rundir.lease.read_text())["session"] == "the other"


def test_a_dead_process_counts_only_on_its_own_host_and_boot(tmp_path, quick):
    rundir, pid = RunDir(tmp_path), no_process()
    for changed, waits in (({}, False), ({"boot": "before the reboot"}, True), ({"host": "elsewhere"}, True)):
        said = []
        leave_lease(rundir, process=pid, **changed)
        with rundir.lock(say=said.append):
            pass
        assert any("waiting" in text for text in said) == waits


def test_a_lease_that_this_process_could_not_delete_is_free(tmp_path):
    """Also one of a container that was restarted: its driver has the same process id again."""
    rundir, said = RunDir(tmp_path), []
    leave_lease(rundir)
    with rundir.lock(say=said.append):
        assert len(said) == 1


def test_break_lock_takes_a_live_one_and_the_other_driver_stops(tmp_path):
    with held(tmp_path) as holder:
        with RunDir(tmp_path).lock(break_lock=True) as ours:
            assert ours.began is None, "the other one may still write: nothing of it is removed"
            assert holder.wait(60) != 0
        recorded(holder.stderr.read(), "process")
    with RunDir(tmp_path).lock() as ours:
        assert ours.began is not None


def test_a_driver_that_was_taken_over_says_so_even_if_it_can_end_only_by_force(tmp_path):
    with held(tmp_path, "stuck") as holder, RunDir(tmp_path).lock(break_lock=True):
        assert holder.wait(60) == Exit.FAILED
        said = holder.stderr.read()
    recorded(said, "taugrid")
    assert said.count("\n") == 1


LEASE = {
    "host": "x", "process": 1, "boot": "y", "run": None, "session": "z", "heartbeat": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "{",
        "null",
        "[" * 10_000,
        '{"host": "x"}',
        *(
            json.dumps(LEASE | changed)
            for changed in (
                {"heartbeat": "2026-01-01T00:00:00"},
                {"heartbeat": "2026-01-01"},
                {"heartbeat": 5},
                {"process": "1"},
                {"process": 2**70, "host": socket.gethostname(), "boot": lease._boot()},
                {"process": os.getpid(), "host": socket.gethostname(), "boot": lease._boot(), "session": []},
            )
        ),
    ],
)
def test_a_lease_that_makes_no_sense_is_no_lease(tmp_path, content):
    (tmp_path / "lease.json").write_text(content)
    assert lease.Lease(RunDir(tmp_path)).live_holder() is None
    with RunDir(tmp_path).lock():
        assert json.loads((tmp_path / "lease.json").read_text())["process"] == os.getpid()


def test_a_lease_is_refreshed_and_names_the_run(tmp_path, quick):
    (tmp_path / "run.json").write_text(json.dumps({"run": "abc0" * 8}))
    with RunDir(tmp_path).lock():
        first = json.loads((tmp_path / "lease.json").read_text())
        assert first["run"] == "abc0" * 8
        end = time.monotonic() + 60
        while json.loads((tmp_path / "lease.json").read_text())["heartbeat"] == first["heartbeat"]:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_lease_that_was_deleted_is_written_again_and_ends_nobody(tmp_path, quick):
    """Nobody has taken it over: someone has tidied up."""
    rundir = RunDir(tmp_path)
    with rundir.lock():
        rundir.lease.unlink()
        end = time.monotonic() + 60
        while not rundir.lease.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(3 * lease.HEARTBEAT_SECONDS)
        assert json.loads(rundir.lease.read_text())["process"] == os.getpid()
    assert not rundir.lease.exists()


def test_a_taken_lease_ends_the_driver_that_had_it(tmp_path, quick):
    """A driver that was stopped for longer than a lease lasts must not go on beside the one that took over."""
    rundir = RunDir(tmp_path)

    def drive():
        with rundir.lock():
            found = json.loads(rundir.lease.read_text())
            theirs = rundir.root / "theirs"
            for _ in range(1_200):  # it writes its heartbeats, too: one of ours may just have been on its way
                theirs.write_text(json.dumps(found | ELSEWHERE | {"session": "another", "process": 7}))
                theirs.replace(rundir.lease)
                time.sleep(lease.HEARTBEAT_SECONDS)

    with raises(RunFailed):
        drive()
    assert json.loads(rundir.lease.read_text())["session"] == "another"
