"""Extraction: the features of the reference, in parts, before all other work, and of each shard.

Every score needs all parts of the reference.
"""

from collections.abc import Iterator
from dataclasses import replace

from taugrid.eval.extract import ExtractJob
from taugrid.eval.metrics.reference_statistics import MomentsFile
from taugrid.eval.sources import part_bounds
from taugrid.jobs import Result
from taugrid.orchestrator.plan.cells import Shard
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.task import NOTHING, Task
from taugrid.orchestrator.work.kind import IMAGES, Event, WorkKind, shard_key, shard_of
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import CellState, RunState


class ReferenceWork(WorkKind):
    """The features of the reference, which all cells share."""

    name = "reference"
    priority = 5
    folder = "features"
    files = "*/reference-*/part-*.parquet"
    stage = "evaluate"
    unit = IMAGES
    activity = "extracting the reference"
    task_in_words = ("reference part", "to extract")

    def tasks(self) -> Iterator[Task]:
        """A task for each part whose features are missing, if a score needs them."""
        if any(state.needs_features for state in self.survey.found.cells):
            yield from map(self._task, self.survey.found.reference_missing)

    def _task(self, number: int) -> Task:
        extractor, reference = self.scoring.extractor, self.scoring.reference
        folder = self.rundir.extractor_folder(extractor)
        assert not isinstance(reference.given, MomentsFile)
        start, stop = part_bounds(reference.given.num_images)[number]
        job = ExtractJob(
            path=str(self.rundir.reference_part(folder, reference.sha256, number)),
            storage=self.rundir.storage,
            run_id=self.rundir.run_id,
            images=replace(reference.given, parts_sha256=()),
            images_sha256=reference.given.part_sha256(number),
            extractor=extractor,
            batch_size=self.config.evaluate.batch_size,
            metadata={"reference": reference.sha256, "extractor": folder},
            start=start,
            stop=stop,
        )
        return Task(f"{self.name}/{number}", self.name, stop - start, given=job)

    @classmethod
    def event(cls, task: Task, result: Result, first_copy: bool) -> Event:
        """A line `extract`, as for other features."""
        return super().event(task, result, first_copy)._replace(name="extract")


def not_extracted(state: CellState) -> list[Shard]:
    """The shards whose features must be extracted before the cell can be scored."""
    return [s for s in state.cell.shards if s.number not in state.extracted or s.number not in state.sampled]


def required_by_score(state: CellState, found: RunState) -> frozenset[str]:
    """The tasks whose features a score of the cell requires: its own, and the reference's."""
    of_reference = {f"{ReferenceWork.name}/{number}" for number in found.reference_missing}
    return frozenset(of_reference | {shard_key(ExtractWork.name, shard) for shard in not_extracted(state)})


class ExtractWork(WorkKind):
    """The features that scores are computed from."""

    name = "extract"
    priority = 40
    folder = "features"
    files = "*/S*/part-*.parquet"
    stage = "evaluate"
    unit = IMAGES
    activity = "extracting features"
    task_in_words = ("feature file", "to extract")

    def tasks(self) -> Iterator[Task]:
        listing = Listing(self.rundir)  # anew: damaged files were moved away
        for state in (state for state in self.survey.found.cells if state.needs_features):
            yield from self._cell_tasks(state, listing)

    def _cell_tasks(self, state: CellState, listing: Listing) -> Iterator[Task]:
        cell, extractor = state.cell, self.scoring.extractor
        folder = self.rundir.extractor_folder(extractor)
        there, missing = listing.features(folder, cell.name), not_extracted(state)
        replaced = {shard.name: there[shard.name] for shard in missing if shard.name in there}

        def job(task: Task) -> ExtractJob:
            shard = shard_of(task)
            return ExtractJob(
                path=str(self.rundir.feature_part(folder, cell, shard)),
                storage=self.rundir.storage,
                run_id=self.rundir.run_id,
                replaces=replaced.get(shard.name),
                images=str(self.rundir.sample_part(cell, shard)),
                images_sha256=None,
                extractor=extractor,
                batch_size=self.config.evaluate.batch_size,
                metadata={"cell": cell.id, "extractor": folder},
            )

        for shard in missing:
            is_sampled = shard.number in state.sampled
            requires = NOTHING if is_sampled else frozenset({shard_key(SampleWork.name, shard)})
            yield Task(shard_key(self.name, shard), self.name, shard.images, requires, cell, job)
