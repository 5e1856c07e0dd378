"""One driver and an object store with 50 ms a request: shards a second, requests, memory, and the start after it.

    python -m benchmarks.buckets [--short] [--latency 0.05] [--workers 64] [--seconds 0.5 0.1] [--shards 10000]
                                 [--json FILE]

- run: workers that take `--seconds` a shard commit files of 100 kB, as Ray's actors do: each computes one shard at a
  time while the one before it is written. They are threads of one process, without Ray. The driver does all that it
  does in a run: dispatcher, worker manager, events, a look at each file, ledger. Its CPU is that of its process alone.
- start: the same command on the finished run, in a new process: once with its report to make, and once with nothing to
  do; and `status`.

The store is `benchmarks.bucket_store`, which waits that long before it answers: no network is between, and it never
slows down. Seconds of a start are without imports. The efficiency is shards x seconds / workers over the wall time.
`seconds_on_workers` shows what a slow run waited for.
"""

import argparse
import http.client
import io
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import restart, scale
from taugrid import parquet, retries
from taugrid.config import Cluster
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator import STAGES
from taugrid.orchestrator.dispatch.capacity import Node, Size
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Done, Joined, Located, PoolEvent
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.work import work_kinds
from taugrid.storage import end_session
from taugrid.workers.jobs import SampleJob

FILE_BYTES = 100_000
IMAGES = 64
SHAPE = (3, 8, 8)
"""Of the reference, 50,000 images that each start makes: of 3x32x32, that takes longer than all that it reads."""
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


LAPS = ("queued", "run.json", "computing", "put")
"""The parts of a shard's time on a worker."""


def shard_file(folder: Path) -> Path:
    """A sealed file of `FILE_BYTES`; what is in it matters to nobody."""
    path = folder / "shard.parquet"
    with parquet.PartWriter(path, parquet.number_schema({}, ["x"])) as part:
        rows = FILE_BYTES // 8
        part.write({"index": np.arange(rows), "x": np.random.default_rng(0).normal(size=rows)})
        part.commit(replace=False)
    return path


def work(jobs: Any, results: Any, workers: int, seconds: float, file: Path) -> None:
    """The workers' process. Each has two threads, of which one computes at a time, as a `HeartbeatActor` has.

    In the end it says what took how long, and how many attempts of requests failed: a store that was not reached, or
    that a body did not reach, counts neither.
    """
    laps, failed = list[tuple[float, ...]](), list[object]()
    retries.attempt_failed = lambda *attempt: failed.append(attempt)

    def do(number: int, job: Job, key: str) -> None:
        at = [time.perf_counter()]
        with computing[number]:
            at.append(time.perf_counter())
            job.check_run()
            at.append(time.perf_counter())
            time.sleep(seconds)
        at.append(time.perf_counter())
        assert isinstance(job, SampleJob)
        assert job.storage.commit(Path(job.path), file)
        laps.append(tuple(np.diff([*at, time.perf_counter()])))
        part = parquet.PartSummary(job.start, job.stop, job.metadata)
        results.put((number, Result(seconds, IMAGES, True, part=part), key))

    results.put("ready")
    computing = [threading.Lock() for _ in range(workers)]
    with ThreadPoolExecutor(2 * workers) as threads:
        while (given := jobs.get()) is not None:
            threads.submit(do, *given)
    quantiles = np.quantile(laps, [0.5, 0.99, 1], axis=0).T.round(3).tolist()
    results.put({**dict(zip(LAPS, quantiles, strict=True)), "attempts_that_failed": len(failed)})


