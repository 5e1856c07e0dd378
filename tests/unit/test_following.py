"""How a job's log is printed and how its end is told, whatever Ray does. test_cluster.py follows real jobs."""

import os
import signal
import threading
import time

import pytest
from ray.job_submission import JobDetails
from snapshots import raises

from taugrid.errors import Exit, RunFailed
from taugrid.orchestrator.jobs import client
from taugrid.orchestrator.jobs.client import exit_code, follow

LINES = [f"line {i}\n" for i in range(20)]


class Cluster:
    """A job that prints `step` of LINES between two looks at its log. Some looks find no head."""

    address = "http://head:8265"

    def __init__(self, step, fails=lambda look: False):
        self.step, self.fails = step, fails
        self.looks = 0

    def state(self, job):
        self.looks += 1
        if self.fails(self.looks):
            raise RunFailed("the job server at http://head:8265 does not answer")
        return details("SUCCEEDED" if self.looks * self.step >= len(LINES) else "RUNNING")

    def log(self, job):
        return "".join(LINES[: self.looks * self.step])


def details(status, code=None, message=None):
    about = {"type": "SUBMISSION", "submission_id": "mine-1", "entrypoint": "true", "message": message}
    return JobDetails(**about, status=status, driver_exit_code=code, start_time=0, end_time=1000)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(client, "LOST_SECONDS", 0.2)


@pytest.mark.parametrize(("step", "fails"), [(1, lambda look: False), (3, lambda look: look % 2), (20, lambda look: 0)])
def test_each_line_is_printed_once_although_the_head_is_away_at_times(step, fails):
    printed = []
    assert follow(Cluster(step, fails), "mine-1", printed.append).status == "SUCCEEDED"
    assert "".join(printed) == "".join(LINES)


def test_a_head_that_is_gone_is_given_up_and_the_way_back_is_told():
    with raises(RunFailed):
        follow(Cluster(1, lambda look: look > 1), "mine-1", lambda _: None)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_following_at_once_although_the_head_hangs(kind):
    hangs, ends = threading.Event(), threading.Event()

    class Hung(Cluster):
        def state(self, job):
            hangs.set()
            ends.wait(60)
            return super().state(job)

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
            follow(Hung(1), "mine-1", lambda _: None)
    finally:
        signal.signal(signal.SIGTERM, before)
        ends.set()


def test_a_runs_own_exit_code_comes_back_and_an_end_that_it_did_not_choose_is_told():
    codes = [0, 1, 2, 3, 4, 130]
    assert [exit_code(details("FAILED" if code else "SUCCEEDED", code)) for code in codes] == codes
    assert exit_code(details("STOPPED", None)) == Exit.INTERRUPTED
    for code in (-9, 137, 7):
        with raises(RunFailed):
            exit_code(details("FAILED", code))
    with raises(RunFailed):
        exit_code(details("FAILED", None, "\nFailed to set up runtime environment.\nmore\n"))
