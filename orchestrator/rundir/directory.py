"""The run directory: finds complete and damaged files, removes what was computed from damaged ones, confirms new ones.

All state is on disk: a shard is done when its file is in place and intact.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile, NotCommitted, RunFailed, WeightsChanged, WorkerRefusal
from taugrid.hashing import canonical_json
from taugrid.jobs import Job, Result
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.rundir.lease import Lease, sole_driver
from taugrid.orchestrator.rundir.ledger import DAMAGED, Ledger
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.rundir.models import ModelRecords
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.retries import DISK_PAUSES, try_again
from taugrid.run_id import RunId, check_run, claim
from taugrid.storage import Storage, read_sealed, together

READER_THREADS = 8  # the number of files that are read at a time

SAMPLE_IDENTITY = ("cell", "model", "weights_sha256")
"""The metadata that a sample file must agree on. A cell's id covers its settings, so the blob may gain keys later."""


class Damage(NamedTuple):
    path: Path
    reason: str
    fix: str = ""  # what the user must do to repair it, if no command can


OnDamage = Callable[[Damage], None]
Metadata = Mapping[str, Any] | None
Files = Mapping[str, str] | None
Score = dict[str, Any]


class Committed(NamedTuple):
    """A file that a worker has committed, and that the driver sees unchanged."""

    path: Path
    version: str  # the `Stat.version` that the driver has seen
    part: parquet.PartSummary | None
    """The contents. None: not a Parquet file, or one that is damaged, which the next survey reports."""


class RemovedImages(Paths):
    """Sealed records of images that were removed to save space: they count as done, and their scores stay.
    removed/<cell's folder>.parquet holds the hash of each decoded image, and the metadata of the sample files: cell,
    model, weights. It is in place before the first image is deleted."""

    def removal_record(self, cell: Cell) -> Path:
        return self.removed / f"{cell.name}.parquet"

    def removed_images(self, cell: Cell) -> parquet.PartSummary | None:
        """The record of a cell; None if there is none or it is damaged."""
        try:
            return parquet.inspect(self.removal_record(cell), storage=self.storage)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None

    def removed_digests(self, cell: Cell) -> NDArray[np.int64] | None:
        """(N,), the hashes of a cell's decoded images, from its record; None if there is none."""
        if self.removed_images(cell) is None:
            return None
        return parquet.read_digests(self.removal_record(cell), self.storage)

    def lacks_images(self, cell: Cell, listing: Listing) -> bool:
        """Whether files of the cell's images are gone, and no record says that they were removed on purpose."""
        there = listing.samples(cell.name)
        return len(cell.shards_in(there)) < cell.num_shards and not listing.has_removed_images(cell)

    def remove_images(self, cell: Cell, metadata: Mapping[str, Any], digests: NDArray[np.int64]) -> None:
        """Write the record of a cell whose images are complete, and delete them.

        Args:
            cell: the cell, all of whose images are there.
            metadata: the cell's `sample_metadata`, and its shards.
            digests: (N,), the hashes of its decoded images.
        """
        fields = [("index", pa.int64()), ("pixels", pa.int64())]
        schema = pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})
        with parquet.PartWriter(self.removal_record(cell), schema, self.storage) as part:
            part.write({"index": np.arange(len(digests)), "pixels": digests})
            part.commit(replace=True)
        for shard in cell.shards:
            self.storage.delete(self.sample_part(cell, shard))


