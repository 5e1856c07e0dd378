"""Running the real command in a process of its own, on a tiny experiment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from taugrid.config.load import load
from taugrid.images import encode_png
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from tools.machine import command_line, descendants

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "unet": {
            "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
        }
    },
    "train": {"steps": 12, "batch_size": 16, "checkpoint_every": 4},
    "sample": {"num_samples": 100, "batch_size": 16, "shard_evaluations": 128},
    "grid": [{"steps": [2, 4], "eta": [0.0, 1.0]}, {"steps": [2, 4], "eta": ["sigma_hat"], "clip": ["x0_and_eps"]}],
    "evaluate": {"isc_splits": 5, "kid_subsets": 4, "kid_subset_size": 50},
}  # fmt: skip
"""Six cells; S = 2 makes shards of 64 images, S = 4 of 32, and the last shard of each is short."""

COMMAND = [sys.executable, "-m", "taugrid"]


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def taugrid_alone(*arguments: object, code: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own; fails the test if it ends otherwise than with `code`."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    return done


class Started:
    """A command that runs while the test does something to it."""

    def __init__(self, log: Path, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until(self, condition: Callable[[], Any], timeout: float = 120) -> Any:
        """What `condition` returns, once that is true."""
        end = time.monotonic() + timeout
        while True:
            has_ended = self.process.poll() is not None  # first: its last words may be what is waited for
            if value := condition():
                return value
            assert not has_ended, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < end, f"not after {timeout} s:\n{self.output}"
            time.sleep(0.02)

    def wait(self, code: int, timeout: float = 240) -> None:
        assert self.process.wait(timeout) == code, self.output


def sample_here(config: Path, root: Path) -> None:
    """Write the sample files of a run in this process, without a driver and workers."""
    from taugrid.workers.device import Device
    from taugrid.workers.network.load import load_network
    from taugrid.workers.sample import sample_shard

    root.mkdir()
    loaded = load(str(config), [])
    survey = Survey(Run(loaded, plan(loaded), RunDir(root)), None, frozenset({"sample"}), lambda damage: None)
    for task in SampleWork(survey).tasks():
        sample_shard(task.job, load_network(task.job.network, task.job.diffusion, "cpu"), Device("cpu"))


def sample_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("samples/*/*.parquet"))}


def scores(root: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text())["metrics"] for path in sorted(root.glob("scores/*.json"))}


def events(root: Path, session: int = -1) -> list[dict[str, Any]]:
    path = sorted(root.glob("events/*.jsonl"))[session]
    return [json.loads(line) for line in path.read_text().splitlines()]


def worker_pids(pid: int) -> list[int]:
    """Ray's sampling actors among the descendants of a driver."""
    return [p for p in descendants(pid) if "ray::Worker" in command_line(p)]


def write_folder(folder: Path, batch: Any) -> Path:
    """Write images, (n, C, H, W) uint8, as PNG files of a new folder."""
    folder.mkdir()
    for i, image in enumerate(batch):
        (folder / f"{i:04d}.png").write_bytes(encode_png(image))
    return folder


MOST_SECONDS = 20.0
"""From Ctrl-C to the end, where 4 are meant and both cores are busy; if Ray is waited for, it takes 30."""


def interrupt(run: Started, kind: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C as a terminal sends it, to the whole process group; the run ends in time and without a traceback."""
    os.killpg(run.process.pid, kind)
    run.wait(code=130, timeout=MOST_SECONDS)
    assert "Traceback" not in run.output


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel writes them."""


def listening(process: int) -> set[str]:
    """Local addresses (hex, as in /proc/net/tcp) that a process and those below it listen on."""
    inodes = set()
    for pid in [process, *descendants(process)]:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = str(link.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                found.add(fields[1].rsplit(":", 1)[0])
    assert found, "Ray's servers were not found"
    return found


def wait_until_gone(pids):
    """Workers whose driver was killed may still put in place what they were at."""
    end = time.monotonic() + 60
    while any(command_line(pid) for pid in pids):  # a zombie has none
        assert time.monotonic() < end, [command_line(pid) for pid in pids]
        time.sleep(0.1)
