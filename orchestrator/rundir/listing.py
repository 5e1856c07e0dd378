"""What is in the folders of a run at one moment: a look at all cells asks this, and not the storage for each file."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.paths import Paths

FilesOf = Callable[[str], Mapping[str, str]]  # the name of a folder -> its files: name -> version

PARTS = "part-*.parquet"  # the files of shards in a folder


class Listing:
    """The names and versions (`Stat.version`) of a run's files, for one look at its cells. Which folders there are is
    looked up once; their files too in a bucket, on disk each time that they are asked for. Who must see what is written
    or removed later makes a new listing: none is kept from one look to the next."""

    def __init__(self, run: Paths) -> None:
        self._run = run
        self._features: dict[str, FilesOf] = {}

    @cached_property
    def samples(self) -> FilesOf:
        """The sample files in a cell's folder: name -> version."""
        return self._parts(self._run.samples)

    def features(self, extractor: str, folder: str) -> Mapping[str, str]:
        """The feature files in a folder of a cell or a reference: name -> version. `extractor` is its folder's name."""
        if extractor not in self._features:
            self._features[extractor] = self._parts(self._run.features / extractor)
        return self._features[extractor](folder)

    def _parts(self, folder: Path) -> FilesOf:
        storage = self._run.storage
        if storage.on_disk:
            there = {path.name for path in storage.list(folder, "*")}

            def parts(name: str) -> dict[str, str]:
                stats = storage.stats(folder / name, PARTS) if name in there else {}
                return {path.name: stat.version for path, stat in stats.items()}

            return parts
        found: dict[str, dict[str, str]] = {}
        for path, stat in storage.stats(folder, f"*/{PARTS}").items():
            found.setdefault(path.parent.name, {})[path.name] = stat.version
        return lambda name: found.get(name, {})

    def scores(self, cell: Cell) -> Mapping[str, str]:
        """The files of a cell's scores and influences: name -> version."""
        return self._scores.get(cell.id, {})

    def has_removed_images(self, cell: Cell) -> bool:
        """Whether there is a record that a cell's images were removed to save space."""
        return cell.name in self._removed

    @cached_property
    def extractors(self) -> Sequence[str]:
        """The folders of features."""
        return [path.name for path in self._run.storage.list(self._run.features, "*")]

    @cached_property
    def _scores(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for path, stat in self._run.storage.stats(self._run.scores, "*").items():
            found.setdefault(path.name.partition("-")[0], {})[path.name] = stat.version
        return found

    @cached_property
    def _removed(self) -> frozenset[str]:
        return frozenset(path.stem for path in self._run.storage.list(self._run.removed, "*.parquet"))
