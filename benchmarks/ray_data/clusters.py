"""Clusters to run on: real raylets in namespaces of their own (Linux, root), or one node without any."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ray_data.programs import USER

sys.path += [str(Path(__file__).parents[2] / "tests" / name) for name in ("chaos", "integration")]
from raylets import Cluster, free_port, possible

NODES = 4
SPARE_CPUS = 2
"""CPUs of each node that workers leave, for reads and writes of Ray Data."""


class Raylets(Cluster):
    """Four nodes, which see the same files."""

    def __init__(self, shared: Path, workers: int) -> None:
        super().__init__(shared, {"PYTHONPATH": str(USER), "OMP_NUM_THREADS": "1"})
        self._cpus = workers // NODES + SPARE_CPUS

    def begin_all(self) -> None:
        self.head()
        for name in "ABCD"[:NODES]:  # nodes of one machine must be started one after the other
            self.start(name, cpus=self._cpus)

    def lose_a_node(self) -> None:
        self.kill("B")
        self.begin("B", self._cpus)


class OneNode:
    """A head with all CPUs, without namespaces."""

    def __init__(self, workers: int) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(USER),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += [f"--num-cpus={workers + SPARE_CPUS}", f"--temp-dir={self._folder.name}", "--disable-usage-stats"]
        command += ["--include-dashboard=false", "--object-store-memory=200000000"]
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *command],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 120
        while "Ray runtime started" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Ray did not start: {self._log.read_text()}")
            time.sleep(0.1)

    def lose_a_node(self) -> None:
        raise NotImplementedError("there is only one")

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._folder.cleanup()


@contextmanager
def cluster(short: bool, shared: Path, workers: int) -> Iterator[Raylets | OneNode]:
    if not short and not possible():
        raise SystemExit("the full form needs Linux and root, to give nodes namespaces of their own; try --short")
    started = OneNode(workers) if short else Raylets(shared, workers)
    try:
        if isinstance(started, Raylets):
            started.begin_all()
        yield started
    finally:
        started.close()
