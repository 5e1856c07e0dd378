"""What is in the folders of a run at one moment: a look at all cells asks this, and not the storage for each file."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import Folders

PARTS = "part-*.parquet"
"""The files of shards in a folder."""


class Listing:
    """The names and versions (`Stat.version`) of a run's files, for one look at its cells.

    Which folders there are is looked up once; their files too in a bucket, on disk each time that they are asked for.
    Who must see what is written or removed later makes a new listing: none is kept from one look to the next.
    """

    def __init__(self, run: Paths) -> None:
        self._run = run
        self._features: dict[str, Folders] = {}

    @cached_property
    def samples(self) -> Folders:
        """The sample files in a cell's folder: name -> version."""
        return self._run.storage.folders(self._run.samples, PARTS)

    def features(self, extractor: str, folder: str) -> Mapping[str, str]:
        """The feature files in a folder of a cell or a reference: name -> version. `extractor` is its folder's name."""
        if extractor not in self._features:
            self._features[extractor] = self._run.storage.folders(self._run.features / extractor, PARTS)
        return self._features[extractor](folder)

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
