"""Finds the DDIM paper's number (numbers/) for each row of a run, and the differences between the protocols."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.eval.tables.pivots import SIGMA_HAT
from taugrid.registry.extractors import INCEPTION
from taugrid.workers.diffusion.timesteps import tau

FOLDER = Path(__file__).parent / "numbers"

PAPER = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021 (arXiv 2010.02502)"
INCEPTION_SHA256 = "6726825d"
"""The first digits of the SHA-256 of torch-fidelity's file of Inception's weights."""
TIMESTEPS = 1000
PROCESS = f"linear betas from 0.0001 to 0.02, T = {TIMESTEPS}"
NUM_SAMPLES = 50_000
TEST_IMAGES = 10_000
"""The test images of CIFAR10, which table 2 uses."""

SOURCE_TIME = (
    "eps on the way up is taken at the time that a step leads to; eq. 13, as an Euler step, takes it at the time that "
    "it starts from (1.6 to 2.2 times the error)"
)


class NetworkOrigin(NamedTuple):
    """Where the network that made the samples comes from."""

    source: str
    """A loaded checkpoint's id on the hub or folder; otherwise words such as "trained here"."""
    process: str | None
    """Its forward process in words; None for the paper's, `PROCESS`."""


class EncodedImages(NamedTuple):
    """The images of a reconstruction, and the network and times that made it."""

    dataset: str
    split: str
    tau: tuple[int, ...]
    network: NetworkOrigin


class Counterpart(NamedTuple):
    """A published number, ours, and everything known to differ between the two."""

    table: str
    dataset: str
    metric: str
    sigma: str
    eta: float
    steps: int
    published: str
    """As printed."""
    ours: float
    standard_error: float
    """NaN if there is none."""
    differs: tuple[str, ...]
    note: str
    """What else is known about the published number."""
    cell: str
    """Empty for a reconstruction."""
    model: str

    @property
    def place(self) -> str:
        return f"S = {self.steps}" if self.metric == "mse" else f"η = {self.label}, S = {self.steps}"

    @property
    def label(self) -> str:
        return SIGMA_HAT if self.sigma == "sigma_hat" else str(self.eta)

    @property
    def difference(self) -> float:
        """Our number minus the published one."""
        return self.ours - float(self.published)


def quality_counterparts(
    rows: Iterable[Mapping[str, Any]], protocols: Mapping[str, Mapping[str, Any]], networks: Mapping[str, NetworkOrigin]
) -> list[Counterpart]:
    """The rows of quality.csv that have a counterpart in table 1 or 3, in their order.

    A counterpart has the reference's data set, S, and eta or sigma_hat; what else differs is listed, not refused.

    Args:
        rows: rows of quality.csv. Those without an FID, or of another sampler, have no counterpart.
        protocols: the protocols by the rows' `protocol`.
        networks: the networks by the rows' `model`.
    """
    return [found for row in rows if (found := _of_cell(row, protocols[row["protocol"]], networks)) is not None]


def _of_cell(
    row: Mapping[str, Any], protocol: Mapping[str, Any], networks: Mapping[str, NetworkOrigin]
) -> Counterpart | None:
    place = {"sigma": row["sigma"], "eta": str(float(row["eta"])), "steps": str(row["steps"])}
    place["dataset"] = protocol["reference"]["dataset"]
    number = next((line for line in _lines("fid") if place.items() <= line.items()), None)
    if number is None or row["sampler"] != "ddim" or row["fid"] is None or not math.isfinite(row["fid"]):
        return None
    dataset = dataset_facts(number["dataset"])
    differs = [
        *_times_differ(row["spacing"], protocol["tau"], number["spacing"], row["steps"]),
        *_clip_differs(protocol["clip"], number["clip"]),
        *_count_differs(protocol["num_samples"]),
        *_extractor_differs(protocol["extractor"]),
        *_reference_differs(protocol["reference"], dataset),
        *_network_differs(networks[row["model"]], dataset, protocol["weights"]),
    ]
    return Counterpart(
        table=number["table"],
        dataset=number["dataset"],
        metric="fid",
        sigma=number["sigma"],
        eta=float(number["eta"]),
        steps=int(number["steps"]),
        published=number["fid"],
        ours=row["fid"],
        standard_error=_or_nan(row["fid_se"]),
        differs=tuple(differs),
        note=number["note"],
        cell=row["cell"],
        model=row["model"],
    )


