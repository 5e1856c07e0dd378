"""The names of the files in a run directory."""

from pathlib import Path

from taugrid.orchestrator.plan.cells import Cell, Model, Shard
from taugrid.storage import LOCAL, Storage


class Paths:
    """Where everything of a run lies: a storage, and names below `root`. Nothing is read or written here."""

    def __init__(self, root: Path, storage: Storage = LOCAL) -> None:
        self.storage = storage
        self.root = root.absolute()
        self.config = self.root / "config.json"
        self.provenance = self.root / "provenance.json"
        self.models = self.root / "models"
        self.samples = self.root / "samples"
        self.features = self.root / "features"
        self.scores = self.root / "scores"
        self.tables = self.root / "tables"
        self.figures = self.root / "figures"
        self.events = self.root / "events"
        self.logs = self.root / "logs"
        self.damaged = self.root / "damaged"

    def relative(self, path: Path) -> str:
        """`path` as seen from the run directory, for messages."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def model_folder(self, model: Model) -> Path:
        """Where a trained model lies, or the record of another."""
        return self.models / model.id

    def sample_part(self, cell: Cell, shard: Shard) -> Path:
        """Where a shard's images lie."""
        return self.samples / cell.name / shard.name

    def feature_part(self, extractor: str, cell: Cell, shard: Shard) -> Path:
        """Where a shard's features lie; `extractor` is its folder's name."""
        return self.features / extractor / cell.name / shard.name

    def reference_part(self, extractor: str, reference: str) -> Path:
        """Where the reference's features lie."""
        return self.features / extractor / reference / "part-000000.parquet"

    def score(self, cell: Cell, evaluation: str) -> Path:
        """Where a cell's score by one evaluation lies."""
        return self.scores / f"{cell.id}-{evaluation}.json"

    def influence(self, cell: Cell, evaluation: str) -> Path:
        """Where it lies how far each sample moves the FID of that score."""
        return self.score(cell, evaluation).with_suffix(".parquet")
