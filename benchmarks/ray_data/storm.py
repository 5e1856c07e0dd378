"""A storm of spot nodes: each minute half of four nodes leave and return, with a notice or without.

    python -m benchmarks.ray_data.storm [--minutes 10] [--only notice,none] [--runs 1] [--json FILE]

In a minute, two nodes get their notice, are killed 20 s later with all that runs on them, and return after 20 s more.
Without a notice they are killed at the same times. The work is about as much as the nodes can do in the time of the
storm. A program that gives up is started again by the same command. It takes two and a half times the minutes for each
kind of storm, in a run of both programs; Linux and root.

- goodput: network evaluations that the images need, over those that were possible on the nodes that were there, from
  the first call of the network to the last file. A node is there from when its raylet has joined until it is killed, so
  starting workers on it is lost time.
- twice: evaluations made beyond those that the images need.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ray_data.__main__ import setting, table
from benchmarks.ray_data.clusters import NODES, SPARE_CPUS, Raylets, possible
from benchmarks.ray_data.programs import SYSTEMS, Experiment, start
from benchmarks.ray_data.scenarios import Figures
from benchmarks.ray_data.tally import Work

PERIOD, NOTICE, AWAY = 60.0, 20.0, 20.0
"""Seconds: between two waves, from the notice to the end of a node, and from there to its return."""

WORKERS = 8
THERE = 1 - 0.5 * AWAY / PERIOD
"""The part of the nodes that is there, on average."""

STARTS = 20
"""How often a program that ends with an error is started again."""

MOST_SECONDS = 3600.0


def work_of(minutes: float) -> Work:
    """Shards of ten batches, 10 s each; 0.8 of what the nodes can do in the time."""
    batch, steps, seconds, batches = 8, 20, 0.05, 10
    calls = 0.8 * minutes * PERIOD * WORKERS * THERE / seconds
    images = max(1, round(calls / steps / batches)) * batches * batch
    return Work((steps,), images, batch, steps * batch * batches, seconds, WORKERS, cpus=SPARE_CPUS + 1)


class Storm:
    """Nodes that leave and return, in a thread of its own, for so many seconds or until it is stopped."""

    def __init__(self, cluster: Raylets, seconds: float, with_notice: bool) -> None:
        self._cluster, self._seconds, self._with_notice = cluster, seconds, with_notice
        self._joined = dict.fromkeys(cluster.names, 0.0)
        self._there: list[tuple[float, float]] = []  # when a node joined, and when it was killed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.left = 0
        """How many nodes have left."""

    def __enter__(self) -> "Storm":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._there += [(joined, time.time()) for joined in self._joined.values()]

    def node_seconds(self, since: float, until: float) -> float:
        return sum(max(0.0, min(until, end) - max(since, joined)) for joined, end in self._there)

    def _run(self) -> None:
        names = self._cluster.names
        halves, wave = (names[: NODES // 2], names[NODES // 2 :]), 0
        while not self._over.is_set() and (wave + 1) * PERIOD <= self._seconds:
            leaving = halves[wave % 2]
            self._wait_for(wave * PERIOD)
            if self._with_notice:
                with ThreadPoolExecutor() as threads:  # `ray drain-node` takes seconds
                    list(threads.map(partial(self._cluster.drain, seconds=round(NOTICE)), leaving))
            noticed = self._now
            self._wait_for(noticed + NOTICE)
            for name in leaving:
                self._cluster.kill(name)
                self._there.append((self._joined.pop(name), time.time()))
                self.left += 1
            self._wait_for(noticed + NOTICE + AWAY)
            for name in leaving:  # nodes of one machine must be started one after the other
                self._cluster.start(name, cpus=self._cluster.cpus)
                self._joined[name] = time.time()
            wave += 1

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    def _wait_for(self, seconds: float) -> None:
        self._over.wait(max(0.0, seconds - self._now))


def measured(system: str, experiment: Experiment, minutes: float, with_notice: bool) -> Figures:
    work, starts, code = experiment.work, 0, 1
    cluster = Raylets(experiment.out.parent, work.workers, work.cpus)
    try:
        cluster.begin_all()
        with start(system, experiment, cluster.address, cluster.environment) as first:
            first.wait_until(experiment.has_begun, MOST_SECONDS)
            with Storm(cluster, minutes * PERIOD, with_notice) as storm:
                code, starts = first.wait(MOST_SECONDS), 1
                print(first.output[-1000:] if code else "", end="", flush=True)
                while code and starts < STARTS:
                    starts += 1
                    with start(system, experiment, cluster.address, cluster.environment) as program:
                        code = program.wait(MOST_SECONDS)
                        print(program.output[-1000:] if code else "", end="", flush=True)
    finally:
        cluster.close()
    found = experiment.counts(system)
    wall = experiment.timing(system).wall
    end = max(path.stat().st_mtime for path in experiment.files(system))
    could_be = storm.node_seconds(end - wall, end) * work.workers / NODES * work.batch / work.seconds
    done = work.network_evaluations - found.lost * work.steps[0]
    return {
        "goodput": done / could_be,
        "twice, share": found.twice / work.network_evaluations,
        **found._asdict(),
        "wall s": wall,
        "nodes left": storm.left,
        "commands": starts,
        "exit": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="notice,none", help="with a notice, without one, or both")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    if not possible():
        raise SystemExit("it needs Linux and root, to give nodes namespaces of their own")
    record: dict[str, Any] = {"setting": setting(), "figures": {}}
    print(json.dumps(record["setting"]), flush=True)
    for kind in arguments.only.split(","):
        found: dict[str, list[Figures]] = {system: [] for system in arguments.systems.split(",")}
        for _ in range(arguments.runs):
            for system, runs in found.items():
                folder = Path(tempfile.mkdtemp(prefix="storm-"))
                experiment = Experiment(folder, work_of(arguments.minutes))
                runs.append(measured(system, experiment, arguments.minutes, kind == "notice"))
                shutil.rmtree(folder)
        record["figures"][kind] = found
        title = "storm with notices" if kind == "notice" else "storm without notices"
        print(f"\n{table(title, found)}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
