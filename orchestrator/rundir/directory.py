"""The run directory as a whole: which of its files are whole, and what depends on damaged ones; its models and lock.

All state is on disk: a shard is done when its file is in place and intact.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile, OtherWeights
from taugrid.hashing import canonical_json
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.rundir.commits import Committed
from taugrid.orchestrator.rundir.lease import Lease, sole_driver
from taugrid.orchestrator.rundir.ledger import Ledger
from taugrid.orchestrator.rundir.models import ModelRecords
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.run_id import claim
from taugrid.storage import read_sealed

READERS = 8
"""Number of files read at a time."""

SAMPLE_IDENTITY = ("cell", "model", "weights_sha256")
"""The metadata that a sample file must agree on. A cell's id covers its settings, so the blob may gain keys later."""


class Damage(NamedTuple):
    path: Path
    reason: str
    way_out: str = ""
    """What the user must do about it, where no command can."""


OnDamage = Callable[[Damage], None]


class RemovedImages(Paths):
    """Sealed records of images that were removed to save space: they count as done, and their scores stay.

    removed/<cell's folder>.parquet holds the hash of each decoded image, and in its metadata what the sample files
    said: cell, model, weights. It is in place before the first image is deleted.
    """

    def removal_record(self, cell: Cell) -> Path:
        return self.root / "removed" / f"{cell.name}.parquet"

    def removed_images(self, cell: Cell) -> parquet.Part | None:
        """What the record of a cell says; None if there is none. One that is damaged does not count."""
        try:
            return parquet.inspect(self.removal_record(cell), storage=self.storage)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None

    def has_removed_images(self, cell: Cell) -> bool:
        return self.storage.exists(self.removal_record(cell))

    def removed_digests(self, cell: Cell) -> NDArray[np.int64] | None:
        """(N,), the hashes of a cell's decoded images, from its record; None if there is none."""
        if self.removed_images(cell) is None:
            return None
        with self.storage.local_path(self.removal_record(cell)) as local:
            found: NDArray[np.int64] = pq.read_table(local, columns=["pixels"]).column("pixels").to_numpy()
        return found

    def lacks_images(self, cell: Cell) -> bool:
        """Whether files of the cell's images are gone, and no record says that they were removed on purpose."""
        there = self.storage.stats(self.samples / cell.name, "part-*.parquet")
        is_lacking = any(self.sample_part(cell, shard) not in there for shard in cell.shards)
        return is_lacking and not self.has_removed_images(cell)

    def remove_images(self, cell: Cell, metadata: Mapping[str, Any], digests: NDArray[np.int64]) -> None:
        """Write the record of a cell whose images are complete, and delete them.

        Args:
            cell: all its images were read.
            metadata: the cell's `sample_metadata`, and the shards with their hashes.
            digests: (N,), of its decoded images.
        """
        fields = [("index", pa.int64()), ("pixels", pa.int64())]
        schema = pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})
        with parquet.PartWriter(self.removal_record(cell), schema, self.storage) as part:
            part.write({"index": np.arange(len(digests)), "pixels": digests})
            part.commit(replace=True)
        for shard in cell.shards:
            self.storage.delete(self.sample_part(cell, shard))


