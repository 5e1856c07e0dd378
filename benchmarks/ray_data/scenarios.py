"""What is measured: each scenario runs a program on a cluster, and returns its figures by name."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import psutil

from benchmarks.ray_data.programs import RAY_DATA, SORTED, SYSTEMS, TAUGRID, USER, Experiment, Program, start
from benchmarks.ray_data.tally import Work, code_lines

Figures = dict[str, float]

MOST_SECONDS = 900.0
"""A program that takes longer hangs."""

KILL_AT = 0.4
"""The part of the files that is there when something is killed."""


class AnyCluster(Protocol):
    address: str
    environment: dict[str, str]

    def lose_a_node(self) -> None:
        """Kill a node with everything on it, and start it again."""


class Trial(NamedTuple):
    system: str
    cluster: AnyCluster
    experiment: Experiment

    def start(self) -> Program:
        return start(self.system, self.experiment, self.cluster.address, self.cluster.environment)

    @property
    def done(self) -> int:
        return len(self.experiment.files(self.system))

    def wait_for(self, program: Program, files: float) -> None:
        program.wait_until(lambda: self.done >= files, MOST_SECONDS)

    def finish(self, program: Program) -> None:
        code = program.wait(MOST_SECONDS)
        if code:
            raise RuntimeError(f"{self.system} ended with {code}: {program.output[-3000:]}")

    def correctness(self) -> Figures:
        return dict(self.experiment.counts(self.system)._asdict())


def undisturbed(trial: Trial) -> Figures:
    work, cpu = trial.experiment.work, [0.0, 0.0]
    with trial.start() as program:
        program.wait_until(trial.experiment.has_begun, MOST_SECONDS)
        cpu[0] = program.cpu_seconds()
        for _ in program.polls(MOST_SECONDS):
            with suppress(OSError, IndexError):  # it has just ended
                cpu[1] = program.cpu_seconds()
        trial.finish(program)
    seconds, timing = time.time() - program.began, trial.experiment.timing(trial.system)
    return {
        "wall / ideal": timing.wall / work.ideal,
        "tail s": timing.tail,
        "driver CPU ms a shard": 1000 * (cpu[1] - cpu[0]) / work.shards,
        "whole command s": seconds,
        "shards": work.shards,
        "files": trial.done,
        "MB": sum(path.stat().st_size for path in trial.experiment.files(trial.system)) / 1e6,
        **trial.correctness(),
    }


def kill_a_worker(trial: Trial) -> Figures:
    def hit() -> None:
        os.kill(trial.experiment.workers()[0], signal.SIGKILL)

    return _hit(trial, hit)


def kill_a_node(trial: Trial) -> Figures:
    return _hit(trial, trial.cluster.lose_a_node)


def _hit(trial: Trial, hit: Callable[[], None]) -> Figures:
    with trial.start() as program:
        trial.wait_for(program, KILL_AT * trial.experiment.work.shards)
        hit()
        trial.finish(program)
    wall = trial.experiment.timing(trial.system).wall
    return {**trial.correctness(), "wall / ideal": wall / trial.experiment.work.ideal}


def kill_the_driver(trial: Trial) -> Figures:
    _until(trial, KILL_AT)
    with trial.start() as program:
        trial.finish(program)
    return trial.correctness()


def _until(trial: Trial, part: float) -> None:
    """Run it until that part of the files is there; kill the driver, and wait until its workers are gone."""
    with trial.start() as program:
        trial.wait_for(program, part * trial.experiment.work.shards)
        program.kill()
    end = time.monotonic() + 60
    while trial.experiment.workers():
        if time.monotonic() > end:
            raise TimeoutError("workers of a dead driver live on")
        time.sleep(0.1)


def restart(trial: Trial) -> Figures:
    """The driver is killed at 99 %, and the same command started."""
    _until(trial, 0.99)
    done = sum(path.stat().st_size for path in trial.experiment.files(trial.system))
    left = trial.experiment.work.shards - trial.done
    with trial.start() as program:
        read = bytes_read(program)
        trial.finish(program)
    seconds = time.time() - program.began
    return {"s": seconds, "MB read": read / 1e6, "MB there": done / 1e6, "shards left": left, **trial.correctness()}


def from_nothing(trial: Trial) -> Figures:
    """What a restart is compared with: a run of as few shards, in an empty directory."""
    with trial.start() as program:
        read = bytes_read(program)
        trial.finish(program)
    return {"s": time.time() - program.began, "MB read": read / 1e6}


def bytes_read(program: Program) -> int:
    """What the driver and Python's processes of the cluster ask the system for until the program ends."""
    before: dict[tuple[int, float], int] = {}
    last: dict[tuple[int, float], int] = {}
    for first, _ in enumerate(program.polls(MOST_SECONDS)):
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == program.process.pid or process.name().startswith("ray::"):
                    key = process.pid, process.create_time()
                    last[key] = process.io_counters().read_chars
                    if first == 0:
                        before[key] = last[key]
    return sum(number - before.get(key, 0) for key, number in last.items())


class Scenario(NamedTuple):
    title: str
    systems: tuple[str, ...]
    measure: Callable[[Trial], Figures]
    full: Work
    short: Work


def equal(images: int, seconds: float, workers: int, steps: tuple[int, ...] = (5,)) -> Work:
    """A shard is a batch of 8 images."""
    return Work(steps, images, 8, 1, seconds, workers)


SHORT = equal(40 * 8, 0.02, 2)
WORKERS = 16
MIXED = (10, 20, 50, 100, 200, 500, 1000)
KILLED = equal(800 * 8, 0.05, WORKERS)
BOTH_ORDERS = (TAUGRID, RAY_DATA, SORTED)

SCENARIOS = {
    "a1": Scenario("equal cost, few shards", SYSTEMS, undisturbed, equal(1_000 * 8, 0.06, WORKERS), SHORT),
    "a2": Scenario("equal cost, many shards", SYSTEMS, undisturbed, equal(10_000 * 8, 0.06, WORKERS), SHORT),
    "b": Scenario(
        "S = 10 to 1000, a batch each",
        BOTH_ORDERS,
        undisturbed,
        equal(14 * 8, 0.01, WORKERS, MIXED),
        equal(2 * 8, 0.002, 2, (10, 100)),
    ),
    "c": Scenario(
        "one worker 20 times slower",
        SYSTEMS,
        undisturbed,
        equal(300 * 8, 0.2, WORKERS)._replace(slow=20.0),
        SHORT._replace(slow=20.0),
    ),
    "d1": Scenario("kill -9 of a worker", SYSTEMS, kill_a_worker, KILLED, SHORT),
    "d2": Scenario("a node dies and returns", SYSTEMS, kill_a_node, KILLED, SHORT),
    "d3": Scenario("kill -9 of the driver, same command again", SYSTEMS, kill_the_driver, KILLED, SHORT),
    "e": Scenario("restart at 99 %", SYSTEMS, restart, equal(1_000 * 8, 0.02, WORKERS), SHORT),
    "e0": Scenario("1 % from nothing", SYSTEMS, from_nothing, equal(10 * 8, 0.02, WORKERS), SHORT),
}


def lines() -> dict[str, Figures]:
    """What a user writes beside the network."""
    files = {TAUGRID: "experiment.yaml", RAY_DATA: "with_ray_data.py"}
    return {system: {"lines": code_lines((USER / name).read_text())} for system, name in files.items()}