class RunDir(RemovedImages, ModelRecords):
    """One run's directory. All of its files are read and written through `storage`. A file is checked only if it is not
    in the ledger, or its size, inode or time has changed since it was read."""

    def lock(
        self, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> AbstractContextManager[Lease]:
        return sole_driver(self, break_lock, say)

    def is_changed(self, name: str) -> bool:
        """Whether the sealed file of this name was changed after it was written."""
        path = self.root / name
        return self.storage.exists(path) and read_sealed(path, self.storage) is None

    def claim(self) -> None:
        """Give the directory an id, if it has none, by which jobs recognise it. Call it under the lock."""
        self.run_id = claim(self.root, self.storage)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.root, self.storage)

    def committed(self, files: Iterable[Committed]) -> None:
        """Add files to the ledger that workers have just committed: they need not be read."""
        for path, version, part in files:
            if part is not None:
                self.ledger.add(path, version, part)
        self.ledger.flush()

    def sampled(
        self, cell: Cell, metadata: Metadata, every_byte: bool, on_damage: OnDamage, listing: Listing
    ) -> set[int]:
        """Numbers of the cell's shards whose files are complete. Damaged files are reported to `on_damage`. `metadata`
        must agree with that in the files (None: any). `listing` says which files there are. Raises `WeightsChanged` for
        a file made with different weights, because the cell would get images of two networks."""
        done = set[int]()
        folder, there = self.samples / cell.name, listing.samples(cell.name)
        for shard, path, part in self._intact(cell, folder, there, every_byte, on_damage):
            recorded = part.metadata.get("weights_sha256")
            if metadata is not None and any(part.metadata.get(key) != metadata[key] for key in SAMPLE_IDENTITY):
                if recorded != metadata["weights_sha256"]:
                    now = metadata["weights_sha256"]
                    raise WeightsChanged(
                        f"{self.relative(path)} was made with weights {str(recorded)[:8]}, but {cell.model.called} "
                        f"has {now[:8]} now (replaced or damaged)",
                        "restore the old weights (or remove that model to train it again), remove "
                        f"{self.relative(path.parent)}, or give another --out",
                    )
                on_damage(Damage(path, "its metadata is not this cell's"))
            elif part.stop >= shard.stop:
                done.add(shard.number)
        is_removed = len(done) < cell.num_shards and listing.has_removed_images(cell)
        if is_removed and (removed := self.removed_images(cell)) is not None:
            # If the removed images had different weights, the cell is sampled again.
            keys = SAMPLE_IDENTITY if metadata is not None else ()
            if all(removed.metadata.get(key) == metadata[key] for key in keys if metadata is not None):
                is_all = removed.stop >= cell.settings.num_samples
                done |= set(range(cell.num_shards if is_all else removed.stop // cell.shard_images))
        return done

    def extracted(self, extractor: str, cell: Cell, on_damage: OnDamage, listing: Listing) -> set[int]:
        """Numbers of the cell's shards whose features are complete. Features of a different cell count as damaged."""
        folder, expected = self.features / extractor / cell.name, {"cell": cell.id, "extractor": extractor}
        there = listing.features(extractor, cell.name)
        return {
            shard.number
            for shard, path, part in self._intact(cell, folder, there, True, on_damage)
            if _is_of(path, part, expected, on_damage) and part.stop >= shard.stop
        }

    def has_intact_file(
        self, path: Path, stop: int, on_damage: OnDamage, start: int = 0, expected: Metadata = None, there: Files = None
    ) -> bool:
        """Whether there is an intact file with rows `start` to `stop` - 1 and `expected` in its metadata. A file that
        is damaged or has different metadata is reported to `on_damage`. `there` has the files of its folder and their
        versions (None: the storage is asked)."""
        version = self.version(path) if there is None else there.get(path.name)
        part = None if version is None else self._inspect(path, version, start, True, on_damage)
        self.ledger.flush()
        return part is not None and _is_of(path, part, expected or {}, on_damage) and part.stop >= stop

    def version(self, path: Path) -> str | None:
        """The version of a file (`Stat.version`), which a job that replaces it must find; None if there is no file."""
        try:
            return self.storage.stat(path).version
        except (FileNotFoundError, NotADirectoryError):
            return None

    def committed_cells(self, besides: Collection[str] = ()) -> Iterator[str]:
        """The folders of cells with at least one sample file in place, without the ids `besides`."""
        listing, names = Listing(self), (path.name for path in self.storage.list(self.samples, "*"))
        return (name for name in names if name.rsplit("-", 1)[-1] not in besides and listing.samples(name))

    def scores_of(self, cell: Cell, listing: Listing | None = None) -> Sequence[Path]:
        """The files of a cell's scores, of any protocol."""
        if listing is None:
            return self.storage.list(self.scores, self.score(cell, "*").name)
        return [self.scores / name for name in sorted(listing.scores(cell)) if name.endswith(".json")]

    def set_aside(self, damage: Damage) -> Path:
        """Move a damaged file to `damaged/`, under a unique name made of its old path."""
        name = self.relative(damage.path).replace(os.sep, "__")
        taken = {path.name for path in self.storage.list(self.damaged, f"*-{name}")}
        target = next(self.damaged / free for i in range(10**6) if (free := f"{i:04d}-{name}") not in taken)
        self.storage.move(damage.path, target)
        return target

    def read_scores(self, wanted: Sequence[tuple[Cell, str]], listing: Listing) -> Iterator[dict[str, Any] | None]:
        """The score of each cell by one `Scoring.id`; None: it is missing or was changed."""

        def read(path: Path | None) -> Score | None:
            return None if path is None else read_sealed(path, self.storage)

        # Not in the threads of `together`: each of them would list the folder, since `cached_property` has no lock.
        files = [(self.score(*each), listing.scores(each[0])) for each in wanted]
        return together(self.storage, read, [path if path.name in there else None for path, there in files])

    def know_influences(self, wanted: Iterable[tuple[Cell, str]], listing: Listing) -> None:
        """Read the influences of cells, by a `Scoring.id`, that the ledger does not know: later looks ask for nothing.
        In an object store some are read at a time, and one request writes the ledger."""
        files = [(self.influence(*each), listing.scores(each[0])) for each in wanted]
        there = [(path, versions[path.name]) for path, versions in files if path.name in versions]
        unknown = [each for each in there if self.ledger.find(*each) is None]
        for _ in together(self.storage, lambda each: self._inspect(*each, 0, True, lambda damage: None), unknown):
            pass
        self.ledger.flush()

    def forget_derived(self, cell: Cell, shards: Collection[Shard], listing: Listing | None = None) -> None:
        """Remove what was computed from missing shards: their features, and scores of N that include them."""
        listing, scores = listing or Listing(self), list[Path]()
        folders = ((self.features / each / cell.name, listing.features(each, cell.name)) for each in listing.extractors)
        derived = [folder / name for folder, there in folders for name in there]
        if not derived and not listing.scores(cell):
            return
        first, names = min(shard.start for shard in shards), {shard.name for shard in shards}
        for path in self.scores_of(cell, listing):
            score = read_sealed(path, self.storage)
            if score is None or score["protocol"]["num_samples"] > first:
                scores += [path, path.with_suffix(".parquet")]
        features = (path for path in derived if path.name in names)
        for path in (*scores, *features):  # scores first: after a kill, they are missing and are computed again
            self.storage.delete(path)

    def remove_features(self, extractor: str, cell: Cell) -> None:
        self.storage.delete_folder(self.features / extractor / cell.name)

    def remove_outputs(self, pattern: str) -> None:
        """Remove tables or figures that an earlier command may have written, as in `figures/samples*.png`."""
        for path in self.storage.list(self.root, pattern):
            self.storage.delete(path)

    def remove_temporaries(self, folders: Iterable[str], lease: Lease) -> None:
        """Remove temporary files of killed writers: of workers, which this driver must have no more, from the folders
        that match these patterns; of drivers from the run directory itself, where other commands write too. In a
        bucket, only that can hold any: the probes beside config.json."""
        ends = dict.fromkeys(folders, lease.dead_before()) if self.storage.on_disk else {}
        for folder, before in {".": lease.began or 0.0, **ends}.items():
            for path, stat in self.storage.stats(self.root, f"{folder}/.*.tmp").items():
                if stat.modified < before:
                    self.storage.delete(path)

    def _intact(
        self, cell: Cell, folder: Path, there: Mapping[str, str], every_byte: bool, on_damage: OnDamage
    ) -> list[tuple[Shard, Path, parquet.PartSummary]]:
        """The intact files of a cell's shards. Several are read at a time: reading and hashing release Python's lock.
        `there` has the files of the folder and their versions."""
        if not there:
            return []
        damages: list[Damage] = []
        files = {folder / shard.name: shard for shard in cell.shards_in(there)}
        is_known = all(self.ledger.find(path, there[path.name]) for path in files)

        def inspect(path: Path) -> parquet.PartSummary | None:
            return self._inspect(path, there[path.name], files[path].start, every_byte, damages.append)

        with ThreadPoolExecutor(READER_THREADS) as pool:
            parts = list(map(inspect, files) if is_known else pool.map(inspect, files))
        self.ledger.flush()
        for damage in sorted(damages):
            on_damage(damage)
        return [(files[path], path, part) for path, part in zip(files, parts, strict=True) if part is not None]

    def _inspect(
        self, path: Path, version: str, start: int, every_byte: bool, on_damage: OnDamage
    ) -> parquet.PartSummary | None:
        try:
            part = self.ledger.find(path, version)
            if part is None:
                if not every_byte and self.ledger.find(path, DAMAGED + version):
                    raise DamagedFile("`verify` found damage in it")
                part = parquet.inspect(path, every_byte, self.storage)
                if every_byte:
                    self.ledger.add(path, version, part)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedFile as error:
            on_damage(Damage(path, str(error)))
            return None
        if part.start != start:
            on_damage(Damage(path, f"it starts at image {part.start}, not {start}"))
            return None
        return part


def _is_of(path: Path, part: parquet.PartSummary, expected: Mapping[str, Any], on_damage: OnDamage) -> bool:
    """Whether a file's metadata are the expected ones; otherwise it is reported."""
    differing = [key for key, value in expected.items() if part.metadata.get(key) != value]
    if differing:
        on_damage(Damage(path, f"it is of another {' and '.join(differing)}"))
    return not differing


def confirm(job: Job, result: Result) -> Committed:
    """Returns a job's file, or a longer copy, if the driver sees it unchanged: by name, size and seal.

    Of a file that existed before, at least the Parquet footer is read. Threads may call it side by side.

    Raises `NotCommitted` if not: the worker's node has a different folder at that path; `RunFailed` if the driver
    itself no longer sees the run directory."""

    def check() -> Committed:
        if isinstance(found := _look(job, result), str):
            require_in_place(job.run_id, job.storage)
            job.storage.list(Path(job.path).parent, "*")  # a network file system answers from its cache until then
            found = _look(job, result)
        if isinstance(found, str):
            raise NotCommitted(f"its worker committed {job.path}, but here {found}; is the folder mounted on its node?")
        return found

    return try_again(check, DISK_PAUSES, lambda error: isinstance(error, NotCommitted))


def require_in_place(run: RunId | None, storage: Storage) -> None:
    """Raise `RunFailed` unless the run directory is still in its place. `run` is None before it is claimed."""
    if run is None:
        return
    try:
        check_run(run, storage)
    except WorkerRefusal:
        raise RunFailed(
            f"{run.root} was moved or removed while the run went on; put it back, or give its new name, and run the "
            "same command again"
        ) from None


def _look(job: Job, result: Result) -> Committed | str:
    """A job's file, or a longer copy that took its place; a text says what is wrong with it."""
    path, made = Path(job.path), result.part
    try:
        end, version = parquet.file_end(path, job.storage)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    is_same_size = result.size in (None, end.size)
    is_same = is_same_size and result.digest in (None, end.digest)
    part = made if result.created_file and is_same else None
    if part is None and path.suffix == ".parquet":
        with suppress(FileNotFoundError, DamagedFile):
            part = parquet.inspect(path, every_byte=False, storage=job.storage)
    is_longer = part and made and parquet.is_of_same_rows(part, made) and part.stop > made.stop
    if not is_same and not is_longer:
        return "it has another seal" if is_same_size else f"it has {end.size} bytes, not {result.size}"
    if path.suffix == ".parquet" and end.digest is None:
        return "its seal is not in its place"
    return Committed(path, version, part)
