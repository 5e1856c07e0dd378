"""The devices, software versions and seconds that made a cell's images, from the events.

A shard's event is written after its commit. If the driver is killed in between, the file has no event, and its maker is
unknown.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taugrid.orchestrator.plan.cells import part_name

PACKAGES = ("taugrid", "torch", "diffusers", "numpy", "pillow")
"""Software that an image's bytes depend on."""

LIBRARIES = ("cuda", "cudnn", "hip", "miopen", "driver")
"""The same of a GPU (`workers.accelerator.libraries`)."""


class Maker(NamedTuple):
    """A kind of worker: its device, the versions of `PACKAGES` and `LIBRARIES` on it, the number of CPU threads."""

    device: str
    versions: tuple[tuple[str, str], ...]
    threads: int | None
    """None: not known."""
    kind: str
    """`cpu`, `cuda`, `rocm` or `mps`."""
    processor: str = ""
    """The model of a CPU, as far as it is known: two models may differ in the last bits under one `device`."""


@dataclass
class Origin:
    seconds: float = 0.0
    """NaN: some images were only decoded, from the latents of another cell."""
    makers: set[Maker] = field(default_factory=set)
    images: int = 0
    """The images of known files; a file without its event is not among them."""
    is_known: bool = True
    """Whether a maker is known of each of these files."""

    def seconds_of(self, num_samples: int) -> float:
        """The seconds of the first N images, in proportion: a cell that grew, or a lowered N, has more."""
        return self.seconds * num_samples / self.images if self.images > num_samples else self.seconds

    def if_known(self, num_samples: int) -> "Origin":
        """Itself; an unknown origin if it is not known who made each of the first N images."""
        return self if self.is_known and self.images >= num_samples else Origin()

    @property
    def mixtures(self) -> list[str]:
        """The differences between the makers, a phrase for each kind."""
        devices = sorted({maker.device for maker in self.makers})
        mixtures = [f"mixed: sampled on {', '.join(devices)}"] if len(devices) > 1 else []
        for name in (*PACKAGES, *LIBRARIES):
            versions = sorted({version for maker in self.makers for key, version in maker.versions if key == name})
            if len(versions) > 1:
                mixtures.append(f"mixed: sampled with {name} {', '.join(versions)}")
        return mixtures


def origins(events: Iterable[Mapping[str, Any]]) -> dict[str, Origin]:
    """Cell id -> the origin of its images."""
    by_cell: dict[str, Origin] = defaultdict(Origin)
    for (cell, _), shard in _shards(events).items():
        by_cell[cell].seconds += shard.seconds
        by_cell[cell].images += shard.images
        by_cell[cell].makers |= shard.makers
        by_cell[cell].is_known &= bool(shard.makers)
    return by_cell


def first_origins(events: Iterable[Mapping[str, Any]]) -> dict[str, Origin]:
    """Cell id -> the origin of its first shard."""
    shards = _shards(events).items()
    return {cell: shard for (cell, name), shard in shards if name == part_name(0)}


TAUGRID = "taugrid"
"""A different version of taugrid alone does not count as different software: a night checks that upgrades of it change
neither images nor scores."""

REFERENCE = "reference"
"""The key of the reference in `scorers`."""


def scorers(events: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Cell id, or `REFERENCE` -> the devices, with their threads, that extracted its features and scored it."""
    return {
        key: {f"{maker.device}, threads: {maker.threads or 'unknown'}" for maker in makers}
        for key, makers in _scorers(events).items()
    }


def _scorers(events: Iterable[Mapping[str, Any]]) -> dict[str, set[Maker]]:
    makers: dict[str, set[Maker]] = defaultdict(set)
    for event, workers in _with_makers(events):
        if event["event"] in ("extract", "score"):
            kind, _, rest = event["task"].partition("/")
            makers[REFERENCE if kind == REFERENCE else rest.partition("/")[0]].add(_maker(event, workers))
    return makers


def all_makers(events: Iterable[Mapping[str, Any]]) -> tuple[set[Maker], Mapping[str, Maker]]:
    """The kinds of worker that the run has had, and the workers of its last session by their names."""
    makers, workers = set[Maker](), dict[str, Maker]()
    for event, its in _with_makers(events):
        if event["event"] == "worker":
            makers.add(its[event["worker"]])
        workers = its
    return makers, workers


def device_kinds(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, set[str]]]:
    """Cell id -> `sampled` and `scored` -> the kinds of device that did so (`Maker.kind`).

    Where no maker is known, they are those of all workers of the run.
    """
    events = list(events)
    every, _ = all_makers(events)
    kinds: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for cell, origin in origins(events).items():
        kinds[cell]["sampled"] = {maker.kind for maker in origin.makers or every}
    makers = _scorers(events)
    for cell in makers.keys() - {REFERENCE}:
        kinds[cell]["scored"] = {maker.kind for maker in makers[cell] | makers.get(REFERENCE, set())}
    return kinds


def codes(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """The hashes of taugrid's code in the sessions that sampled."""
    sessions = (event for event in events if event["event"] == "session" and "sample" in event["stages"])
    return {event["code_sha256"] for event in sessions}


def _shards(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Origin]:
    """(cell id, file name) -> the origin of the shard."""
    shards: dict[tuple[str, str], Origin] = defaultdict(Origin)
    for event, workers in _with_makers(events):
        match event["event"]:
            case "shard" if event["committed"]:
                shard = shards[event["cell"], event["path"]]
                _committed(shard, event, _maker(event, workers))
                if (donor := shards.get((event.get("latents_of", ""), event["path"]))) is not None:
                    shard.makers |= donor.makers
            case "damaged" if event["path"].startswith("samples/"):
                _, folder, path = event["path"].split("/")
                shards.pop((folder.rsplit("-", 1)[-1], path), None)
    return shards


def _with_makers(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Maker]]]:
    """Each event with the workers that its session has had so far."""
    workers: dict[str, Maker] = {}
    for event in events:
        match event["event"]:
            case "session":
                workers = {}  # each session uses the same worker names
            case "worker":
                accelerator = event.get("accelerator", {})  # none of a CPU
                versions, kind = {**event["versions"], **accelerator}, accelerator.get("kind", "cpu")
                software = tuple((name, versions[name]) for name in (*PACKAGES, *LIBRARIES) if versions.get(name))
                maker = Maker(event["device"], software, event["threads"], kind, event.get("processor", ""))
                workers[event["worker"]] = maker
        yield event, workers


def _maker(event: Mapping[str, Any], workers: Mapping[str, Maker]) -> Maker:
    """The worker of an event; if the line that describes it is damaged, only its device is known."""
    return workers.get(event["worker"]) or Maker(event["device"], (), None, "cpu")


def _committed(shard: Origin, event: Mapping[str, Any], maker: Maker) -> None:
    """Record that a file was committed; one that was there already keeps its makers."""
    copied = event["copied"]
    if event["own"]:
        shard.makers = (shard.makers if copied else set()) | {maker}
    before = shard.seconds * copied / shard.images if shard.images else 0.0
    only_decoded = event["images"] and event["evaluations"] == 0
    shard.seconds = math.nan if only_decoded else before + event["seconds"]
    shard.images = copied + event["images"]
