"""Sampling: a task for each shard of a cell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taugrid import parquet
from taugrid.config.sample import LabelColumn
from taugrid.errors import DamagedFile, MissingInput
from taugrid.jobs import Result
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, Event, WorkKind, shard_key
from taugrid.orchestrator.work.survey import CellState, other_sampler
from taugrid.words import some_of
from taugrid.workers.conditions.labels import LabelRule
from taugrid.workers.sample import SampleJob


class SampleWork(WorkKind):
    name = "sample"
    priority = 10
    folder = "samples"
    files = "*/part-*.parquet"
    stage = "sample"
    unit = NETWORK_EVALUATIONS
    activity = "sampling"
    task_in_words = ("shard", "to sample")
    counts_images = True

    def tasks(self) -> Iterator[Task]:
        for cell, sampled, *_ in self.survey.found.cells:
            if len(sampled) == len(cell.shards):
                continue
            metadata = self.rundir.sample_metadata(cell)
            network, guide = self.rundir.network(cell.model, cell.settings.weights), self.rundir.guide(cell)
            there = self.rundir.versions(self.rundir.samples / cell.name)
            donor = self._donor(cell)
            for shard in cell.shards:
                if shard.number in sampled:
                    continue
                latents_of, requires = self._latents_of(donor, shard)
                path = self.rundir.sample_part(cell, shard)
                kept = images_to_keep(self.rundir, cell, shard) if path in there else 0
                job = SampleJob(
                    path=str(path),
                    storage=self.rundir.storage,
                    run_id=self.rundir.run_id,
                    replaces=there.get(path),
                    start=shard.start,
                    stop=shard.stop,
                    network=network,
                    decoder=cell.decoder,
                    settings=cell.settings,
                    diffusion=cell.model.diffusion,
                    tau=cell.tau,
                    nfe=cell.nfe,
                    guidance=cell.guidance,
                    guide=guide,
                    sampler_code=cell.sampler_description.code,
                    label_rule=_labels(cell, shard),
                    metadata=metadata,
                    kept=kept,
                    latents_of=latents_of,
                )
                cost = (shard.images - kept) * cell.nfe
                yield Task(shard_key(self.name, shard), self.name, cost, requires, cell, job)

    def _donor(self, cell: Cell) -> CellState | None:
        """The first cell with the same latents, if they are kept and it is not this one."""
        if not cell.settings.keep_latents:
            return None
        alike = [state for state in self.survey.found.cells if of_latents(state.cell) == of_latents(cell)]
        return None if alike[0].cell.id == cell.id else alike[0]

    def _latents_of(self, donor: CellState | None, shard: Shard) -> tuple[tuple[str, str] | None, frozenset[str]]:
        """The file and the cell that keep a shard's latents, and the tasks that must write them first."""
        same = [] if donor is None else donor.cell.shards[shard.number : shard.number + 1]
        if donor is None or not same or (same[0].start, same[0].stop) < (shard.start, shard.stop):
            return None, frozenset()
        lacks = shard.number not in donor.sampled
        requires = frozenset({shard_key(self.name, same[0])}) if lacks else frozenset[str]()
        return (str(self.rundir.sample_part(donor.cell, same[0])), donor.cell.id), requires

    def missing(self) -> dict[str, str]:
        """Cells without all their images, unless `ScoreWork` lists them."""
        return {} if self.survey.scoring is not None else unsampled(self.plan, self.rundir)

    @classmethod
    def event(cls, task: Task, result: Result, first_copy: bool) -> Event:
        """A line `shard`, from which `status` and tables compute a cell's speed and time."""
        job = task.job
        assert isinstance(job, SampleJob)
        stop = job.stop if result.part is None else result.part.stop  # before the job's, if its worker was stopped
        fields = {
            "cell": job.metadata["cell"],
            "path": Path(job.path).name,
            "images": result.images,
            "copied": stop - job.start - result.images,
            "evaluations": result.images * job.nfe if result.evaluations is None else result.evaluations,
            "seconds": round(result.seconds, 4),
            "committed": first_copy or result.created_file,
            "own": result.created_file,
        }
        return Event("shard", fields)


def of_latents(cell: Cell) -> tuple[Any, ...]:
    """All that determines a cell's latents: equal for cells that differ in how they are decoded alone."""
    decoded = {"rounding": "round", "vae_precision": "float32", "decode_batch": 32, "num_samples": 1}
    return cell.model.id, cell.guide and cell.guide.id, cell.label_rule, cell.settings.model_copy(update=decoded)


def _labels(cell: Cell, shard: Shard) -> LabelRule | None:
    """The labels of a shard. `MissingInput` if they are in a file that is gone."""
    rule, said = cell.label_rule, cell.settings.labels
    if rule is not None and isinstance(said, LabelColumn) and rule.column is None:
        raise MissingInput(
            f"sample.labels.parquet: there is no file {said.parquet}, and images are still to be sampled"
        )
    return rule and rule.of_rows(shard.start, shard.stop)


def images_to_keep(rundir: RunDir, cell: Cell, shard: Shard) -> int:
    """How many images of an interrupted shard are kept: the complete batches of its file; 0 without one."""
    try:
        part = parquet.inspect(rundir.sample_part(cell, shard), every_byte=False, storage=rundir.storage)
    except (DamagedFile, FileNotFoundError, NotADirectoryError):
        return 0
    size = cell.settings.batch_size
    return max(0, min(part.stop, shard.stop) - shard.start) // size * size


def unsampled(plan: Plan, rundir: RunDir) -> dict[str, str]:
    """Cell name -> what it lacks, for every cell without all its images."""
    lacking = {}
    for cell in plan.cells:
        done = rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None)
        if len(done) < len(cell.shards):
            count = f"{some_of(len(cell.shards) - len(done), len(cell.shards), 'shard')} not sampled"
            lacking[cell.name] = other_sampler(cell, rundir) or count
    return lacking
