"""A snapshot: a run's cells as a comparison with another run needs them, from its files or from a baseline file."""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.gate.rule import Scored
from taugrid.eval.metrics.statistics import Array
from taugrid.grids import CELL_KEYS, PATHS
from taugrid.hashing import json_sha256
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.plan.cells import Cell, Model
from taugrid.orchestrator.plan.scoring import scoring_of, without_downloads
from taugrid.orchestrator.plan.sources import Custom, Loaded, Trained
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.evidence import influences_of
from taugrid.orchestrator.rundir.history import TAUGRID, Origin, RunHistory
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.work.scorer import ScorerRecord, kept_record, places, setup_of
from taugrid.protocol import on_devices
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import read_sealed

Digests = NDArray[np.int64]  # (N,): the first 8 bytes of the SHA-256 of each decoded image, in the order of the indices
ImagePixels = NDArray[np.uint8]  # (C, H, W)
ImageBatch = NDArray[np.uint8]  # (n, C, H, W)

FIRST_IMAGES = 16
"""The number of images of each cell that a baseline keeps, to measure by how much those of a later night differ."""

GONE = (FileNotFoundError, NotADirectoryError, DamagedFile)

MODEL_FILES = frozenset({"model.weights", *PATHS})
"""Grid keys whose values are file paths: they differ from night to night."""

AND = " and "  # joins the values of a cell that workers of several kinds made

NOT_IN_JSON = {"influences", "unsure", "load_digests", "load_images", "load_first", "failed", "names"}
"""The fields of a `SnapshotCell` that the JSON of a baseline file lacks."""

NO_ERROR = "its score has no standard error of it"
MISSING_INFLUENCES = "its influences are missing or damaged; `taugrid evaluate` computes them"


@dataclass(frozen=True)
class SamplingEnvironment:
    """The software and hardware on which the bytes of a cell's images depend, as the workers recorded it. A cell that
    several kinds of worker made has all their values, joined by `AND`. Which of them made which image is unknown, so
    its environment equals that of no other cell."""

    devices: tuple[str, ...]
    versions: Mapping[str, str]
    threads: str
    batch_size: int

    def differences(self, before: "SamplingEnvironment") -> list[str]:
        """The changes since `before`, such as "torch 2.9.1 -> 2.10.0"; unknown and mixed values differ."""
        names = sorted({*self.versions, *before.versions} - {TAUGRID})
        pairs = [(name, before.versions.get(name, "unknown"), self.versions.get(name, "unknown")) for name in names]
        pairs.append(("device", AND.join(before.devices) or "unknown", AND.join(self.devices) or "unknown"))
        pairs.append(("threads", before.threads, self.threads))
        pairs.append(("batch size", str(before.batch_size), str(self.batch_size)))
        found = [f"{name} {old} -> {new}" for name, old, new in pairs if old != new or "unknown" in (old, new)]
        mixed = any(
            len(side.devices) > 1 or any(AND in value for value in (*side.versions.values(), side.threads))
            for side in (self, before)
        )
        return found or (["workers of several kinds, and who made which image is not known"] if mixed else [])


def pair_key(one: SamplingEnvironment, other: SamplingEnvironment) -> str:
    """The key of two environments in `SnapshotCell.distances`: hashes of them without the version of taugrid."""
    keys = []
    for side in (one, other):
        versions = {name: version for name, version in side.versions.items() if name != TAUGRID}
        keys.append(json_sha256([side.devices, versions, side.threads, side.batch_size])[:16])
    return "-".join(sorted(keys))


@dataclass(frozen=True)
class Network:
    """The network that made a cell, and where it may still exist."""

    weights_sha256: str | None
    diffusion: Mapping[str, Any]  # the resolved section
    source_sha256: str | None  # of the code of a custom network
    folder: str | None  # a diffusers folder or a hub id; None: it can't be loaded that way
    callable: str | None = None  # `model.callable` and `model.weights` of a custom network
    weights_file: str | None = None

    @property
    def keys(self) -> dict[str, str | None]:
        """The keys of a config that load the network."""
        if self.callable is not None:
            return {"model.callable": self.callable, "model.weights": self.weights_file}
        return {"model.checkpoint": self.folder}

    def is_same(self, other: "Network") -> bool:
        """Whether both have the same weights and process."""
        known = self.weights_sha256 is not None
        return known and (self.weights_sha256, self.diffusion) == (other.weights_sha256, other.diffusion)


