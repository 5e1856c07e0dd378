"""Documents of boards, as orchestrator/board/document.py makes them, of runs that never were."""

import numpy as np

SAMPLING, SPLITS = "one standard error of sampling at this N", "the standard deviation over splits"
METRICS = {
    "fid": {"better": "lower", "error": "fid_se", "se": "fid_se", "error_means": SAMPLING},
    "isc_mean": {"better": "higher", "error": "isc_std", "se": "isc_se", "error_means": SPLITS},
}
NOTHING = {"better": None, "error": None, "error_means": None, "se": None}
COLUMNS = [
    NOTHING | {"name": name, "heading": heading, "kind": kind} | METRICS.get(name, {})
    for name, heading, kind in (
        ("cell", "cell", "text"), ("sampler", "sampler", "setting"), ("steps", "S", "setting"), ("eta", "η", "setting"),
        ("num_samples", "N", "setting"), ("network_evaluations", "evaluations", "number"), ("fid", "FID", "metric"),
        ("fid_se", "FID error", "error"), ("isc_mean", "IS", "metric"), ("isc_std", "IS spread", "error"),
        ("isc_se", "IS error", "error"), ("protocol", "protocol", "text"),
    )
]  # fmt: skip
STEPS = (10, 20, 50, 100, 1000)
ETAS = (0.0, 0.2, 0.5, "σ̂")
PROTOCOLS = {
    "0001beef": {"num_samples": "5000", "extractor.name": "digits-convnet", "versions.torch": "2.13.0"},
    "0002beef": {"num_samples": "1000", "extractor.name": "digits-convnet", "versions.torch": "2.13.0"},
}


def run(number, **changes):
    return {
        "key": f"r{number}", "name": "ablation", "title": f"ablation/seed-{number}",
        "directory": f"/data/runs/ablation/seed-{number}", "state": "finished", "note": "", "progress": None,
        "began": "2026-11-20T08:00:00+00:00", "ended": "2026-11-20T09:12:00+00:00", "taugrid": "0.1.0",
        "devices": ["NVIDIA H100"], "models": ["models/a"], "report": f"runs/r{number}/report.html", "history": None,
        "night": None,
    } | changes  # fmt: skip


def board(runs=3, **changes):
    """Twenty cells of each of `runs` runs; every third run has N = 1,000, the others 5,000."""
    random, rows, labels, groups, noise = np.random.default_rng(0), [], [], [], []
    for number in range(runs):
        n, protocol = (1000, "aaaa0002") if number % 3 == 2 else (5000, "aaaa0001")
        for place, (steps, eta) in enumerate((steps, eta) for steps in STEPS for eta in ETAS):
            fid = 5 + 300 / steps**1.2 + 2 * (eta != 0) + random.normal(0, 0.4)
            isc = 9 - 10 / steps + random.normal(0, 0.05)
            cell = f"{number:06x}{place:04x}"
            rows.append([number, cell, "ddim", steps, eta, n, steps, fid, 0.04 * fid, isc, 0.3, 0.08, protocol])
            labels.append(f"S={steps} eta={eta} clip=none")
            groups.append(protocol[-4:] + "beef")
            noise.append(f"noise-{number}")
    made = {
        "format": 1, "made": "2026-11-29T01:45:50+00:00", "version": "0.1.0", "places": ["/data/runs"],
        "runs": [run(number) for number in range(runs)], "columns": [{**column} for column in COLUMNS],
        "rows": rows, "cells": labels, "groups": groups, "noise": noise, "protocols": PROTOCOLS,
        "images": {"per_cell": 16, "rows": [False] * len(rows)}, "differences": [], "histories": [],
    }  # fmt: skip
    return made | changes
