"""What evaluation costs, torch-fidelity's and taugrid's, in turns within each round.

    python -m benchmarks.evaluation [--images 200] [--rounds 3] [--samples 1000 5000 ...] [--cells 3] [--threads 1]
        [--metrics fid isc kid prc]

- extraction: images per second from a folder of 32x32 PNG files to Inception's features and logits, decoding included.
  The same weights, drawn from a seed, on both sides; each side as it is used, with its own batches and decoders
  (torch-fidelity: 64 and 4 processes; taugrid: 250 and threads). The largest difference of a feature is printed, too.
- metrics: CPU seconds per cell from given features of 2048 dimensions and 1008 logits to FID, IS, KID (100 subsets of
  1000), and precision and recall, many cells sharing one reference, for each number of samples. Neither side's time
  for FID holds the reference's own statistics. taugrid keeps the reference's part of KID and of precision and recall,
  so the first cell takes longer: it is printed beside the median of the later ones. taugrid's numbers have standard
  errors (of FID from N = 20,480 on, of KID, IS and precision where enough samples carry them); torch-fidelity's have
  none. Where the errors are computed apart from the rest, which they are above 10,000 samples, their share is printed.
  Precision and recall of more than 25,000 samples are torch-fidelity's with save_cpu_ram, as its three matrices would
  take 30 GB. On Linux, the most memory that each metric had beyond the features is printed.

Medians over rounds or later cells, and the ratios of medians. `--images 0` leaves extraction out, `--metrics` others.
50,000 samples need 4 GB, and half an hour for each cell on one core.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.eval.metrics import kernel
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.logits import InceptionSums
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import score
from taugrid.eval.metrics.statistics import Features, symmetric_root
from taugrid.eval.metrics.statistics import moments as moments_of
from taugrid.eval.sources import batches, open_images
from taugrid.registry.extractors import INCEPTION
from taugrid.registry.metrics import MetricSettings
from taugrid.workers.device import set_up

LAYERS = ["2048", "logits_unbiased"]
DIMENSIONS, CLASSES = 2048, 1008
BATCH_SIZE = 250
"""taugrid's default; torch-fidelity keeps its own."""

LEAST_SECONDS = 0.2
"""Of a measurement of a metric: the clock of CPU seconds may tick every 10 ms only."""

LARGEST_MATRICES = 25_000
"""The largest N for which torch-fidelity gets all distances at once, as it does by default."""

THEIRS, OURS = "torch-fidelity", "taugrid"

ALL_AT_ONCE = 10_000
"""The largest N for which one pass gives KID and its error, so that neither has a time of its own."""

FOR_ERRORS = ((Frechet, "influence"), (InceptionSums, "influence"), (kernel, "kernel_sums"))
"""What taugrid calls for errors alone, above `ALL_AT_ONCE`."""

Way = Callable[[], object]


