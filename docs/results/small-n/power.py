"""At which N metrics tell two cells apart, and which faults they see: `python power.py RUN DIGITS`.

RUN is a run of config.yaml. Its cells are cut into blocks of N images, and their difference is tested in each block.
DIGITS is a run of digits.yaml: the averaged weights of its network, and those before averaging.
"""

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

import taugrid
from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics, of_features, read_all
from taugrid.eval.metrics.score import MetricResult, score
from taugrid.eval.metrics.statistics import standard_error
from taugrid.registry.metrics import MetricSettings
from taugrid.workers.diffusion import forward
from taugrid.workers.samplers import ddim

Images = NDArray[np.uint8]
"""(n, H, W)."""
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features (n, d) and logits (n, classes)."""

METRICS = {"fid": "FID", "kid": "KID", "mind": "MIND", "cmmd": "CMMD", "precision": "precision", "isc_mean": "IS"}
SETTINGS = MetricSettings(("fid", "kid", "mind", "cmmd", "prc", "isc"), kid_subsets=1, kid_subset_size=2)
DRAWN = ("fid", "kid", "mind")
BASE = "steps=10,precision=float32"
CELLS = {
    "10 and 12 steps": ("steps=12,precision=float32", 10000),
    "10 and 20 steps": ("steps=20,precision=float32", 5000),
    "float32 and bf16": ("steps=10,precision=bf16", 10000),
}
"""Title -> what the base is compared with, and the number of its images."""
HOW = {True: "paired", False: "unpaired"}
SIZES = (500, 1000, 2000, 5000, 10000)
FIVE_PERCENT, ONE_PERCENT = norm.isf([0.025, 0.005])
TESTED, SEEDS, EQUAL_NIGHTS = 1000, 20, 200
"""N of the faults; sets of images with a fault; pairs of sets of one model."""
MISSING, SHARE_BLACK = 5, 0.01
"""The class that is missing, sandals; the share of images that are black."""


def difference(a: MetricResult, b: MetricResult, name: str, paired: bool) -> float | None:
    """The z of b - a; None if a side has no standard error."""
    if name not in a.influences or name not in b.influences:
        return None
    one, other = a.influences[name], b.influences[name]
    error = standard_error(one - other) if paired else np.hypot(standard_error(one), standard_error(other))
    return (b.values[name] - a.values[name]) / error


def reference_of(run: Path) -> ReferenceStatistics:
    """The reference that the run was scored against."""
    (folder,) = (run / "features").glob("*/reference-*")
    features = np.concatenate(list(read_all(sorted(folder.glob("*.parquet")))))
    return of_features(lambda: iter([features]), len(features), None, "", lambda: features)


class Extractor:
    """Scores images as a run of a data set does by default."""

    def __init__(self, run: Path, data_name: str, side: int) -> None:
        self.extract = load(resolve(None, data_name, None, (1, side, side)), "cpu")
        self.reference = reference_of(run)

    def outputs(self, images: Images) -> Outputs:
        found = [self.extract(torch.from_numpy(part)[:, None]) for part in np.array_split(images, len(images) // 250)]
        return np.concatenate([one.features.numpy() for one in found]), np.concatenate(
            [one.logits.numpy() for one in found if one.logits is not None]
        )

    def score(self, outputs: Outputs, chosen: slice | NDArray[np.int64]) -> MetricResult:
        features, logits = (side[chosen] for side in outputs)
        return score(lambda: iter([features]), lambda: iter([logits]), len(features), self.reference, SETTINGS)


def jpeg(images: Images) -> Images:
    """JPEG of quality 75 and back."""

    def once(image: Images) -> Images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        return np.asarray(Image.open(file))

    return np.stack([once(image) for image in images])


def resized(images: Images) -> Images:
    """Twice as wide and high, and back by the nearest pixel, without antialiasing."""
    high, wide = images.shape[1:]
    large = [Image.fromarray(one).resize((2 * wide, 2 * high), Image.Resampling.BILINEAR) for one in images]
    return np.stack([np.asarray(one.resize((wide, high), Image.Resampling.NEAREST)) for one in large])


def partly_black(images: Images) -> Images:
    found = images.copy()
    found[:: round(1 / SHARE_BLACK)] = 0
    return found


FAULTS: dict[str, Callable[[Images], Images]] = {
    "JPEG 75": jpeg,
    "enlarged twice, shrunk without antialiasing": resized,
    "1 % black": partly_black,
}


def power(run: Path, extractor: Extractor) -> None:
    """Print and draw how often a difference shows."""
    opened = taugrid.open(str(run))
    outputs = {
        name: extractor.outputs(opened.cell(name).images(range(n)))
        for name, n in {BASE: SIZES[-1], **dict(CELLS.values())}.items()
    }
    blocks = {
        (name, n): [extractor.score(cell, slice(i, i + n)) for i in range(0, len(cell[0]) - n + 1, n)]
        for name, cell in outputs.items()
        for n in SIZES
    }
    figure, panels = plt.subplots(1, len(CELLS), figsize=(12, 3.4), sharey=True, layout="constrained")
    for panel, (title, (name, most)) in zip(panels, CELLS.items(), strict=True):
        sizes = [n for n in SIZES if n <= most]
        print(f"\n{title}: z of all {most:,} images, N for a power of 80 %, how often |z| > 1.96 in how many blocks\n")
        print(f"| | | z | 80 % at | {' | '.join(f'{n:,} ({most // n})' for n in sizes)} |")
        print(f"| :-- | :-- | --: | --: |{' --: |' * len(sizes)}")
        for metric, paired in itertools.product(METRICS, (True, False)):
            z = difference(blocks[BASE, most][0], blocks[name, most][0], metric, paired)
            pairs = [(n, blocks[BASE, n][: most // n], blocks[name, n]) for n in sizes]
            shares = {n: rate(old, new, metric, paired) for n, old, new in pairs}
            needed = "" if z is None else most * ((FIVE_PERCENT + norm.isf(0.2)) / z) ** 2
            said = ["no error" if share is None else f"{share:.0%}" for share in shares.values()]
            start = ["no error", ""] if z is None else [f"{z:.1f}", f"{float(f'{needed:.2g}'):,.0f}"]
            print(f"| {METRICS[metric]} | {HOW[paired]} | {' | '.join(start + said)} |", flush=True)
            if metric in DRAWN and z is not None:
                draw(panel, z / np.sqrt(most), {n: shares[n] for n in sizes if n < most}, metric, paired)
        panel.set(xscale="log", xlabel="N", title=title, ylim=(-0.03, 1.03), xlim=(400, 25000))
        panel.set_xticks([500, 1000, 2000, 5000, 10000, 20000], ["500", "1k", "2k", "5k", "10k", "20k"])
        panel.minorticks_off()
    panels[0].set_ylabel("power at 5 %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(Path(__file__).parent / "power.svg")


def rate(old: Sequence[MetricResult], new: Sequence[MetricResult], metric: str, paired: bool) -> float | None:
    """The share of blocks in which two cells differ. Unpaired blocks start from other noise: the next block's."""
    if not paired and len(old) > 1:
        new = [*new[1:], new[0]]
    found = [difference(a, b, metric, paired) for a, b in zip(old, new, strict=True)]
    known = [abs(z) > FIVE_PERCENT for z in found if z is not None]
    return float(np.mean(known)) if known else None


