"""Connects to Ray, with safe defaults: to a private cluster inside this process, or to a running one.

Ray reads most of its environment variables when it is imported, so this module must set them before anything imports
Ray. docs/cluster-reference.md says how taugrid uses Ray.
"""

import json
import math
import os
import secrets
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError
from taugrid.hashing import SourceFile
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch.address import COMMON_ENVIRONMENT, head_accepts, import_ray, join, use_token
from taugrid.orchestrator.dispatch.capacity import available_cpus, exact
from taugrid.workers import ray_compat
from taugrid.workers.custom.source import pack

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
    cluster dies within the block.
    """
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
    """A connection to Ray for one session or several: the first that needs workers opens it.

    The outermost `with` closes it.
    """

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

    None if there are no modules, or if the driver is a Ray job with a working directory, which workers have too.
    """
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
    """End the block with `RunFailed` if the head at HOST:PORT has died, or another has taken its place.

    Ray itself waits for a minute if it has died. If another one answers, Ray waits for good, or ends the process with a
    C++ stack trace once it is asked something (`Scaling.poll_nodes`). `is_same` is called when connections are accepted
    again.
    """
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
