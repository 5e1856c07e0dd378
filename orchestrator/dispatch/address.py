"""Which Ray clusters may be joined: this machine's, or those that demand a token.

Anyone who reaches an open Ray cluster can run commands as its user (CVE-2023-48022). What is here needs no Ray, except
to ask a cluster whether it is open.
"""

import ipaddress
import os
import socket
from pathlib import Path

from taugrid.errors import UserError

CONNECT_SECONDS = 10.0


def check_form(address: str) -> None:
    """Raise `UserError` unless an address is local, auto or HOST:PORT."""
    host, _, port = address.rpartition(":")
    if address not in ("local", "auto") and not (host and port.isdigit()):
        raise UserError(f"--address must be local, auto or HOST:PORT, not {address!r}")


def is_on_loopback(address: str) -> bool:
    """Whether HOST:PORT is sure to be this machine: a literal loopback address, or localhost. Other names may lie."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_answer(address: str) -> None:
    """Fail at once if nothing answers at HOST:PORT: Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at --address {address}: {error.strerror or error}") from None


def require_token(address: str) -> None:
    """Refuse a cluster that may be beyond this machine if there is no token for it here; use a token that is here."""
    default = Path("~/.ray/auth_token").expanduser()
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or default.exists()
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not is_on_loopback(address) and not (has_token and os.environ["RAY_AUTH_MODE"] == "token"):
        raise UserError(
            f"--address {address}: a cluster beyond this machine must have a token, because anyone who reaches an open "
            "one can run commands as you; start it with RAY_AUTH_MODE=token and set RAY_AUTH_TOKEN here"
        )


def require_closed(address: str, gcs: str) -> None:
    """Refuse a cluster that may be beyond this machine if it does not demand the token that is here.

    Args:
        address: as the user gave it.
        gcs: HOST:PORT of its head.
    """
    if not is_on_loopback(address) and is_open(gcs):
        raise UserError(
            f"--address {address}: the cluster there is open although there is a token here, so anyone who reaches it "
            "can run commands as you; start it with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
        )


def is_open(gcs: str) -> bool:
    """Whether the head of a Ray cluster at HOST:PORT answers without a token. Call it after Ray's environment is set.

    Raises:
        UserError: if it neither answers nor asks for a token.
    """
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(gcs) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return False
            raise UserError(f"--address {gcs}: no Ray head answers there ({error.code().name})") from None
    return True