def draw(panel: plt.Axes, z_of_one: float, shares: Mapping[int, float | None], metric: str, paired: bool) -> None:
    """The power that the difference and error of all images give, and the shares of blocks as points."""
    sizes, color = np.geomspace(400, 20000, 200), f"C{DRAWN.index(metric)}"
    at = abs(z_of_one) * np.sqrt(sizes)
    line = norm.cdf(at - FIVE_PERCENT) + norm.cdf(-at - FIVE_PERCENT)
    panel.plot(sizes, line, "-" if paired else "--", color=color, label=f"{METRICS[metric]}, {HOW[paired]}")
    points = {n: share for n, share in shares.items() if share is not None}
    panel.plot(points.keys(), points.values(), "o", color=color, markersize=4, fillstyle="full" if paired else "none")


def tell(name: str, found: Sequence[tuple[MetricResult, MetricResult]], paired: bool) -> None:
    """Print a row: how often |z| > 2.58, and how often there was no error."""
    row = []
    for metric in METRICS:
        zs = [difference(a, b, metric, paired) for a, b in found]
        seen, none = sum(z is not None and abs(z) > ONE_PERCENT for z in zs), sum(z is None for z in zs)
        row.append(f"{seen}" + (f" ({none} without an error)" if none else ""))
    print(f"| {name} | {HOW[paired]} | {' | '.join(row)} |", flush=True)


