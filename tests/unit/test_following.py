"""How a job's log is printed and how its end is told, whatever Ray does. test_cluster.py follows real jobs."""

import asyncio
import os
import signal
import threading
import time

import pytest
from snapshots import raises

from taugrid.errors import Exit, RunFailed
from taugrid.orchestrator.jobs import follow
from taugrid.orchestrator.jobs.client import Submission
from taugrid.orchestrator.jobs.follow import exit_code

LINES = [f"line {i}\n" for i in range(20)]


class Cluster:
    """A job of LINES. Ray's tail of its log ends after `lasts` lines (ray#57002), with an error or without."""

    address = "http://head:8265"

    def __init__(self, lasts, error=None, silent=0):
        self.client = self
        self.lasts, self.error, self.silent = lasts, error, silent
        self.tails = 0

    async def tail_job_logs(self, job):
        self.tails += 1
        for line in LINES[: self.lasts * self.tails]:
            yield line
        if self.error:
            raise self.error

    def one(self, job):
        if self.silent and self.tails:
            raise RunFailed("the job server at http://head:8265 does not answer")
        return submission("SUCCEEDED" if self.tails * self.lasts >= 10 else "RUNNING")

    def log(self, job):
        return "".join(LINES)


def submission(status, code=None, message=""):
    return Submission("mine-1", "mine", "/out", status, code, 0.0, 1.0, message)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "LOST_SECONDS", 0.2)


@pytest.mark.parametrize(("lasts", "error"), [(1, None), (3, RuntimeError("closed")), (20, ConnectionResetError())])
def test_each_line_is_printed_once_although_the_tail_breaks_off(lasts, error):
    printed = []
    cluster = Cluster(lasts, error)
    assert follow.follow(cluster, "mine-1", printed.append).status == "SUCCEEDED"
    assert "".join(printed) == "".join(LINES)
    assert cluster.tails >= 10 // lasts


def test_what_printing_raises_is_not_lost():
    def closed(text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow.follow(Cluster(1), "mine-1", closed)


def test_a_head_that_is_gone_is_given_up_and_the_way_back_is_told():
    with raises(RunFailed):
        follow.follow(Cluster(1, silent=1), "mine-1", lambda _: None)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()  # it has closed its own


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_following_at_once_although_the_head_hangs(kind):
    """The test of real jobs freezes a real head."""
    hangs, ends, answered = threading.Event(), threading.Event(), threading.Event()

    class Hung(Cluster):
        def one(self, job):
            hangs.set()
            ends.wait(60)
            answered.set()
            return super().one(job)

    def send():
        hangs.wait(60)
        time.sleep(0.3)  # until it is waited for
        os.kill(os.getpid(), kind)

    def terminated(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminated)
    threading.Thread(target=send).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            follow.follow(Hung(1), "mine-1", lambda _: None)
        assert not answered.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
        ends.set()


def test_a_runs_own_exit_code_comes_back_and_an_end_that_it_did_not_choose_is_told():
    codes = [0, 1, 2, 3, 4, 130]
    assert [exit_code(submission("FAILED" if code else "SUCCEEDED", code)) for code in codes] == codes
    assert exit_code(submission("STOPPED", None)) == Exit.INTERRUPTED
    for code in (-9, 137, 7):
        with raises(RunFailed):
            exit_code(submission("FAILED", code))
    with raises(RunFailed):
        exit_code(submission("FAILED", None, "\nFailed to set up runtime environment.\nmore\n"))
