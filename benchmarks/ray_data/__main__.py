"""taugrid and Ray Data at the same work: the same stand-in network, batches, files and number of workers.

    python -m benchmarks.ray_data [--short] [--only a1,b] [--runs 3] [--json FILE]

- a1, a2: shards of equal cost, 1,000 and 10,000. Wall time over the ideal, and CPU of the driver.
- b: shards of S = 10 to 1000 steps; Ray Data in the order of the config, and sorted by us.
- c: one worker is 20 times slower.
- d1, d2: kill -9 of a worker, of a node (which returns).
- d3, d3-new: kill -9 of the driver at 99 %, then the same command again; and a run of as few shards as that leaves.
- f: lines that a user writes.

The network sleeps, so that 8 workers need few CPUs. The full form starts four raylets with namespaces of their own
(Linux, root), and takes an estimated 40 minutes on two cores. `--short` has two plain nodes and tiny sizes: it shows
that all parts run, and its figures say little. The two programs take turns. A figure is the median of the runs, with
their range.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ray_data.clusters import cluster
from benchmarks.ray_data.programs import Experiment
from benchmarks.ray_data.scenarios import SCENARIOS, WORKERS, AnyCluster, Figures, Scenario, Trial, lines
from benchmarks.ray_data.tally import Work, check

SHORT_WORKERS = 2


def table(title: str, found: dict[str, list[Figures]]) -> str:
    """A Markdown table: a row for each program. `runs` are those that came to their end."""
    names = list(next((runs[0] for runs in found.values() if runs), ()))
    rows = [f"| {title} | runs | " + " | ".join(names) + " |", "| :-- |" + " --: |" * (len(names) + 1)]
    for system, runs in found.items():
        cells = [str(len(runs)), *(shown([run[name] for run in runs]) if runs else "" for name in names)]
        rows.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def shown(values: list[float]) -> str:
    def text(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"

    middle, least, most = statistics.median_low(values), min(values), max(values)
    return text(middle) if least == most else f"{text(middle)} ({text(least)} to {text(most)})"


def setting() -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cpus": os.cpu_count(), "load": os.getloadavg(),
        "ray": version("ray"), "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default=",".join([*SCENARIOS, "f"]), help="scenarios, as in a1,b")
    parser.add_argument("--runs", type=int, help="of each; 3, and 1 of a2 and d3-new, if not set")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := set(asked) - {*SCENARIOS, "f"}:
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join([*SCENARIOS, 'f'])}")
    check()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no cluster stays behind
    measure(asked, arguments)


def measure(asked: list[str], arguments: argparse.Namespace) -> None:
    record: dict[str, Any] = {"setting": setting(), "figures": {}}
    print(json.dumps(record["setting"]), flush=True)
    workers = SHORT_WORKERS if arguments.short else arguments.workers
    with ExitStack() as stack:
        where = None
        for name in asked:
            if name == "f":
                title, found = "lines that a user writes", lines()
            else:
                where = where or stack.enter_context(cluster(arguments.short, workers))
                scenario = SCENARIOS[name]
                work = (scenario.short if arguments.short else scenario.work).with_workers(workers)
                title, found = scenario.title, turns(scenario, work, where, arguments.runs or scenario.runs)
            record["figures"][name] = found
            print(f"\n{table(f'{name}: {title}', found)}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def turns(scenario: Scenario, work: Work, where: AnyCluster, runs: int) -> dict[str, list[Figures]]:
    """The figures of each program. They take turns, so that other load on the machine meets both."""
    found: dict[str, list[Figures]] = {system: [] for system in scenario.systems}
    for _ in range(runs):
        for system, figures in found.items():
            with tempfile.TemporaryDirectory(dir=where.shared) as folder:
                try:
                    figures.append(scenario.measure(Trial(system, where, Experiment(Path(folder), work))))
                except (OSError, RuntimeError) as error:  # it hangs or gives up: that is a result, too
                    print(f"{system} failed: {error}", flush=True)
    return found


if __name__ == "__main__":
    main()