def header(what: str) -> None:
    print(f"\n{what}\n\n| fault | images | {' | '.join(METRICS.values())} |\n| :-- | :-- |{' --: |' * len(METRICS)}")


def image_faults(run: Path, extractor: Extractor) -> None:
    """Print how often faults of images are seen at 1 %, and how often nothing is."""
    images = taugrid.open(str(run)).cells[0].images()
    healthy = extractor.outputs(images)
    random, most = np.random.default_rng(1), len(images)
    draws = [random.permutation(most)[: 2 * TESTED] for _ in range(EQUAL_NIGHTS)]
    header(f"{SEEDS} random pairs of disjoint sets of {TESTED:,} of {most:,} images; nights of one model: {len(draws)}")
    tell("none", [halves(extractor, healthy, healthy, drawn) for drawn in draws], False)
    classes = healthy[1].argmax(axis=1)
    others = random.choice(np.flatnonzero(classes != MISSING), most)
    kept = np.where(classes == MISSING, others, np.arange(most))
    sets = {"one class missing": (healthy[0][kept], healthy[1][kept])}
    sets |= {name: extractor.outputs(plant(images)) for name, plant in FAULTS.items()}
    for name, faulty in sets.items():
        tell(name, [halves(extractor, healthy, faulty, drawn) for drawn in draws[:SEEDS]], False)
        same = [(extractor.score(healthy, drawn[:TESTED]), extractor.score(faulty, drawn[:TESTED]))
                for drawn in draws[:SEEDS]]  # fmt: skip
        tell(name, same, True)


def halves(
    extractor: Extractor, old: Outputs, new: Outputs, drawn: NDArray[np.int64]
) -> tuple[MetricResult, MetricResult]:
    return extractor.score(old, drawn[:TESTED]), extractor.score(new, drawn[TESTED:])


def model_faults(run: Path, extractor: Extractor) -> None:
    """Print how often faults of networks and samplers are seen at 1 %."""
    header(f"Digits, {SEEDS} pairs of sets of {TESTED:,}")
    ema, raw = (extractor.outputs(cell.images()) for cell in taugrid.open(str(run)).cells)
    (model,) = (run / "models").iterdir()
    with scaled_sigma(1.02):
        batches = np.split(np.arange(SEEDS * TESTED), SEEDS * 4)
        noisier = np.concatenate([taugrid.sample(str(model), batch, steps=10, eta=1.0) for batch in batches])
    sets = {"none": ema, "EMA off": raw, "sigma x 1.02": extractor.outputs(noisier)}
    blocks = {name: [extractor.score(outputs, slice(i, i + TESTED)) for i in range(0, SEEDS * TESTED, TESTED)]
              for name, outputs in sets.items()}  # fmt: skip
    for name, block in blocks.items():
        tell(name, list(zip(blocks["none"], [*block[1:], block[0]], strict=True)), False)
        if name != "none":
            tell(name, list(zip(blocks["none"], block, strict=True)), True)


@contextlib.contextmanager
def scaled_sigma(factor: float) -> Iterator[None]:
    """Eq. 16's sigma times `factor`, in this process."""
    ddim.sigma = lambda *at: factor * forward.sigma(*at)
    try:
        yield
    finally:
        ddim.sigma = forward.sigma


def main() -> None:
    """Print Markdown tables, and draw power.svg beside this file."""
    run, digits = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    fashion = Extractor(run, "fashion-mnist", 28)
    power(run, fashion)
    image_faults(run, fashion)
    model_faults(digits, Extractor(digits, "digits", 8))


if __name__ == "__main__":
    main()
