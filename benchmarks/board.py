"""How long `taugrid board` needs for many runs: cold, and with a warm index.

    python -m benchmarks.board [--runs 1000] [--cells 20]

Makes synthetic runs in a temporary folder, with a cache of their own: the tables, config, plan and events of a run of
so many cells, but no images. Cold, the operating system has just written the files, so disks are not measured.
"""

import argparse
import json
import os
import random
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path

from taugrid.run_id import FORMAT

SETTINGS = {"spacing": "linear", "sampler": "ddim", "clip": "none", "seed": 0, "num_samples": 50_000, "batch_size": 256}
METRICS = ("fid", "isc_mean", "kid")


def make_run(root: Path, cells: int, chance: random.Random) -> None:
    """The recorded files of a finished run."""
    ids = [f"{chance.getrandbits(40):010x}" for _ in range(cells)]
    rows, planned, protocols, events = [], [], {}, [{"event": "session", "stages": ["sample"]}]
    for number, cell in enumerate(ids):
        steps, eta, name = 10 * (1 + number // 4), number % 4 / 4, f"{1 + number // 4:08x}"
        times = list(range(1, 1001, 1000 // steps))
        reference = {"dataset": "cifar10", "split": "train", "preprocessing": "8 bits, 3x32x32", "sha256": "0" * 64}
        protocols[name] = {"reference": reference, "num_samples": 50_000, "weights": "ema", "tau": times,
                           "extractor": {"name": "inception", "weights_sha256": "1" * 64}, "metrics": ["fid", "isc"],
                           "scoring": 1, "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}  # fmt: skip
        metrics = {m: value for name in METRICS for m, value in ((name, chance.random()), (f"{name}_se", 0.01))}
        rows.append({"cell": cell, "model": "5274e660d4", "sampler": "ddim", "steps": steps, "eta": eta, "sigma": "eta",
                     "spacing": "linear", "clip": "none", "num_samples": 50_000, "network_evaluations": steps,
                     **metrics, "seconds": 1.5, "protocol": name})  # fmt: skip
        values = {"steps": steps, "eta": eta}
        planned.append({"id": cell, "model": "5274e660d4", "settings": SETTINGS | values, "values": values})
        shard = {"event": "shard", "cell": cell, "images": 1000, "copied": 0, "seconds": 9.1, "committed": True}
        shard |= {"worker": "worker-0", "device": "NVIDIA H100"}
        events += [shard | {"path": f"part-{n:06d}.parquet"} for n in range(50)]
    source = {"kind": "trained", "data": {"name": "cifar10", "shape": None}}
    pairs = [f"{a},{b},-0.5,0.01" for a, b in pairwise(ids)]
    seeds = [f"{row['cell']},S={row['steps']} eta={row['eta']},0" for row in rows]
    files = {
        "run.json": {"run": uuid.uuid5(uuid.NAMESPACE_URL, root.name).hex, "format": FORMAT},
        "config.json": {"name": root.name, "sample": SETTINGS, "filler": "x" * 3000},
        "plan.json": {"models": [{"id": "5274e660d4", "source": source}], "cells": planned},
        "provenance.json": {"versions": {"taugrid": "0.1.0"}, "machines": [{"node": "a", "device": "NVIDIA H100"}]},
        "tables/quality.json": {"rows": rows, "protocols": protocols},
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value, indent=2))
    (root / "tables/cells.csv").write_text("\n".join(["cell,name,seed", *seeds, ""]))
    (root / "tables/differences.csv").write_text("\n".join(["cell_a,cell_b,difference,se", *pairs, ""]))
    (root / "events").mkdir()
    lines = (json.dumps({"time": "2026-11-29T01:00:00+00:00", **event}) for event in events)
    (root / "events/0001.jsonl").write_text("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taugrid-benchmark-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        chance = random.Random(0)
        for number in range(given.runs):
            make_run(Path(folder, "runs", f"ablation-{number % 10}", f"run-{number:04d}"), given.cells, chance)
        began = time.perf_counter()
        from taugrid.orchestrator.board.document import as_json, document_of
        from taugrid.orchestrator.board.find import Place
        from taugrid.orchestrator.board.index import Index

        print(f"{given.runs:,} runs of {given.cells} cells; import {time.perf_counter() - began:.2f} s")
        for name in ("cold", "warm", "warm"):
            began, processor = time.perf_counter(), time.process_time()
            index = Index([Place.of(f"{folder}/runs")])
            board = index.look()
            looked = time.perf_counter()
            size = len(as_json(document_of(board, index.places).value))
            ended, spent = time.perf_counter(), time.process_time() - processor
            print(f"{name}: look {looked - began:.2f} s, document of {size / 2**20:.1f} MiB {ended - looked:.2f} s; "
                  f"processor {spent:.2f} s")  # fmt: skip
        began = time.perf_counter()
        index.look()
        print(f"the next look of a server: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