class RunDir(RemovedImages, ModelRecords):
    """One run's folder. Everything in it is read and written through its `storage`.

    A file is checked only if the ledger does not know it, or its size, inode or time has changed since it was read.
    """

    def lock(
        self, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> AbstractContextManager[Lease]:
        return sole_driver(self, break_lock, say)

    def claim(self) -> None:
        """Give the directory its id, if it has none, so that jobs can tell it from others. Call it under the lock."""
        self.run = claim(self.root, self.storage)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.root, self.storage)

    def committed(self, files: Iterable[Committed]) -> None:
        """Note that workers have just committed files, sealed, and the driver sees them: they need not be read.

        Of a file that was there already, at least the index is read.
        """
        for path, part in files:
            if path.suffix == ".parquet":
                with suppress(FileNotFoundError, DamagedFile):  # the next survey says so
                    version = self.storage.stat(path).version
                    found = part or parquet.inspect(path, every_byte=False, storage=self.storage)
                    self.ledger.add(path, version, found)
        self.ledger.flush()

    def sampled(self, cell: Cell, metadata: dict[str, Any] | None, every_byte: bool, on_damage: OnDamage) -> set[int]:
        """Numbers of the cell's shards whose files are complete. Damaged files are reported.

        `metadata` is what the files' blobs must say (None: anything). `OtherWeights` for a file made with others,
        because images of two networks would end up in one cell.
        """
        done = set()
        paths = [self.sample_part(cell, shard) for shard in cell.shards]
        for shard, path, part in zip(
            cell.shards, paths, self._inspect_all(cell, paths, every_byte, on_damage), strict=True
        ):
            if part is None:
                continue
            recorded = part.metadata.get("weights_sha256")
            if metadata is not None and any(part.metadata.get(key) != metadata[key] for key in SAMPLE_IDENTITY):
                if recorded != metadata["weights_sha256"]:
                    now = metadata["weights_sha256"]
                    raise OtherWeights(
                        f"{self.relative(path)} was made with weights {str(recorded)[:8]}, but {cell.model.called} "
                        f"has {now[:8]} now (replaced or damaged)",
                        "restore the old weights (or remove that model to train it again), remove "
                        f"{self.relative(path.parent)}, or give another --out",
                    )
                on_damage(Damage(path, "its metadata is not this cell's"))
            elif part.stop >= shard.stop:
                done.add(shard.number)
        if len(done) < len(cell.shards) and (removed := self.removed_images(cell)) is not None:
            # Images of other weights are not these: then the cell is sampled again.
            keys = SAMPLE_IDENTITY if metadata is not None else ()
            if all(removed.metadata.get(key) == metadata[key] for key in keys if metadata is not None):
                done |= {shard.number for shard in cell.shards if shard.stop <= removed.stop}
        return done

    def extracted(self, extractor: str, cell: Cell, every_byte: bool, on_damage: OnDamage) -> set[int]:
        """Numbers of the cell's shards whose features are complete. Those of another cell count as damaged."""
        paths = [self.feature_part(extractor, cell, shard) for shard in cell.shards]
        parts = self._inspect_all(cell, paths, every_byte, on_damage)
        expected = {"cell": cell.id, "extractor": extractor}
        return {
            shard.number
            for shard, path, part in zip(cell.shards, paths, parts, strict=True)
            if part is not None and _is_of(path, part, expected, on_damage) and part.stop >= shard.stop
        }

    def is_whole(
        self, path: Path, stop: int, on_damage: OnDamage, start: int = 0, expected: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether there is an intact file with rows `start` to `stop` - 1 and `expected` in its metadata.

        A damaged one is reported, and so is one with other metadata.
        """
        version = self.version(path)
        part = None if version is None else self._inspect(path, version, start, True, on_damage)
        self.ledger.flush()
        return part is not None and _is_of(path, part, expected or {}, on_damage) and part.stop >= stop

    def version(self, path: Path) -> str | None:
        """What a job that replaces this file must find (`Stat.version`); None if there is no file."""
        try:
            return self.storage.stat(path).version
        except (FileNotFoundError, NotADirectoryError):
            return None

    def versions(self, folder: Path) -> Mapping[Path, str]:
        """The versions (`Stat.version`) of the shards that are in a folder now."""
        return {path: stat.version for path, stat in self.storage.stats(folder, "part-*.parquet").items()}

    def committed_cells(self) -> dict[str, str]:
        """Cell id -> folder name, of every cell with at least one sample file in place."""
        folders = sorted({path.parent for path in self.storage.list(self.samples, "*/part-*.parquet")})
        return {folder.name.rsplit("-", 1)[-1]: folder.name for folder in folders}

    def scores_of(self, cell: Cell) -> Sequence[Path]:
        return self.storage.list(self.scores, self.score(cell, "*").name)

    def set_aside(self, damage: Damage) -> Path:
        """Move a damaged file to `damaged/`, under a unique name that says where it was."""
        name = self.relative(damage.path).replace(os.sep, "__")
        there = {path.name for path in self.storage.list(self.damaged, f"*-{name}")}
        target = next(self.damaged / free for i in range(10**6) if (free := f"{i:04d}-{name}") not in there)
        self.storage.move(damage.path, target)
        return target

    def forget_derived(self, cell: Cell, shards: Collection[Shard]) -> None:
        """Remove what was computed from missing shards: their features, and the scores that they were part of."""
        first, names = min(shard.start for shard in shards), {shard.name for shard in shards}
        scores = []
        for path in self.scores_of(cell):
            score = read_sealed(path, self.storage)
            if score is None or score["protocol"]["num_samples"] > first:
                scores += [path, path.with_suffix(".parquet")]
        features = [path for path in self.storage.list(self.features, f"*/{cell.name}/*") if path.name in names]
        self._remove([*scores, *features])  # if a kill comes in between, the scores are found missing

    def remove_features(self, extractor: str, cell: Cell) -> None:
        self.storage.delete_folder(self.features / extractor / cell.name)

    def remove_tables(self, pattern: str) -> None:
        """Remove tables that an earlier command may have written, by the pattern of their names."""
        self._remove(self.storage.list(self.tables, pattern))

    def remove_figures(self, pattern: str) -> None:
        """Remove figures that an earlier command may have written, by the pattern of their names."""
        self._remove(self.storage.list(self.figures, pattern))

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.storage.delete(path)

    def remove_temporaries(self, folders: Iterable[str], before: float) -> None:
        """Remove what killed writers left in the folders that match these patterns, and in the run directory itself.

        What was written since `before` (`Lease.began`) stays: it is not of a dead driver. In a bucket, only the run
        directory itself can hold any: the probes beside config.json.
        """
        for folder in (".", *folders) if self.storage.on_disk else ["."]:
            for path, stat in self.storage.stats(self.root, f"{folder}/.*.tmp").items():
                if stat.modified < before:
                    self.storage.delete(path)

    def _inspect_all(
        self, cell: Cell, paths: list[Path], every_byte: bool, on_damage: OnDamage
    ) -> list[parquet.Part | None]:
        """`_inspect` each shard's file, several at a time: reading and hashing release Python's lock."""
        damages: list[Damage] = []
        versions = self.versions(paths[0].parent)

        def inspect(path: Path, shard: Shard) -> parquet.Part | None:
            version = versions.get(path)
            if version is None:
                return None
            return self._inspect(path, version, shard.start, every_byte, damages.append)

        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(inspect, paths, cell.shards))
        self.ledger.flush()
        for damage in sorted(damages):
            on_damage(damage)
        return parts

    def _inspect(
        self, path: Path, version: str, start: int, every_byte: bool, on_damage: OnDamage
    ) -> parquet.Part | None:
        try:
            part = self._look(path, version, every_byte)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedFile as error:
            on_damage(Damage(path, str(error)))
            return None
        if part.start != start:
            on_damage(Damage(path, f"it starts at image {part.start}, not {start}"))
            return None
        return part

    def _look(self, path: Path, version: str, every_byte: bool) -> parquet.Part:
        part = self.ledger.find(path, version)
        if part is None:
            part = parquet.inspect(path, every_byte, self.storage)
            if every_byte:
                self.ledger.add(path, version, part)
        return part


def _is_of(path: Path, part: parquet.Part, expected: Mapping[str, Any], on_damage: OnDamage) -> bool:
    """Whether a file's metadata are the expected ones; others are reported."""
    other = [key for key, value in expected.items() if part.metadata.get(key) != value]
    if other:
        on_damage(Damage(path, f"it is of another {' and '.join(other)}"))
    return not other
