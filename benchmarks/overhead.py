"""What taugrid costs beside the networks that it runs.

    python -m benchmarks.overhead [--rounds 5] [--images 1000] [--shards 1000]

- sampling stage: wall time of a grid through dispatcher, actors, sampler, PNG and Parquet, once the actors are up and
  have loaded the network; over the time of the bare network forwards for the same batches, spread over as many
  processes. With 1 and 2 workers, in turns; the ratio is that of the medians.
- orchestrator: wall time for each shard when the work itself is empty.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.orchestrator.dispatch import cluster

cluster.prepare_embedded()

import psutil
import ray

from taugrid.config import Cluster, Config
from taugrid.config.load import load
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Joined, Located, Pool, PoolEvent
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.accelerator.policy import Arithmetic
from taugrid.workers.actor import CONCURRENCY_GROUPS, HeartbeatActor, Probe, Worker
from taugrid.workers.diffusion.process import path
from taugrid.workers.jobs import SampleJob
from taugrid.workers.schedules import process


class WarmPool(Pool):
    """Holds back what its workers say until the last has joined: starting them is outside the loop's time."""

    def warm(self, count: int) -> None:
        self._there = [super(WarmPool, self).start() for _ in range(count)]
        self._held: list[PoolEvent] = []
        while sum(isinstance(event, Joined) for event in self._held) < count:
            self._held += super().events(1.0)

    def take_over(self) -> list[tuple[Located, bool]]:
        return []  # `start` gives them

    def start(self, avoid: Collection[str] = ()) -> str:
        return self._there.pop(0) if self._there else super().start(avoid)

    def events(self, timeout_seconds: float) -> Iterator[PoolEvent]:
        held, self._held = self._held, []
        yield from held or super().events(timeout_seconds)


class WarmWorker(Worker):
    """Has loaded torch and a job's network before its health check, and called it once."""

    def __init__(self, threads: int, job: SampleJob) -> None:
        super().__init__(threads)
        self._job = job

    def check_health(self, probe: Probe) -> WorkerInfo:
        import torch

        info, job = super().check_health(probe), self._job
        model = self._set_up().network(job.network, job.diffusion, Arithmetic.of(job.settings))
        model(
            torch.zeros(job.settings.batch_size, *job.decoder.network_shape), path(process(job.diffusion), job.tau)[0]
        )
        return info


class BareForwards(WarmWorker):
    """The network alone: as many evaluations, of the same batches, with nothing around them."""

    def do(self, job: Job) -> Result:
        import torch

        assert isinstance(job, SampleJob)
        model = self._set_up().network(job.network, job.diffusion, Arithmetic.of(job.settings))
        began = time.perf_counter()
        for start in range(job.start, job.stop, job.settings.batch_size):
            x = torch.randn(min(job.settings.batch_size, job.stop - start), *job.decoder.network_shape)
            for at in path(process(job.diffusion), job.tau)[:-1]:
                model(x, at)
        return Result(time.perf_counter() - began, job.stop - job.start, True)


class Empty(HeartbeatActor):
    """Does nothing, at once."""

    def check_health(self, probe: Probe) -> WorkerInfo:
        return WorkerInfo("here", "none", {})

    def do(self, job: Job) -> Result:
        return Result(0.0, 0, True)


class Spent(NamedTuple):
    """What work took."""

    seconds: float
    cpu_seconds: float
    """Of this process, Ray and the workers: other load on the machine changes it less."""


