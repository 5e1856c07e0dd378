"""Connects to Ray: to a private cluster inside this process, or to a running one that may be joined.

Anyone who reaches an open Ray cluster can run commands as its user (CVE-2023-48022). Each refusal is one line, within
seconds: Ray itself would try for minutes. Ray reads most of its environment variables when it is imported, so this
module must set them before anything imports Ray. docs/cluster-reference.md says how taugrid uses Ray.
"""

import ipaddress
import json
import math
import os
import secrets
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from taugrid.config import Cluster
from taugrid.errors import TOO_MANY_FILES, RunFailed, UserError
from taugrid.hashing import SourceFile
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch.capacity import available_cpus, exact
from taugrid.workers import ray_compat
from taugrid.workers.custom.source import pack
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

OBJECT_STORE_BYTES = 200 * 2**20  # jobs and results are small; Ray's default would be 30 % of the machine's memory
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # at 0, servers listen on 127.0.0.1 alone
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # has a Ray job's runtime environment, as JSON
TOKEN = secrets.token_hex(32)  # kept only in memory: without a token, Ray writes one to a file

HEAD_POLL_SECONDS = 1.0  # the OS accepts the connection, so even a busy head passes
MAX_HEAD_FAILURES = 30  # in a row: a head that restarts has 30 s, half of the minute that Ray waits
POLLS_WITHOUT_HEAD = 10  # in the time of one poll, to find a new head before Ray does
REPLACED_SECONDS = 0.5  # for the main thread to end once the head was replaced: it may be in a call of Ray


def prepare_embedded() -> None:
    """Set the environment for embedded clusters. Call it before `import ray`."""
    os.environ.update(COMMON_ENVIRONMENT)
    for name in ("RAY_ADDRESS", JOB_CONFIG_VARIABLE):  # set if the driver is a job of a different cluster
        os.environ.pop(name, None)
    os.environ.update({LOOPBACK_VARIABLE: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})


@contextmanager
def connected(
    address: str, cluster: Cluster, trainers: int = 0, modules: Collection[SourceFile] = ()
) -> Iterator[None]:
    """A connection to Ray within the block, to a cluster with room for the workers of `cluster` and for `trainers`.

    `modules` are the user's source files that workers import. They travel to a running cluster; an embedded one sees
    the files themselves.

    Raises `UserError` if the address can't be reached, or its cluster has no token or does not accept this machine's;
    also outside of the main thread, which is interrupted when the run must end. `RunFailed` if the head of a running
    cluster dies within the block."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError("a run that needs workers must be called in the main thread, which receives Ctrl-C")
    options: dict[str, Any]
    if address == "local":
        prepare_embedded()
        import_ray()
        options = {
            "address": "local",  # without it, Ray joins a cluster that `ray start` began on this machine
            "num_cpus": _embedded_cpus(cluster, trainers),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options = {"address": join(address)}
    import ray

    started_here = not ray.is_initialized()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(address, options, modules)
    except BaseException:
        if started_here:  # Ray's processes would live as long as this one, which may be a notebook's
            ray.shutdown()
        raise
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        head = options["address"]
        with nullcontext() if address == "local" else head_watched(head, _knows_this_driver(head)):
            yield
    finally:
        ray.shutdown()


class Connection:
    """A connection to Ray for one session or several: the first that needs workers opens it. The outermost `with`
    closes it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._users = 0
        self._open = ExitStack()
        self._cpus: int | None = None
        self._modules: frozenset[SourceFile] = frozenset()

    def __enter__(self) -> "Connection":
        self._users += 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._users -= 1
        if not self._users:
            self._open.__exit__(*error)
            self._cpus = None

    def open(
        self, cluster: Cluster, trainers: int, modules: Collection[SourceFile], say: Callable[[str], None]
    ) -> None:
        """Connect as `connected` does, and say so, unless it is open with room for these workers and these files."""
        cpus = _embedded_cpus(cluster, trainers)
        if self._cpus is not None and cpus <= self._cpus and self._modules.issuperset(modules):
            return
        say("starting Ray" if self.address == "local" else f"connecting to Ray at {self.address}")
        self._open.close()
        self._cpus = None
        self._open.enter_context(connected(self.address, cluster, trainers, modules))
        self._cpus, self._modules = cpus, frozenset(modules)


