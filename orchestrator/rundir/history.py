"""What the events of a run say: who made each file and in which time, its sessions, and which trainings failed.

A file's event is written after its commit. If the driver is killed in between, the file has no event, and its maker is
unknown.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taugrid.orchestrator.plan.cells import part_name
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.paths import Paths

PACKAGES = ("taugrid", "torch", "diffusers", "numpy", "pillow")  # software that an image's bytes depend on

LIBRARIES = ("cuda", "cudnn", "hip", "miopen", "driver")  # the same of a GPU (`workers.accelerator.hardware`)

TAUGRID = "taugrid"
"""A different version of taugrid alone does not count as different software: a night checks that upgrades of it change
neither images nor scores."""

REFERENCE = "reference"  # the key of the reference in `RunHistory.scored_by`

WORK = frozenset({"trained", "shard", "extract", "score"})
"""The events that date a run. Writing its page again changes nothing on it."""


class Maker(NamedTuple):
    """A kind of worker: its device, the versions of `PACKAGES` and `LIBRARIES` on it, the number of CPU threads."""

    device: str
    versions: tuple[tuple[str, str], ...] = ()
    threads: int | None = None  # None: not known
    kind: str = "cpu"  # `cpu`, `cuda`, `rocm` or `mps`
    processor: str = ""
    """The model of a CPU, as far as it is known: two models may differ in the last bits under one `device`."""


def maker_of(worker: Mapping[str, Any]) -> Maker:
    """The kind of a worker, from its event or from `WorkerInfo.made_by`."""
    accelerator = worker.get("accelerator", {})  # none of a CPU
    versions, kind = {**worker["versions"], **accelerator}, accelerator.get("kind", "cpu")
    software = tuple((name, versions[name]) for name in (*PACKAGES, *LIBRARIES) if versions.get(name))
    return Maker(worker["device"], software, worker["threads"], kind, worker.get("processor", ""))


@dataclass
class Origin:
    """Who made some images, and in which time."""

    seconds: float = 0.0  # NaN: not known, or some images were only decoded, from the latents of another cell
    makers: set[Maker] = field(default_factory=set)
    images: int = 0  # the images of known files; a file without its event is not among them
    is_known: bool = True  # whether a maker is known of each of these files

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


@dataclass
class RunHistory:
    """All sessions of a run."""

    stages: set[str] = field(default_factory=set)  # the stages of all sessions
    stopped: set[str] = field(default_factory=set)
    """The stages of the sessions that were stopped, since the last one that ended."""
    codes: set[str] = field(default_factory=set)  # the hashes of taugrid's code in the sessions that sampled
    worked: str = ""  # the time of the last work; empty before the first
    joined: list[Mapping[str, Any]] = field(default_factory=list)  # the event of each worker
    workers: dict[str, Maker] = field(default_factory=dict)
    """The workers of the last session, by their names: each session uses the same ones."""
    makers: set[Maker] = field(default_factory=set)  # the kinds of worker of all sessions
    shards: dict[str, dict[str, Origin]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Origin)))
    """Cell id -> name of a sample file -> its images."""
    scored_by: dict[str, set[Maker]] = field(default_factory=lambda: defaultdict(set))
    """Cell id, or `REFERENCE` -> who extracted its features and scored it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Key of a task that sampled nothing -> device time of its last commit."""
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Model id -> why its last training failed and whether it would again, if it has not begun again."""
    evaluations: int = 0
    sampling_seconds: float = 0.0  # the network evaluations of all shards, and their device time

    @classmethod
    def read(cls, run: Paths) -> "RunHistory":
        return cls.of(read_events(run))

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "RunHistory":
        history = cls()
        for event in events:
            history._add(event)
        return history

    def _add(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "session":
                self.workers.clear()
                self.stages.update(event["stages"])
                self.stopped.update(event["stages"])
                if "sample" in event["stages"]:
                    self.codes.add(event.get("code_sha256", ""))
            case "end":
                self.stopped.clear()
            case "worker":
                maker = maker_of(event)
                self.workers[event["worker"]] = maker
                self.makers.add(maker)
                self.joined.append(event)
            case "shard":
                if event["evaluations"]:  # else they were only decoded
                    self.evaluations += event["evaluations"]
                    self.sampling_seconds += event["seconds"]
                if event["committed"]:
                    self._add_shard(event)
            case "damaged" if event["path"].startswith("samples/"):  # it was moved away, to be sampled again
                _, folder, name = event["path"].split("/")
                self.shards[folder.rpartition("-")[2]].pop(name, None)
            case "extract" | "score":
                kind, _, rest = event["task"].partition("/")
                self.scored_by[REFERENCE if kind == REFERENCE else rest.partition("/")[0]].add(self._maker(event))
            case "train":
                self.failures.pop(event["model"], None)
            case "training failed":
                self.failures[event["model"]] = {name: event[name] for name in ("reason", "log", "fails_again")}
        if event.get("committed") and {"task", "seconds"} <= event.keys():
            self.seconds[event["task"]] = event["seconds"]
        if event["event"] in WORK:
            self.worked = max(self.worked, event.get("time", ""))

    def _add_shard(self, event: Mapping[str, Any]) -> None:
        """Account for a committed file. It may have grown. One that was there already keeps its makers. If they are
        unknown, and its bytes are those that were made now, this maker is as good; if not (`conflict`), they stay
        unknown."""
        shard, copied = self.shards[event["cell"]][event["path"]], event["copied"]
        if event["own"] or not (shard.makers or "conflict" in event):
            shard.makers = (shard.makers if copied else set()) | {self._maker(event)}
            donor = self.shards.get(event.get("latents_of", ""), {})
            shard.makers |= donor.get(event["path"], Origin()).makers
        before = shard.seconds * copied / shard.images if shard.images else 0.0
        only_decoded = event["images"] and event["evaluations"] == 0
        shard.seconds = math.nan if only_decoded else before + event["seconds"]
        shard.images = copied + event["images"]

    def _maker(self, event: Mapping[str, Any]) -> Maker:
        """The worker of an event; if the line that describes it is damaged, only its device is known."""
        return self.workers.get(event["worker"], Maker(""))._replace(device=event["device"])

    @property
    def evaluations_per_second(self) -> float | None:
        """Network evaluations per second of one worker, over all shards that were sampled; None before the first."""
        return self.evaluations / self.sampling_seconds if self.sampling_seconds else None

    def origin(self, cell: str) -> Origin:
        """Who made the images of a cell, by its id."""
        shards = self.shards.get(cell, {}).values()
        return Origin(
            sum(shard.seconds for shard in shards) if shards else math.nan,
            {maker for shard in shards for maker in shard.makers},
            sum(shard.images for shard in shards),
            all(shard.makers for shard in shards),
        )

    def first_origin(self, cell: str) -> Origin:
        """Who made the first sample file of a cell."""
        return self.shards.get(cell, {}).get(part_name(0), Origin())

    def scorers(self, cell: str) -> set[Maker]:
        """Who extracted the features of a cell and of the reference, and scored it."""
        return self.scored_by.get(cell, set()) | self.scored_by.get(REFERENCE, set())

    def device_kinds(self, cell: str) -> dict[str, set[str]]:
        """`sampled` and `scored` -> the kinds of device that did so. Where no maker is known: those of all workers."""
        by = {"sampled": self.origin(cell).makers, "scored": self.scorers(cell)}
        return {what: {maker.kind for maker in makers or self.makers} for what, makers in by.items()}
