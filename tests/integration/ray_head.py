"""The head of a Ray cluster with a token, in processes of its own on loopback, as `ray start` makes it.

It ends by SIGTERM, or when the thread that started it does: never by `ray stop`, which ends every Ray of the machine.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tools.machine import free_port

PR_SET_PDEATHSIG = 1


class Head(NamedTuple):
    """Addresses of a head."""

    gcs: str
    """HOST:PORT, for --address of commands that work."""
    dashboard: str
    """http://HOST:PORT, for --address of commands about jobs. Nothing listens there without a dashboard."""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def started_head(token: str, dashboard: bool, cpus: int = 2) -> Iterator[Head]:
    """A head that demands `token`."""
    folder = tempfile.mkdtemp(prefix="taugrid-")  # a short name: sockets in it may have 107 characters in all
    head = Head(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}")
    process = _start(head, folder, token, dashboard, cpus)
    try:
        started = Path(folder, "ray", "ray_current_cluster")  # the last thing that it writes
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None and not started.exists():
            time.sleep(0.2)
        assert started.exists(), f"Ray's head did not start: exit {process.poll()}"
        yield head
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)  # its children may be at their last words


def _start(head: Head, folder: str, token: str, dashboard: bool, cpus: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": folder,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an activated environment
    }
    options = [
        f"--num-cpus={cpus}",
        "--node-ip-address=127.0.0.1",
        f"--port={head.gcs.rpartition(':')[2]}",
        f"--include-dashboard={dashboard}",
        f"--include-log-monitor={dashboard}",
        f"--dashboard-port={head.dashboard.rpartition(':')[2]}",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--object-store-memory={200 * 2**20}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
