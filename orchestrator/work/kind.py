"""What a kind of work is: everything that the rest of the program knows about it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from taugrid.jobs import Job, Result
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.survey import Survey

if TYPE_CHECKING:
    from taugrid.eval.tables.differences import Evidence

NETWORK_EVALUATIONS = "network evaluations"
IMAGES = "images"


class Piece(NamedTuple):
    """A task, the job that does it, and the cell that it is for (None: the reference, which all cells need)."""

    task: Task
    job: Job
    cell: Cell | None


class Event(NamedTuple):
    """A line of the events file, but for where the work was done."""

    name: str
    fields: dict[str, Any]


class Conclusion(NamedTuple):
    """What a kind of work led to."""

    table: str
    """Name of the table."""
    rows: list[dict[str, Any]]
    text: str = ""
    """What people read of it on stdout. Empty: the command prints the rows as the quality table."""
    evidence: "Evidence | None" = None
    """Of the quality table: what tells its cells apart."""


class WorkKind(ABC):
    """One kind of work on one run. A module in this folder whose `KIND` is a subclass adds a kind."""

    name: ClassVar[str]
    """Of its tasks and their events."""
    priority: ClassVar[int]
    """Ready tasks of a lower number go out first; leave room between kinds."""
    folder: ClassVar[str]
    """Of the run directory, where its tasks write."""
    files: ClassVar[str]
    """The Parquet files below `folder`, as a glob pattern: `verify` reads them, and a killed writer's leftovers lie
    beside them."""
    stage: ClassVar[str]
    """The stage of a run that does it."""
    told_by: ClassVar[frozenset[str]] = frozenset()
    """Other stages, which do no work of this kind but tell what it led to."""
    unit: ClassVar[str]
    """Of a task's cost, in the plural."""
    activity: ClassVar[str]
    """What the progress line calls it."""
    task: ClassVar[tuple[str, str]]
    """A task in words, as ("shard", "to sample"): when a run announces its work, the first agrees with a number."""
    counts_images: ClassVar[bool] = False
    """The progress line shows images per second beside the unit."""
    finished: ClassVar[str | None] = None
    """What tasks that are done are called, if the progress line counts them whatever the workers are at."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.config, self.plan, self.rundir = survey.config, survey.plan, survey.rundir

    @classmethod
    def writes_in(cls) -> str:
        """The folders that its tasks write to, as a glob pattern below the run directory."""
        return (PurePosixPath(cls.folder) / cls.files).parent.as_posix()

    @property
    def place(self) -> Path:
        """`folder` of this run."""
        return self.rundir.root / self.folder

    def check(self) -> None:
        """Raise `UserError` for what can be known to fail before any worker starts."""
        return

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """What is missing on disk. Damaged files are reported, and count as missing. Models must be there."""

    def clean_up(self) -> None:
        """Remove what is not needed once the work is done."""
        return

    def missing(self) -> dict[str, str]:
        """Cell name -> what it lacks now, for the cells that lack something that people ask for."""
        return {}

    def conclude(self) -> Conclusion | None:
        """Write what the work leads to from what is complete. None: other work continues from here."""
        return None

    @classmethod
    def event(cls, piece: Piece, result: Result, first: bool) -> Event:
        """What the events file says of a piece that was done; `first`: no other copy of it was done before."""
        fields = {"task": piece.task.key, "images": result.images, "seconds": round(result.seconds, 4)}
        return Event(cls.name, {**fields, "committed": first})


def shard_key(kind: str, shard: Shard) -> str:
    """The key of the task of one kind for one shard."""
    return f"{kind}/{shard.cell}/{shard.number}"
