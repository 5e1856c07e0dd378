"""How far the images of each precision are from float32's, in grey levels: `python distances.py RUN`."""

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet

Setting = tuple[str, ...]
"""Steps, eta, precision, compile."""


def read(run: Path) -> dict[Setting, NDArray[np.int16]]:
    """The images (N, C, H, W) of each cell, in the order of their indices."""
    with (run / "tables" / "cells.csv").open() as file:
        folders = {row["cell"]: row["folder"] for row in csv.DictReader(file)}
    found = {}
    with (run / "tables" / "quality.csv").open() as file:
        for row in csv.DictReader(file):
            files = sorted((run / "samples" / folders[row["cell"]]).glob("*.parquet"))
            batches = [batch for path in files for _, batch in parquet.read_images(path)]
            setting = tuple(row[key] for key in ("steps", "eta", "sample_precision", "compile"))
            found[setting] = np.concatenate([np.stack(list(batch)) for batch in batches]).astype(np.int16)
    return found


def main() -> None:
    """Print a Markdown table."""
    images = read(Path(sys.argv[1]))
    print("| S | η | | mean | mean with sign | pixels that moved | by more than 8 | farthest image |")
    print("| --: | --: | :-- | --: | --: | --: | --: | --: |")
    for (steps, eta, precision, compiled), batch in images.items():
        if precision == "float32":
            continue
        signed = batch - images[steps, eta, "float32", "none"]
        apart = np.abs(signed)
        farthest = apart.mean(axis=(1, 2, 3)).max()
        name = precision + " and compile" * (compiled != "none")
        print(f"| {steps} | {eta} | {name} | {apart.mean():.2f} | {signed.mean():+.2f} | {(apart > 0).mean():.1%} | "
              f"{(apart > 8).mean():.1%} | {farthest:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
