"""The stages of a run: train, then sample and evaluate (or reconstruct, or interpolate), then report.

Each does only what is missing on disk. If nothing is missing, no cluster is started. `work/` says what is missing and
`dispatch/` who does it; this module connects them and reports to the user.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taugrid.disk import failing_in_one_line, write_text
from taugrid.errors import UserError
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.capacity import nodes, resources
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.evaluation import Evaluation, evaluation, singular_samples
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.briefing import Briefing
from taugrid.orchestrator.report.cells import write_cells
from taugrid.orchestrator.report.replicates import unequal
from taugrid.orchestrator.report.trainings import failed_trainings
from taugrid.orchestrator.report.write import no_effects, write_losses
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir import provenance
from taugrid.orchestrator.rundir.commits import require_here
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.rundir.extension import check_extends, check_is_run_directory
from taugrid.orchestrator.rundir.integrity import Damage
from taugrid.orchestrator.selection import without_models
from taugrid.orchestrator.shard_sizes import require_no_tf32, too_few_shards
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.training.one import Training, TrainingFailed
from taugrid.orchestrator.training.several import Trainings
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.kind import Conclusion, WorkKind
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import replacing, write_json
from taugrid.words import counted, with_urls
from taugrid.workers.data.load import load_images
from taugrid.workers.sample import SampleJob
from taugrid.workers.training import fit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from taugrid.eval.tables.quality import QualityTable


class Outcome(NamedTuple):
    missing: dict[str, str]
    """Name -> reason, for every cell without a score (or, if only images were requested, without all its images)."""
    rows: list[dict[str, Any]]
    """The rows of the table that the stages lead to."""
    table: str
    """Its name (`work.kind.Conclusion`); empty if there is none."""
    quality: "QualityTable | None" = None
    """Of `rows`, if it is the quality table."""
    text: "RenderableType" = ""
    """The table as printed on stdout, if it is not the quality table."""
    labels: Mapping[str, str] = {}
    """Name -> label of the cells that were worked on."""
    lasting: Collection[str] = ()
    """Names in `missing` whose reasons would come again with the same command."""
    warnings: Sequence[str] = ()
    """The warnings of report.html."""
    warned: Collection[str] = ()
    """The warnings that the session has said."""


class Session:
    """One session of a driver: it does what is missing in one run directory."""

    def __init__(
        self,
        run: Run,
        address: str,
        progress: Progress,
        part: Plan | None = None,
    ) -> None:
        """A session that works on the Ray cluster at `address`.

        `part` is the part of the run's plan that is to be done; None: all. Tables show all of the plan.
        """
        self.run = run
        self.config, self.plan, self.rundir = run.config, run.plan, run.rundir
        self.part = self.plan if part is None else part
        self._address = address
        self._progress = progress
        self._cluster = ExitStack()
        self._connected = False
        self._lasting: set[str] = set()
        self._warned: list[str] = []
        self._modules = {file for model in self.plan.models for file in model.source.modules}

    @failing_in_one_line()
    def do(self, stages: Collection[str], break_lock: bool = False) -> Outcome:
        """Do `stages`, some of train, sample, reconstruct, interpolate, evaluate and report, in that order.

        `break_lock` takes the run directory from a driver that seems to be at work there.

        Raises:
            UserError: if something must be changed first; nothing is lost.
            RunFailed: if a stage could not go on.
        """
        check_is_run_directory(self.rundir)
        scores = "evaluate" in stages or "report" in stages
        scoring = evaluation(self.config, self.plan, self.rundir.extractor) if scores else None
        if "train" in stages:
            for model, source in self.part.trained_here:
                if not self.rundir.is_ready(model):
                    self._require_scratch()
                    fit.check(source.train)
                    load_images(source.data)  # refuse bad images here, not when the first worker needs them
        with self.rundir.lock(break_lock, self._progress.say) as lease, self._cluster:
            self._began = lease.began
            self.rundir.ledger.keep()
            check_extends(self.config, self.plan, self.rundir)
            self.rundir.claim()
            write_json(self.rundir.config, self.config.model_dump(mode="json"), self.rundir.storage)
            write_cells(self.plan, self.rundir)
            self._progress.follow()
            self._events = Events(self.rundir, self._progress.observe)
            self._events.add("session", stages=sorted(stages), **provenance.software())
            try:
                outcome = self._do(stages, scoring)
                self._events.add("end", missing=outcome.missing)
            except FileNotFoundError:
                require_here(self.rundir.run, self.rundir.storage)
                raise
            return outcome

    def _do(self, stages: Collection[str], scoring: Evaluation | None) -> Outcome:
        self._announce()
        for model in self.part.models:
            self.rundir.record_model(model)
        if scoring is not None:
            self.rundir.record_extractor(scoring.extractor, self.config.data.image_shape)
            self._modules |= set(scoring.extractor.files)
            if "fid" in self.config.evaluate.metrics and "evaluate" in stages:
                for said in singular_samples(self.part, scoring.extractor.dimensions):
                    self._warn(said)
        told, works = self._kinds(self.part, stages, scoring)
        for work in works:
            work.check()
        failed = self._train() if "train" in stages else {}
        if failed:
            told, works = self._kinds(without_models(self.part, failed), stages, scoring)
        if set(stages) == {"train"} and not failed:
            self._progress.say("every model of this config is trained" if self.part is self.plan else "models trained")
        problems = self._work(works, scoring) if works else {}
        unfinished: dict[str, str] = {}
        labels = dict(self.plan.labels)
        for work in told:
            unfinished |= work.missing()
            labels |= work.labels()
        untrained = self._untrained(failed, unfinished)
        problems |= {name: str(error) for name, error in untrained.items()}
        self._lasting |= {name for name, error in untrained.items() if error.fails_again}
        conclusions = [conclusion for work in told if (conclusion := work.conclude()) is not None]
        last = conclusions[-1] if conclusions else Conclusion("", [])
        self._warn_of_tables(stages, last)
        provenance.write(self.rundir, self.plan, scoring)
        warnings: list[str] = []
        if conclusions and ("report" in stages or "evaluate" not in stages):
            from taugrid.orchestrator.view.page import write_page

            warnings = write_page(self.run, unfinished | problems)
        told_of = labels, frozenset(self._lasting), warnings, self._warned
        return Outcome(unfinished | problems, last.rows, last.table, last.quality, last.text, *told_of)

    def _announce(self) -> None:
        """Say what is remarkable about the plan, its models and its images."""
        for remark in self.plan.remarks:
            self._warn(remark)
        if self.part is not self.plan:
            self._progress.say(f"only {len(self.part.cells):,} of {counted(len(self.plan.cells), 'cell')}")
        for model in self.part.models:
            if model.source.is_announced:
                settings = [cell.settings for cell in self.part.cells if cell.model.id == model.id]
                self._progress.say(f"model {model.called}: {model.source.description(model.diffusion, settings)}")
        if removed := sum(self.rundir.has_removed_images(cell) for cell in self.part.cells):
            self._progress.say(f"images removed: {counted(removed, 'cell')}; scores and influences stay")

    def _warn_of_tables(self, stages: Collection[str], last: Conclusion) -> None:
        """Say that tables stay as they are, or what the quality table can't show."""
        if "evaluate" in stages and "report" not in stages:
            self._progress.say("tables and figures are unchanged; `taugrid report` updates them")
        if "report" in stages and last.table == "quality":
            scored = {row["cell"] for row in last.rows}
            cells = [cell for cell in self.plan.cells if cell.id in scored]
            for said in (*unequal(cells, "scored "), *no_effects(self.config, self.plan, last.rows)):
                self._warn(said)

    def _warn(self, text: str) -> None:
        self._warned.append(text)
        self._progress.say(f"warning: {text}")

    def _kinds(
        self, part: Plan, stages: Collection[str], scoring: Evaluation | None
    ) -> tuple[list[WorkKind], list[WorkKind]]:
        """The kinds of work on `part` whose results are told, and those of them that are done."""
        survey = Survey(self.config, part, self.rundir, scoring, frozenset(stages), self._set_aside, self.plan)
        told = [kind(survey) for kind in work_kinds() if {kind.stage, *kind.told_by} & survey.stages]
        return told, [work for work in told if work.stage in survey.stages]

    def _require_scratch(self) -> None:
        """Raise `UserError` if training workers on other machines would have no folder in common."""
        if not self.rundir.storage.on_disk and self._address != "local" and self.config.cluster.scratch is None:
            raise UserError(
                f"a model must be trained, and training keeps its checkpoints in a folder; with --address "
                f"{self._address} and --out {self.rundir.shown}, set cluster.scratch to one that every node sees"
            )

    def _connect(self) -> None:
        if not self._connected:
            self._progress.say("starting Ray" if self._address == "local" else f"connecting to Ray at {self._address}")
            trainers = max((source.train.fewest_workers for _, source in self.part.trained_here), default=0)
            connection = cluster.connected(self._address, self.config.cluster, trainers, self._modules)
            self._cluster.enter_context(connection)
            self._connected = True

    def _train(self) -> dict[str, TrainingFailed]:
        """Train what is missing. Returns model id -> error for trainings that failed while others did not.

        Raises:
            TrainingFailed: if there is no other model to go on with.
        """
        failed = {}
        if trainings := list(self._trainings()):
            self._connect()
            may_grow, others = self._address != "local", len(self.part.models) > 1
            outputs = self._progress, self._log
            failed = Trainings(trainings, self.config.cluster, may_grow, *outputs, others).run()
        write_losses(self.plan, self.rundir)
        if failed and len(failed) == len(self.part.models):
            raise next(iter(failed.values()))
        return failed

    def _trainings(self) -> Iterator[Training]:
        """What must be trained. Puts right what killed drivers left."""
        limits, may_grow = self.config.cluster, self._address != "local"
        for model, source in self.part.trained_here:
            if self.rundir.is_ready(model):
                scratch = self.rundir.training_folder(limits.scratch)
                fit.remove_leftovers(scratch, model.id)  # if a driver was killed after the commit
                continue
            folder = self.rundir.model_folder(model)
            # In an object store, such a folder is an upload that was cut short.
            if self.rundir.storage.on_disk and self.rundir.storage.exists(folder):
                self._set_aside(Damage(folder, "its weights are missing"))
            yield Training(model, source, self.rundir, limits, self._progress.say, self._events, may_grow)

    def _untrained(self, failed: Mapping[str, TrainingFailed], lacking: Collection[str]) -> dict[str, TrainingFailed]:
        """Cell name -> why its model is not trained; what failed in earlier sessions is told of cells in `lacking`."""
        earlier = failed_trainings(self.rundir)
        found: dict[str, TrainingFailed] = {}
        for cell in self.part.cells:
            model = cell.model
            if model.id in failed:
                found[cell.name] = failed[model.id]
            elif cell.name in lacking and model.id in earlier and not self.rundir.is_ready(model):
                found[cell.name] = TrainingFailed(model.called, **earlier[model.id])
        return found

    def _work(self, works: Sequence[WorkKind], scoring: Evaluation | None) -> dict[str, str]:
        """Do what is missing, if anything. Returns cell name -> reason for what could not be done."""
        by_key = {task.key: task for work in works for task in work.tasks()}
        provenance.write(self.rundir, self.plan, scoring)
        problems: dict[str, str] = {}
        briefing = Briefing(self.config, self.part, self.rundir, scoring, by_key)
        self._progress.brief(briefing)
        if by_key:
            self._events.add("to do", work=briefing.to_do)
            for work in works:
                costs = [task.cost for task in by_key.values() if task.kind == work.name]
                if costs and (said := work.announcement(sum(costs))) is not None:
                    self._progress.say(said)
            self._connect()
            problems = self._dispatch(by_key)
        if not problems and self._began is not None:
            self.rundir.remove_temporaries((kind.writes_in() for kind in work_kinds()), self._began)
        for work in works:
            work.clean_up()
        return problems

    def _dispatch(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Have workers do `tasks`. Returns cell name -> reason for what could not be done."""
        from taugrid.orchestrator.dispatch.loop import Loop
        from taugrid.orchestrator.dispatch.pool import Pool, Spare
        from taugrid.workers.actor import Worker
        from taugrid.workers.hello import Probe

        limits, embedded = self.config.cluster, self._address == "local"
        room = resources.room(limits) if embedded else limits.workers
        workers = min(room, len(tasks)) if embedded and room else room
        samples = any(isinstance(task.job, SampleJob) for task in tasks.values())
        if samples and room:
            said = too_few_shards(self.part, room, bool(self.rundir.committed_cells()))
            if said is not None:
                self._progress.say(said)
        cpus, gpus = resources.worker_size(limits)
        if not gpus:
            require_no_tf32(self.part)
        probe = self.rundir.new_probe()
        with replacing(probe, self.rundir.storage) as temporary:
            write_text(temporary, "")
        files = Probe(str(probe), self.rundir.storage, self.rundir.run)
        spare = None
        if limits.use_cpus and gpus:
            share = float(nodes.exact(limits.score.cpus_per_worker or limits.cpus_per_worker))
            spare = Spare((max(1, int(share)),), share)
        pool = Pool(Worker, (max(1, int(cpus)),), cpus, gpus, files, limits.label_selector, spare)
        try:
            outputs = self._progress, self._events, self._log, self.rundir.committed
            loop = Loop(tasks, work_kinds(), pool, workers, embedded, limits, *outputs)
            problems = loop.run()
            self._lasting |= loop.lasting
            return problems
        finally:
            pool.close()
            with suppress(OSError):  # what is more important is said; `remove_temporaries` removes what stays
                self.rundir.storage.delete(probe)

    def _set_aside(self, damage: Damage) -> None:
        target = self.rundir.set_aside(damage)
        name = self.rundir.relative(damage.path)
        self._events.add("damaged", path=name, reason=damage.reason, moved_to=self.rundir.relative(target))
        self._progress.say(
            f"damaged: {name} ({damage.reason}); moved to {self.rundir.relative(target)}, will be redone"
        )

    def _log(self, name: str, text: str) -> Path:
        path = self.rundir.task_log(self._events.path.stem, name)
        self.rundir.storage.append(path, f"{with_urls(text.rstrip())}\n\n".encode())
        return path
