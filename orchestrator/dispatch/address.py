"""Which Ray clusters may be joined: this machine's, or those that demand this machine's token.

Anyone who reaches an open Ray cluster can run commands as its user (CVE-2023-48022). Each refusal is one line, within
seconds: Ray itself would try for minutes, and report errors of its C++ code.
"""

import ipaddress
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from taugrid.errors import TOO_MANY_FILES, UserError
from taugrid.orchestrator import ending
from taugrid.workers import ray_compat
from taugrid.workers.ray_compat import Header

COMMON_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # silences the (raylet) lines that would break --json
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` would ship the working directory by surprise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor without GPUs must not see any
}

ACCEPT_SECONDS = 1.0  # how long a head that was joined may take to accept a connection
CONNECT_SECONDS = 10.0
NODE_SECONDS = 5.0  # how long a node that is just starting on this machine is waited for


def join(address: str) -> str:
    """Set the environment for the running cluster at `address`, before `import ray`; HOST:PORT of its head.

    Raises `UserError` if it can't be reached, must not be joined, or this machine is none of its nodes.
    """
    os.environ.update(COMMON_ENVIRONMENT)
    check_form(address)
    use_token()
    import_ray()
    head = find_head(address)
    require_token(address)
    require_token_accepted(address, is_on_loopback(address), partial(ray_compat.accepts_token, head))
    require_local_node(address, head)
    return head


def import_ray() -> None:
    """Import Ray, for the first time in this process, once its environment is set. Ctrl-C and SIGTERM wait for it."""
    with ending.held():
        import ray  # noqa: F401


def check_form(address: str) -> None:
    """Raise `UserError` unless an address is local, auto or HOST:PORT."""
    host, _, port = address.rpartition(":")
    if address in ("local", "auto"):
        return
    if "@" in address:
        raise UserError("--address must be local, auto or HOST:PORT, without a user or a password")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 2**16:
        hint = "; http:// is for `taugrid submit`" if address.startswith("http") else ""
        raise UserError(f"--address must be local, auto or HOST:PORT, not {address!r}{hint}")


def is_on_loopback(address: str) -> bool:
    """Whether HOST:PORT is certainly this machine."""
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether a host is certainly this machine: a literal loopback address, or localhost. Other names may lie."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Token(NamedTuple):
    """A token of Ray's, which clusters may demand."""

    value: str
    origin: str  # the variable or file that holds it, for messages

    @property
    def header(self) -> Header:
        """The name and the value of the header that carries it."""
        return "authorization", f"Bearer {self.value}"


def find_token() -> Token | None:
    """The token that Ray would use here: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return Token(value.strip(), "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return Token(path.read_text().strip(), str(path))
    except OSError as error:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {path} can't be read: {error.strerror or error}") from None
        return None


def use_token() -> Token | None:
    """The token that Ray will send, if any, from the next `import ray` on; RAY_AUTH_MODE may say otherwise."""
    token = find_token()
    if token is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return token if os.environ.get("RAY_AUTH_MODE") == "token" else None


def require_token(address: str) -> None:
    """Refuse a cluster that may be beyond this machine if this machine has no token; otherwise use the token."""
    if use_token() is None and not is_on_loopback(address):
        raise UserError(
            f"--address {address}: a cluster beyond this machine must have a token, because anyone who reaches an open "
            "one can run commands as you; start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, and set both here too"
        )


def find_head(address: str) -> str:
    """HOST:PORT of the head that `address` means. For auto: RAY_ADDRESS, or the one cluster that runs on this machine.

    Call it after Ray's environment is set.
    """
    if address != "auto":
        return address
    head = os.environ.get("RAY_ADDRESS") or ray_compat.recorded_address()
    if not head:
        running = sorted(ray_compat.running_heads())
        if len(running) > 1:
            raise UserError(f"--address auto: several Ray clusters run here, {', '.join(running)}; give one of them")
        head = running[0] if running else None
    if not head:
        raise UserError(
            "--address auto: there is no Ray cluster on this machine; start one with `ray start --head`, give "
            "HOST:PORT, or leave out --address to use this machine alone"
        )
    check_form(head)
    return str(head)


def require_token_accepted(address: str, is_here: bool, accepts: Callable[[Header | None], bool]) -> None:
    """Refuse a cluster that may be beyond this machine and is open, or that does not accept this machine's token.

    The token is sent only once it is known that the cluster demands one.

    `address` is as the user gave it. `accepts` is called with a token's header, or None for a request without one.
    """
    if accepts(None):
        if not is_here:
            raise UserError(
                f"--address {address}: the cluster there is open although there is a token here, so anyone who reaches "
                "it can run commands as you; start it with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
            )
        return
    token = use_token()
    if token is None:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        missing = "there is none here" if mode == "token" else f"RAY_AUTH_MODE is {mode} here"
        raise UserError(
            f"--address {address}: the cluster there demands a token, and {missing}; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to what its head was started with"
        )
    if not accepts(token.header):
        raise UserError(
            f"--address {address}: the cluster there does not accept the token in {token.origin}; set it to the one "
            "that its head was started with"
        )


def require_local_node(address: str, head: str) -> None:
    """Refuse a machine that is not a node of the cluster with this head: the driver must run on one."""
    token = use_token()
    end = time.monotonic() + NODE_SECONDS
    while True:
        if ray_compat.nodes_of(head, token and token.header) & ray_compat.node_ids_here():
            return
        if time.monotonic() > end:
            raise UserError(
                f"--address {address}: this machine is not a node of that cluster, and the driver must run on one; "
                f"run it on a node, make this one (`ray start --address {head}`), or use `taugrid submit`"
            )
        time.sleep(0.5)


def head_accepts(address: str) -> bool:
    """Whether the head accepts a connection. A driver that may open no more files can't know, and assumes it does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ACCEPT_SECONDS).close()
    except OSError as error:
        return error.errno in TOO_MANY_FILES
    return True
