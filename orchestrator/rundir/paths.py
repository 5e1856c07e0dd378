"""The names of the files in a run directory."""

import hashlib
import uuid
from pathlib import Path

from taugrid.eval.reference import Reference
from taugrid.eval.sources import part_bounds
from taugrid.orchestrator.plan.cells import Cell, Model, Shard, name_of, part_name
from taugrid.orchestrator.plan.sources import RECORD
from taugrid.registry.extractors import ExtractorSpec
from taugrid.run_id import RunId
from taugrid.storage import LocalStorage, Storage, open_place, user_cache
from taugrid.words import with_urls
from taugrid.workers.training.log import LOG


class Paths:
    """The paths of a run's files: a storage, and names below `root`. This class reads and writes nothing.

    Some names are defined elsewhere:

    - of a cell's folder and of a shard's file: `plan.cells`, since messages and tasks use them too;
    - in a model's folder: `plan.sources`; of a training that still runs: `taugrid.jobs`;
    - in the folders of reconstructions and interpolations, which hash what they were made from: those kinds of `work`;
    - of tables and figures: the functions of `report`, `work`, `eval.tables` and `eval.figures` that write them.
    """

    option = "--out"  # the option that sets the root, for messages

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        self.root = root.absolute() if storage is None or storage.on_disk else root
        self.storage = storage or LocalStorage(self.root)
        self.run_id: RunId | None = None  # set once the driver has claimed the directory
        self.config = self.root / "config.json"
        self.plan = self.root / "plan.json"
        self.lease = self.root / "lease.json"
        self.provenance = self.root / "provenance.json"
        self.models = self.root / "models"
        self.samples = self.root / "samples"
        self.features = self.root / "features"
        self.scores = self.root / "scores"
        self.removed = self.root / "removed"
        self.tables = self.root / "tables"
        self.figures = self.root / "figures"
        self.report = self.root / "report.html"
        self.events = self.root / "events"
        self.logs = self.root / "logs"
        self.damaged = self.root / "damaged"

    @property
    def shown(self) -> str:
        """The run directory as the user names it: a path or a URL."""
        return with_urls(str(self.root))

    @property
    def around(self) -> tuple[Path, Storage]:
        """The folder that holds the run directory, a night's if a night made it, and a storage that reads there."""
        is_whole_bucket = not self.storage.on_disk and len(self.root.parts) == 2
        return open_place(with_urls(str(self.root if is_whole_bucket else self.root.parent)), "DIR")

    def relative(self, path: Path) -> str:
        """`path` relative to the run directory, for messages."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else with_urls(str(path))

    def model_folder(self, model: Model) -> Path:
        return self.models / model.id

    def model_record(self, model_id: str) -> Path:
        """The description of a loaded or custom model when it was sampled; `*` gives the pattern of all records."""
        return self.models / model_id / RECORD

    def training_log(self, model: Model) -> Path:
        return self.models / model.id / "train" / LOG

    def training_folder(self, scratch: str | None) -> Path:
        """The folder for files of trainings while they run, on a disk: models/ if the run is on a disk. For a run in an
        object store it is below `cluster.scratch`, or else in this user's cache on this machine."""
        if self.storage.on_disk:
            return self.models
        name = f"{self.root.name}-{hashlib.sha256(repr((self.root, self.storage)).encode()).hexdigest()[:8]}"
        return (user_cache() / "scratch" if scratch is None else Path(scratch).absolute()) / name / self.models.name

    def sample_part(self, cell: Cell, shard: Shard) -> Path:
        return self.samples / cell.name / shard.name

    def extractor_folder(self, extractor: ExtractorSpec) -> str:
        """Name of the folder of features: the extractor, 8 digits of its hashes, and its precision if not float32."""
        hashes = [digest[:8] for digest in (extractor.weights_sha256, extractor.source_sha256) if digest]
        return name_of([extractor.name, *hashes, *extractor.other_precision.values()])

    def feature_part(self, extractor: str, cell: Cell, shard: Shard) -> Path:
        """The file of a shard's features; `extractor` is its folder's name."""
        return self.features / extractor / cell.name / shard.name

    def reference_part(self, extractor: str, sha256: str, number: int) -> Path:
        """A file of the reference's features, next to those of the cells; `sha256` is that of all its content."""
        return self.features / extractor / f"reference-{sha256[:10]}" / part_name(number)

    def reference_parts(self, extractor: str, reference: Reference) -> list[Path]:
        """The files of all the reference's features, in the order of its images; none if only moments are known."""
        numbers = range(len(part_bounds(reference.num_images or 0)))
        return [self.reference_part(extractor, reference.sha256, number) for number in numbers]

    def score(self, cell: Cell, scoring_id: str) -> Path:
        """The file of a cell's score by one `Scoring.id`; `*` gives the pattern of all its scores."""
        return self.scores / f"{cell.id}-{scoring_id}.json"

    def influence(self, cell: Cell, scoring_id: str) -> Path:
        """The file of the influences of that score: how far each sample moves its FID."""
        return self.score(cell, scoring_id).with_suffix(".parquet")

    def by_label(self, cell: Cell, by_label_id: str) -> Path:
        """The file of a cell's scores label by label, by one `Scoring.by_label_id`."""
        return self.root / "by-label" / f"{cell.id}-{by_label_id}.parquet"

    def task_log(self, session: str, task: str) -> Path:
        """The file of the errors of a task or a worker; `session` is the name of the session's events."""
        return self.logs / f"{session}-{task.replace('/', '-')}.txt"

    def new_probe(self) -> Path:
        """A new name for a file by which a worker checks that it sees the run directory."""
        return self.root / f".probe.{uuid.uuid4().hex[:12]}.tmp"
