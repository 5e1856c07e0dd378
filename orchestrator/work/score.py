"""Evaluation: the features of the reference, in parts, and of each shard; the scores of cells and of their labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from taugrid.errors import DamagedFile
from taugrid.eval.extract import ExtractJob
from taugrid.eval.metrics.floor import read_floors
from taugrid.eval.metrics.reference_statistics import MomentsFile
from taugrid.eval.score_cell import ByLabelJob, ReferenceFiles, ScoreJob, read_by_label
from taugrid.eval.sources import part_bounds
from taugrid.eval.tables.by_label import LabelTable, write_by_label
from taugrid.jobs import Result
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard
from taugrid.orchestrator.plan.scoring import Scoring, classes_of, per_sample
from taugrid.orchestrator.report.collect import collect
from taugrid.orchestrator.report.write import larger_table, quality_table, write_larger, write_report
from taugrid.orchestrator.rundir.directory import Damage
from taugrid.orchestrator.rundir.evidence import path_of_floors
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.task import NOTHING, Task
from taugrid.orchestrator.work.kind import IMAGES, KindResult, WorkKind, shard_key, shard_of
from taugrid.orchestrator.work.sample import SampleWork, unsampled
from taugrid.orchestrator.work.scorer import FILE, keep_record
from taugrid.orchestrator.work.survey import CellState


class EvaluateWork(WorkKind):
    """What the kinds of the stage `evaluate` share."""

    stage = "evaluate"
    unit = IMAGES

    @property
    def scoring(self) -> Scoring:
        """How cells are scored."""
        assert self.survey.scoring is not None
        return self.survey.scoring

    @property
    def extractor_folder(self) -> str:
        """The folder in features/ of the extractor."""
        return self.rundir.extractor_folder(self.scoring.extractor)


class ReferenceWork(EvaluateWork):
    """The features of the reference, which all cells share. Every score needs all parts of it."""

    name = "reference"
    priority = 5
    folder = "features"
    files = "*/reference-*/part-*.parquet"
    activity = "extracting the reference"
    task_in_words = ("reference part", "to extract")

    def tasks(self) -> Iterator[Task]:
        """A task for each part whose features are missing, if a score needs them."""
        if any(state.needs_features for state in self.survey.found.cells):
            yield from map(self._task, self.survey.found.reference_missing)

    def _task(self, number: int) -> Task:
        reference, folder = self.scoring.reference, self.extractor_folder
        assert not isinstance(reference.given, MomentsFile)
        start, stop = part_bounds(reference.given.num_images)[number]
        job = ExtractJob(
            **self.job_at(self.rundir.reference_part(folder, reference.sha256, number)),
            images=replace(reference.given, parts_sha256=()),
            images_sha256=reference.given.part_sha256(number),
            extractor=self.scoring.extractor,
            batch_size=self.config.evaluate.batch_size,
            metadata={"reference": reference.sha256, "extractor": folder},
            start=start,
            stop=stop,
        )
        return Task(f"{self.name}/{number}", self.name, stop - start, given=job)

    @classmethod
    def event(cls, task: Task, result: Result, first_copy: bool) -> tuple[str, dict[str, Any]]:
        """A line `extract`, as for other features."""
        return ExtractWork.name, super().event(task, result, first_copy)[1]


class ExtractWork(EvaluateWork):
    """The features that scores are computed from."""

    name = "extract"
    priority = 40
    folder = "features"
    files = "*/S*/part-*.parquet"
    activity = "extracting features"
    task_in_words = ("feature file", "to extract")

    def tasks(self) -> Iterator[Task]:
        listing = Listing(self.rundir)  # anew: damaged files were moved away
        for state in (state for state in self.survey.found.cells if state.needs_features):
            yield from self._cell_tasks(state, listing.features(self.extractor_folder, state.cell.name))

    def _cell_tasks(self, state: CellState, there: Mapping[str, str]) -> Iterator[Task]:
        cell, folder, missing = state.cell, self.extractor_folder, _not_extracted(state)
        replaced = {shard.name: there[shard.name] for shard in missing if shard.name in there}

        def job(task: Task) -> ExtractJob:
            shard = shard_of(task)
            return ExtractJob(
                **self.job_at(self.rundir.feature_part(folder, cell, shard)),
                replaces=replaced.get(shard.name),
                images=str(self.rundir.sample_part(cell, shard)),
                images_sha256=None,
                extractor=self.scoring.extractor,
                batch_size=self.config.evaluate.batch_size,
                metadata={"cell": cell.id, "extractor": folder},
            )

        for shard in missing:
            is_sampled = shard.number in state.sampled
            requires = NOTHING if is_sampled else frozenset({shard_key(SampleWork.name, shard)})
            yield Task(shard_key(self.name, shard), self.name, shard.images, requires, cell, job)


def _not_extracted(state: CellState) -> list[Shard]:
    """The shards whose features must be extracted before the cell can be scored."""
    return [s for s in state.cell.shards if s.number not in state.extracted or s.number not in state.sampled]


class _ScoringWork(EvaluateWork):
    """What both kinds of scores share."""

    files = "*.parquet"
    reported_by = frozenset({"report"})
    needs_network = False

    def task(self, state: CellState, job: ScoreJob | ByLabelJob) -> Task:
        """The task of a cell, which requires its features and the reference's."""
        requires = {shard_key(ExtractWork.name, shard) for shard in _not_extracted(state)}
        requires |= {f"{ReferenceWork.name}/{number}" for number in self.survey.found.reference_missing}
        cell = state.cell
        return Task(f"{self.name}/{cell.id}", self.name, cell.settings.num_samples, frozenset(requires), cell, job)

    def common(self, cell: Cell) -> dict[str, Any]:
        """The arguments that both kinds of job have."""
        scoring, rundir, folder = self.scoring, self.rundir, self.extractor_folder
        reference = scoring.reference
        moments = reference.given if isinstance(reference.given, MomentsFile) else None
        files = tuple(str(path) for path in self.survey.found.reference)
        of_parts = str(rundir.reference_part(folder, reference.sha256, 0).parent)
        return {
            "feature_paths": tuple(str(rundir.feature_part(folder, cell, shard)) for shard in cell.shards),
            "num_samples": cell.settings.num_samples,
            "reference": ReferenceFiles(moments or files, reference.num_images, of_parts, scoring.reference_key),
        }

    def sample_paths(self, cell: Cell) -> tuple[str, ...]:
        """The files of a cell's images."""
        return tuple(str(self.rundir.sample_part(cell, shard)) for shard in cell.shards)