@dataclass(frozen=True, eq=False)
class SnapshotCell:
    """A cell. Digests and first images that are gone load as None; the images end before the first that is gone."""

    cell: str
    name: str
    settings: Mapping[str, Any]  # the resolved section `sample`
    axes: Mapping[str, Any]  # values of the grid's other keys
    image_shape: tuple[int, int, int]
    network: Network
    setup: SamplingEnvironment
    first_setup: SamplingEnvironment  # that made image 0
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    # Column of quality.csv -> (N,), how far each sample moves it; of those with a standard error.
    influences: Mapping[str, Array] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  # column -> why it has no influences
    # As `influences`, of metrics whose standard error would rest on too few samples; not in a baseline file.
    unsure: Mapping[str, Array] = field(default_factory=dict)
    load_digests: Callable[[], Digests | None] = field(repr=False, default=lambda: None)
    load_images: Callable[[], Iterable[ImagePixels]] = field(repr=False, default=lambda: ())
    load_first: Callable[[], ImageBatch | None] = field(repr=False, default=lambda: None)
    # Pair of environments (`pair_key`) -> the accepted distance between their images in grey levels.
    distances: Mapping[str, float] = field(default_factory=dict)
    scored_with: str | None = None  # as `scorer.setup_of`
    failed: str | None = None  # why the cell can never be scored; it has no metrics
    names: tuple[str, ...] = ()  # of external images, in the order of the influences
    images: str | None = None  # of external images: a hash of their names, or of the images if they have none

    @property
    def num_samples(self) -> int:
        return int(self.settings["num_samples"])

    @property
    def labels_are_rows(self) -> bool:
        """Whether its labels are a column of a file, which may have no more rows than it has samples."""
        return isinstance(self.settings.get("labels"), Mapping)

    @property
    def files(self) -> dict[str, Any]:
        """The keys of a config that name further files of the cell, such as its guide's."""
        named = {key: self.axes[key] for key in CELL_KEYS if self.axes.get(key) is not None}
        return named | ({"labels": self.settings["labels"]} if self.labels_are_rows else {})

    @property
    def by_content(self) -> dict[str, Any]:
        """Its settings, with the hash of a column of labels for its path: the file may move."""
        labels = (self.protocol.get("conditions") or {}).get("labels")
        return {**self.settings, **({"labels": labels} if self.labels_are_rows else {})}

    def scored(self, column: str, unsure: bool = False) -> Scored | None:
        """A metric with its influences, with `unsure` if need be those that give no standard error; None without."""
        influence = self.influences.get(column, self.unsure.get(column) if unsure else None)
        return None if influence is None else Scored(float(self.metrics[column]), influence)

    @property
    def reason(self) -> str | None:
        """The reason why FID has no influences; None if it has."""
        return self.reasons.get("fid")

    @property
    def lacking(self) -> list[str]:
        """The metrics that have a standard error, but whose influences, which it comes from, are missing or damaged."""
        return [column.name for column in SAMPLED
                if column.sampling_error in self.metrics and column.name not in self.influences]  # fmt: skip

    @property
    def seed_set(self) -> Hashable:
        """Equal for cells whose sample n starts from the same x_T, or has the same name."""
        return (self.settings["seed"] if self.images is None else self.images, tuple(self.image_shape))


class Software(BaseModel):
    """The software of a run, as in provenance.json."""

    python: str | None = None
    versions: dict[str, str | None] = {}
    git_commit: str | None = None
    git_dirty: bool | None = None


class ImagesRequest(BaseModel):
    """How images are scored; a baseline file of images has it, and later images are scored alike."""

    model_config = ConfigDict(frozen=True)

    reference: str
    extractor: str | None = None
    weights: str | None = None
    metrics: tuple[str, ...] = ()  # those that judge; none: FID where it has a standard error, else KID
    pair_by: str | None = None
    trust_code: bool = Field(False, exclude=True)  # said each time, and never recorded

    @property
    def options(self) -> str:
        """The options of `baseline accept` that score images in this way."""
        given = {name: getattr(self, name) for name in ("reference", "extractor", "weights", "metrics", "pair_by")}
        texts = {name: ",".join(value) if name == "metrics" else value for name, value in given.items() if value}
        return " ".join(f"--{name.replace('_', '-')} {text}" for name, text in texts.items())


class ImagesOfNight(ImagesRequest):
    """External images that were compared, and how they were scored."""

    path: str
    sha256: str

    @model_serializer(mode="wrap")
    def _with_options(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**dump(self), "options": self.options}


