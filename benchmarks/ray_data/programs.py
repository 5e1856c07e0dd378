"""Starts taugrid or Ray Data on a given cluster, and looks at the driver while it works. As in

    work = Work(steps=(10,), images=8000, batch=8, evaluations=80, seconds=0.02, workers=16)
    experiment = Experiment(folder, work)  # a new folder, which all nodes see
    with start("ray_data", experiment, cluster.address, cluster.environment) as program:
        ...  # nodes leave and return
        program.wait()  # its exit code
    experiment.counts("ray_data")  # rows lost and doubled, evaluations made again

The cluster's environment needs `USER` on its PYTHONPATH (see clusters.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from benchmarks.ray_data.tally import Counts, Timing, Work, count, read_records, rows_of, timing
from tools.machine import descendants

USER = Path(__file__).parent / "user"
TAUGRID, RAY_DATA, SORTED = "taugrid", "ray_data", "ray_data_sorted"
SYSTEMS = TAUGRID, RAY_DATA
POLL_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


class Experiment:
    """Files of one run: its config, its network, the record of its calls, and what the program wrote."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.work, self.out, self.config = work, folder / "out", folder / "experiment.yaml"
        self.calls, self._logs = folder / "calls", folder
        self.calls.mkdir(parents=True)
        weights, network = (
            folder / "network.json",
            {name: getattr(work, name) for name in ("seconds", "workers", "slow")},
        )
        weights.write_text(json.dumps({**network, "folder": str(self.calls)}))
        values = yaml.safe_load((USER / "experiment.yaml").read_text())
        values["model"]["weights"] = str(weights)
        values["sample"] = {
            "num_samples": work.images, "batch_size": work.batch, "shard_evaluations": work.evaluations,
        }  # fmt: skip
        values["grid"] = {"steps": list(work.steps)}
        values["cluster"] = {"cpus_per_worker": work.cpus}
        self.config.write_text(yaml.safe_dump(values))

    def command(self, system: str, address: str) -> list[str]:
        program = ["-m", "taugrid", "sample"] if system == TAUGRID else ["with_ray_data.py"]
        options = ["--out", self.out, "--address", address, "--workers", self.work.workers]
        order = ["--sort"] if system == SORTED else []
        return [sys.executable, *map(str, [*program, self.config, *options, *order])]

    def files(self, system: str) -> list[Path]:
        return sorted(self.out.glob("samples/*/*.parquet" if system == TAUGRID else "*.parquet"))

    def counts(self, system: str) -> Counts:
        return count(self.work, rows_of(self.files(system)), read_records(self.calls))

    def timing(self, system: str) -> Timing:
        return timing(read_records(self.calls), self.files(system))

    def has_begun(self) -> bool:
        return any(path.stat().st_size for path in self.calls.iterdir())

    def workers(self) -> list[int]:
        """Processes that have loaded the network, on whichever node."""
        return [pid for pid in descendants(os.getpid()) if any(path.parent == self.calls for path in open_files(pid))]

    def log(self) -> Path:
        return self._logs / f"log-{len(list(self._logs.glob('log-*')))}"


def open_files(pid: int) -> Iterator[Path]:
    with suppress(OSError):  # it has just ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            yield link.readlink()


class Program:
    """A driver that runs. It is killed if it still does on leaving."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log, self.began = log, time.time()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, cwd=USER, start_new_session=True
            )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def cpu_seconds(self) -> float:
        """Of the driver's process alone."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def polls(self, seconds: float) -> Iterator[None]:
        """Comes back every tenth of a second as long as it runs; raises after so many seconds."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            yield
            if time.monotonic() > end:
                raise TimeoutError(f"it still ran after {seconds:.0f} s: {self.output[-2000:]}")
            time.sleep(POLL_SECONDS)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        for _ in self.polls(seconds):
            if condition():
                return
        if not condition():  # else it came true as the program ended
            raise RuntimeError(f"it ended with {self.process.returncode}: {self.output[-2000:]}")

    def wait(self, seconds: float = 600) -> int:
        for _ in self.polls(seconds):
            pass
        return int(self.process.returncode)

    @property
    def output(self) -> str:
        return self._log.read_text()


def start(system: str, experiment: Experiment, address: str, environment: dict[str, str]) -> Program:
    return Program(experiment.command(system, address), environment, experiment.log())
