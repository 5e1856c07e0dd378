"""Clusters to run on: raylets in namespaces of their own (Linux, root), or two plain nodes."""

import os
import secrets
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.ray_data.programs import USER
from tools.machine import descendants, free_port
from tools.raylets import Cluster, possible

NODES = 4
SPARE_CPUS = 2
"""CPUs of each node that workers leave, for reads and writes of Ray Data."""

START_SECONDS = 90.0
"""A node may take that long on a machine that is busy."""
ENVIRONMENT = {
    "PYTHONPATH": str(USER),
    "OMP_NUM_THREADS": "1",
    "RAY_raylet_start_wait_time_s": f"{START_SECONDS:.0f}",
}


class Raylets(Cluster):
    """Four nodes, which see the same files."""

    def __init__(self, shared: Path, workers: int, cpus: int = 1) -> None:
        """`cpus` are those of each worker. With more than `SPARE_CPUS`, no worker of another node finds room."""
        super().__init__(shared, ENVIRONMENT)
        self.shared = shared
        self.cpus = workers // NODES * cpus + SPARE_CPUS

    def begin_all(self) -> None:
        self.head()
        for name in "ABCD"[:NODES]:  # nodes of one machine must be started one after the other
            self.start(name, cpus=self.cpus)

    def wait(self, name: str, seconds: float = START_SECONDS) -> None:
        super().wait(name, seconds)

    def lose_a_node(self, workers: Collection[int]) -> None:
        name = max(self.names, key=lambda name: len(set(workers) & set(descendants(self._nodes[name].pid))))
        self.kill(name)
        self.begin(name, self.cpus)


class PlainNodes:
    """Two nodes that share the machine's namespaces: what --short needs."""

    def __init__(self, shared: Path, workers: int) -> None:
        self.shared, self.cpus = shared, workers // 2 + SPARE_CPUS
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ |= {**ENVIRONMENT, **token, "RAY_TMPDIR": str(shared), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        self.environment = dict(os.environ)

    def begin_all(self) -> None:
        from ray.cluster_utils import Cluster as Nodes  # reads the environment

        self._cluster = Nodes()
        self._add(cpus=0, include_dashboard=False)
        self.address = self._cluster.address
        self._nodes = [self._add(self.cpus) for _ in range(2)]

    def _add(self, cpus: int, **options: Any) -> Any:
        options |= {"dashboard_agent_listen_port": free_port(), "object_store_memory": 100_000_000}
        return self._cluster.add_node(num_cpus=cpus, **options)

    def lose_a_node(self, workers: Collection[int]) -> None:
        def worked(node: Any) -> int:
            raylet = node.all_processes["raylet"][0].process.pid
            return len(set(workers) & set(descendants(raylet)))

        lost = max(self._nodes, key=worked)
        self._cluster.remove_node(lost, allow_graceful=False)
        self._nodes.remove(lost)
        self._nodes.append(self._add(self.cpus))

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def cluster(short: bool, workers: int) -> Iterator[Raylets | PlainNodes]:
    if not short and not possible():
        raise SystemExit("the full form needs Linux and root, to give nodes namespaces of their own; try --short")
    with tempfile.TemporaryDirectory(prefix="ray-data-") as folder:
        started = PlainNodes(Path(folder), workers) if short else Raylets(Path(folder), workers)
        try:
            started.begin_all()
            yield started
        finally:
            started.close()
