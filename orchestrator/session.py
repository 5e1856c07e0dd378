"""The stages of a run: train, then sample and evaluate (or reconstruct, or interpolate), then report.

Each does only what is missing on disk. If nothing is missing, no cluster is started. `work/` finds what is missing and
`dispatch/` assigns it to workers; this module connects them and reports to the user.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taugrid.errors import UserError, user_errors
from taugrid.eval.metrics.frechet import singular
from taugrid.orchestrator.dispatch import capacity, cluster
from taugrid.orchestrator.dispatch.training import Training, TrainingFailed, Trainings
from taugrid.orchestrator.observers import Observers
from taugrid.orchestrator.opened import record_plan
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.conditions import require_no_gpu
from taugrid.orchestrator.plan.scoring import Scoring, scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.summary import state_before
from taugrid.orchestrator.report import reported as reported_files
from taugrid.orchestrator.report.replicates import unequal
from taugrid.orchestrator.report.write import no_effects, write_cells, write_losses
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir import provenance
from taugrid.orchestrator.rundir.directory import Damage, require_in_place
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.rundir.extension import check_extends, check_is_run_directory
from taugrid.orchestrator.rundir.grown import FILE as GROWN
from taugrid.orchestrator.rundir.grown import grown, read_sizes
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.selection import without_models
from taugrid.orchestrator.shard_sizes import too_few_shards
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.trackers import background
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.growing import Growth, Until
from taugrid.orchestrator.work.kind import KindResult, WorkKind
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import replacing, write_json, write_text
from taugrid.words import counted, with_urls
from taugrid.workers.data.load import load_images, load_labels
from taugrid.workers.training import fit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from taugrid.eval.tables.quality import QualityTable


class SessionResult(NamedTuple):
    missing: dict[str, str]  # name -> reason, for every cell without a score (or, if only sampled, without all images)
    rows: list[dict[str, Any]]  # of the table that the stages result in (`work.kind.KindResult`)
    quality: "QualityTable | None" = None  # if `rows` are its rows
    text: "RenderableType" = ""  # the table as printed on stdout, if it is not the quality table
    labels: Mapping[str, str] = {}  # name -> label of the cells that were worked on
    permanent_failures: Collection[str] = ()  # names in `missing` that would fail again with the same command
    warnings: Sequence[str] = ()  # of report.html
    warned: Collection[str] = ()  # those that the session has printed
    larger: "Sequence[QualityTable]" = ()  # the quality tables of cells that grew, one for each larger N
    growth: "Growth | None" = None  # what the looks of `--until` came to


class Session:
    """One session of a driver: it does what is missing in one run directory."""

    def __init__(
        self,
        run: Run,
        address: str | cluster.Connection,
        progress: Progress,
        selected: Plan | None = None,
        until: Until | None = None,
    ) -> None:
        """A session that works on the Ray cluster at `address`, or on a connection that other sessions share.
        `selected` is the part of the run's plan to work on; None: all. Tables show the whole plan. With `until`, cells
        grow until their order is decided."""
        self.run = run
        self.config, self.plan, self.rundir = run.config, run.plan, run.rundir
        self.selected = self.plan if selected is None else selected
        self._until = until
        self._growth: Growth | None = None
        self._ray = cluster.Connection(address) if isinstance(address, str) else address
        self._address = self._ray.address
        self._progress = progress
        self._stages: frozenset[str] = frozenset()
        self._scoring: Scoring | None = None
        self._permanent_failures: set[str] = set()
        self._warned: list[str] = []
        self._modules = set(self.plan.sampler_modules)
        self._modules |= {file for model in self.plan.models for file in model.source.modules}

    @user_errors()
    def do(self, stages: Collection[str], break_lock: bool = False) -> SessionResult:
        """Do `stages`, some of train, sample, reconstruct, interpolate, evaluate and report, in that order.
        `break_lock` takes the run directory from a driver that seems to be running. Raises `UserError` if something
        must be changed first, and `RunFailed` if a stage could not go on; nothing is lost."""
        self._stages = frozenset(stages)
        background.require(self.config.track)
        check_is_run_directory(self.rundir)
        if self._stages & {"evaluate", "report"}:
            is_read = self._stages == {"report"}
            self._scoring = self.run.scoring() if is_read else scoring_of(self.config, self.plan, self.rundir.extractor)
            if self._until is not None:
                self._growth = Growth(self.run, self.selected, self._scoring, self._until, self._progress.say)
        if "train" in self._stages:
            self._check_trainings()
        with self.rundir.lock(break_lock, self._progress.say) as lease, self._ray:
            self._began = lease.began
            self._record_run()
            trackers = [background.Trackers(self.config.track, self._progress.say)] if self.config.track else []
            observers = Observers([self._progress, *trackers], self._progress.say)
            observers.add_installed()
            observers.session_started(self.config, self.rundir.shown, sorted(stages))
            self._events = Events(self.rundir, observers)
            self._events.add("session", stages=sorted(stages), **provenance.software())
            try:
                result = self._do()
                self._events.add("end", missing=result.missing)
            except BaseException as error:
                observers.session_failed(error)
                if isinstance(error, FileNotFoundError):
                    require_in_place(self.rundir.run_id, self.rundir.storage)
                raise
            observers.session_finished(result.rows, result.missing)
            return result

    def _do(self) -> SessionResult:
        """Train, then do what is missing at each N of the cells, then report."""
        self._announce()
        self._record_inputs()
        failed = self._train() if "train" in self._stages else {}
        wanted = without_models(self.selected, failed)
        problems: dict[str, str] = {}
        done: list[WorkKind] = []
        for part in self._parts(wanted):
            kinds = [kind for kind in self._kinds(part) if kind.stage in self._stages]
            done += kinds
            if kinds and (problems := self._work(kinds, part)):
                break
        self._take_sizes()
        for kind in done:
            kind.clean_up()
        return self._report(self._kinds(grown(wanted, self.run.sizes)), failed, problems)

    def _parts(self, wanted: Plan) -> Iterator[Plan]:
        """`wanted` at each N at which tables need scores: first at those to which `--until` grows it."""
        if self._growth is not None and len(wanted.models) == len(self.selected.models):
            yield from self._growth.parts()
            self._take_sizes()
        if not self.run.sizes or "evaluate" not in self._stages:
            yield wanted
            return
        ids = {cell.id for cell in wanted.cells}
        for plan in self.run.at_each_size:
            if (part := plan.with_cells(cell for cell in plan.cells if cell.id in ids)).cells:
                yield part

    def _take_sizes(self) -> None:
        """Go on with the N to which `--until` grew cells."""
        if self._growth is not None:
            sizes = read_sizes(self.rundir)
            self.run = replace(self.run, sizes=sizes)
            self.plan, self.selected = self.run.plan, grown(self.selected, sizes)
            write_cells(self.plan, self.rundir)

    def _report(
        self, reported: Sequence[WorkKind], failed: Mapping[str, TrainingFailed], problems: Mapping[str, str]
    ) -> SessionResult:
        """Write tables and pages, and return what was reached. `failed` has the trainings by model id, `problems` cell
        name -> reason for work that could not be done."""
        unfinished: dict[str, str] = {}
        labels = dict(self.plan.labels)
        for kind in reported:
            unfinished |= kind.missing()
            labels |= kind.labels()
        untrained = self._untrained(failed, unfinished)
        self._permanent_failures |= {name for name, error in untrained.items() if error.fails_again}
        missing = {**unfinished, **problems, **{name: str(error) for name, error in untrained.items()}}
        provenance.write(self.rundir, self.plan, self._scoring)
        asked = "report" in self._stages
        if asked:
            self._progress.say("writing tables and figures")
        results = [result for kind in reported if (result := kind.conclude()) is not None]
        last = results[-1] if results else KindResult([])
        if asked and last.quality is not None:
            scored = {row["cell"] for row in last.rows}
            cells = [cell for cell in self.plan.cells if cell.id in scored]
            for warning in (*unequal(cells, "scored "), *no_effects(self.config, self.plan, last.rows)):
                self._warn(warning)
        elif self._stages == {"evaluate"}:
            self._progress.say("tables and figures are unchanged; `taugrid report` updates them")
        warnings: Sequence[str] = ()
        if results and (asked or "evaluate" not in self._stages):
            from taugrid.orchestrator.view.page import write_page

            warnings = write_page(self.run, missing)
        reported_files.keep(self.rundir)
        fields: dict[str, Any] = {**last._asdict(), "labels": labels, "warnings": warnings, "warned": self._warned}
        failures = frozenset(self._permanent_failures)
        return SessionResult(missing, permanent_failures=failures, growth=self._growth, **fields)

    def _check_trainings(self) -> None:
        """Raise `UserError` for failures of trainings that can be foreseen, before any worker starts."""
        for model, source in self.selected.trained_here:
            if self.rundir.is_ready(model):
                continue
            if not self.rundir.storage.on_disk and self._address != "local" and self.config.cluster.scratch is None:
                raise UserError(
                    "cluster.scratch is missing: training keeps its checkpoints in a folder; set it to one that every "
                    "node sees"
                )
            fit.check(source.train)
            load_images(source.data)
            if source.unet.num_classes is not None:
                load_labels(source.data)

    def _record_run(self) -> None:
        """Claim the directory, and write the config, the plan and the list of cells, unless the work is refused."""
        self.rundir.ledger.keep()
        check_extends(self.config, self.plan, self.rundir)
        for kind in self._kinds(self.selected):
            if kind.stage in self._stages:
                kind.check()
        self.rundir.claim()
        self.rundir.storage.delete(self.rundir.root / reported_files.FILE)
        write_json(self.rundir.config, self.config.recorded, self.rundir.storage)
        record_plan(self.run, self._scoring)
        write_cells(self.plan, self.rundir)

    def _record_inputs(self) -> None:
        """Record the models and the extractor that are used. A damaged record of sizes is set aside."""
        if self.rundir.is_changed(GROWN):
            self._set_aside(Damage(self.rundir.root / GROWN, "it has changed since it was written"))
        for model in (*self.selected.models, *self.selected.guides):
            self.rundir.record_model(model)
        if self._scoring is not None:
            self._modules |= set(self._scoring.extractor.files)
            if "fid" in self.config.evaluate.metrics and "evaluate" in self._stages:
                smallest = min(cell.settings.num_samples for cell in self.selected.cells)
                if (line := singular(smallest, "samples", self._scoring.extractor.dimensions)) is not None:
                    self._warn(f"sample.num_samples: {line}")

    def _announce(self) -> None:
        """Print remarks on the plan, its data, its models and its images."""
        is_reference = "evaluate" in self._stages and self.config.evaluate.reference is None
        is_trained_on = "train" in self._stages and bool(self.selected.trained_here)
        is_read = is_reference or is_trained_on or "reconstruct" in self._stages
        if is_read and "data" not in self.config.model_fields_set:
            self._progress.say(f"data: {self.config.data.name_and_split}, because the config has no `data`")
        for remark in self.plan.remarks:
            self._warn(remark)
        if self.selected is not self.plan:
            count, all_cells = len(self.selected.cells), counted(len(self.plan.cells), "cell")
            self._progress.say(f"working on only {count:,} of {all_cells}")
        for guide in self.selected.guides:
            self._progress.say(f"guide {guide.source.name}: {guide.source.description(guide.diffusion, ())}")
        for model in self.selected.models:
            if model.source.is_announced:
                settings = [cell.settings for cell in self.selected.cells if cell.model.id == model.id]
                self._progress.say(f"model {model.called}: {model.source.description(model.diffusion, settings)}")
        listing = Listing(self.rundir)
        if removed := sum(map(listing.has_removed_images, self.selected.cells)):
            self._progress.say(f"images of {counted(removed, 'cell')} were removed; scores and error bars are kept")

    def _warn(self, text: str) -> None:
        self._warned.append(text)
        self._progress.say(f"warning: {text}")

    def _kinds(self, selected: Plan) -> list[WorkKind]:
        """The kinds of work on `selected` whose results are reported; this session does those of its stages."""
        survey = Survey(self.run, self._scoring, self._stages, self._set_aside, selected)
        return [kind(survey) for kind in work_kinds() if {kind.stage, *kind.reported_by} & self._stages]

    def _connect(self) -> None:
        trainers = max((source.train.fewest_workers for _, source in self.selected.trained_here), default=0)
        self._ray.open(self.config.cluster, trainers, self._modules, self._progress.say)

    def _train(self) -> dict[str, TrainingFailed]:
        """Train what is missing. Returns model id -> error for trainings that failed; `TrainingFailed` if all did."""
        failed = {}
        trainings = list(self._trainings())
        if trainings:
            self._connect()
            others = len(self.selected.models) > 1
            outputs = self._progress, self._events, self._log
            failed = Trainings(trainings, self.config.cluster, *outputs, others).run()
        if trainings or "report" not in self._stages:
            write_losses(self.plan, self.rundir)
        if failed and len(failed) == len(self.selected.models):
            raise next(iter(failed.values()))
        if self._stages == {"train"} and not failed:
            self._progress.say(f"{counted(len(self.selected.models), 'model')} trained")
        return failed

    def _trainings(self) -> Iterator[Training]:
        """The trainings that are missing. Cleans up after killed drivers."""
        cluster_config, may_grow = self.config.cluster, self._address != "local"
        for model, source in self.selected.trained_here:
            if self.rundir.is_ready(model):
                scratch = self.rundir.training_folder(cluster_config.scratch)
                fit.remove_leftovers(scratch, model.id)  # if a driver was killed after the commit
                continue
            folder = self.rundir.model_folder(model)
            if self.rundir.storage.exists(folder):  # in an object store, an upload that was cut short
                self._set_aside(Damage(folder, "its weights are missing"))
            yield Training(model, source, self.rundir, cluster_config, self._progress.say, self._events, may_grow)

    def _untrained(self, failed: Mapping[str, TrainingFailed], lacking: Collection[str]) -> dict[str, TrainingFailed]:
        """Cell name -> the failure of its model's training; those of earlier sessions count for cells in `lacking`."""
        earlier = RunHistory.read(self.rundir).failures
        untrained: dict[str, TrainingFailed] = {}
        for cell in self.selected.cells:
            model = cell.model
            if model.id in failed:
                untrained[cell.name] = failed[model.id]
            elif cell.name in lacking and model.id in earlier and not self.rundir.is_ready(model):
                untrained[cell.name] = TrainingFailed(model.called, **earlier[model.id])
        return untrained

    def _work(self, kinds: Sequence[WorkKind], part: Plan) -> dict[str, str]:
        """Do what is missing of `part`, if anything. Returns cell name -> reason for what could not be done."""
        tasks = {task.key: task for kind in kinds for task in kind.tasks()}
        problems: dict[str, str] = {}
        with_scores = self._progress.reads_scores(bool(tasks))
        self._progress.show(state_before(self.run, part, self._scoring, tasks, with_scores))
        if tasks:
            provenance.write(self.rundir, self.plan, self._scoring)
            for kind in kinds:
                costs = [task.cost for task in tasks.values() if task.kind == kind.name]
                message = kind.announcement(sum(costs)) if costs else None
                if message is not None:
                    self._progress.say(message)
            self._connect()
            problems = self._dispatch(tasks)
        if not problems and self._began is not None:
            self.rundir.remove_temporaries((kind.writes_in() for kind in work_kinds()), self._began)
        return problems

    def _dispatch(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Run `tasks` on workers. Returns cell name -> reason for what could not be done."""
        from taugrid.orchestrator.dispatch.loop import Loop
        from taugrid.orchestrator.dispatch.pool import Pool
        from taugrid.orchestrator.dispatch.worker_manager import Outputs
        from taugrid.workers.actor import Probe, Worker

        config, embedded = self.config.cluster, self._address == "local"
        max_workers = capacity.embedded_workers(config) if embedded else config.workers
        workers = min(max_workers, len(tasks)) if embedded and max_workers else max_workers
        if max_workers and any(task.kind == "sample" for task in tasks.values()):
            warning = too_few_shards(self.selected, max_workers)
            if warning is not None:
                self._progress.say(warning)
        cpus, gpus = capacity.worker_size(config)
        if not gpus:
            require_no_gpu(self.selected)
        scorer = None
        if gpus and (config.score.workers_per_node or config.use_cpus):
            scorer = (max(1, int(config.score.cpus_per_worker or cpus)),)
        probe = self.rundir.new_probe()
        with replacing(probe, self.rundir.storage) as temporary:
            write_text(temporary, "")
        files = Probe(str(probe), self.rundir.storage, self.rundir.run_id)  # each worker must see it before a task
        pool = Pool(Worker, (max(1, int(cpus)),), cpus, gpus, files, config.label_selector, scorer)
        try:
            outputs = Outputs(self._progress, self._events, self._log, self.rundir.committed)
            loop = Loop(tasks, work_kinds(), pool, workers, embedded, config, outputs)
            problems = loop.run()
            self._permanent_failures |= loop.permanent_failures
            return problems
        finally:
            pool.close()
            with suppress(OSError):  # an earlier error matters more; `remove_temporaries` removes the probe later
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