def reconstruction_counterparts(
    rows: Iterable[Mapping[str, Any]], encoded: Iterable[EncodedImages]
) -> list[Counterpart]:
    """The rows of reconstruction.csv that have a counterpart in table 2; `encoded` are in the order of `rows`."""
    pairs = zip(rows, encoded, strict=True)
    return [found for row, what in pairs if (found := _of_reconstruction(row, what)) is not None]


def _of_reconstruction(row: Mapping[str, Any], encoded: EncodedImages) -> Counterpart | None:
    place = {"dataset": encoded.dataset, "split": encoded.split, "steps": str(row["steps"])}
    number = next((line for line in _lines("reconstruction") if place.items() <= line.items()), None)
    if number is None:
        return None
    spacings = ("quadratic", "linear")
    times = [_times_differ(row["spacing"], encoded.tau, spacing, row["steps"]) for spacing in spacings]
    images = row["num_images"]
    differs = [
        SOURCE_TIME,
        *(times[0] if all(times) else []),
        *([f"{images:,} of the {TEST_IMAGES:,} test images"] if images != TEST_IMAGES else []),
        *_network_differs(encoded.network, dataset_facts(number["dataset"]), row["weights"]),
    ]
    return Counterpart(
        table=number["table"],
        dataset=number["dataset"],
        metric="mse",
        sigma="eta",
        eta=0.0,
        steps=int(number["steps"]),
        published=number["mse"],
        ours=row["mse"],
        standard_error=_or_nan(row["mse_se"]),
        differs=tuple(differs),
        note="the table names neither its spacing nor how many images it took",
        cell="",
        model=row["model"],
    )


def _times_differ(spacing: str, ours: Sequence[int], theirs: str, steps: int) -> list[str]:
    published = tau(theirs, steps, TIMESTEPS)
    if tuple(ours) == published:
        return []
    name = "listed times" if spacing[:1].isdigit() else spacing
    return [f"spacing {name} ({ours[0]} to {ours[-1]}), not {theirs} ({published[0]} to {published[-1]})"]


def _clip_differs(ours: str, theirs: str) -> list[str]:
    return [] if ours == theirs else [f"clip {ours}, not {theirs}"]


def _count_differs(num_samples: int) -> list[str]:
    return [] if num_samples == NUM_SAMPLES else [f"N = {num_samples:,}, not {NUM_SAMPLES:,}"]


def _extractor_differs(extractor: Mapping[str, Any]) -> list[str]:
    if extractor["name"] != INCEPTION:
        return [f"extractor {extractor['name']}, not {INCEPTION}: FID is on another scale"]
    if not extractor["weights_sha256"].startswith(INCEPTION_SHA256):
        return [f"extractor {INCEPTION} has other weights than the published ones"]
    return [f"features in {extractor['precision']}, not float32"] if "precision" in extractor else []


def _reference_differs(reference: Mapping[str, Any], dataset: Mapping[str, str]) -> Iterator[str]:
    if reference["split"] != "train":
        yield f"reference is split {reference['split']}, not train ({dataset['reference']})"
    if reference["num_images"] != int(dataset["train_images"]):
        yield f"reference of {reference['num_images']:,} images; the training set has {int(dataset['train_images']):,}"
    if not reference["preprocessing"].endswith(f" {dataset['shape']}"):
        yield f"images of {reference['preprocessing'].split()[-1]}, not {dataset['shape']}"


def _network_differs(network: NetworkOrigin, dataset: Mapping[str, str], weights: str) -> Iterator[str]:
    theirs = dataset["checkpoint"]
    if network.source.partition("@")[0] != theirs:  # the hub's id may name a revision
        yield f"network: {network.source}, not {theirs or 'the weights of the authors, which are not on the hub'}"
    elif note := dataset["checkpoint_note"]:
        yield note
    if weights != "ema":
        yield f"{weights} weights, not averaged ones (EMA)"
    if network.process is not None:
        yield f"forward process: {network.process}, not {PROCESS}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


@cache
def _lines(name: str) -> tuple[dict[str, str], ...]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def dataset_facts(name: str) -> dict[str, str]:
    """The line of numbers/datasets.csv about a data set."""
    return next(line for line in _lines("datasets") if line["dataset"] == name)