class Remote:
    """A pool of workers that are threads of another process."""

    size, scorer = Size(1, 0), None

    def __init__(self, workers: int, seconds: float, file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._jobs, self._results = context.Queue(), context.Queue()
        self._process = context.Process(target=work, args=(self._jobs, self._results, workers, seconds, file))
        self._process.start()
        assert self._results.get() == "ready"  # starting it is outside the run's time
        self._workers, self._first = workers, list[PoolEvent]()
        self._started = 0

    def nodes(self) -> list[Node]:
        return [Node("here", self._workers, 0)]

    def take_over(self) -> list[tuple[Located, bool]]:
        return []

    def start(self, avoid: object = ()) -> str:
        worker = f"worker-{self._started}"
        self._started += 1
        self._first += [Located(worker, "here", "here"), Joined(worker, WorkerInfo("here", "none", {}, "here"))]
        return worker

    def submit(self, worker: str, job: Job, key: str) -> None:
        self._jobs.put((int(worker.split("-")[1]), job, key))

    def events(self, timeout_seconds: float) -> Iterator[PoolEvent]:
        first, self._first = self._first, []
        yield from first
        try:
            while not first:
                number, result, key = self._results.get(timeout=timeout_seconds)
                yield Done(f"worker-{number}", result, key)
                timeout_seconds = 0.0
        except Empty:
            pass

    def close(self) -> dict[str, Any]:
        """Ends the workers. Returns the median, 99 % quantile and largest of the seconds of each lap, and failures."""
        self._jobs.put(None)
        while not isinstance(said := self._results.get(timeout=60.0), dict):
            pass
        self._process.join()
        return said


def counts(**set_to: float) -> dict[str, int]:
    """Requests since the last call, by method and folder; sets the store's seconds a request."""
    connection = http.client.HTTPConnection(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"))
    connection.request("GET", "/-/?" + "&".join(f"{name}={value}" for name, value in set_to.items()))
    counted: dict[str, int] = json.loads(connection.getresponse().read())
    return counted


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(arguments: argparse.Namespace, config: str, out: str) -> Iterator[dict[str, Any]]:
    """The whole run, up to its scores."""
    opened = open_config(config, (), out)
    rundir = opened.rundir
    rundir.claim()
    rundir.ledger.keep()
    for model in opened.plan.models:
        rundir.record_model(model)
    tasks = {task.key: task for task in scale.tasks_of(opened.config, opened.plan, rundir)}
    pool = Remote(arguments.workers, arguments.seconds[0], shard_file(Path(config).parent))
    counts(seconds=arguments.latency)
    before = scale.resident()
    runs = Loop(tasks, work_kinds(), pool, None, False, Cluster(), scale.outputs(rundir))  # type: ignore[arg-type]
    began, cpu = time.perf_counter(), time.process_time()
    assert runs.run() == {}
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    held, used = scale.resident(), counts(seconds=0.0)
    end_session(rundir.storage)
    on_workers = pool.close()
    scoring = scoring_of(opened.config, opened.plan)
    for cell in opened.plan.cells:
        restart.write_score(rundir, cell, scoring)
    shards, seconds = len(tasks), arguments.seconds[0]
    yield {
        "step": "run",
        "shards": shards,
        "workers": arguments.workers,
        "seconds_a_shard": seconds,
        "wall_seconds": wall,
        "shards_a_second": shards / wall,
        "efficiency": shards * seconds / arguments.workers / wall,
        "driver_cpu_ms_a_shard": 1000 * cpu / shards,
        "megabytes": held / 1e6,
        "grown_kb_a_shard": (held - before) / shards / 1000,
        "requests_a_shard": {name: count / shards for name, count in sorted(used.items())},
        "seconds_on_workers": on_workers,
    }


def start(arguments: argparse.Namespace, config: str, out: str) -> Iterator[dict[str, Any]]:
    """The same command again, in this new process, and `status`."""

    def again() -> None:
        opened = open_config(config, (), out)
        outcome = Session(opened, "local", Progress(Console(file=io.StringIO()))).do(STAGES)
        assert outcome.missing == {}, outcome.missing
        assert len(outcome.rows) == restart.CELLS

    def status() -> None:
        told = describe(open_config(config, (), out))
        assert told["network_evaluations_remaining"] == 0

    commands: dict[str, Callable[[], None]] = {"start, with its report": again, "start": again, "status": status}
    for name, command in commands.items():
        counts(seconds=arguments.latency)
        began, cpu = time.perf_counter(), time.process_time()
        command()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        yield {
            "step": name,
            "shards": arguments.shards[0],
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "peak_megabytes": peak_megabytes(),
            "requests": dict(sorted(counts(seconds=0.0).items())),
        }


STEPS = {"run": run, "start": start}


@contextmanager
def store() -> Iterator[None]:
    """The store, in the environment of this process and its children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bucket_store", str(port)])
    os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    try:
        while True:
            try:
                counts()
                break
            except ConnectionError:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured, for a page."""
    lines = ["| run | shards/s | efficiency | driver CPU a shard | memory | requests a shard |", "|---" * 6 + "|"]
    for row in (row for row in rows if row["step"] == "run"):
        used = ", ".join(f"{count:.2f} {name}" for name, count in row["requests_a_shard"].items() if count >= 0.005)
        lines.append(
            f"| {row['shards']:,} shards of {row['seconds_a_shard']} s on {row['workers']} workers "
            f"| {row['shards_a_second']:.0f} | {row['efficiency']:.1%} | {row['driver_cpu_ms_a_shard']:.2f} ms "
            f"| {row['megabytes']:.0f} MB, grown by {row['grown_kb_a_shard']:.1f} kB a shard | {used} |"
        )
    lines += ["", "| start | seconds | CPU seconds | peak memory | requests |", "|---" * 5 + "|"]
    for row in (row for row in rows if row["step"] != "run"):
        lines.append(
            f"| {row['shards']:,} shards: {row['step']} | {row['wall_seconds']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['peak_megabytes']:.0f} MB | {sum(row['requests'].values()):,} |"
        )
    return "\n".join(lines)


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each step yields, in a process of its own."""
    with store():
        for number, seconds in enumerate(arguments.seconds):
            for shards in arguments.shards:
                out, steps = f"s3://bench/run-{number}-{shards}", ["run"] if number else ["run", "start"]
                for step in steps:
                    options = ["--latency", arguments.latency, "--workers", arguments.workers, "--seconds", seconds]
                    command = [*options, "--shards", shards, "--step", step, "--out", out]
                    words = [sys.executable, "-m", "benchmarks.buckets", *map(str, command)]
                    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
                    for row in map(json.loads, said.splitlines()):
                        print(row, file=sys.stderr)
                        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="400 shards, of 0.2 s, on 16 workers")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of a request")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs="*", default=[0.5, 0.1], help="that a shard takes")
    parser.add_argument("--shards", type=int, nargs="*", default=[10_000])
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "bucket.yaml"
            config.write_text(restart.config(arguments.shards[0], IMAGES, SHAPE))
            for row in STEPS[arguments.step](arguments, str(config), arguments.out):
                print(json.dumps(row), flush=True)
        return
    if arguments.short:
        arguments.shards, arguments.seconds, arguments.workers = [400], [0.2], 16
    rows = list(measured(arguments))
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