def _init(address: str, options: Mapping[str, Any], modules: Collection[SourceFile]) -> None:
    """Call `ray.init` with the arguments `options`. Ray's errors become `RunFailed` or `UserError`, in one line."""
    import ray

    try:
        with nullcontext() if address == "local" else shipped(modules) as runtime_env:
            ray.init(
                log_to_driver=False, logging_level="error", configure_logging=True, runtime_env=runtime_env, **options
            )
    except SystemExit as received:  # from the handler of SIGTERM that Ray sets in init
        raise KeyboardInterrupt from received
    except Exception as error:
        known = (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError, TimeoutError)
        if type(error) is not Exception and not isinstance(error, known):  # Ray's is a bare one if a node starts late
            raise
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or "no answer"
        if address == "local":
            raise RunFailed(
                f"Ray could not start here: {reason}; run the same command again, if the machine is busy now"
            ) from error
        raise UserError(f"--address {address}: the cluster there can't be joined: {reason}") from error


@contextmanager
def shipped(modules: Collection[SourceFile]) -> Iterator[dict[str, Any] | None]:
    """The runtime environment with which workers import the user's modules: a folder of only these, which Ray copies.
    None if there are no modules, or if the driver is a Ray job with a working directory, which workers have too."""
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
    if not modules or "working_dir" in job.get("runtime_env", {}):
        yield None
        return
    with TemporaryDirectory(prefix="taugrid-") as folder:
        pack(modules, Path(folder))
        yield {"working_dir": folder}


def _embedded_cpus(cluster: Cluster, trainers: int) -> int:
    """The number of CPUs for Ray: those of the machine, or more if the requested workers need more and share them."""
    asked = max(cluster.workers or 0, trainers) * exact(cluster.cpus_per_worker)
    return max(available_cpus(), math.ceil(asked))


@contextmanager
def head_watched(address: str, is_same: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End the block with `RunFailed` if the head at HOST:PORT has died, or another has taken its place. Ray itself
    waits for a minute if it has died. If another one answers, Ray waits for good, or ends the process with a C++ stack
    trace once it is asked something (`Scaling.poll_nodes`). `is_same` is called when connections are accepted again."""
    finished, failures, again = threading.Event(), list[str](), "run the same command again"

    def watch() -> None:
        refused, pause, polled = 0.0, 0.0, time.monotonic()
        while not finished.wait(pause):
            polled, before = time.monotonic(), polled
            if not head_accepts(address):
                refused += min(1.0, (polled - before) / HEAD_POLL_SECONDS) if refused else 1.0
                pause = HEAD_POLL_SECONDS / POLLS_WITHOUT_HEAD
                if refused < MAX_HEAD_FAILURES:
                    continue
                failures.append(f"the head of the Ray cluster at {address} has died; {again} once it is back")
            elif refused and not is_same():
                failures.append(
                    f"the head of the Ray cluster at {address} was replaced, and its nodes are gone; {again}"
                )
            else:
                refused, pause = 0.0, HEAD_POLL_SECONDS
                continue
            ending.stop(failures[0])
            if refused < MAX_HEAD_FAILURES and not finished.wait(REPLACED_SECONDS):
                ending.leave()
            return

    threading.Thread(target=watch, daemon=True, name="head").start()
    try:
        yield
    except KeyboardInterrupt:
        if not failures:
            raise
        raise RunFailed(failures[0]) from None
    finally:
        finished.set()


def _knows_this_driver(address: str) -> Callable[[], bool]:
    """Returns a function that says whether the head at HOST:PORT has the node on which this driver now is."""
    import ray

    own, token = ray.get_runtime_context().get_node_id(), use_token()

    def is_same() -> bool:
        try:
            return own in ray_compat.nodes_of(address, token and token.header)
        except UserError:  # it is gone again, which is counted elsewhere
            return True

    return is_same


def join(address: str) -> str:
    """Set the environment for the running cluster at `address`, before `import ray`; HOST:PORT of its head. Raises
    `UserError` if it can't be reached, must not be joined, or this machine is none of its nodes."""
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
    Call it after Ray's environment is set."""
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
    """Refuse a cluster that may be beyond this machine and is open, or that does not accept this machine's token. The
    token is sent only once it is known that the cluster demands one. `address` is as the user gave it. `accepts` is
    called with a token's header, or None for a request without one."""
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
