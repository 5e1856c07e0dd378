"""Scores label by label, with `report.by: label`: a task for each class-conditional cell, and tables/by_label."""

from collections.abc import Iterator
from typing import Any

from taugrid.errors import DamagedFile
from taugrid.eval.score_by_label import ByLabelJob, LabelledReference, read
from taugrid.eval.tables.by_label import LabelTable, write_by_label
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import classes_of, per_sample
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.extract import required_by_score
from taugrid.orchestrator.work.kind import IMAGES, WorkKind
from taugrid.orchestrator.work.score import reference_files
from taugrid.orchestrator.work.survey import CellState


class ByLabelWork(WorkKind):
    name = "by_label"
    priority = 60
    folder = "by-label"
    files = "*.parquet"
    stage = "evaluate"
    reported_by = frozenset({"report"})
    unit = IMAGES
    activity = "scoring by label"
    task_in_words = ("cell", "to score by label")
    needs_network = False

    @classmethod
    def cells_of(cls, plan: Plan) -> list[Cell]:
        return [cell for cell in plan.cells if classes_of(cell) is not None]

    def tasks(self) -> Iterator[Task]:
        """A task for each cell whose scores by label are missing or out of date."""
        for state in self.survey.found.cells:
            if state.by_label:
                key, cost = f"{self.name}/{state.cell.id}", state.cell.settings.num_samples
                requires = required_by_score(state, self.survey.found)
                yield Task(key, self.name, cost, requires, state.cell, self._job(state))

    def _job(self, state: CellState) -> ByLabelJob:
        cell, scoring, rundir = state.cell, self.scoring, self.rundir
        data, labels, classes = scoring.reference.data, scoring.labels, classes_of(cell)
        assert classes is not None
        folder = rundir.extractor_folder(scoring.extractor)
        return ByLabelJob(
            storage=rundir.storage,
            run_id=rundir.run_id,
            path=str(rundir.by_label(cell, scoring.by_label_id(cell))),
            feature_paths=tuple(str(rundir.feature_part(folder, cell, shard)) for shard in cell.shards),
            num_samples=cell.settings.num_samples,
            reference=reference_files(self.survey),
            settings=self.config.evaluate.metric_settings,
            header={"cell": cell.id, "evaluation": scoring.id(cell)},
            sample_paths=tuple(str(rundir.sample_part(cell, shard)) for shard in cell.shards),
            extractor=scoring.extractor,
            samples=per_sample(cell.model.data, classes),
            classes=classes,
            labels=LabelledReference(data, labels.sha256) if data is not None and labels else None,
        )

    def missing(self) -> dict[str, str]:
        """Cells with a score but none by label."""
        if self.config.report.by is None:
            return {}
        return {cell.name: "scored, but not by label" for cell in self.cells_of(self.plan)
                if self.rundir.storage.exists(self.rundir.score(cell, self.scoring.id(cell)))
                and not self._found(cell)}  # fmt: skip

    def conclude(self) -> None:
        """Write tables/by_label.* with the report; remove earlier ones if nothing is by label."""
        if "report" not in self.survey.stages:
            return
        cells = self.cells_of(self.run.configured) if self.config.report.by is not None else []
        rows: list[dict[str, Any]] = []
        notes: dict[str, list[str]] = {}
        names = () if not cells or self.scoring.labels is None else self.scoring.labels.classes
        for cell in cells:
            for label, (row, reasons) in enumerate(self._found(cell)):
                called = names[label] if label < len(names) else str(label)
                rows.append({"cell": cell.id, "settings": cell.label, "label": label, "class": called, **row})
                for reason in reasons:
                    notes.setdefault(reason, []).append(called)
        if not rows:
            self.rundir.remove_outputs("tables/by_label.*")
            return
        with self.rundir.storage.local_folder(self.rundir.tables) as tables:
            write_by_label(LabelTable.of(rows, notes, self.config.evaluate.metrics), tables)

    def _found(self, cell: Cell) -> list[tuple[dict[str, float], list[str]]]:
        """The numbers of each label, and why some are missing; empty if there is no intact file."""
        path = self.rundir.by_label(cell, self.scoring.by_label_id(cell))
        try:
            rows, notes = read(path, self.rundir.storage)
        except (DamagedFile, FileNotFoundError):
            return []
        return [(row, notes.get(str(label), [])) for label, row in enumerate(rows)]
