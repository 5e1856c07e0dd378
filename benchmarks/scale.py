"""What the driver costs at scale: with real Ray and workers that sleep, and with 512 simulated workers.

    python -m benchmarks.scale [ray] [policy] [loop] [plan]

- ray: 64 actors that sleep for each shard and commit a link to one real file. The driver does all that it does in a
  run: dispatcher, worker manager, events, a look at each file, ledger. 64 workers on few cores are only honest if they
  have time to spare, so a shard takes half a second: 128 shards a second. The efficiency is shards x seconds / workers
  over the wall time from the first assignment to the last commit; few shards end in a last round that is not full.
- policy: seconds of `assign` and of each event in every state that a run comes through, 512 workers and 100,000 tasks.
- loop: CPU time of dispatcher, worker manager and loop together for each shard, 512 workers on a clock of their own.
- plan: time and memory of plan, survey and tasks for 50 cells of 50,000 images of 256x256.

Seconds are CPU seconds of the driver where not said otherwise, so that other load matters little.
"""

import argparse
import gc
import heapq
import io
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.overhead import WarmPool  # first: it prepares Ray's environment
from benchmarks.restart import write_shard
from taugrid import parquet
from taugrid.config import Cluster, Config, validate
from taugrid.hashing import digests_of
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import cluster, loop, worker_manager
from taugrid.orchestrator.dispatch.capacity import Node, Size
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.pool import Done, Joined, Located, PoolEvent
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.plan.cells import Plan, Shard
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir, confirm
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.actor import HeartbeatActor, Probe
from taugrid.workers.device import Device
from taugrid.workers.jobs import SampleJob
from tools.states import EVENTS, QUESTIONS, STATES, middle

WORKERS, TASKS = 512, 100_000
IMAGES, BATCH = 50_000, 25


