"""One experiment on a cluster that is not well: its config, its drivers, and what must hold however they went."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from command import Started, sample_files, scores

from taugrid import parquet
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.paths import Paths
from tools.raylets import Cluster

CONFIG: dict[str, Any] = {
    "name": "chaos",
    "data": {"name": "gaussian", "shape": [1, 8, 8]},
    "sample": {"num_samples": 240, "batch_size": 10, "shard_evaluations": 200},
    "grid": {"steps": [10, 20], "eta": [0.0, 1.0]},
    "evaluate": {"metrics": ["fid"]},
}
"""72 shards of 0.2 s, small and many, so that a kill finds some done, some running and some waiting."""

ON_NODES = Path(__file__).with_name("on_nodes")


def write_checkpoint(folder: Path, seed: int) -> Path:
    """A tiny U-Net with random weights, as diffusers saves it."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8)}
    UNet2DModel(**shape, **blocks, layers_per_block=1, norm_num_groups=4).save_pretrained(folder)
    return folder


class Counts(NamedTuple):
    """How a run directory differs from an undisturbed one."""

    lost: int
    """Files that are missing."""
    doubled: int
    """Files too many, and images that are in two files."""
    other: int
    """Files with other bytes: other weights, or other noise."""
    quarantined: int


class Lab:
    """A cluster, the folder `shared` that its nodes mount, and the drivers that use it.

    Everything that a node may see wrongly is in a folder of its own below `folder`.
    """

    def __init__(self, folder: Path, patient: bool) -> None:
        """`patient`: a node counts as lost after 90 s, not after the seconds for which a busy machine may stop it."""
        self.folder = folder
        self.shared = folder / "shared"
        self.weights = folder / "scale.txt"
        self._faults = folder / "faults"
        self.shared.mkdir(parents=True)
        self._faults.mkdir()
        self.weights.write_text("0.3")
        self.config = self.write_config("chaos.yaml")
        path = os.pathsep.join(filter(None, [str(ON_NODES), os.environ.get("PYTHONPATH")]))
        places = {"PYTHONPATH": path, "TG_FAULTS": str(self._faults), "TG_SHARED": str(self.shared)}
        places |= {"RAY_health_check_failure_threshold": "60"} if patient else {}
        self._new_cluster = lambda: Cluster(self.shared, places)
        self.cluster = self._new_cluster()
        self._logs = 0

    def write_config(self, name: str, **changes: Any) -> Path:
        network = {"callable": "slow_network:load", "weights": str(self.weights)}
        path = self.folder / name
        path.write_text(yaml.safe_dump(CONFIG | {"model": network} | changes))
        return path

    def plant(self, node: str, *faults: str) -> None:
        """Replace a node's faults; see on_nodes/sitecustomize.py."""
        new = self._faults / f"{node}.new"
        new.write_text("".join(f"{fault}\n" for fault in faults))
        new.rename(self._faults / node)

    def start(
        self,
        root: Path,
        *arguments: object,
        config: Path | None = None,
        command: str = "run",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Started:
        """Start a driver; `environment` has variables for it alone."""
        self._logs += 1
        where = () if "--address" in arguments else ("--address", self.cluster.address)
        words = (command, config or self.config, "--out", root, *where, *arguments)
        return Started(
            self.folder / f"driver-{self._logs}.log", *words, environment={**self.cluster.environment, **environment}
        )

    def finish(self, root: Path, *arguments: object, config: Path | None = None, code: int = 0) -> str:
        """Run a driver to its end, and return what it printed."""
        with self.start(root, *arguments, config=config) as driver:
            driver.wait(code)
            return driver.output

    def another_cluster(self) -> None:
        """Give up what is left of the cluster and begin a new one, whose nodes are still to be started."""
        self.cluster.close()
        self.cluster = self._new_cluster()


def parts(root: Path) -> list[Path]:
    return list(root.glob("samples/*/part-*.parquet"))


def compare(root: Path, undisturbed: Path) -> Counts:
    """What is wrong with `root`. The scores must agree as well."""
    found, expected = sample_files(root), sample_files(undisturbed)
    images = Counter((Path(name).parent, i) for name in found for i in _indices(root / name))
    twice = sum(count - 1 for count in images.values())
    said = read_events(Paths(root))  # which skips the line that a full disk cut short
    if found == expected:
        assert scores(root) == scores(undisturbed)
    return Counts(
        lost=len(expected.keys() - found.keys()),
        doubled=len(found.keys() - expected.keys()) + twice,
        other=sum(found[name] != expected[name] for name in found.keys() & expected.keys()),
        quarantined=len({event["task"] for event in said if event.get("quarantined")}),
    )


def _indices(path: Path) -> range:
    part = parquet.inspect(path)
    return range(part.start, part.stop)
