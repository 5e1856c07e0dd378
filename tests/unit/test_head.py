"""A driver without a head can't go on."""

import socket
import threading
import time
from contextlib import nullcontext, suppress

import pytest

from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch import cluster


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(cluster, "HEAD_POLL_SECONDS", 0.03)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


def wait_for_death(server):
    with cluster.head_watched(address(server)):
        server.close()
        time.sleep(20)


def test_a_head_that_dies_ends_the_driver(server):
    where, began = address(server), time.monotonic()
    with pytest.raises(RunFailed, match=f"{where} has died"):
        wait_for_death(server)
    assert time.monotonic() - began >= (cluster.MAX_HEAD_FAILURES - 1) * cluster.HEAD_POLL_SECONDS


def test_a_head_that_is_out_of_reach_for_a_moment_does_not(server):
    port = server.getsockname()[1]
    with cluster.head_watched(address(server)):
        server.close()
        time.sleep(5 * cluster.HEAD_POLL_SECONDS)
        with socket.create_server(("127.0.0.1", port)):
            time.sleep(2 * cluster.MAX_HEAD_FAILURES * cluster.HEAD_POLL_SECONDS)


def test_only_failures_in_a_row_count(server, monkeypatch):
    monkeypatch.setattr(cluster, "MAX_HEAD_FAILURES", 8)
    port = server.getsockname()[1]
    with cluster.head_watched(address(server)):
        server.close()
        for _ in range(2):
            time.sleep(5 * cluster.HEAD_POLL_SECONDS)
            with socket.create_server(("127.0.0.1", port)):
                time.sleep(5 * cluster.HEAD_POLL_SECONDS)


def test_ctrl_c_is_no_death(server):
    with pytest.raises(KeyboardInterrupt), cluster.head_watched(address(server)):
        raise KeyboardInterrupt


@pytest.mark.parametrize("main_thread", ["in Python", "in a call of Ray"])
def test_a_head_that_was_replaced_ends_the_driver_at_once(server, monkeypatch, main_thread):
    """Ray would end the process with a stack trace, or wait for good."""
    port, left = server.getsockname()[1], threading.Event()
    monkeypatch.setattr(cluster.ending, "leave", left.set)
    monkeypatch.setattr(cluster, "REPLACED_SECONDS", 0.2)
    if main_thread != "in Python":
        monkeypatch.setattr(cluster.ending, "stop", lambda failure: None)
    with (
        suppress(KeyboardInterrupt),
        pytest.raises(RunFailed, match="was replaced") if main_thread == "in Python" else nullcontext(),
        cluster.head_watched(address(server), lambda: False),
    ):
        server.close()
        time.sleep(5 * cluster.HEAD_POLL_SECONDS)
        with socket.create_server(("127.0.0.1", port)):
            left.wait(10)
    assert left.is_set() is (main_thread != "in Python")
