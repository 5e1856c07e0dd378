"""How long a device has nothing to do, with a device that only keeps time (`fake_device.py`), without a GPU.

    python -m benchmarks.idle [--workers 1 2 8] [--ms 88 14] [--shards 3] [--one-job] [--request-ms 50] [--threads]

Real Ray, driver, files, PNG, and Python of the CIFAR-10 U-Net; only the device's arithmetic is a sleep. S = 10, eta =
1, batches of 250 images of 3 x 32 x 32, shards of the default size (20 batches). Printed for each number of workers on
this node: the share of time, from the first network call of a worker to the end of its last, in which its device waits
within batches, between batches and between shards. `--request-ms`: each access to the run directory takes so long, as
in a bucket. `--one-job`: workers have no second job in hand. `--threads`: images are encoded in threads of the worker.
Where workers need more cores than there are, the devices wait for those.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.overhead import WarmPool
from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, Cluster, Config, validate
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import LocalStorage, Stat
from taugrid.workers.actor import Probe, Worker
from taugrid.workers.jobs import SampleJob
from taugrid.workers.sample import sample_shard
from taugrid.workers.schedules import process

SMALL = (3, 2, 2)
"""The shape of the sampler's tensors: their arithmetic then costs the host what launches cost it."""

STEPS, BATCH, BATCHES = 10, 250, 20
"""Of a shard of 50,000 evaluations."""


@dataclass(frozen=True)
class SlowStorage(LocalStorage):
    """A folder of which each access takes `seconds`, as a request takes."""

    seconds: float = 0.0

    def stat(self, path: Path) -> Stat:
        time.sleep(self.seconds)
        return super().stat(path)

    def exists(self, path: Path) -> bool:
        time.sleep(self.seconds)
        return super().exists(path)

    def read(self, path: Path, start: int = 0, length: int | None = None) -> bytes:
        time.sleep(self.seconds)
        return super().read(path, start, length)

    def commit(self, path: Path, finished: Path, if_version: str | None = None) -> bool:
        time.sleep(self.seconds)
        return super().commit(path, finished, if_version)

    def append(self, path: Path, data: bytes, synced: bool = False) -> None:
        time.sleep(self.seconds)
        super().append(path, data, synced)


class OnFakeDevice(Worker):
    """Samples on a fake device, and writes its calls to a file of `folder` after each job."""

    def __init__(self, threads: int, seconds: float, folder: Path, launching: bool) -> None:
        super().__init__(threads)
        self._seconds, self._folder = seconds, folder
        self._launching = launching

    def check_health(self, probe: Probe) -> WorkerInfo:
        import torch

        from benchmarks.fake_device import FakeDevice

        info = super().check_health(probe)
        self._fake = FakeDevice(self._seconds)
        self._model = self._fake.network()
        writer, launching = parquet.SampleWriter, self._launching  # its tensors are a CPU's
        vars(parquet)["SampleWriter"] = lambda *arguments, **_: writer(*arguments, launching=launching)
        self._installed = self._fake.installed()
        self._installed.__enter__()  # for as long as this process lives
        for _ in range(5):
            self._model(torch.zeros(BATCH, *SMALL), process(DIFFUSION_DEFAULTS).at(500))
        self._fake.calls.clear()
        return info

    def do(self, job: Job) -> Result:
        device = self._set_up()
        assert isinstance(job, SampleJob)
        job.check_run()
        device.start_job()
        result = sample_shard(job, self._model, device)
        (self._folder / str(os.getpid())).write_text(json.dumps(self._fake.calls))
        return replace(result, size=job.storage.stat(Path(job.path)).size)


class Idle(NamedTuple):
    """Shares of the time from a device's first call to its last in which it waits; calls a second; and medians."""

    within_batches: float
    between_batches: float
    between_shards: float
    calls_a_second: float
    wait_for_batch: float
    """The median, in seconds, of the waits for the first call of a batch."""
    wait_for_shard: float

    @classmethod
    def of(cls, calls: Sequence[Sequence[float]], of_a_call: float) -> "Idle":
        """Of calls that begin and end at these seconds, and keep the device busy for `of_a_call` seconds each."""
        waits: tuple[list[float], ...] = ([], [], [])
        for number, (begin, end) in enumerate(calls):
            if number:
                boundary = (number % STEPS == 0) + (number % (STEPS * BATCHES) == 0)
                waits[boundary].append(begin - calls[number - 1][1])
            waits[0].append(end - begin - of_a_call)
        seconds = calls[-1][1] - calls[0][0]
        shares = (sum(each) / seconds for each in waits)
        return cls(*shares, len(calls) / seconds, *(statistics.median(each) for each in waits[1:]))


def experiment(shards: int) -> Config:
    sample = {"seed": 0, "num_samples": shards * BATCHES * BATCH, "batch_size": BATCH}
    data = {"name": "gaussian", "shape": SMALL}
    grid = {"steps": [STEPS], "eta": [1.0]}
    values: Mapping[str, object] = {
        "name": "idle", "model": {"oracle": "gaussian"}, "data": data, "sample": sample, "grid": grid
    }  # fmt: skip
    return validate(Config, values, "the benchmark")


def measured(workers: int, seconds: float, given: argparse.Namespace, folder: Path) -> list[Idle]:
    """Of each worker."""
    folder.mkdir()
    (spans := folder / "spans").mkdir()
    config = experiment(workers * given.shards)
    planned = plan(config)
    rundir = RunDir(folder, SlowStorage(folder, given.request_ms / 1000))
    for model in planned.models:
        rundir.record_model(model)
    survey = Survey(Run(config, planned, rundir), None, frozenset({"sample"}), lambda damage: None)
    tasks: dict[str, Task] = {task.key: task for task in SampleWork(survey).tasks()}
    probe = rundir.new_probe()
    probe.touch()
    pool = WarmPool(OnFakeDevice, (1, seconds, spans, not given.threads), 0.1, 0, Probe(str(probe)))
    pool.warm(workers)
    progress = Progress(Console(file=io.StringIO()))
    outputs = Outputs(progress, Events(rundir), lambda name, text: folder, rundir.committed)
    loop = Loop(tasks, work_kinds(), pool, workers, True, Cluster(), outputs)
    loop._dispatcher._queues_ahead = not given.one_job
    problems = loop.run()
    pool.close()
    assert not problems, problems
    return [Idle.of(json.loads(path.read_text()), seconds) for path in spans.iterdir()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--ms", type=float, nargs="+", default=[88, 14], help="of the device, for a network call")
    parser.add_argument("--shards", type=int, default=3, help="of each worker")
    parser.add_argument("--request-ms", type=float, default=0)
    parser.add_argument("--one-job", action="store_true")
    parser.add_argument("--threads", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, cluster.connected("local", Cluster()):
        for ms in given.ms:
            for workers in given.workers:
                found = measured(workers, ms / 1000, given, Path(name) / f"{workers}-{ms}")
                within, batches, shards, calls, batch, shard = (
                    sum(each) / len(found) for each in zip(*found, strict=True)
                )
                print(
                    f"{ms:g} ms a call, {workers} workers: idle {within + batches + shards:.2%} (within batches "
                    f"{within:.2%}, between batches {batches:.2%}, between shards {shards:.2%}), {calls:.2f} calls/s; "
                    f"median wait {1000 * batch:.1f} ms for a batch, {1000 * shard:.1f} ms for a shard",
                    flush=True,
                )


if __name__ == "__main__":
    main()
