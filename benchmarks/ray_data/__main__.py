"""taugrid and Ray Data at the same work: the same stand-in network, batches, files and number of workers.

    python -m benchmarks.ray_data [--short] [--only a1,b] [--runs 3] [--json FILE]

- a1, a2: shards of equal cost, 1,000 and 10,000. Wall time over the ideal, and CPU of the driver.
- b: shards of S = 10 to 1000 steps; Ray Data in the order of the config, and sorted by us.
- c: one worker is 20 times slower.
- d1, d2, d3: kill -9 of a worker, of a node (which returns), of the driver (then the same command again).
- e, e0: restart at 99 %, and a run of as much work from nothing.
- f: lines that a user writes.

The network sleeps, so that 16 workers need few CPUs. The full form starts four raylets with namespaces of their own
(Linux, root), and takes about 20 minutes. `--short` has one plain node and tiny sizes: it shows that all parts run, and
its figures say little. The two programs take turns. A figure is the median of the runs, with their range.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.ray_data.clusters import cluster
from benchmarks.ray_data.programs import Experiment
from benchmarks.ray_data.scenarios import SCENARIOS, Figures, Trial, lines

NEEDS_NODES = "d2"


def table(title: str, found: dict[str, list[Figures]]) -> str:
    """A Markdown table: a row for each program."""
    names = list(next(iter(found.values()))[0])
    rows = [f"| {title} | " + " | ".join(names) + " |", "|" + " :-- |" + " --: |" * len(names)]
    for system, runs in found.items():
        cells = [shown([run[name] for run in runs]) for name in names]
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
        "ray": ray.__version__, "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default=",".join([*SCENARIOS, "f"]), help="scenarios, as in a1,b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := set(asked) - {*SCENARIOS, "f"}:
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join([*SCENARIOS, 'f'])}")
    record: dict[str, Any] = {"setting": setting(), "figures": {}}
    print(json.dumps(record["setting"]), flush=True)
    for name in asked:
        if name == NEEDS_NODES and arguments.short:
            continue
        title, found = ("lines that a user writes", lines()) if name == "f" else ("", {})
        found = {system: [figures] for system, figures in found.items()} if name == "f" else measured(name, arguments)
        title = title or SCENARIOS[name].title
        record["figures"][name] = found
        print(f"\n{table(f'{name}: {title}', found)}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def measured(name: str, arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    scenario = SCENARIOS[name]
    work = scenario.short if arguments.short else scenario.full
    found: dict[str, list[Figures]] = {system: [] for system in scenario.systems}
    with (
        tempfile.TemporaryDirectory(prefix="ray-data-") as folder,
        cluster(arguments.short, Path(folder), work.workers) as where,
    ):
        for run in range(arguments.runs):
            for system, runs in found.items():
                place = Path(folder) / f"{system}-{run}"
                runs.append(scenario.measure(Trial(system, where, Experiment(place, work))))
                shutil.rmtree(place)
    return found


if __name__ == "__main__":
    main()
