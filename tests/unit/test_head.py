"""A driver without a head can't go on."""

import signal
import socket
import threading
from contextlib import nullcontext, suppress
from queue import SimpleQueue

import pytest
from snapshots import raises

from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch import cluster
from tools.machine import free_port


@pytest.fixture(autouse=True)
def watch_alone():
    """The watch of a test does not poll in the next one."""
    yield
    for thread in threading.enumerate():
        if thread.name == "head":
            thread.join(60)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(cluster, "HEAD_POLL_SECONDS", 0.03)
    with socket.create_server(("127.0.0.1", free_port())) as listening:  # nobody takes it once it is closed
        yield listening


@pytest.fixture
def until(monkeypatch):
    """Waits until a poll of the watch has found the head there, or away, however long that takes."""
    found, accepts = SimpleQueue(), cluster.head_accepts

    def poll(address):
        found.put(answer := accepts(address))
        return answer

    def wait(answer):
        while found.get(timeout=60) is not answer:
            pass

    monkeypatch.setattr(cluster, "MAX_HEAD_FAILURES", 10_000)
    monkeypatch.setattr(cluster, "head_accepts", poll)
    return wait


def address(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_head_that_dies_ends_the_driver(server):
    with raises(RunFailed), cluster.head_watched(address(server)):
        server.close()
        signal.pause()


def test_a_head_that_is_out_of_reach_for_a_moment_does_not(server, until):
    port = server.getsockname()[1]
    with cluster.head_watched(address(server)):
        server.close()
        until(False)
        with socket.create_server(("127.0.0.1", port)):
            for _ in range(3):
                until(True)


def watch(monkeypatch, answers):
    """Watch a head that accepts connections as `answers` says, poll by poll, and then all of them."""
    rest, all_given = iter(answers), threading.Event()

    def accepts(address):
        answer = next(rest, None)
        if answer is None:
            all_given.set()
        return answer is not False

    monkeypatch.setattr(cluster, "HEAD_POLL_SECONDS", 0.003)
    monkeypatch.setattr(cluster, "POLLS_WITHOUT_HEAD", 1)  # a failure counts as one, however late it is
    monkeypatch.setattr(cluster, "head_accepts", accepts)
    with cluster.head_watched("head:6379"):
        assert all_given.wait(60)


def test_only_failures_in_a_row_count(monkeypatch):
    watch(monkeypatch, 2 * [*(cluster.MAX_HEAD_FAILURES - 1) * [False], True])


def test_the_last_failure_that_counts_is_its_death(monkeypatch):
    with raises(RunFailed):
        watch(monkeypatch, cluster.MAX_HEAD_FAILURES * [False])


@pytest.mark.parametrize("in_python", [True, False])
def test_a_head_that_was_replaced_ends_the_driver_at_once(server, until, monkeypatch, in_python):
    """Ray would end the process with a stack trace, or wait for good."""
    port, left = server.getsockname()[1], threading.Event()
    monkeypatch.setattr(cluster.ending, "leave", left.set)
    monkeypatch.setattr(cluster, "REPLACED_SECONDS", 60.0 if in_python else 0.2)
    if not in_python:
        monkeypatch.setattr(cluster.ending, "stop", lambda failure: None)
    with (
        suppress(KeyboardInterrupt),
        pytest.raises(RunFailed, match="was replaced") if in_python else nullcontext(),
        cluster.head_watched(address(server), lambda: False),
    ):
        server.close()
        until(False)
        with socket.create_server(("127.0.0.1", port)):
            left.wait(60)
    assert left.is_set() is not in_python