def experiment(cells: int, batch: int, shard_evaluations: int = 1) -> Config:
    """`cells` cells of 50,000 images of 256x256. With `shard_evaluations` of 1, a shard is a batch."""
    sample = {"seed": 0, "num_samples": IMAGES, "batch_size": batch, "shard_evaluations": shard_evaluations}
    grid = {"steps": [10, 20, 50, 100, 1000][: max(1, cells // 10)], "eta": [i / 10 for i in range(min(cells, 10))]}
    data = {"name": "gaussian", "shape": [3, 256, 256]}
    values = {"name": "scale", "model": {"oracle": "gaussian"}, "data": data, "sample": sample, "grid": grid}
    return validate(Config, values, "the benchmark")


def new_run(folder: Path, planned: Plan) -> RunDir:
    folder.mkdir()
    rundir = RunDir(folder)
    rundir.claim()
    rundir.ledger.keep()
    for model in planned.models:
        rundir.record_model(model)
    return rundir


def tasks_of(config: Config, planned: Plan, rundir: RunDir) -> Iterator[Task]:
    return SampleWork(Survey(Run(config, planned, rundir), None, frozenset({"sample"}), lambda damage: None)).tasks()


def template(folder: Path) -> Path:
    """A sealed file of images, as workers commit them."""
    planned = plan(experiment(1, BATCH))
    rundir, cell = new_run(folder, planned), planned.cells[0]
    shard = Shard(cell.id, 0, 0, 4, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (shard.images, 3, 32, 32), dtype=np.uint8)
    write_shard(rundir, cell, shard, parquet.pictures(pixels, 0) | {"pixels": digests_of(pixels)})
    return rundir.sample_part(cell, shard)


class Committer:
    """Commits a link to one real file for each job, and says what a worker says of its own."""

    def __init__(self, file: Path) -> None:
        self._file, self._part, self._size = file, parquet.inspect(file), file.stat().st_size

    def commit(self, job: Job) -> Result:
        path = Path(job.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # of a copy
            path.symlink_to(self._file)
        assert isinstance(job, SampleJob)
        part = self._part._replace(start=job.start, stop=job.stop)  # fewer rows would be a shard that was given back
        return Result(0.0, BATCH, True, size=self._size, part=part)


class Sleeper(HeartbeatActor):
    """Does a shard by sleeping. It imports no torch: 64 of these fit on a small machine."""

    def __init__(self, seconds: float, file: Path) -> None:
        super().__init__()
        self._seconds, self._committer, self._device = seconds, Committer(file), Device("cpu", self.beat)

    def check_health(self, probe: Probe) -> WorkerInfo:
        return WorkerInfo("here", "none", {})

    def do(self, job: Job) -> Result:
        self._device.start_job()
        time.sleep(self._seconds)
        self._device.heartbeat(0, 1)
        return self._committer.commit(job)


def resident() -> float:
    """Of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096.0


def outputs(rundir: RunDir) -> Outputs:
    progress = Progress(Console(file=io.StringIO()))
    return Outputs(progress, Events(rundir), lambda name, text: rundir.root, rundir.committed)


def with_ray(workers: int, shards: list[int], seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name, cluster.connected("local", Cluster()):
        file = template(Path(name) / "template")
        for number in shards:
            config = experiment(10, BATCH)
            planned = plan(config)
            rundir = new_run(Path(name) / str(number), planned)
            found = {task.key: task for task in islice(tasks_of(config, planned, rundir), number)}
            probe = rundir.new_probe()
            probe.touch()
            pool = WarmPool(Sleeper, (seconds, file), 0.02, 0, Probe(str(probe)))
            pool.warm(workers)
            gc.collect()
            before = resident()
            runs = Loop(found, work_kinds(), pool, workers, False, Cluster(), outputs(rundir))
            began, cpu = time.perf_counter(), time.process_time()
            assert runs.run() == {}
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            grown = (resident() - before) / number
            pool.close()
            print(
                f"ray: {number:,} shards of {seconds} s on {workers} workers: {wall:.1f} s, efficiency "
                f"{number * seconds / workers / wall:.1%}, driver CPU {1000 * cpu / number:.2f} ms a shard, "
                f"driver memory {resident() / 1e6:.0f} MB, grown by {grown / 1e3:.1f} kB a shard"
            )


def timed(function: Callable[..., object], *arguments: Any) -> float:
    """CPU milliseconds."""
    gc.disable()
    began = time.thread_time()
    function(*arguments)
    seconds = time.thread_time() - began
    gc.enable()
    return 1000 * seconds


def policy(workers: int, tasks: int) -> None:
    worst = 0.0
    for name, state in STATES.items():
        d, now = state(workers, tasks)
        first, again = timed(d.assign, now), statistics.median(timed(d.assign, now) for _ in range(20))
        asked = max(statistics.median(timed(ask, d, now) for _ in range(20)) for ask in QUESTIONS.values())
        worst = max(worst, first)
        print(f"policy: {name}: assign {first:.2f} ms, again {again:.2f} ms, slowest question {asked:.2f} ms")
    print(f"policy: slowest assign {worst:.2f} ms with {workers} workers and {tasks:,} tasks")
    d, now = middle(workers, tasks)
    times = []
    for i in range(20_000):
        d.succeeded(f"w{1 + i % (workers - 1)}", now := now + 0.01)
        times.append(timed(d.assign, now))
    print(f"policy: steady state: assign {statistics.median(times):.3f} ms, at most {max(times):.2f} ms")
    for name, event in EVENTS.items():
        d, now = middle(workers, tasks)
        times = [timed(event, d, f"w{i}", now) for i in range(1, workers)]
        print(f"policy: {name}: {statistics.median(times):.4f} ms, at most {max(times):.2f} ms")


class Simulated:
    """A pool on a clock of its own. A shard takes 10 s or a bit more."""

    size, scorer = Size(1, 0), None

    def __init__(self, workers: int, file: Path) -> None:
        self.now, self._committer, self._order = 0.0, Committer(file), count()
        self._nodes = [Node(f"n{i}", 8, 0) for i in range(workers // 8)]
        self._events: list[tuple[float, int, PoolEvent]] = []
        self._started = 0
        self._free: dict[str, float] = {}  # worker -> when it will have done what it was given

    def monotonic(self) -> float:
        return self.now

    def _at(self, delay: float, event: PoolEvent) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def nodes(self) -> list[Node]:
        return self._nodes

    def take_over(self) -> list[tuple[Located, bool]]:
        return []

    def start(self, avoid: object = ()) -> str:
        worker = f"worker-{self._started}"
        node = self._nodes[self._started // 8].id
        self._started += 1
        self._at(1.0, Located(worker, node, node))
        self._at(2.0, Joined(worker, WorkerInfo(node, "none", {}, node)))
        return worker

    def submit(self, worker: str, job: Job, key: str) -> None:
        self._free[worker] = max(self.now, self._free.get(worker, 0.0)) + 10.0 + int(worker.split("-")[1]) / 512
        self._at(self._free[worker] - self.now, Done(worker, self._committer.commit(job), key))

    def events(self, timeout_seconds: float) -> Iterator[PoolEvent]:
        self.now = min(self.now + timeout_seconds, self._events[0][0] if self._events else float("inf"))
        while self._events and self._events[0][0] <= self.now:
            yield heapq.heappop(self._events)[-1]


def simulated(workers: int, tasks: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = template(Path(name) / "template")
        config = experiment(50, BATCH)
        planned = plan(config)
        rundir = new_run(Path(name) / "run", planned)
        found = {task.key: task for task in islice(tasks_of(config, planned, rundir), tasks)}
        pool = Simulated(workers, file)
        for module in (loop, worker_manager):
            vars(module)["time"] = pool
        runs = Loop(found, work_kinds(), pool, workers, False, Cluster(), outputs(rundir))
        cpu = time.process_time()
        assert runs.run() == {}
        cpu = time.process_time() - cpu
        for module in (loop, worker_manager):
            vars(module)["time"] = time
        print(f"loop: {len(found):,} shards on {workers} simulated workers: {1000 * cpu / len(found):.3f} ms a shard")


def planning(cells: int) -> None:
    for batch, evaluations in ((256, 50_000), (BATCH, 1)):
        with tempfile.TemporaryDirectory() as name:
            config = experiment(cells, batch, evaluations)
            began, before = time.process_time(), resident()
            planned = plan(config)
            shards = planned.num_shards
            first = time.process_time() - began
            rundir = new_run(Path(name) / "run", planned)
            found = {task.key: task for task in tasks_of(config, planned, rundir)}
            second = time.process_time() - began - first
            dispatcher = Dispatcher(found.values(), [kind.name for kind in work_kinds()])
            assert len(dispatcher.backlog) == shards
            third = time.process_time() - began - first - second
            print(
                f"plan: {cells} cells x {IMAGES:,} images, batch_size {batch}, shard_evaluations {evaluations:,}: "
                f"{shards:,} shards; plan {first:.2f} s, survey and tasks {second:.2f} s, dispatcher {third:.2f} s, "
                f"{(resident() - before) / 1e6:.0f} MB"
            )
    print("plan: {:.0f} B of Python objects a task, and {:.0f} B for each file in the ledger".format(*memory(20)))


def memory(cells: int) -> tuple[float, float]:
    """Bytes a task that the driver holds once all are done: plan, survey, jobs, dispatcher; and those of the ledger."""
    with tempfile.TemporaryDirectory() as name:
        committer = Committer(template(Path(name) / "template"))
        config = experiment(cells, BATCH)
        rundir = new_run(Path(name) / "run", plan(config))
        tracemalloc.start()
        planned = plan(config)
        survey = Survey(Run(config, planned, rundir), None, frozenset({"sample"}), lambda damage: None)
        found: Mapping[str, Task] = {task.key: task for task in SampleWork(survey).tasks()}
        d, now = Dispatcher(found.values(), [kind.name for kind in work_kinds()]), 0.0
        for i in range(WORKERS):
            d.worker_joined(f"worker-{i}", f"n{i // 8}", now)
        while not d.finished:
            for worker, task, _ in d.assign(now):
                d.succeeded(worker, now + task.cost)
            now += 1.0
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        some = list(islice(found.values(), 5_000))
        for task in some:
            rundir.committed([confirm(task.job, committer.commit(task.job))])
        gc.collect()
        ledger = tracemalloc.get_traced_memory()[0] - held
        tracemalloc.stop()
        return held / len(found), ledger / len(some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="ray, policy, loop, plan; all if none is named")
    parser.add_argument("--workers", type=int, default=64, help="real ones")
    parser.add_argument("--shards", type=int, nargs="*", default=[100, 1_000, 10_000], help="of each run with real Ray")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each of them takes")
    parser.add_argument("--tasks", type=int, default=TASKS, help="of the simulations")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "ray": lambda: with_ray(arguments.workers, arguments.shards, arguments.seconds),
        "policy": lambda: policy(WORKERS, arguments.tasks),
        "loop": lambda: simulated(WORKERS, arguments.tasks),
        "plan": lambda: planning(50),
    }
    for name in arguments.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
