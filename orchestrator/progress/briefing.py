"""What the display is told about a session before its first task goes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.config import Config
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.progress import tasks
from taugrid.orchestrator.progress.grid import evaluations_left, grid_cells, shown_metric
from taugrid.orchestrator.progress.state import GridCell
from taugrid.orchestrator.progress.todo import KnownTask
from taugrid.orchestrator.rates import seconds_by_pace
from taugrid.orchestrator.report.scores import score_on_disk
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.work import kinds_by_name
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, Piece


@dataclass(frozen=True)
class Briefing:
    """The work of one session on `plan`."""

    config: Config
    plan: Plan
    rundir: RunDir
    scoring: Evaluation | None
    pieces: Mapping[str, Piece]

    @cached_property
    def items(self) -> dict[str, KnownTask]:
        return tasks.items(self.pieces, kinds_by_name())

    @property
    def to_do(self) -> list[dict[str, Any]]:
        """The content of the event "to do"."""
        return tasks.to_do(self.items.values())

    @cached_property
    def earlier(self) -> dict[tuple[str, str], float]:
        """Seconds per unit of cost in earlier sessions, by pace and device."""
        return seconds_by_pace(read_events(self.rundir), self.plan.cells)

    @property
    def metric_title(self) -> str:
        """The heading of the cells' scores; empty if none are asked for."""
        return "" if self.scoring is None else shown_metric(self.config.evaluate.metrics).title

    def cells(self, with_scores: bool) -> dict[str, GridCell]:
        """The cells by id, as they are before the session. Reading their scores may take a while."""
        left = evaluations_left(self.items.values(), kinds_by_name())
        outdated = {item.cell for item in self.items.values() if item.kind == "score"}

        def score(cell: Cell) -> float | None:
            return self.score(cell.id) if with_scores and cell.id not in outdated else None

        return grid_cells(self._cells.values(), self.config.report.columns, left, score, self._is_of_samples)

    def score(self, cell: str) -> float | None:
        if self.scoring is None or cell not in self._cells:
            return None
        metric = shown_metric(self.config.evaluate.metrics)
        return score_on_disk(self.rundir, self._cells[cell], metric, self.scoring)

    @property
    def _is_of_samples(self) -> bool:
        """Whether no network runs but for samples."""
        kinds = (kinds_by_name()[item.kind] for item in self.items.values())
        return all(kind.counts_images or kind.unit != NETWORK_EVALUATIONS for kind in kinds)

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        """The plan's cells by id or, if other work than samples and scores is done, those that it is done on."""
        worked = {piece.cell.id: piece.cell for piece in self.pieces.values() if piece.cell is not None}
        return {cell.id: cell for cell in self.plan.cells} if self._is_of_samples else worked
