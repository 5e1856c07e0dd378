"""Which Ray clusters may be joined."""

import secrets
from concurrent import futures
from functools import partial

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from snapshots import raises

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.cluster import (
    Token,
    check_form,
    find_head,
    find_token,
    is_on_loopback,
    require_token,
    require_token_accepted,
)
from taugrid.orchestrator.opened import open_to_run
from taugrid.workers import ray_compat
from taugrid.workers.ray_compat import accepts_token

OWN = ["127.0.0.1:6379", "127.8.0.1:1", "[::1]:6379", "localhost:6379"]
OTHERS = ["127.evil.com:6379", "127.0.0.1.evil.com:6379", "localhost.evil.com:1", "192.0.2.1:1", "auto", "0.0.0.0:1"]


def test_names_that_only_look_like_this_machine_are_not_its_own():
    assert [address for address in OWN + OTHERS if is_on_loopback(address)] == OWN


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_cluster_beyond_this_machine_needs_a_token_here(no_token, monkeypatch):
    for address in ("127.evil.com:6379", "192.0.2.1:6379", "auto"):
        with raises(UserError):
            require_token(address)
    require_token("127.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    require_token("192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # then Ray would not use it
    with raises(UserError):
        require_token("192.0.2.1:6379")


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Answers as the head of a Ray cluster does, which demands `token` or is open."""

    def __init__(self, token):
        self.token = token

    def CheckAlive(self, request, context):  # noqa: N802, for Ray's name it is
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.token and sent != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return gcs_service_pb2.CheckAliveReply()


def welcome(address, gcs):
    require_token_accepted(address, is_on_loopback(address), partial(accepts_token, gcs))


@pytest.fixture
def head():
    """Starts a head and gives its HOST:PORT."""
    servers = []

    def start(token):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Head(token), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_an_open_cluster_is_refused_although_there_is_a_token_here(head, no_token, monkeypatch):
    """Of a real head, `tests/integration/test_cluster.py` shows that it is found to be closed."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "here")
    gcs = head(token=None)
    for address in ("192.0.2.1:6379", "auto"):
        with raises(UserError):
            welcome(address, gcs)
    welcome(gcs, gcs)
    welcome("192.0.2.1:6379", head(token="here"))
    with raises(UserError):
        accepts_token("127.0.0.1:9", None)  # a head that is slow to answer may be open


def test_a_head_that_demands_another_token_says_which_one_is_wrong(head, no_token, monkeypatch, tmp_path):
    gcs = head(token="theirs")
    with raises(UserError):
        welcome(gcs, gcs)
    (tmp_path / "token").write_text("ours\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() == Token("ours", str(tmp_path / "token"))
    with raises(UserError):
        welcome(gcs, gcs)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    welcome(gcs, gcs)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # then Ray would not send it
    with raises(UserError):
        welcome(gcs, gcs)


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    """A machine on which no Ray was started. Other tests may have one at this moment."""
    monkeypatch.setattr(ray_compat, "running_heads", set)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_auto_is_the_cluster_of_this_machine_or_says_that_there_is_none(no_ray, monkeypatch, tmp_path):
    for running in (set(), {"127.0.0.1:2", "127.0.0.1:1"}):
        monkeypatch.setattr(ray_compat, "running_heads", lambda running=running: running)
        with raises(UserError):
            find_head("auto")
    monkeypatch.setattr(ray_compat, "running_heads", set)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")  # as `ray start` does
    assert find_head("auto") == "127.0.0.1:9"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as a Ray job does
    assert find_head("auto") == "10.0.0.1:6379"
    assert find_head("host:1") == "host:1"


@pytest.mark.parametrize("address", ["foo", "foo:", ":6379", "ray://host:10001", "http://host:8265", "host:99999", ""])
def test_what_is_no_address_is_told_so_before_anything_else(address):
    with raises(UserError):
        open_to_run("digits", (), "relative", address)
    for good in ("local", "auto", "host:6379", "[::1]:6379"):
        check_form(good)
    with raises(UserError) as caught:
        check_form("user:word@host:6379")
    assert "word@" not in str(caught.value)


def test_a_run_outside_of_the_main_thread_is_refused_before_ray_starts():
    """It failed on the handler of SIGTERM once Ray was there, and left Ray running. Nor could it be interrupted."""
    with futures.ThreadPoolExecutor(1) as threads, raises(UserError):
        threads.submit(cluster.connected("local", Cluster()).__enter__).result()


def test_a_node_that_starts_too_late_is_one_line(monkeypatch):
    """Ray's error is a bare `Exception`, which was a traceback."""

    def late(**_):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", late)
    with raises(RunFailed):
        cluster.connected("local", Cluster()).__enter__()