class Baseline(BaseModel):
    """The JSON of a baseline file."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    format: str
    run: str
    name: str
    accepted: str  # the time, UTC, ISO 8601
    reason: str
    remarks: tuple[str, ...]
    replaces: str | None  # SHA-256 of the Parquet file of the baseline that it replaced
    images: ImagesRequest | None = None  # of a baseline of external images
    software: Software
    scorer: ScorerRecord | str  # the canary of the scorer, or why there is none
    parquet_sha256: str = ""
    cells: tuple[SnapshotCell, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON: of the cells, what is no array."""
        plain = self.model_dump(mode="json", exclude={"cells": {"__all__": NOT_IN_JSON}})
        for shown, cell in zip(plain["cells"], self.cells, strict=True):
            shown["reason"] = cell.reason  # for readers; `reasons` has it too
        return plain


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The scored cells of a run, and what is not scored."""

    source: str  # the run directory or the baseline file
    name: str
    software: Software
    cells: tuple[SnapshotCell, ...]
    unscored: Mapping[str, str] = field(default_factory=dict)  # name -> label of cells without a complete score
    accepted: Baseline | None = None  # None for a run
    codes: frozenset[str] = frozenset()  # hashes of taugrid's code in the sessions that sampled it
    scorer: ScorerRecord | str = "none was recorded"  # the canary of the scorer, or why there is none
    images: ImagesOfNight | None = None  # of external images


def snapshot_of_run(run: str | Run) -> Snapshot:
    """The snapshot of a run directory, opened or not; `UserError` if it is not one, or no cell is scored."""
    snapshot = snapshot_of_opened(open_existing(run) if isinstance(run, str) else run)
    if not snapshot.cells:
        raise UserError(f"{snapshot.source} has no scored cells; run `taugrid evaluate` first")
    return snapshot


def snapshot_of_opened(run: Run, failed: Mapping[str, str] = {}, with_scores: bool = True) -> Snapshot:
    """The snapshot of an opened run, possibly without cells. `failed` is cell name -> reason, of cells that can never
    be scored. The snapshot has them, without metrics. Without `with_scores` it has all cells as they were sampled, and
    of their protocols what `canaries.sampling_key` needs."""
    rundir = run.rundir
    history, provenance, listing = RunHistory.read(rundir), rundir.read_provenance(), Listing(rundir)
    weights = provenance.get("models") or {}
    protocols = {cell.cell: cell.protocol for cell in planned_snapshot(run).cells} if failed and with_scores else {}
    cells, unscored = list[SnapshotCell](), dict[str, str]()
    for cell in run.configured.cells:
        score = _score(run, cell, listing) if with_scores else None
        if score is not None:
            of = rundir, cell, score["evaluation"], score["metrics"], listing
            influences = influences_of(*of)
            more: dict[str, Any] = {
                "protocol": on_devices(score["protocol"], history.device_kinds(cell.id)),
                "metrics": score["metrics"],
                "influences": influences,
                "reasons": reasons_of(score, influences),
                "unsure": influences_of(*of, unsure=True),
                "scored_with": setup_of(places(history.scorers(cell.id)), score["protocol"].get("versions") or {}),
            }
        elif not with_scores:
            more = {"protocol": {"conditions": cell.conditions_block, "decoder": cell.decoder_block}}
        elif cell.name in failed:
            more = {"protocol": protocols[cell.id], "failed": failed[cell.name], "reasons": {"fid": "it is not scored"}}
        else:
            unscored[cell.name] = cell.label
            continue
        cells.append(_cell_of_run(run, cell, history, weights, **more))
    known = {key: provenance[key] for key in Software.model_fields if provenance.get(key) is not None}
    return Snapshot(
        rundir.shown,
        run.config.name,
        Software.model_validate(known),
        tuple(cells),
        unscored,
        codes=frozenset(history.codes),
        scorer=kept_record(rundir),
    )


def planned_snapshot(run: Run, downloads: bool = True) -> Snapshot:
    """The cells of a run that has not begun, with their protocols but without scores. Raises `MissingInput` if
    `downloads` is not set and the reference or the extractor's weights are missing."""
    config = run.config if downloads else without_downloads(run.config)
    scoring, cells = scoring_of(config, run.plan, run.rundir.extractor), []
    for cell in run.plan.cells:
        protocol = json.loads(json.dumps(scoring.protocol(cell).as_dict()))
        reasons = {"fid": "it is not scored"}
        cells.append(_cell_of_run(run, cell, RunHistory(), {}, protocol=protocol, reasons=reasons))
    return Snapshot(run.rundir.shown, run.config.name, Software(), tuple(cells))


