"""The interface of a kind of work: everything that the rest of the program knows about it."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from taugrid.jobs import Result
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.survey import Survey

if TYPE_CHECKING:
    from rich.console import RenderableType

    from taugrid.eval.tables.quality import QualityTable

NETWORK_EVALUATIONS = "network evaluations"
IMAGES = "images"


class KindResult(NamedTuple):
    """The result of a kind of work."""

    rows: list[dict[str, Any]]
    text: "RenderableType" = ""  # as printed on stdout; empty: the command prints the rows as the quality table
    quality: "QualityTable | None" = None  # the quality table, if `rows` are its rows
    larger: "Sequence[QualityTable]" = ()  # the quality tables of cells that grew, one for each larger N


class WorkKind(ABC):
    """One kind of work on one run. A subclass in a module of this folder, without abstract methods, adds a kind."""

    name: ClassVar[str]  # the name in its tasks and their events
    priority: ClassVar[int]  # ready tasks of a lower number are assigned first; leave room between kinds
    folder: ClassVar[str]  # the folder of the run directory that its tasks write to
    # The Parquet files below `folder`, as a glob pattern: `verify` reads them, and a killed writer leaves its temporary
    # files next to them.
    files: ClassVar[str]
    stage: ClassVar[str]  # the stage of a run that does it
    reported_by: ClassVar[frozenset[str]] = frozenset()  # other stages that report its results without doing any of it
    unit: ClassVar[str]  # the unit of a task's cost, in the plural
    activity: ClassVar[str]  # the name of the work in the progress line
    task_in_words: ClassVar[tuple[str, str]]  # such as ("shard", "to sample"); the first is put into the plural
    counts_images: ClassVar[bool] = False  # whether the progress line also shows images per second
    # Whether its jobs run a network. If not, workers without a GPU may do them beside others with one.
    needs_network: ClassVar[bool] = True
    finished_noun: ClassVar[str | None] = None  # such as "cells scored"; None: tasks are counted only while they run

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.run, self.plan = survey.run, survey.plan
        self.config, self.rundir = survey.run.config, survey.run.rundir

    @classmethod
    def writes_in(cls) -> str:
        """The folders that its tasks write to, as a glob pattern below the run directory."""
        return (PurePosixPath(cls.folder) / cls.files).parent.as_posix()

    @classmethod
    def cells_of(cls, plan: Plan) -> Sequence[Cell]:
        """The cells that have a folder of this kind; its name starts with the cell's."""
        return plan.cells

    @property
    def path(self) -> Path:
        """The path of `folder` in this run."""
        return self.rundir.root / self.folder

    def job_at(self, path: Path) -> dict[str, Any]:
        """The arguments that each job with one file has."""
        return {"path": str(path), "storage": self.rundir.storage, "run_id": self.rundir.run_id}

    def check(self) -> None:
        """Raise `UserError` for failures that can be foreseen before any worker starts."""
        return

    def announcement(self, cost: float) -> str | None:
        """A message before work of this cost begins, with advice on how to reduce it; None: there is none."""
        return None

    @abstractmethod
    def tasks(self) -> Iterator[Task]:
        """The tasks for files that are missing. Damaged files are reported and count as missing. Models must exist."""

    @classmethod
    def clean_up(cls, done: Sequence[Self]) -> None:
        """Remove what is not needed once the work of a session is done: `done` is what it did of this kind, one for
        each N at which cells need scores."""
        return

    def missing(self) -> dict[str, str]:
        """Cell name -> what it lacks now, for the cells that are not complete."""
        return {}

    def labels(self) -> dict[str, str]:
        """Name -> label of the cells in `missing`."""
        return self.plan.labels

    def conclude(self) -> KindResult | None:
        """Write the results of what is complete. None: other work continues from here."""
        return None

    @classmethod
    def pace(cls, task: Task) -> Hashable:
        """What a task shares with those that take about as long for equal cost. The dispatcher compares it with
        them, to see whether it is late."""
        cell = task.cell
        if cell is None or cls.unit != NETWORK_EVALUATIONS:
            return cls.name
        settings = cell.settings
        networks = tuple(network.pace for network in cell.networks)
        computed = (settings.precision, settings.compile, settings.batch_size)
        # Where latents are kept, cells that differ in these alone only decode, which takes far less time.
        vae = None if cell.vae is None else cell.vae.saved.weights_sha256
        decoded = (vae, settings.vae_precision, settings.decode_batch)
        return (cls.name, networks, computed, decoded)

    @classmethod
    def event(cls, task: Task, result: Result, first_copy: bool) -> tuple[str, dict[str, Any]]:
        """The name and the fields of the event of a finished task; `first_copy`: no other was finished before. It names
        the model and the number of network evaluations: later sessions estimate their rate from these."""
        fields: dict[str, Any] = {"task": task.key, "images": result.images, "seconds": round(result.seconds, 4)}
        if task.cell is not None and cls.unit == NETWORK_EVALUATIONS:
            fields |= {"cell": task.cell.id, "model": task.cell.model.id, "evaluations": int(task.cost)}
        return cls.name, {**fields, "committed": first_copy}


def shard_key(kind: str, shard: Shard) -> str:
    """The key of the task of one kind for one shard."""
    return f"{kind}/{shard.cell}/{shard.number}"


def shard_of(task: Task) -> Shard:
    """The shard of a task with such a key."""
    assert task.cell is not None
    return task.cell.shard(int(task.key.rpartition("/")[2]))
