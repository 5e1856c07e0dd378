"""Which Ray clusters may be joined, and how many workers fit on one."""

import secrets
from concurrent import futures

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from taugrid.config import Cluster
from taugrid.errors import UserError
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.address import check_form, is_on_loopback, is_open, require_closed, require_token
from taugrid.orchestrator.opened import open_to_run


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "127.8.0.1:1", "[::1]:6379", "localhost:6379"])
def test_literal_addresses_of_this_machine_are_its_own(address):
    assert is_on_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["127.evil.com:6379", "127.0.0.1.evil.com:6379", "localhost.evil.com:6379", "192.0.2.1:6379", "auto", "0.0.0.0:1"],
)
def test_names_that_only_look_like_this_machine_are_not(address):
    assert not is_on_loopback(address)


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_cluster_beyond_this_machine_needs_a_token_here(no_token, monkeypatch):
    for address in ("127.evil.com:6379", "192.0.2.1:6379", "auto"):
        with pytest.raises(UserError, match="must have a token"):
            require_token(address)
    require_token("127.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    require_token("192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # then Ray would not use it
    with pytest.raises(UserError, match="must have a token"):
        require_token("192.0.2.1:6379")


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Answers as the head of a Ray cluster does, with or without a token."""

    def __init__(self, is_open):
        self.is_open = is_open

    def CheckAlive(self, request, context):  # noqa: N802, for Ray's name it is
        if not self.is_open:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return gcs_service_pb2.CheckAliveReply()


@pytest.fixture
def head():
    """Starts a head and gives its HOST:PORT."""
    servers = []

    def start(is_open):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Head(is_open), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_an_open_cluster_is_refused_although_there_is_a_token_here(head):
    """Of a real head, `tests/integration/test_cluster.py` shows that it is found to be closed."""
    gcs = head(is_open=True)
    for address in ("192.0.2.1:6379", "auto"):
        with pytest.raises(UserError, match="is open although there is a token here"):
            require_closed(address, gcs)
    require_closed(gcs, gcs)
    closed = head(is_open=False)
    require_closed("192.0.2.1:6379", closed)
    with pytest.raises(UserError, match=r"127.0.0.1:9: no Ray head answers there \(UNAVAILABLE\)"):
        is_open("127.0.0.1:9")  # a head that is slow to answer may be open


@pytest.mark.parametrize("address", ["foo", "foo:", ":6379", "ray://host:10001x", ""])
def test_what_is_no_address_is_told_so_before_anything_else(address):
    with pytest.raises(UserError, match=r"^--address must be local, auto or HOST:PORT, not"):
        open_to_run("digits", (), "relative", address)
    for good in ("local", "auto", "host:6379", "[::1]:6379"):
        check_form(good)


@pytest.mark.parametrize(
    ("node", "cpus", "fit"),
    [(1, 0.2, 5), (1, 0.1, 10), (3, 0.3, 10), (0.6, 0.2, 3), (2, 0.7, 2), (4, 1.5, 2), (0.5, 1, 0), (16, 1, 16)],
)
def test_as_many_workers_fit_as_by_hand(monkeypatch, node, cpus, fit):
    """In floats, 1 // 0.2 is 4."""
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": node}, {"CPU": node, "GPU": 1.0}])
    assert cluster._slots(cpus, 0) == 2 * fit
    assert cluster._slots(cpus, 0.2) == min(fit, 5)


def test_an_embedded_cluster_is_as_large_as_the_workers_need():
    many = cluster.available_cpus() * 10
    assert cluster._embedded_cpus(Cluster(workers=many, cpus_per_worker=0.1), 0) == cluster.available_cpus()
    assert cluster._embedded_cpus(Cluster(workers=many + 1, cpus_per_worker=0.1), 0) == cluster.available_cpus() + 1
