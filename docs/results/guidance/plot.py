"""FID, recall and agreement against guidance, from tables/quality.csv: figures/guidance.png."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent

LINES = {
    ("balanced", "", False): ("null class", "tab:blue", "o"),
    ("random", "", False): ("null class, random labels", "tab:gray", "s"),
    ("balanced", "", True): ("autoguidance", "tab:green", "^"),
    ("balanced", "[0.3, 3.5]", False): ("null class in [0.3, 3.5]", "tab:red", "D"),
    ("balanced", "[1.0, 15.0]", False): ("null class in [1, 15]", "tab:orange", "v"),
}
points = defaultdict(list)
with (FOLDER / "tables/quality.csv").open() as file:
    for row in csv.DictReader(file):
        key = row["labels"], row["guidance_interval"], bool(row["model.guide"])
        points[key, row["train.seed"]].append(row)
        if float(row["guidance"]) == 1 and key == ("balanced", "", False):  # the same cell with any guide
            points[("balanced", "", True), row["train.seed"]].append(row)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
metrics = ("fid", "FID (lower is better)"), ("recall", "recall"), ("agreement", "agreement")
for axis, (metric, title) in zip(axes, metrics, strict=True):
    for (key, seed), rows in points.items():
        rows = sorted(rows, key=lambda row: float(row["guidance"]))
        name, colour, marker = LINES[key]
        errors = [float(row.get(f"{metric}_se") or 0) for row in rows]
        axis.errorbar(
            [float(row["guidance"]) for row in rows], [float(row[metric]) for row in rows], errors,
            color=colour, marker=marker, ms=5, lw=1, ls="-" if seed == "0" else "--", capsize=2,
            label=name if seed == "0" else None,
        )  # fmt: skip
    axis.set(xlabel="guidance", title=title, xticks=[1, 1.5, 2, 3, 4])
    axis.grid(alpha=0.3)
axes[0].set_yscale("log")
axes[0].set_yticks([20, 30, 40, 60, 90], ["20", "30", "40", "60", "90"], minor=False)
axes[0].minorticks_off()
axes[0].legend(fontsize=8)
figure.savefig(FOLDER / "figures/guidance.png", dpi=110)
