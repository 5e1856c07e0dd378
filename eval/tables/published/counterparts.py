"""The DDIM paper's number (numbers/) for each row of a run, what differs between the protocols, and tables of both."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taugrid.eval.tables.labels import SIGMA_HAT
from taugrid.eval.tables.long_form import Row, as_csv, write_files
from taugrid.eval.tables.table import MISSING, shown_number
from taugrid.protocol import ProtocolFields
from taugrid.registry.extractors import INCEPTION
from taugrid.words import markdown_table
from taugrid.workers.diffusion.timesteps import tau

FOLDER = Path(__file__).parent / "numbers"

PAPER = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021 (arXiv 2010.02502)"
INCEPTION_SHA256 = "6726825d"  # the first digits of the SHA-256 of torch-fidelity's file of Inception's weights
TIMESTEPS = 1000
PROCESS = f"linear betas from 0.0001 to 0.02, T = {TIMESTEPS}"
NUM_SAMPLES = 50_000
TEST_IMAGES = 10_000  # of CIFAR10, which table 2 uses

SOURCE_TIME = (
    "eps on the way up is taken at the time that a step leads to; eq. 13, as an Euler step, takes it at the time that "
    "it starts from (1.6 to 2.2 times the error)"
)


class NetworkOrigin(NamedTuple):
    source: str  # a loaded checkpoint's id on the hub or folder; otherwise words such as "trained here"
    process: str | None  # its forward process in words; None for the paper's, `PROCESS`
    kind: str = "ddpm"  # which forward process it is: `ddpm`, `edm` or `flow`


class EncodedImages(NamedTuple):
    """The images of a reconstruction, and the network and times that made it."""

    dataset: str
    split: str
    tau: tuple[float, ...]
    network: NetworkOrigin


class Counterpart(NamedTuple):
    table: str
    dataset: str
    metric: str
    sigma: str
    eta: float
    steps: int
    published: str
    """The published number as printed."""
    ours: float
    standard_error: float
    """NaN if there is none."""
    differs: tuple[str, ...]
    note: str
    """Further facts about the published number."""
    cell: str
    """The id of our cell; empty for a reconstruction."""
    model: str

    @property
    def label(self) -> str:
        return SIGMA_HAT if self.sigma == "sigma_hat" else str(self.eta)

    @property
    def place(self) -> str:
        return f"S = {self.steps}" if self.metric == "mse" else f"η = {self.label}, S = {self.steps}"

    @property
    def difference(self) -> float:
        return self.ours - float(self.published)


def quality_counterparts(
    rows: Iterable[Row], protocols: Mapping[str, ProtocolFields], networks: Mapping[str, NetworkOrigin]
) -> list[Counterpart]:
    """The rows of quality.csv with a counterpart in table 1 or 3, by the reference's data set, S, and eta or sigma_hat.

    What else differs is listed, but another sampler or process has none. `networks` are by the rows' `model`.
    """
    counterparts = []
    for row in rows:
        if row["sampler"] != "ddim" or networks[row["model"]].kind != "ddpm":
            continue
        protocol = protocols[row["protocol"]]
        place = {"sigma": row["sigma"], "eta": str(float(row["eta"])), "steps": str(row["steps"])}
        number = _published("fid", place | {"dataset": protocol["reference"]["dataset"]})
        if number is not None and row["fid"] is not None and math.isfinite(row["fid"]):
            differs = _cell_differs(row, protocol, number, networks[row["model"]])
            counterparts.append(_counterpart("fid", number, row, differs))
    return counterparts


def reconstruction_counterparts(rows: Iterable[Row], encoded: Iterable[EncodedImages]) -> list[Counterpart]:
    """The rows of reconstruction.csv that have a counterpart in table 2; `encoded` are in the order of `rows`."""
    counterparts = []
    for row, images in zip(rows, encoded, strict=True):
        place = {"dataset": images.dataset, "split": images.split, "steps": str(row["steps"])}
        if (number := _published("reconstruction", place)) is not None:
            note = "the table names neither its spacing nor how many images it took"
            times = [_times_differ(row["spacing"], images.tau, each, row["steps"]) for each in ("quadratic", "linear")]
            differs = [SOURCE_TIME, *(times[0] if all(times) else [])]
            if row["num_images"] != TEST_IMAGES:
                differs.append(f"{row['num_images']:,} of the {TEST_IMAGES:,} test images")
            differs += _network_differs(images.network, dataset_facts(number["dataset"]), row["weights"])
            known = number | {"sigma": "eta", "eta": "0.0", "note": note}
            counterparts.append(_counterpart("mse", known, row, differs))
    return counterparts


def _counterpart(metric: str, number: Mapping[str, str], row: Row, differs: Iterable[str]) -> Counterpart:
    error = row[f"{metric}_se"]
    return Counterpart(
        table=number["table"],
        dataset=number["dataset"],
        metric=metric,
        sigma=number["sigma"],
        eta=float(number["eta"]),
        steps=int(number["steps"]),
        published=number[metric],
        ours=row[metric],
        standard_error=math.nan if error is None else error,
        differs=tuple(differs),
        note=number["note"],
        cell=row["cell"] if metric == "fid" else "",
        model=row["model"],
    )


def _cell_differs(
    row: Row, protocol: ProtocolFields, number: Mapping[str, str], network: NetworkOrigin
) -> Iterator[str]:
    dataset, clip, num_samples = dataset_facts(number["dataset"]), protocol["clip"], protocol["num_samples"]
    yield from _times_differ(row["spacing"], protocol["tau"], number["spacing"], row["steps"])
    if clip != number["clip"]:
        yield f"clip {clip}, not {number['clip']}"
    if num_samples != NUM_SAMPLES:
        yield f"N = {num_samples:,}, not {NUM_SAMPLES:,}"
    extractor, reference = protocol["extractor"], protocol["reference"]
    if extractor["name"] != INCEPTION:
        yield f"extractor {extractor['name']}, not {INCEPTION}: FID is on another scale"
    elif not extractor["weights_sha256"].startswith(INCEPTION_SHA256):
        yield f"extractor {INCEPTION} has other weights than the published ones"
    elif "precision" in extractor:
        yield f"features in {extractor['precision']}, not float32"
    if reference["split"] != "train":
        yield f"reference is split {reference['split']}, not train ({dataset['reference']})"
    if reference["num_images"] != int(dataset["train_images"]):
        yield f"reference of {reference['num_images']:,} images; the training set has {int(dataset['train_images']):,}"
    if not reference["preprocessing"].endswith(f" {dataset['shape']}"):
        yield f"images of {reference['preprocessing'].split()[-1]}, not {dataset['shape']}"
    yield from _network_differs(network, dataset, protocol["weights"])


def _times_differ(spacing: str, ours: Sequence[float], theirs: str, steps: int) -> list[str]:
    published = tau(theirs, steps, TIMESTEPS)
    if tuple(ours) == published:
        return []
    name = "listed times" if spacing[:1].isdigit() else spacing
    return [f"spacing {name} ({ours[0]} to {ours[-1]}), not {theirs} ({published[0]} to {published[-1]})"]


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


@cache
def lines(name: str) -> tuple[dict[str, str], ...]:
    """The lines of a file in numbers/, by its name without the suffix."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def _published(name: str, place: Mapping[str, Any]) -> dict[str, str] | None:
    return next((line for line in lines(name) if place.items() <= line.items()), None)


