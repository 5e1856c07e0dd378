"""What is missing on disk, as tasks for the dispatcher, each with the job that a worker gets for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.eval.extract import ExtractJob
from taugrid.eval.reference import MomentsFile
from taugrid.eval.score_cell import ReferenceFiles, ScoreJob
from taugrid.jobs import Job
from taugrid.orchestrator.dispatch.policy import Task
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.plan.grid import Cell, Plan, Shard
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.storage import read_sealed
from taugrid.workers.sample import SampleJob

REFERENCE_KEY = "extract/reference"


class Piece(NamedTuple):
    """A task, the job that does it, and the cell that it is for (none: the reference, which all cells need)."""

    task: Task
    job: Job
    cell: Cell | None


@dataclass(frozen=True)
class Survey:
    """Looks at a run directory for what is missing. Damaged files are reported, and count as missing."""

    config: Config
    plan: Plan
    rundir: RunDir
    evaluation: Evaluation | None
    """null: only images are wanted."""
    on_damage: Callable[[Damage], None]
    """Must move the file away."""

    def pieces(self, sampling: bool) -> Iterator[Piece]:
        """Everything that is to be done; without `sampling`, only for cells whose images are all there.

        Raises:
            UserError: if a model is not trained yet, or a cell holds samples of other weights.
        """
        needs_reference = self.evaluation is not None and self._lacks_reference(self.evaluation)
        pieces = list(self._cell_pieces(sampling, needs_reference))
        if self.evaluation is not None and any(REFERENCE_KEY in piece.task.requires for piece in pieces):
            yield self._reference_piece(self.evaluation)
        yield from pieces

    def _cell_pieces(self, sampling: bool, needs_reference: bool) -> Iterator[Piece]:
        for cell in self.plan.cells:
            if not sampling and not self.rundir.is_trained(cell.model):
                continue
            sampled = self._sampled(cell)
            if sampling:
                yield from self._sample_pieces(cell, sampled)
            elif len(sampled) < len(cell.shards):
                continue
            if self.evaluation is not None:
                yield from self._evaluation_pieces(cell, sampled, self.evaluation, needs_reference)

    def _sampled(self, cell: Cell) -> set[int]:
        if not self.rundir.is_trained(cell.model):
            raise UserError(
                f"model {cell.model.id} is not trained yet: `taugrid train` first, or `taugrid run` for all"
            )
        metadata = self.rundir.sample_metadata(cell)
        done = self.rundir.sampled(cell, metadata, every_byte=True, on_damage=self.on_damage)
        for shard in cell.shards:
            if shard.number not in done and not self.rundir.sample_part(cell, shard).exists():
                self.rundir.forget_derived(cell, shard)
        return done

    def _sample_pieces(self, cell: Cell, sampled: set[int]) -> Iterator[Piece]:
        metadata = self.rundir.sample_metadata(cell)
        for shard in cell.shards:
            if shard.number in sampled:
                continue
            path = self.rundir.sample_part(cell, shard)
            job = SampleJob(
                path=str(path),
                replace=path.exists(),
                start=shard.start,
                stop=shard.stop,
                network=self.rundir.network(cell.model, cell.settings.weights),
                image_shape=cell.model.image_shape,
                settings=cell.settings,
                diffusion=cell.model.diffusion,
                tau=cell.tau,
                metadata=metadata,
            )
            yield Piece(Task(_key("sample", shard), "sample", shard.evaluations), job, cell)

    def _evaluation_pieces(
        self, cell: Cell, sampled: set[int], evaluation: Evaluation, needs_reference: bool
    ) -> Iterator[Piece]:
        folder = evaluation.extractor_folder
        damages: list[Damage] = []
        extracted = self.rundir.extracted(folder, cell, every_byte=True, on_damage=damages.append)
        for damage in damages:
            self.on_damage(damage)
        score, n = self.rundir.score(cell, evaluation.id(cell)), cell.settings.num_samples
        value = read_sealed(score)
        if score.exists() and value is None:
            self.on_damage(Damage(score, "it is not what was written"))
        influence = self.rundir.influence(cell, evaluation.id(cell))
        scored = value is not None and (
            "fid_se" not in value["metrics"] or self.rundir.is_whole(influence, n, self.on_damage)
        )
        if not damages and len(sampled) == len(cell.shards) and scored:
            return  # features may have been removed to save space: the score is what they were for
        requires = {REFERENCE_KEY} if needs_reference else set()
        for shard in cell.shards:
            if shard.number in extracted and shard.number in sampled:
                continue
            path = self.rundir.feature_part(folder, cell, shard)
            job = ExtractJob(
                path=str(path),
                replace=path.exists(),
                images=str(self.rundir.sample_part(cell, shard)),
                images_sha256=None,
                extractor=evaluation.extractor,
                batch_size=self.config.evaluate.batch_size,
                metadata={"cell": cell.id, "extractor": folder},
            )
            needs = frozenset() if shard.number in sampled else frozenset({_key("sample", shard)})
            yield Piece(Task(_key("extract", shard), "extract", shard.images, needs), job, cell)
            requires.add(_key("extract", shard))
        settings, reasons, remarks = evaluation.feasible(n)
        score_job = ScoreJob(
            path=str(score),
            influence_path=str(influence),
            feature_paths=tuple(str(self.rundir.feature_part(folder, cell, shard)) for shard in cell.shards),
            num_samples=n,
            reference=self._reference_files(evaluation),
            settings=settings,
            header={
                "cell": cell.id,
                "evaluation": evaluation.id(cell),
                "protocol": evaluation.protocol(cell).as_dict(),
            },
            notes=(*(f"no {metric}: {reason}" for metric, reason in reasons.items()), *remarks),
            keep_features=self.config.evaluate.keep_features,
        )
        yield Piece(Task(f"score/{cell.id}", "score", n, frozenset(requires)), score_job, cell)

    def _lacks_reference(self, evaluation: Evaluation) -> bool:
        if evaluation.reference.num_images is None:
            return False  # moments are read as they are
        path = self.rundir.reference_part(evaluation.extractor_folder, evaluation.reference.folder)
        return not self.rundir.is_whole(path, evaluation.reference.num_images, self.on_damage)

    def _reference_files(self, evaluation: Evaluation) -> ReferenceFiles:
        reference = evaluation.reference
        path = self.rundir.reference_part(evaluation.extractor_folder, reference.folder)
        moments = reference.given if isinstance(reference.given, MomentsFile) else None
        return ReferenceFiles(moments or str(path), reference.num_images, str(path.parent), evaluation.reference_key)

    def _reference_piece(self, evaluation: Evaluation) -> Piece:
        folder, reference = evaluation.extractor_folder, evaluation.reference
        assert not isinstance(reference.given, MomentsFile)
        assert reference.num_images is not None
        job = ExtractJob(
            path=str(self.rundir.reference_part(folder, reference.folder)),
            replace=False,
            images=reference.given,
            images_sha256=reference.sha256,
            extractor=evaluation.extractor,
            batch_size=self.config.evaluate.batch_size,
            metadata={"reference": reference.sha256, "extractor": folder},
        )
        return Piece(Task(REFERENCE_KEY, "extract", reference.num_images), job, None)


def _key(kind: str, shard: Shard) -> str:
    return f"{kind}/{shard.cell}/{shard.number}"


def missing(plan: Plan, rundir: RunDir, evaluation: Evaluation | None) -> dict[str, str]:
    """Cell name -> what it lacks, for every cell without a score (or, with no `evaluation`, without all its images)."""
    lacking = {}
    for cell in plan.cells:
        done = rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None)
        if len(done) < len(cell.shards):
            lacking[cell.name] = f"{len(cell.shards) - len(done)} of {len(cell.shards)} shards are not sampled"
        elif evaluation is not None and read_sealed(rundir.score(cell, evaluation.id(cell))) is None:
            lacking[cell.name] = "sampled, but not scored"
    return lacking
