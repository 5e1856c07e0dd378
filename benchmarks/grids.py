"""What `plan`, `status` and the survey of a run cost on large grids of which nothing is sampled yet, or half.

    python -m benchmarks.grids [--cells 1000 10000] [--json FILE]

Each command runs in a process of its own, whose peak of resident memory and CPU seconds are counted with its imports
(`imports` is a process that only imports what the survey needs). A cell has 50,000 images; the default settings divide
1,000 cells into 113,500 shards, and 10,000 cells into 1,825,460.

- plan: `taugrid plan CONFIG --out NEW --json`.
- status: `taugrid status DIR --json`, of a run whose plan is recorded.
- survey: what `taugrid sample` does before it starts Ray: the plan, and what is missing; `tasks`: and a task for each
  shard.
- status of a half: `status` where every second shard of each cell is in place and in the ledger. Only with
  --half, since it makes as many files; they are empty, because the ledger knows them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taugrid import parquet
from taugrid.orchestrator.opened import open_config, record_plan
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import write_json

ETAS = 10
FIRST_STEPS = {1_000: 30, 10_000: 1}
"""Cells -> the smallest S of the grid: the shards of the docstring."""


def write_config(folder: Path, cells: int) -> Path:
    steps = range(first := FIRST_STEPS.get(cells, 10), first + cells // ETAS)
    values = {
        "name": "grid",
        "model": {"oracle": "gaussian"},
        "data": {"name": "gaussian", "shape": [3, 32, 32]},
        "sample": {"seed": 0, "num_samples": 50_000},
        "grid": {"steps": list(steps), "eta": [i / ETAS for i in range(ETAS)]},
        "evaluate": {"metrics": ["fid"]},
    }
    path = folder / "grid.yaml"
    path.write_text(json.dumps(values))
    return path


def begin(config: Path, directory: Path, half: bool = False) -> None:
    """A run that has recorded its plan, perhaps with every second shard of each cell."""
    run = open_config(str(config), (), str(directory))
    directory.mkdir()
    run.rundir.claim()
    write_json(run.rundir.config, run.config.recorded, run.rundir.storage)
    record_plan(run)
    run.rundir.ledger.keep()
    for cell in run.plan.cells if half else ():
        run.rundir.sample_part(cell, cell.first_shard).parent.mkdir(parents=True)
        for shard in cell.shards[::2]:
            (path := run.rundir.sample_part(cell, shard)).touch()
            part = parquet.PartSummary(shard.start, shard.stop, {"cell": cell.id})
            run.rundir.ledger.add(path, run.rundir.storage.stat(path).version, part)
    run.rundir.ledger.flush()


def survey(config: Path, directory: Path, with_tasks: bool = False) -> None:
    run = open_config(str(config), (), str(directory))
    found = Survey(run, None, frozenset({"sample"}), lambda damage: None)
    assert len(found.found.cells) == len(run.plan.cells)
    if with_tasks:
        assert len({task.key: task for task in SampleWork(found).tasks()}) == run.plan.num_shards


DO: dict[str, Callable[[Path, Path], None]] = {
    "begin": begin,
    "begin half": partial(begin, half=True),
    "survey": survey,
    "tasks": partial(survey, with_tasks=True),
}
"""What this module does in a process of its own, from a config and a directory."""


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak megabytes of a Python process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, arguments
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "megabytes": used.ru_maxrss / 1e3}


def commands(folder: Path, cells: int, half: bool) -> dict[str, list[str]]:
    config, new, run, done = str(write_config(folder, cells)), *(str(folder / name) for name in ("new", "run", "half"))
    taugrid, this = ["-m", "taugrid"], ["-m", "benchmarks.grids"]
    measured([*this, "--do", "begin", config, run])
    named = {
        "imports": [*this, "--help"],
        "plan": [*taugrid, "plan", config, "--out", new, "--json"],
        "status": [*taugrid, "status", run, "--json"],
        "survey": [*this, "--do", "survey", config, new],
        "tasks": [*this, "--do", "tasks", config, new],
    }
    if half:
        measured([*this, "--do", "begin half", config, done])
        named["status of a half"] = [*taugrid, "status", done, "--json"]
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--half", action="store_true", help="also with half of the shards in place")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--do", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        what, config, directory = arguments.do
        DO[what](Path(config), Path(directory))
        return
    figures: list[dict[str, Any]] = []
    print(f"{'cells':>6}  {'command':16}  {'seconds':>7}  {'CPU s':>6}  {'MB':>5}")
    for cells in arguments.cells:
        with tempfile.TemporaryDirectory() as name:
            for command, words in commands(Path(name), cells, arguments.half).items():
                used = measured(words)
                figures.append({"cells": cells, "command": command, **used})
                each = f"{used['seconds']:7.1f}  {used['cpu_seconds']:6.1f}  {used['megabytes']:5.0f}"
                print(f"{cells:6,}  {command:16}  {each}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
