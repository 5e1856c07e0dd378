"""A Ray cluster of several real raylets on one machine, for tests of what happens when nodes misbehave, and benchmarks.

Each node is `ray start --block` with an address of its own (127.0.0.x) and namespaces of its own for mounts and
processes. So it can see other files than its peers (a read-only run directory, a stale checkpoint, a lost mount), and
it dies as a machine does: everything on it at once. That needs Linux and root. The head has no CPUs, so that no worker
runs there; the driver runs beside it, with `Cluster.environment`. Health checks are shortened: a lost node is noticed
in about 3 s. In a node's processes TG_NODE is its name.
"""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.machine import command_line, descendants, free_port

READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0}"
LOST = "umount -l {0}"
"""Shell commands for `Cluster.inside`: what happens to a node's mount of the folder {0}. Below a lost mount there is an
empty folder, as below a real one, and writing to it succeeds."""


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    made = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return made.returncode == 0


class Cluster:
    """A head and nodes by name, which mount the folder `shared`. Kills only what it started."""

    def __init__(self, shared: Path, environment: dict[str, str] | None = None) -> None:
        self._shared = shared
        self._temporary = Path(tempfile.mkdtemp(prefix="raylets-"))  # short: sockets in it may have 107 characters
        self._port = free_port()
        self._folders: dict[str, Path] = {}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.ips: dict[str, str] = {}
        """Node -> its address, by which taugrid names it. A node that is started again keeps its own."""
        self.address = f"127.0.0.1:{self._port}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # conftest.py of the other tests sets 0, which allows one node
            "RAY_TMPDIR": str(self._temporary),
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_timeout_ms": "1000",
            **(environment or {}),
        }

    def head(self) -> None:
        """Start the head, which has no CPUs."""
        options = ["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"]
        self._begin("head", "127.0.0.1", [*options, f"--ray-client-server-port={free_port()}"], [])
        self.wait("head")

    def start(self, *names: str, cpus: int = 1, without_mount: bool = False, then: str = "true") -> None:
        """Start nodes side by side, and wait until they have joined. `then` is a shell command that each runs first."""
        for name in names:
            self.begin(name, cpus, without_mount, then)
        for name in names:
            self.wait(name)

    def begin(self, name: str, cpus: int = 1, without_mount: bool = False, then: str = "true") -> None:
        """Start a node that will join by and by."""
        self.ips.setdefault(name, f"127.0.0.{len(self.ips) + 2}")
        options = [f"--address={self.address}", f"--num-cpus={cpus}"]
        self._begin(name, self.ips[name], options, [*self._mounts(name, without_mount), then])

    def void(self, name: str) -> Path:
        """The folder that a node sees in place of `shared` once its mount is lost."""
        return self._temporary / f"{name}-void"

    @property
    def names(self) -> list[str]:
        """The nodes that were started and not killed, without the head."""
        return [name for name in self._nodes if name != "head"]

    def workers(self, name: str, called: str = "ray::Worker") -> list[int]:
        """Process ids of taugrid's workers on a node, or of other processes that Ray has `called` so."""
        return [pid for pid in descendants(self._nodes[name].pid) if called in command_line(pid)]

    def inside(self, name: str, command: str) -> None:
        """Run a shell command with the mounts of a node."""
        init = descendants(self._nodes[name].pid)[0]
        subprocess.run(["nsenter", "-t", str(init), "-m", "-p", "sh", "-c", command], check=True, capture_output=True)

    def kill(self, name: str) -> None:
        """Kill a node with everything that runs on it."""
        node = self._nodes.pop(name)
        os.kill(node.pid, signal.SIGKILL)  # its first process dies with it, and with that its namespace
        node.wait()

    def drain(self, name: str, seconds: int) -> None:
        """Tell Ray that a node will be taken away in so many seconds, as a provider of spot machines does."""
        where = [f"--address={self.address}", f"--node-id={self._node_id(name)}"]
        notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        self.ray("drain-node", *where, *notice, f"--deadline-remaining-seconds={seconds}")

    def ray(self, *arguments: str) -> str:
        """What a command of Ray prints."""
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def _node_id(self, name: str) -> str:
        logs = self._folders[name].glob("session_*/logs/raylet.out")
        return next(found[1] for log in logs if (found := re.search(r"Raylet of id, (\w+) started", log.read_text())))

    def close(self) -> None:
        for name in list(self._nodes):
            self.kill(name)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _mounts(self, name: str, without: bool) -> list[str]:
        """Commands that mount `shared` over an empty folder, at the path where the driver has it."""
        shared, void, handle = self._shared, self.void(name), self._temporary / f"{name}-handle"
        void.mkdir(exist_ok=True)
        handle.mkdir(exist_ok=True)
        empty = [f"mount --bind {shared} {handle}", f"mount --bind {void} {shared}"]
        return empty if without else [*empty, f"mount --bind {handle} {shared}"]

    def _begin(self, name: str, ip: str, options: list[str], first: list[str]) -> None:
        folder = self._folders[name] = Path(tempfile.mkdtemp(dir=self._temporary))
        common = ["--block", f"--temp-dir={folder}", f"--node-ip-address={ip}", "--disable-usage-stats"]
        common += ["--object-store-memory=100000000", "--include-log-monitor=false"]
        common += [f"--dashboard-agent-listen-port={free_port()}"]  # if the default is taken, Ray tries it for 4 s
        ray = shlex.join([sys.executable, "-m", "ray.scripts.scripts", "start", *options, *common])
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        with self._log(name).open("w") as log:
            self._nodes[name] = subprocess.Popen(
                [*namespaces, "sh", "-c", " && ".join([*first, f"exec {ray}"])],
                env={**self.environment, "TG_NODE": name},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._temporary,
            )

    def _log(self, name: str) -> Path:
        return self._temporary / f"{name}.log"

    def wait(self, name: str, seconds: float = 90) -> None:
        """Wait for a node to join. `ray start` itself looks only every 5 s; the raylet's log tells at once."""
        end = time.monotonic() + seconds
        while "runtime started" not in (said := self._log(name).read_text()):
            logs = self._folders[name].glob("session_*/logs/raylet.out")
            if any("Raylet consists" in log.read_text() for log in logs):
                return
            assert self._nodes[name].poll() is None, f"{name} did not start:\n{said}"
            assert time.monotonic() < end, f"{name} did not start in {seconds:.0f} s:\n{said}"
            time.sleep(0.1)
