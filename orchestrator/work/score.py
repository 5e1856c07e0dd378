"""Scores: a task for each cell and, with `report.by: label`, another for its labels; the tables of both."""

from collections.abc import Iterator
from typing import Any

from taugrid.errors import DamagedFile
from taugrid.eval.metrics.floor import read_floors
from taugrid.eval.metrics.reference_statistics import MomentsFile
from taugrid.eval.score_cell import ByLabelJob, ReferenceFiles, ScoreJob, read_by_label
from taugrid.eval.tables.by_label import LabelTable, write_by_label
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import classes_of, per_sample
from taugrid.orchestrator.report.collect import collect
from taugrid.orchestrator.report.write import larger_table, quality_table, write_larger, write_report
from taugrid.orchestrator.rundir.directory import Damage
from taugrid.orchestrator.rundir.evidence import path_of_floors
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.extract import required_by_score
from taugrid.orchestrator.work.kind import IMAGES, KindResult, WorkKind
from taugrid.orchestrator.work.sample import unsampled
from taugrid.orchestrator.work.scorer import FILE, keep_record
from taugrid.orchestrator.work.survey import CellState, Survey


class ScoreWork(WorkKind):
    name = "score"
    priority = 50
    folder = "scores"
    files = "*.parquet"
    stage = "evaluate"
    reported_by = frozenset({"report"})
    unit = IMAGES
    activity = "scoring"
    task_in_words = ("cell", "to score")
    finished_noun = "cells scored"
    needs_network = False

    def tasks(self) -> Iterator[Task]:
        """A task for each cell whose score is missing or out of date."""
        found, without_floors = self.survey.found, self._without_floors()
        for state in found.cells:
            if state.to_score:
                floors = without_floors.pop(state.cell.settings.num_samples, None)  # the first cell of an N makes them
                key, cost = f"{self.name}/{state.cell.id}", state.cell.settings.num_samples
                requires = required_by_score(state, found)
                yield Task(key, self.name, cost, requires, state.cell, self.job(state, floors))

    def _without_floors(self) -> dict[int, str]:
        """Each N whose floors are missing -> their file."""
        if isinstance(self.scoring.reference.given, MomentsFile):
            return {}
        sizes = {state.cell.settings.num_samples for state in self.survey.found.cells if state.to_score}
        paths = {n: path_of_floors(self.rundir, self.scoring, n) for n in sizes}
        return {n: str(path) for n, path in paths.items() if read_floors(path, self.rundir.storage) is None}

    def job(self, state: CellState, floors: str | None) -> ScoreJob:
        cell, scoring = state.cell, self.scoring
        n, folder = cell.settings.num_samples, self.rundir.extractor_folder(scoring.extractor)
        settings, reasons, remarks = scoring.of_cell(cell)
        return ScoreJob(
            storage=self.rundir.storage,
            run_id=self.rundir.run_id,
            path=str(self.rundir.score(cell, scoring.id(cell))),
            influence_path=str(self.rundir.influence(cell, scoring.id(cell))),
            feature_paths=tuple(str(self.rundir.feature_part(folder, cell, shard)) for shard in cell.shards),
            num_samples=n,
            reference=reference_files(self.survey),
            settings=settings,
            header={"cell": cell.id, "evaluation": scoring.id(cell), "protocol": scoring.protocol(cell).as_dict()},
            floor_path=floors,
            sample_paths=tuple(str(self.rundir.sample_part(cell, shard)) for shard in cell.shards)
            if settings.sample_columns
            else (),
            notes=(*(f"no {metric}: {reason}" for metric, reason in reasons.items()), *remarks),
        )

    def clean_up(self) -> None:
        """Record what the scorer gives for the reference; remove the features of scored cells that are not kept."""
        if damaged := self.rundir.is_changed(FILE):
            self.survey.on_damage(Damage(self.rundir.root / FILE, "it has changed since it was written"))
        if damaged or any(state.to_score for state in self.survey.found.cells):
            keep_record(self.config, self.rundir, self.scoring)
        if not self.config.evaluate.keep_features:
            listing, folder = Listing(self.rundir), self.rundir.extractor_folder(self.scoring.extractor)
            for cell in self.plan.cells:
                is_scored = self.rundir.score(cell, self.scoring.id(cell)).name in listing.scores(cell)
                if is_scored and listing.features(folder, cell.name):
                    self.rundir.remove_features(folder, cell)

    def missing(self) -> dict[str, str]:
        """Cells without a score: those that lack images, and those that were not scored."""
        listing, lacking = Listing(self.rundir), dict[str, str]()
        sampled_in_part = unsampled(self.plan, self.rundir, listing)
        scores = self.rundir.read_scores([(cell, self.scoring.id(cell)) for cell in self.plan.cells], listing)
        for cell, score in zip(self.plan.cells, scores, strict=True):
            if cell.name in sampled_in_part:
                lacking[cell.name] = sampled_in_part[cell.name]
            elif score is None:
                lacking[cell.name] = "sampled, but not scored"
        return lacking

    def conclude(self) -> KindResult:
        """The quality table; the stage `report` writes it, with the figures."""
        run, writes = self.run, "report" in self.survey.stages
        collected, *grown = (collect(plan, self.rundir, self.scoring) for plan in run.at_each_size)
        quality = (write_report if writes else quality_table)(run, collected)
        larger = [larger_table(run, its) for its in grown if its.rows]
        if writes:
            write_larger(larger, self.rundir)
        return KindResult(collected.rows, quality=quality, larger=larger)


def reference_files(survey: Survey) -> ReferenceFiles:
    """The files of the reference that jobs of `survey` read."""
    assert survey.scoring is not None
    scoring, rundir, reference = survey.scoring, survey.rundir, survey.scoring.reference
    folder = rundir.reference_part(rundir.extractor_folder(scoring.extractor), reference.sha256, 0).parent
    moments = reference.given if isinstance(reference.given, MomentsFile) else None
    features = tuple(str(path) for path in survey.found.reference)
    return ReferenceFiles(moments or features, reference.num_images, str(folder), scoring.reference_key)


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
            labels=(data, labels.sha256) if data is not None and labels else None,
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
            rows, notes = read_by_label(path, self.rundir.storage)
        except (DamagedFile, FileNotFoundError):
            return []
        return [(row, notes.get(str(label), [])) for label, row in enumerate(rows)]
