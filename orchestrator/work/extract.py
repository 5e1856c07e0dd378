"""Extraction: the features of each shard."""

from collections.abc import Iterator

from taugrid.eval.extract import ExtractJob
from taugrid.orchestrator.plan.cells import Shard
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import IMAGES, WorkKind, shard_key
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import CellState


def not_extracted(state: CellState) -> list[Shard]:
    """The shards whose features must be extracted before the cell can be scored."""
    return [s for s in state.cell.shards if s.number not in state.extracted or s.number not in state.sampled]


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
        evaluation, found = self.survey.evaluation, self.survey.found
        assert evaluation is not None
        to_score = [state for state in found.cells if state.to_score]
        for state in to_score:
            yield from self._cell_tasks(state, evaluation)

    def _cell_tasks(self, state: CellState, evaluation: Evaluation) -> Iterator[Task]:
        cell, folder = state.cell, self.rundir.extractor_folder(evaluation.extractor)
        there = self.rundir.versions(self.rundir.features / folder / cell.name)
        for shard in not_extracted(state):
            path = self.rundir.feature_part(folder, cell, shard)
            job = ExtractJob(
                path=str(path),
                storage=self.rundir.storage,
                run=self.rundir.run,
                replaces=there.get(path),
                images=str(self.rundir.sample_part(cell, shard)),
                images_sha256=None,
                extractor=evaluation.extractor,
                batch_size=self.config.evaluate.batch_size,
                metadata={"cell": cell.id, "extractor": folder},
            )
            is_sampled = shard.number in state.sampled
            requires = frozenset[str]() if is_sampled else frozenset({shard_key(SampleWork.name, shard)})
            yield Task(shard_key(self.name, shard), self.name, shard.images, requires, cell, job)


KIND = ExtractWork
