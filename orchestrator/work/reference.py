"""The reference's features: a task for each part of it, before all other work, because every score needs them all."""

from collections.abc import Iterator
from dataclasses import replace

from taugrid.config import Data
from taugrid.eval.extract import ExtractJob
from taugrid.eval.metrics.reference_statistics import MomentsFile
from taugrid.eval.sources import Source, part_bounds
from taugrid.jobs import Result
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import IMAGES, Event, WorkKind
from taugrid.orchestrator.work.survey import RunState
from taugrid.workers.data.load import fingerprint, load_images


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
        evaluation, found = self.survey.evaluation, self.survey.found
        assert evaluation is not None
        if any(state.to_score for state in found.cells):
            for number in found.reference.missing:
                yield self._task(evaluation, number)

    def _task(self, evaluation: Evaluation, number: int) -> Task:
        folder, reference = self.rundir.extractor_folder(evaluation.extractor), evaluation.reference
        assert not isinstance(reference.given, MomentsFile)
        assert reference.num_images is not None
        start, stop = part_bounds(reference.num_images)[number]
        images: Data | Source
        if isinstance(reference.given, Data):
            images, digest = reference.given, fingerprint(load_images(reference.given)[start:stop])
        else:
            images, digest = replace(reference.given, parts_sha256=()), reference.given.parts_sha256[number]
        job = ExtractJob(
            path=str(self.rundir.reference_part(folder, reference.sha256, number)),
            storage=self.rundir.storage,
            run=self.rundir.run,
            images=images,
            images_sha256=digest,
            extractor=evaluation.extractor,
            batch_size=self.config.evaluate.batch_size,
            metadata={"reference": reference.sha256, "extractor": folder},
            start=start,
            stop=stop,
        )
        return Task(reference_key(number), self.name, stop - start, job=job)

    @classmethod
    def event(cls, task: Task, result: Result, first: bool) -> Event:
        """A line `extract`, as for other features."""
        return super().event(task, result, first)._replace(name="extract")


def reference_key(number: int) -> str:
    """The key of the task for a part of the reference."""
    return f"{ReferenceWork.name}/{number}"


def reference_keys(found: RunState) -> set[str]:
    """The tasks that a score requires for the reference."""
    return {reference_key(number) for number in found.reference.missing}


KIND = ReferenceWork