class ScoreWork(_ScoringWork):
    """The scores of cells."""

    name = "score"
    priority = 50
    folder = "scores"
    activity = "scoring"
    task_in_words = ("cell", "to score")
    finished_noun = "cells scored"

    def tasks(self) -> Iterator[Task]:
        """A task for each cell whose score is missing or out of date."""
        to_score, without_floors = [state for state in self.survey.found.cells if state.to_score], dict[int, str]()
        if not isinstance(self.scoring.reference.given, MomentsFile):
            sizes = {state.cell.settings.num_samples for state in to_score}
            paths = {n: path_of_floors(self.rundir, self.scoring, n) for n in sizes}
            missing = {n: path for n, path in paths.items() if read_floors(path, self.rundir.storage) is None}
            without_floors = {n: str(path) for n, path in missing.items()}
        for state in to_score:
            floors = without_floors.pop(state.cell.settings.num_samples, None)  # the first cell of an N makes them
            yield self.task(state, self._job(state.cell, floors))

    def _job(self, cell: Cell, floors: str | None) -> ScoreJob:
        scoring, id = self.scoring, self.scoring.id(cell)
        settings, reasons, remarks = scoring.of_cell(cell)
        return ScoreJob(
            **self.job_at(self.rundir.score(cell, id)),
            influence_path=str(self.rundir.influence(cell, id)),
            settings=settings,
            header={"cell": cell.id, "evaluation": id, "protocol": scoring.protocol(cell).as_dict()},
            floor_path=floors,
            sample_paths=self.sample_paths(cell) if settings.sample_columns else (),
            notes=(*(f"no {metric}: {reason}" for metric, reason in reasons.items()), *remarks),
            **self.common(cell),
        )

    @classmethod
    def clean_up(cls, done: Sequence[Self]) -> None:
        """Record what the scorer gives for the reference; remove the features of scored cells that are not kept."""
        if not done:
            return
        first = done[0]
        if damaged := first.rundir.is_changed(FILE):
            damage = Damage(first.rundir.root / FILE, "it has changed since it was written")
            first.survey.on_damage(damage)
        if damaged or any(state.to_score for work in done for state in work.survey.found.cells):
            keep_record(first.config, first.rundir, first.scoring)
        for work in done:
            work._remove_features()

    def _remove_features(self) -> None:
        """Remove the features of scored cells that are not kept."""
        if not self.config.evaluate.keep_features:
            listing, folder = Listing(self.rundir), self.extractor_folder
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
            if score is None or cell.name in sampled_in_part:
                lacking[cell.name] = sampled_in_part.get(cell.name, "sampled, but not scored")
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


class ByLabelWork(_ScoringWork):
    """The scores of cells label by label, with `report.by: label`."""

    name = "by_label"
    priority = 60
    folder = "by-label"
    activity = "scoring by label"
    task_in_words = ("cell", "to score by label")

    @classmethod
    def cells_of(cls, plan: Plan) -> list[Cell]:
        return [cell for cell in plan.cells if classes_of(cell) is not None]

    def tasks(self) -> Iterator[Task]:
        """A task for each cell whose scores by label are missing or out of date."""
        for state in self.survey.found.cells:
            if state.by_label:
                yield self.task(state, self._job(state.cell))

    def _job(self, cell: Cell) -> ByLabelJob:
        scoring, classes = self.scoring, classes_of(cell)
        data, labels = scoring.reference.data, scoring.labels
        assert classes is not None
        return ByLabelJob(
            **self.job_at(self.rundir.by_label(cell, scoring.by_label_id(cell))),
            settings=self.config.evaluate.metric_settings,
            header={"cell": cell.id, "evaluation": scoring.id(cell)},
            sample_paths=self.sample_paths(cell),
            extractor=scoring.extractor,
            samples=per_sample(cell.model.data, classes),
            classes=classes,
            labels=(data, labels.sha256) if data is not None and labels else None,
            **self.common(cell),
        )

    def missing(self) -> dict[str, str]:
        """Cells with a score but none by label."""
        cells = self.cells_of(self.plan) if self.config.report.by is not None else []
        scored = (c for c in cells if self.rundir.storage.exists(self.rundir.score(c, self.scoring.id(c))))
        return {cell.name: "scored, but not by label" for cell in scored if not self._found(cell)}

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
