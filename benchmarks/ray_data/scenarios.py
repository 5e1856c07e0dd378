"""What is measured: each scenario runs a program on a cluster, and returns its figures by name."""

import math
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.ray_data.programs import (
    RAY_DATA,
    SORTED,
    SYSTEMS,
    TAUGRID,
    USER,
    Experiment,
    Program,
    start,
)
from benchmarks.ray_data.tally import Work, code_lines
from tools.machine import command_line, descendants

Figures = dict[str, float]

MOST_SECONDS = 1200.0
"""A program that takes longer hangs."""

MOST_COMMANDS = 5

KILL_AT = 0.4
"""The part of the files that is there when something is killed."""


class AnyCluster(Protocol):
    address: str
    environment: dict[str, str]
    shared: Path

    def lose_a_node(self, workers: Collection[int]) -> None:
        """Kill the node that has most of these processes, with everything on it, and start it again."""


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

    def finish(self, program: Program, most_commands: int = 1) -> int:
        """How many commands it took: one that gives up is started again."""
        code, output, commands = program.wait(MOST_SECONDS), program.output, 1
        while code and commands < most_commands:
            with self.start() as again:
                code, output, commands = again.wait(MOST_SECONDS), again.output, commands + 1
        if code:
            raise RuntimeError(f"{self.system} ended with {code}: {output[-3000:]}")
        return commands

    def correctness(self) -> Figures:
        return dict(self.experiment.counts(self.system)._asdict())


def undisturbed(trial: Trial) -> Figures:
    work, cpu = trial.experiment.work, [math.nan, math.nan]
    with trial.start() as program:
        program.wait_until(trial.experiment.has_begun, MOST_SECONDS)
        gone = (FileNotFoundError, ProcessLookupError, IndexError)  # of a process that has just ended
        with suppress(*gone):
            cpu[0] = program.cpu_seconds()
        for _ in program.polls(MOST_SECONDS):
            with suppress(*gone):
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
    return _hit(trial, lambda: trial.cluster.lose_a_node(trial.experiment.workers()))


def _hit(trial: Trial, hit: Callable[[], None]) -> Figures:
    with trial.start() as program:
        trial.wait_for(program, KILL_AT * trial.experiment.work.shards)
        before = set(trial.experiment.workers())
        hit()
        time.sleep(0.5)
        hits = len(before - set(trial.experiment.workers()))
        commands = trial.finish(program, MOST_COMMANDS)
    wall = trial.experiment.timing(trial.system).wall
    return {
        "workers hit": hits,
        "commands": commands,
        **trial.correctness(),
        "wall / ideal": wall / trial.experiment.work.ideal,
    }


def restart(trial: Trial) -> Figures:
    """Kill the driver once 99 % is there, or all but four shards; when its workers are gone, start it again."""
    with trial.start() as program:
        shards = trial.experiment.work.shards
        trial.wait_for(program, shards - max(4, shards // 100))
        program.kill()
    end = time.monotonic() + 60
    while trial.experiment.workers():
        if time.monotonic() > end:
            raise TimeoutError("workers of a dead driver live on")
        time.sleep(0.1)
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
    before: dict[int, int] = {}
    last: dict[int, int] = {}
    for first, _ in enumerate(program.polls(MOST_SECONDS)):
        for pid in descendants(os.getpid()):
            with suppress(OSError):  # it has just ended
                if pid == program.process.pid or command_line(pid).startswith("ray::"):
                    last[pid] = int(Path(f"/proc/{pid}/io").read_text().split()[1])
                    before.setdefault(pid, last[pid] if first == 0 and pid != program.process.pid else 0)
    return sum(number - before[pid] for pid, number in last.items())


class Scenario(NamedTuple):
    title: str
    measure: Callable[[Trial], Figures]
    work: Work
    short: Work
    systems: tuple[str, ...] = SYSTEMS
    runs: int = 3


def equal(shards: int, seconds: float, batch: int = 8) -> Work:
    """Shards of one batch and five calls of the network, which eight workers finish in so many seconds."""
    return Work((5,), shards * batch, batch, 1, seconds * WORKERS / (5 * shards), WORKERS)


WORKERS = 8
"""With more, the calls of the network take longer in proportion, so that as many shards end in a second."""

SHORT, SHORT_KILLED = equal(40, 1.0), equal(60, 10.0)
MIXED = Work((10, 20, 50, 100, 200, 500, 1000), 14 * 8, 8, 1, 0.005, WORKERS)
SCENARIOS = {
    "a1": Scenario("equal cost, few shards", undisturbed, equal(1_000, 12.5), SHORT),
    "a2": Scenario("equal cost, many shards", undisturbed, equal(10_000, 125.0), equal(80, 2.0), runs=1),
    "b": Scenario(
        "S = 10 to 1000, a batch each", undisturbed, MIXED, MIXED._replace(steps=(10, 100), images=32),
        (TAUGRID, RAY_DATA, SORTED),
    ),
    "c": Scenario(
        "one worker 20 times slower", undisturbed, equal(300, 12.0)._replace(slow=20.0), SHORT._replace(slow=20.0)
    ),
    "d1": Scenario("kill -9 of a worker", kill_a_worker, equal(800, 10.0), SHORT_KILLED),
    "d2": Scenario("kill -9 of a node, which returns", kill_a_node, equal(800, 10.0), SHORT_KILLED),
    "d3": Scenario("kill -9 of the driver at 99 %, same command again", restart, equal(1_000, 12.5, 64), SHORT_KILLED),
    "d3-new": Scenario("as few shards as that leaves, from nothing", from_nothing, equal(10, 0.125, 64), SHORT, runs=1),
}  # fmt: skip


def lines() -> dict[str, list[Figures]]:
    """What a user writes beside the network."""
    files = {TAUGRID: "experiment.yaml", RAY_DATA: "with_ray_data.py"}
    return {system: [{"lines": code_lines((USER / name).read_text())}] for system, name in files.items()}
