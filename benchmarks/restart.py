"""How long a finished run takes to say that it is finished, and how much of it is read for that.

    python -m benchmarks.restart [--shards 10000] [--images 64]

The run directory is made of copies: its images are the same in every shard, its scores are made up. Its ledger is
written by a first run, which reads everything. Bytes are what the process asked the system for (/proc/self/io), less
what the second round of the same commands asks for on a run of a few shards (fonts and the like).
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from taugrid import parquet
from taugrid.hashing import digests_of
from taugrid.orchestrator import STAGES
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.plan.scoring import Scoring, scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import write_sealed

CELLS = 20
SHAPE = (3, 32, 32)


def config(shards: int, images: int, shape: tuple[int, int, int] = SHAPE) -> str:
    return f"""
name: restart
model: {{oracle: gaussian}}
data: {{name: gaussian, shape: {list(shape)}}}
sample: {{seed: 0, num_samples: {shards // CELLS * images}, batch_size: {images}, shard_evaluations: 1}}
grid: {{steps: [2, 3, 4, 5, 6], eta: [0.0, 0.2, 0.5, 1.0]}}
evaluate: {{metrics: [fid]}}
"""


def write_shard(rundir: RunDir, cell: Cell, shard: Shard, batch: dict[str, object]) -> None:
    settings = cell.settings
    constants = {
        "seed": settings.seed, "steps": settings.steps, "eta": settings.eta_number, "sigma": settings.sigma,
        "spacing": settings.spacing_name, "sampler": settings.sampler, "clip": settings.clip, "cell": cell.id,
        "model": cell.model.id,
    }  # fmt: skip
    schema = parquet.sample_schema(rundir.sample_metadata(cell))
    with parquet.PartWriter(rundir.sample_part(cell, shard), schema, rundir.storage) as part:
        columns = {name: [value] * shard.images for name, value in constants.items()}
        part.write({**batch, **columns, "index": np.arange(shard.start, shard.stop)})
        part.commit(replace=False)


def write_score(rundir: RunDir, cell: Cell, scoring: Scoring) -> None:
    n, path = cell.settings.num_samples, rundir.influence(cell, scoring.id(cell))
    with parquet.PartWriter(path, parquet.number_schema({"cell": cell.id}, ("influence",)), rundir.storage) as part:
        influence = np.random.default_rng(cell.settings.steps).normal(size=n)
        part.write({"index": np.arange(n), "influence": influence})
        part.commit(replace=False)
    header = {"cell": cell.id, "evaluation": scoring.id(cell), "protocol": scoring.protocol(cell).as_dict()}
    score = {**header, "metrics": {"fid": 1.0 + cell.settings.steps, "fid_se": 0.1}, "notes": []}
    write_sealed(rundir.score(cell, scoring.id(cell)), score, rundir.storage)


def finished_run(folder: Path, shards: int, images: int) -> Run:
    """A run that is done but for its tables."""
    (folder / "restart.yaml").write_text(config(shards, images))
    opened = open_config(str(folder / "restart.yaml"), (), str(folder / "run"))
    rundir, scoring = opened.rundir, scoring_of(opened.config, opened.plan)
    rundir.root.mkdir()
    rundir.claim()
    pixels = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    batch = parquet.pictures(pixels, 0) | {"pixels": digests_of(pixels)}
    with ThreadPoolExecutor(4) as pool:
        work = [(cell, shard) for cell in opened.plan.cells for shard in cell.shards]
        list(pool.map(lambda item: write_shard(rundir, *item, batch), work))
    for cell in opened.plan.cells:
        write_score(rundir, cell, scoring)
        for shard in cell.shards:
            event = {"cell": cell.id, "path": shard.name, "images": shard.images, "evaluations": shard.total_nfe}
            event |= {
                "seconds": 1.0,
                "committed": True,
                "own": True,
                "copied": 0,
                "worker": "worker-0",
                "node": "127.0.0.1",
                "device": "cpu",
            }
            write_event(rundir, {"time": "2026-01-01T00:00:00.000+00:00", "event": "shard", **event})
    return opened


def write_event(rundir: RunDir, event: dict[str, object]) -> None:
    import json

    rundir.storage.append(rundir.events / "0001.jsonl", (json.dumps(event) + "\n").encode())


def run(opened: Run) -> None:
    rundir = RunDir(opened.rundir.root)
    outcome = Session(replace(opened, rundir=rundir), "local", Progress(Console(file=io.StringIO()))).do(STAGES)
    assert outcome.missing == {}, outcome.missing
    assert len(outcome.rows) == CELLS


def look(opened: Run) -> None:
    told = describe(replace(opened, rundir=RunDir(opened.rundir.root)))
    assert told["network_evaluations_remaining"] == 0


def check(opened: Run) -> None:
    assert verify(replace(opened, rundir=RunDir(opened.rundir.root)), lambda count: None) == ([], [])


COMMANDS: dict[str, Callable[[Run], None]] = {
    "first run (no ledger)": run,
    "run": run,
    "plan, status": look,
    "verify": check,
}


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def measured(opened: Run) -> Iterator[tuple[str, float, int]]:
    """Name, seconds and bytes read, of each command."""
    for name, command in COMMANDS.items():
        before, began = bytes_read(), time.perf_counter()
        command(opened)
        yield name, time.perf_counter() - began, bytes_read() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "few").mkdir()
        few = finished_run(Path(name) / "few", CELLS, arguments.images)
        list(measured(few))
        besides = {command: count for command, _, count in measured(few)}
        opened = finished_run(Path(name), arguments.shards, arguments.images)
        size = sum(path.stat().st_size for path in opened.rundir.root.rglob("*") if path.is_file())
        shards = opened.plan.num_shards
        print(f"{shards:,} shards, {size / 1e9:.2f} GB")
        for command, seconds, every in measured(opened):
            count = every - besides[command]
            print(f"{command}: {seconds:.1f} s, {count / 1e6:,.1f} MB read, {100 * count / size:.2f} % of the run")


if __name__ == "__main__":
    main()