def dataset_facts(name: str) -> dict[str, str]:
    """The line of numbers/datasets.csv about a data set."""
    return next(line for line in lines("datasets") if line["dataset"] == name)


def write_published(counterparts: Sequence[Counterpart], folder: Path, stem: str) -> None:
    write_files(folder, stem, csv=as_csv(published_frame(counterparts)), md=published_markdown(counterparts))


def pointer(counterparts: Sequence[Counterpart], stem: str) -> list[str]:
    """A note that points from the table of a run's numbers to this one; none without counterparts."""
    return [f"the paper's numbers stand beside {len(counterparts)} of these in {stem}.md"] if counterparts else []


def published_frame(counterparts: Sequence[Counterpart]) -> pd.DataFrame:
    """A row for each counterpart. `difference` is the run's number minus the published one."""
    columns = list(Counterpart._fields)
    columns.insert(columns.index("differs"), "difference")
    rows = [
        one._asdict()
        | {"published": float(one.published), "difference": one.difference, "differs": "; ".join(one.differs)}
        for one in counterparts
    ]
    return pd.DataFrame(rows, columns=columns)


def published_markdown(counterparts: Sequence[Counterpart]) -> str:
    """A table in GitHub's Markdown for each data set. Differences common to all of its rows are listed above it."""
    blocks = [f"## Published numbers\n\n{PAPER}. Difference is ours minus the paper's."]
    for table, dataset in dict.fromkeys((one.table, one.dataset) for one in counterparts):
        members = [one for one in counterparts if (one.table, one.dataset) == (table, dataset)]
        shared = [text for text in members[0].differs if all(text in one.differs for one in members)]
        of = "FID" if members[0].metric == "fid" else "reconstruction error"
        blocks.append(f"### Table {table}, {dataset}: {of}")
        if shared:
            blocks.append(f"Unlike the paper, in every row: {'; '.join(shared)}.")
        elif not any(one.differs for one in members):
            blocks.append("Nothing that is known differs from the paper's protocol.")
        blocks += [_table(members, shared), _notes(members)]
    return "\n\n".join(blocks) + "\n"


def _table(members: Sequence[Counterpart], shared: Sequence[str]) -> str:
    rows = []
    for one in members:
        decimals = len(one.published.partition(".")[2])
        rows.append({
            "η": one.label,
            "S": str(one.steps),
            "paper": one.published,
            "ours": shown_number(one.ours, one.standard_error),
            "difference": f"{one.difference:+.{decimals}f}",
            "what else differs": "; ".join(text for text in one.differs if text not in shared) or MISSING,
            "cell": one.cell or one.model,
        })  # fmt: skip
    hidden = set() if members[0].metric == "fid" else {"η"}
    hidden |= {"cell"} if len({one.place for one in members}) == len(members) else set()
    heads = [head for head in rows[0] if head not in hidden]
    columns = "".join("r" if head in ("S", "paper", "ours", "difference") else "l" for head in heads)
    return markdown_table(heads, columns, [[row[head] for head in heads] for row in rows])


def _notes(members: Sequence[Counterpart]) -> str:
    by_note: dict[str, dict[str, None]] = {}
    for one in members:
        by_note.setdefault(one.note, {})[one.place] = None
    places = {one.place for one in members}
    notes = [note if len(at) == len(places) else f"{', '.join(at)}: {note}" for note, at in by_note.items() if note]
    if members[0].metric == "fid":
        notes.append(dataset_facts(members[0].dataset)["reference"])
    return "\n".join(f"- {note}" for note in notes)
