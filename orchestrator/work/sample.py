"""Sampling: a task for each shard of a cell."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.config.sample import LabelColumn
from taugrid.errors import DamagedFile, MissingInput, UserError
from taugrid.jobs import Result
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.task import NOTHING, Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, WorkKind, shard_key, shard_of
from taugrid.orchestrator.work.survey import other_sampler
from taugrid.words import some_of
from taugrid.workers.conditions import LabelRule
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

    def check(self) -> None:
        """Raise `UserError` for weights or labels that are gone, if images that need them are missing."""
        listing = Listing(self.rundir)
        for cell in self.plan.cells:
            if not self.rundir.is_ready(cell.model):
                continue  # it is trained first
            try:
                require_inputs(cell, self.rundir)
            except UserError:
                if unsampled(self.plan.with_cells([cell]), self.rundir, listing):
                    raise

    def tasks(self) -> Iterator[Task]:
        states, listing = self.survey.found.cells, Listing(self.rundir)  # anew: damaged files were moved away
        kept = kept_latents(self.rundir) if any(state.cell.settings.keep_latents for state in states) else {}
        for cell, sampled, *_ in states:
            if len(sampled) == cell.num_shards:
                continue
            metadata, there = self.rundir.sample_metadata(cell), listing.samples(cell.name)
            own: dict[str, dict[str, Any]] = {}  # what only some jobs have, by the task's key
            jobs = self._jobs(cell, metadata, own)
            for shard in cell.shards:
                if shard.number in sampled:
                    continue
                name, key = shard.name, shard_key(self.name, shard)
                latents = metadata.get("latents", ""), name
                source = kept.get(latents)
                if source is None or source.stop < shard.stop:
                    source = None
                    if cell.settings.keep_latents:
                        kept[latents] = Keeping(self.rundir.sample_part(cell, shard), shard.stop, key)
                copied = images_to_keep(self.rundir, cell, shard) if name in there else 0
                if source or name in there:
                    own[key] = {"replaces": there.get(name), "kept": copied, "latents_of": source and str(source.path)}
                requires = frozenset({source.task}) if source and source.task else NOTHING
                yield Task(key, self.name, (shard.images - copied) * cell.nfe, requires, cell, jobs, does_without=True)

    def _jobs(
        self, cell: Cell, metadata: dict[str, Any], own: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[Task], SampleJob]:
        """What makes the job of a task of a cell; `own` has what only some jobs have, by the task's key."""
        network, guide = self.rundir.network(cell.model, cell.settings.weights), self.rundir.guide(cell)
        decoder, guidance, folder = self.rundir.decoder(cell), cell.guidance, self.rundir.samples / cell.name
        labels_of(cell, cell.first_shard)  # or it raises

        def job(task: Task) -> SampleJob:
            shard = shard_of(task)
            return SampleJob(
                **self.job_at(folder / shard.name),
                start=shard.start,
                stop=shard.stop,
                network=network,
                decoder=decoder,
                settings=cell.settings,
                diffusion=cell.model.diffusion,
                tau=cell.tau,
                nfe=cell.nfe,
                guidance=guidance,
                guide=guide,
                sampler_code=cell.sampler_description.code,
                label_rule=labels_of(cell, shard),
                metadata=metadata,
                **own.get(task.key, {}),
            )

        return job

    def missing(self) -> dict[str, str]:
        """Cells without all their images, unless `ScoreWork` lists them."""
        return {} if self.survey.scoring is not None else unsampled(self.plan, self.rundir)

    @classmethod
    def event(cls, task: Task, result: Result, first_copy: bool) -> tuple[str, dict[str, Any]]:
        """A line `shard`, from which `status` and tables compute a cell's speed and time."""
        cell, shard = task.cell, shard_of(task)
        assert cell is not None
        stop = shard.stop if result.part is None else result.part.stop  # before the shard's, if its worker was stopped
        fields = {
            "cell": cell.id,
            "path": shard.name,
            "images": result.images,
            "copied": stop - shard.start - result.images,
            "evaluations": result.images * cell.nfe if result.evaluations is None else result.evaluations,
            "seconds": round(result.seconds, 4),
            "committed": first_copy or result.created_file,
            "own": result.created_file,
            **({} if result.conflict is None else {"conflict": result.conflict}),
        }
        if result.evaluations == 0 and isinstance(job := task.job, SampleJob) and job.latents_of is not None:
            folder = Path(job.latents_of).parent.name
            fields["latents_of"] = folder.rsplit("-", 1)[-1]  # the cell whose makers made these too
        return "shard", fields


class Keeping(NamedTuple):
    """A sample file with the latents of its images up to `stop`; `task` is to write it (None: it is there)."""

    path: Path
    stop: int
    task: str | None = None


def kept_latents(rundir: RunDir) -> dict[tuple[str, str], Keeping]:
    """What its latents are (`sample_metadata`) and a file's name -> the file with most of them in samples/."""
    kept: dict[tuple[str, str], Keeping] = {}
    for path, stat in rundir.storage.stats(rundir.samples, "*/part-*.parquet").items():
        with suppress(DamagedFile, FileNotFoundError, NotADirectoryError):
            part = rundir.ledger.find(path, stat.version) or parquet.inspect(path, False, rundir.storage)
            key = (part.metadata.get("latents", ""), path.name)
            if key[0] and (key not in kept or kept[key].stop < part.stop):
                kept[key] = Keeping(path, part.stop)
    return kept


def require_inputs(cell: Cell, rundir: RunDir) -> None:
    """Raise `UserError` if weights or labels are gone that a cell is sampled from."""
    rundir.network(cell.model, cell.settings.weights)
    rundir.guide(cell)
    rundir.decoder(cell)
    labels_of(cell, cell.first_shard)


def labels_of(cell: Cell, shard: Shard) -> LabelRule | None:
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


def unsampled(plan: Plan, rundir: RunDir, listing: Listing | None = None) -> dict[str, str]:
    """Cell name -> what it lacks, for every cell without all its images."""
    lacking, listing = dict[str, str](), listing or Listing(rundir)
    for cell in plan.cells:
        done = rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None, listing=listing)
        if len(done) < cell.num_shards:
            count = f"{some_of(cell.num_shards - len(done), cell.num_shards, 'shard')} not sampled"
            lacking[cell.name] = other_sampler(cell, rundir, listing) or count
    return lacking