def _cell_of_run(
    run: Run, cell: Cell, history: RunHistory, weights: Mapping[str, Mapping[str, str]], **more: Any
) -> SnapshotCell:
    rundir, settings = run.rundir, cell.settings
    threads = max(1, int(run.config.cluster.cpus_per_worker))
    origins = history.origin(cell.id).if_known(settings.num_samples), history.first_origin(cell.id)
    setup, first_setup = (_environment(origin, threads, settings.batch_size) for origin in origins)
    return SnapshotCell(
        cell=cell.id,
        name=cell.name,
        settings=settings.recorded,
        axes=cell.axes,
        image_shape=cell.model.image_shape,
        network=_network(rundir, cell.model, weights.get(cell.model.id, {}).get(settings.weights)),
        setup=setup,
        first_setup=first_setup,
        load_digests=cache(lambda: pixel_digests(rundir, cell)),
        load_images=lambda: images_of(rundir, cell),
        load_first=lambda: _first_images_of(rundir, cell),
        **more,
    )


def _score(run: Run, cell: Cell, listing: Listing) -> dict[str, Any] | None:
    """The score by the config's scoring. The reference is opened only if the directory has several scores."""
    rundir, n = run.rundir, cell.settings.num_samples
    paths = rundir.scores_of(cell, listing)
    found = [score for path in paths if (score := read_sealed(path, rundir.storage)) is not None]
    found = [score for score in found if score["protocol"]["num_samples"] == n]
    if len(found) > 1:
        wanted = scoring_of(run.config, run.plan, rundir.extractor).id(cell)
        found = [score for score in found if score["evaluation"] == wanted]
    return found[0] if found else None


def reasons_of(score: Mapping[str, Any], influences: Mapping[str, Array]) -> dict[str, str]:
    """Column -> why it has no influences, from the notes of a score (or of `eval.standalone.score_sets`)."""
    reasons = {}
    for column in SAMPLED:
        said = f"no {column.sampling_error}: "
        noted = (note.removeprefix(said) for note in score["notes"] if note.startswith(said))
        if column.name not in influences and column.name in score["metrics"]:
            reasons[column.name] = next(noted, MISSING_INFLUENCES if column.name == "fid" else NO_ERROR)
    return reasons


def _network(rundir: RunDir, model: Model, weights_sha256: str | None) -> Network:
    diffusion = model.diffusion.recorded
    match model.source:
        case Trained():
            folder = str(rundir.model_folder(model)) if rundir.storage.on_disk else None
            return Network(weights_sha256, diffusion, None, folder)
        case Loaded(checkpoint):
            return Network(weights_sha256, diffusion, None, checkpoint.path)
        case Custom(spec):
            return Network(weights_sha256, diffusion, spec.source_sha256, None, spec.callable, spec.weights)
        case _:
            return Network(weights_sha256, diffusion, None, None)


def _environment(origin: Origin, planned_threads: int, batch_size: int) -> SamplingEnvironment:
    """The environment that the events record; threads that they do not record are taken from the config."""
    versions: dict[str, set[str]] = {}
    for maker in origin.makers:
        for name, version in maker.versions:
            versions.setdefault(name, set()).add(version)
    joined = {name: AND.join(sorted(found)) for name, found in sorted(versions.items())}
    threads = {maker.threads or planned_threads for maker in origin.makers} or {planned_threads}
    devices = tuple(sorted({maker.device for maker in origin.makers}))
    return SamplingEnvironment(devices, joined, AND.join(map(str, sorted(threads))), batch_size)


def pixel_digests(rundir: RunDir, cell: Cell) -> Digests | None:
    """The hashes of all images of a cell; if the images were removed, as recorded. None if some are missing."""
    removed = rundir.removed_digests(cell)
    if removed is not None:
        return removed[: cell.settings.num_samples]
    hashes = []
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        try:
            hashes.append(parquet.read_digests(path, rundir.storage)[: shard.images])
        except GONE:
            return None
    digests = np.concatenate(hashes)
    return digests if len(digests) == cell.settings.num_samples else None


def images_of(rundir: RunDir, cell: Cell, count: int | None = None) -> Iterator[ImagePixels]:
    """The first `count` images of a cell, or all. They end before the first that is gone."""
    stop = min(cell.settings.num_samples, count or cell.settings.num_samples)
    for shard in cell.shards:
        if shard.start >= stop:
            return
        path = rundir.sample_part(cell, shard)
        try:
            for _, batch in parquet.read_images(path, min(shard.stop, stop), rundir.storage):
                yield from batch
        except GONE:
            return


def _first_images_of(rundir: RunDir, cell: Cell) -> ImageBatch | None:
    images = list(images_of(rundir, cell, FIRST_IMAGES))
    return np.stack(images) if len(images) == min(cell.settings.num_samples, FIRST_IMAGES) else None