def cpu_seconds() -> float:
    """CPU seconds of this process and all that it started, as far as they live."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def run_loop(actor: type, arguments: tuple[Any, ...], tasks: dict[str, Task], workers: int, folder: Path) -> Spent:
    """From the first assignment to the last commit."""
    probe = folder / ".probe"
    probe.touch()
    pool = WarmPool(actor, arguments, 1, 0, Probe(str(probe)))
    pool.warm(workers)
    events = Events(Paths(folder))
    began, before = time.perf_counter(), cpu_seconds()
    outputs = Outputs(Progress(), events, lambda name, text: folder)
    problems = Loop(tasks, work_kinds(), pool, workers, True, Cluster(), outputs).run()
    spent = Spent(time.perf_counter() - began, cpu_seconds() - before)
    pool.close()
    assert not problems, problems
    return spent


def spread(actor: type, arguments: tuple[Any, ...], tasks: dict[str, Task], workers: int, folder: Path) -> Spent:
    """The seconds of the slowest of `workers` processes, each with its share of the jobs and nothing around them."""
    loads = [0.0] * workers
    shares: list[list[Job]] = [[] for _ in range(workers)]
    for task in sorted(tasks.values(), key=lambda task: -task.cost):
        least = loads.index(min(loads))
        loads[least] += task.cost
        shares[least].append(task.job)
    probe = folder / ".probe"
    probe.touch()
    remote = ray.remote(num_cpus=1, concurrency_groups=CONCURRENCY_GROUPS)(actor)
    actors = [remote.remote(*arguments) for _ in range(workers)]
    ray.get([each.check_health.remote(Probe(str(probe))) for each in actors])
    before = cpu_seconds()
    results = [[each.do.remote(job) for job in share] for each, share in zip(actors, shares, strict=True)]
    seconds = max(sum(result.seconds for result in ray.get(refs)) for refs in results)
    spent = Spent(seconds, cpu_seconds() - before)
    for each in actors:
        ray.kill(each)
    return spent


def experiment(images: int) -> Config:
    """The demo's network and kind of grid, smaller, in shards of about two seconds."""
    return load(
        "digits",
        [
            f"sample.num_samples={images}",
            "sample.shard_evaluations=5000",
            "grid={steps: [10, 20], eta: [0.0, 1.0]}",
        ],
    )


def save_network(config: Config, folder: Path) -> RunDir:
    """A run directory with an untrained network: time does not depend on weights."""
    from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline

    folder.mkdir()
    rundir = RunDir(folder)
    for model in plan(config).models:
        assert isinstance(model.source, Trained)
        unet = build_unet(model.source.unet, model.image_shape)
        save_pipeline(rundir.models / model.id, unet, ema_start(unet), model.diffusion)
    return rundir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=1000)
    arguments = parser.parse_args()
    config = experiment(arguments.images)
    planned = plan(config)
    with tempfile.TemporaryDirectory() as name, cluster.connected("local", config.cluster):
        folder = Path(name)
        rundir = save_network(config, folder / "run")

        def found() -> dict[str, Task]:
            shutil.rmtree(rundir.samples, ignore_errors=True)
            survey = Survey(Run(config, planned, rundir), None, frozenset({"sample"}), lambda damage: None)
            return {task.key: task for task in SampleWork(survey).tasks()}

        warm = (1, next(iter(found().values())).job)
        for workers in (1, 2):
            stage, forwards = [], []
            for _ in range(arguments.rounds):
                stage.append(run_loop(WarmWorker, warm, found(), workers, folder).seconds)
                forwards.append(spread(BareForwards, warm, found(), workers, folder).seconds)
            ratio = statistics.median(stage) / statistics.median(forwards)
            print(
                f"{workers} workers: sampling stage {statistics.median(stage):.2f} s, bare forwards "
                f"{statistics.median(forwards):.2f} s, ratio {ratio:.3f} (medians of {arguments.rounds})"
            )
        for workers in (1, 2):
            some = list(found().values())
            many = {}
            there = folder / "there"  # the driver looks for what was committed
            there.touch()
            for i in range(arguments.shards):
                task = some[i % len(some)]
                key, job = f"sample/{i}", replace(task.job, path=str(there))
                many[key] = replace(task, key=key, cost=1.0, job=job)
            times = [run_loop(Empty, (), many, workers, folder).seconds for _ in range(arguments.rounds)]
            each = statistics.median(times) / arguments.shards * 1000
            print(f"{workers} workers: {each:.2f} ms a shard with empty work, {arguments.shards} shards")


if __name__ == "__main__":
    main()