class Blank(torch_fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception as its layers are born: it has no way to make one without a file of weights."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


def draw_weights(path: Path) -> None:
    """Kaiming-normal weights: torch's default gives the same features for all images."""
    torch.save({}, path)
    torch.manual_seed(0)
    network = Blank(INCEPTION, LAYERS, feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)


def draw_images(folder: Path, count: int) -> None:
    """Blots of colour with some noise, as PNG files."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        blots = random.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
        pixels = (blots + random.normal(0, 10, blots.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")


def in_turns(
    ways: dict[str, Way], rounds: int, clock: Callable[[], float] = time.perf_counter, least: float = 0.0
) -> dict[str, float]:
    """Median seconds of each way, which is called again until `least` seconds have passed."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began, calls = clock(), 0
            while not calls or clock() - began < least:
                way()
                calls += 1
            seconds[name].append((clock() - began) / calls)
    return {name: statistics.median(times) for name, times in seconds.items()}


def time_extraction(folder: Path, images: int, rounds: int) -> None:
    weights, pictures = folder / "inception.pth", folder / "images"
    draw_weights(weights)
    draw_images(pictures, images)
    theirs = create_feature_extractor(
        INCEPTION, LAYERS, cuda=False, feature_extractor_weights_path=str(weights), verbose=False
    )
    ours = load(resolve(INCEPTION, "any", str(weights), (3, 32, 32)), "cpu")

    def torch_fidelity_way() -> Tensor:
        found = extract_featuresdict_from_input_id(1, theirs, input1=str(pictures), cuda=False, verbose=False)
        return found["2048"]

    def taugrid_way() -> Tensor:
        source = open_images(str(pictures))
        found = [ours(torch.from_numpy(batch)).features for _, batch in batches(source, BATCH_SIZE)]
        return torch.cat(found)

    expected, features = torch_fidelity_way(), taugrid_way()
    difference = float((expected - features).abs().max())
    spread = float(expected.std(dim=0).median())
    seconds = in_turns({THEIRS: torch_fidelity_way, OURS: taugrid_way}, rounds)
    theirs_rate, ours_rate = images / seconds[THEIRS], images / seconds[OURS]
    print(f"extraction of {images} images: {THEIRS} {theirs_rate:.2f} images/s, {OURS} {ours_rate:.2f}, ratio "
          f"{ours_rate / theirs_rate:.2f} (medians of {rounds}); "
          f"features differ by at most {difference:.1e}, their median std is {spread:.2f}")  # fmt: skip


def clocked(owner: object, name: str, spent: dict[str, float]) -> None:
    """Have the calls of a function add their CPU seconds to `spent["errors"]`."""
    function = getattr(owner, name)

    def call(*given: object, **named: object) -> object:
        began = time.process_time()
        result = function(*given, **named)
        spent["errors"] += time.process_time() - began
        return result

    setattr(owner, name, call)


def resident(field: str) -> int:
    """MiB of this process's memory, `VmRSS` now or `VmHWM` at most; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else [f"{field}: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


def with_peak(way: Way, peaks: dict[str, int], side: str, before: int) -> Way:
    """The same, which notes in `peaks` by how many MiB more than `before` the process had at most while it ran."""

    def call() -> None:
        if (clear := Path("/proc/self/clear_refs")).exists():
            clear.write_text("5")  # the peak starts anew
        way()
        peaks[side] = max(peaks.get(side, 0), resident("VmHWM") - before)

    return call


def draw_features(random: np.random.Generator, samples: int) -> Features:
    """Non-negative, as Inception's, with variances that fall by a factor of 400."""
    scale = np.geomspace(1, 0.05, DIMENSIONS)
    return (np.abs(random.normal(size=(samples, DIMENSIONS))) * scale).astype(np.float32)


def ways_of_cell(
    features: Features, logits: Features, reference: ReferenceStatistics, reference_statistics: object
) -> dict[str, dict[str, Way]]:
    """Metric -> both ways to compute it for a cell."""
    tensor, logits_tensor = torch.from_numpy(features), torch.from_numpy(logits)
    reference_tensor = torch.from_numpy(reference.features)

    def theirs_fid() -> object:
        return fid_statistics_to_metric(fid_features_to_statistics(tensor), reference_statistics, verbose=False)

    def ours(metric: str) -> Way:
        settings = MetricSettings(metrics=(metric,))
        return lambda: score(
            lambda: iter([features]), lambda: iter([logits]), len(features), reference, settings
        )  # fmt: skip

    return {
        "fid": {THEIRS: theirs_fid, OURS: ours("fid")},
        "isc": {THEIRS: lambda: isc_features_to_metric(logits_tensor), OURS: ours("isc")},
        "kid": {
            THEIRS: lambda: kid_features_to_metric(tensor, reference_tensor, verbose=False),
            OURS: ours("kid"),
        },
        "prc": {
            THEIRS: lambda: prc_features_to_metric(
                tensor, reference_tensor, save_cpu_ram=len(features) > LARGEST_MATRICES, verbose=False
            ),
            OURS: ours("prc"),
        },
    }


def time_metrics(samples: int, cells: int, metrics: list[str]) -> None:
    random = np.random.default_rng(0)
    reference_features = draw_features(random, samples)
    moments = moments_of([reference_features], samples)
    reference = ReferenceStatistics(moments, symmetric_root(moments.covariance), samples, lambda: reference_features)
    reference_statistics = fid_features_to_statistics(torch.from_numpy(reference_features))
    times: dict[str, list[dict[str, float]]] = {}
    peaks: dict[str, dict[str, int]] = {metric: {} for metric in metrics}
    spent = {"errors": 0.0}
    if samples > ALL_AT_ONCE:
        for owner, name in FOR_ERRORS:
            clocked(owner, name, spent)
    for _ in range(cells):
        logits = random.normal(0, 3, (samples, CLASSES)).astype(np.float32)
        ways = ways_of_cell(draw_features(random, samples), logits, reference, reference_statistics)
        before = resident("VmRSS")
        for metric in metrics:
            watched = {side: with_peak(way, peaks[metric], side, before) for side, way in ways[metric].items()}
            times.setdefault(metric, []).append(in_turns(watched, 1, time.process_time, LEAST_SECONDS))
    print(f"metrics of {samples:,} samples of {DIMENSIONS} dimensions, first of {cells} cells and median of the later:")
    for metric, each in times.items():
        report(metric, each)
        print("    most memory beyond the features: "
              + ", ".join(f"{side} {peak:,} MiB" for side, peak in peaks[metric].items()))  # fmt: skip
    together = [{side: sum(each[i][side] for each in times.values()) for side in (THEIRS, OURS)} for i in range(cells)]
    report("all", together)
    if spent["errors"]:
        print(f"  of taugrid's, for errors alone: {spent['errors'] / cells:.3f} CPU s a cell")


def report(what: str, cells: list[dict[str, float]]) -> None:
    """A line: CPU seconds of both sides for a later cell, their ratio, and the first cell's ratio."""
    later = cells[1:] or cells
    theirs, ours = (statistics.median(cell[side] for cell in later) for side in (THEIRS, OURS))
    first = cells[0][THEIRS] / cells[0][OURS]
    print(f"  {what}: {THEIRS} {theirs:.3f} CPU s a cell, {OURS} {ours:.3f}, ratio {theirs / ours:.2f} "
          f"(of the first cell {first:.2f})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--metrics", nargs="*", default=["fid", "isc", "kid", "prc"])
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch and NumPy")
    arguments = parser.parse_args()
    set_up(arguments.threads)
    print(f"{os.cpu_count()} cores, {arguments.threads} threads")
    with threadpool_limits(arguments.threads):
        if arguments.images:
            with tempfile.TemporaryDirectory() as folder:
                time_extraction(Path(folder), arguments.images, arguments.rounds)
        for samples in arguments.samples:
            time_metrics(samples, arguments.cells, arguments.metrics)


if __name__ == "__main__":
    main()
