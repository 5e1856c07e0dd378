"""The stages of a run: train, then sample and evaluate (or reconstruct, or interpolate), then report.

Each does what is missing on disk, only that. With nothing missing no cluster is started. `work/` says what is missing,
`dispatch/` who does it; here they are put together, and people are told.
"""

import threading
import time
import traceback
import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taugrid.config import Config, Sample
from taugrid.errors import RunFailed, UserError, last_line
from taugrid.orchestrator.cli.progress import Progress, duration
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.plan.evaluation import Evaluation, describe_clip, evaluation
from taugrid.orchestrator.plan.extension import check_extends
from taugrid.orchestrator.plan.grid import Model, Plan
from taugrid.orchestrator.report.write import write_losses
from taugrid.orchestrator.rundir import provenance
from taugrid.orchestrator.rundir.directory import Damage, Events, RunDir
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.kind import Conclusion, Piece, WorkKind
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import write_json
from taugrid.workers.data.load import content_fingerprint, load_images
from taugrid.workers.training import fit as training
from taugrid.workers.training.log import training_progress
from taugrid.workers.training.spec import TrainingSpec

if TYPE_CHECKING:
    from taugrid.eval.tables.differences import Evidence

POLL_SECONDS = 0.5
"""How often the driver looks at a training's log, and for Ctrl-C."""

STANDSTILL_SECONDS = 120.0
"""Without a logged step, after which people are told what an elastic training may wait for: Ray Train does not say."""


class Outcome(NamedTuple):
    """How a session ended."""

    missing: dict[str, str]
    """Name -> reason, for every cell that has no score (or, where only images were asked for, not all images) now."""
    rows: list[dict[str, Any]]
    """The rows of the table that the stages lead to."""
    table: str
    """Its name (`work.kind.Conclusion`); empty where there is none."""
    evidence: "Evidence | None"
    """Of the quality table: what tells its cells apart."""


class Run:
    """One driver session on one run directory."""

    def __init__(self, config: Config, plan: Plan, rundir: RunDir, address: str, progress: Progress) -> None:
        self.config = config
        self.plan = plan
        self.rundir = rundir
        self._address = address
        self._progress = progress
        self._cluster = ExitStack()
        self._connected = False

    def do(self, stages: Collection[str]) -> Outcome:
        """Do `stages`, some of train, sample, reconstruct, interpolate, evaluate and report, in that order.

        Raises:
            UserError: what must be changed first; nothing was lost. RunFailed: a stage could not go on.
        """
        scoring = evaluation(self.config, self.plan) if "evaluate" in stages or "report" in stages else None
        for model in self.plan.models:
            if "train" in stages and not self.rundir.is_trained(model):
                assert model.train is not None
                training.check(model.train)
                load_images(model.data)  # refused here, not when the first worker asks
        with self.rundir.lock(), self._cluster:
            check_extends(self.config, self.plan, self.rundir)
            write_json(self.rundir.config, self.config.model_dump(mode="json"))
            self._events = Events(self.rundir.events)
            self._events.add("session", stages=sorted(stages), **provenance.software())
            try:
                outcome = self._do(stages, scoring)
                self._events.add("end", missing=outcome.missing)
                return outcome
            finally:
                self._events.close()

    def _do(self, stages: Collection[str], scoring: Evaluation | None) -> Outcome:
        for remark in self.plan.remarks:
            self._progress.say(f"warning: {remark}")
        for model in self.plan.models:
            if model.checkpoint is not None:
                self.rundir.record_checkpoint(model)
                settings = [cell.settings for cell in self.plan.cells if cell.model.id == model.id]
                self._progress.say(describe_checkpoint(model, settings))
            if model.own is not None:
                self.rundir.record_custom(model)
                self._progress.say(describe_custom(model))
        survey = Survey(self.config, self.plan, self.rundir, scoring, frozenset(stages), self._set_aside)
        told = [kind(survey) for kind in work_kinds() if {kind.stage, *kind.told_by} & survey.stages]
        works = [work for work in told if work.stage in survey.stages]
        for work in works:
            work.check()
        if "train" in stages:
            self._train()
        if set(stages) == {"train"}:
            self._progress.say("every model of this config is there")
        problems = self._work(works, scoring) if works else {}
        unfinished: dict[str, str] = {}
        for work in told:
            unfinished |= work.missing()
        conclusions = [conclusion for work in told if (conclusion := work.conclude()) is not None]
        table, rows, evidence = conclusions[-1] if conclusions else Conclusion("", [])
        if "evaluate" in stages and "report" not in stages:
            self._progress.say("tables and figures are as they were: `taugrid report` writes them anew")
        provenance.write(self.rundir, self.plan, scoring)
        return Outcome(unfinished | problems, rows, table, evidence)

    def _connect(self) -> None:
        if not self._connected:
            self._progress.say("starting Ray" if self._address == "local" else f"connecting to Ray at {self._address}")
            trainers = max((model.train.fewest_workers for model in self.plan.models if model.train), default=0)
            self._cluster.enter_context(cluster.connected(self._address, self.config.cluster, trainers))
            self._connected = True

    def _train(self) -> None:
        for model in self.plan.models:
            if not self.rundir.is_trained(model):
                self._connect()
                self._train_one(model)
            elif model.train is not None:
                training.remove_leftovers(self.rundir.models, model.id)  # of a driver that was killed after the commit
        write_losses(self.plan, self.rundir)

    def _train_one(self, model: Model) -> None:
        assert model.train is not None
        assert model.unet is not None
        folder = self.rundir.models / model.id
        if folder.exists():
            self._set_aside(Damage(folder, "its weights are missing"))
        trainers = cluster.trainers(self.config.cluster, model.train.workers)
        train = model.train.model_copy(update={"workers": trainers.workers})
        spec = TrainingSpec(
            data=model.data,
            data_sha256=content_fingerprint(model.data),
            unet=model.unet,
            diffusion=model.diffusion,
            train=train,
            model_id=model.id,
            models_dir=str(self.rundir.models),
            cpus_per_worker=trainers.cpus,
            gpus_per_worker=trainers.gpus,
        )
        errors: list[BaseException] = []

        def fit() -> None:
            try:
                training.train(spec)
            except BaseException as error:
                errors.append(error)

        if (at := training_progress(self.rundir.models, model.id)) is not None:
            has_checkpoint = any(spec.running.glob("checkpoint_*"))
            place = "its last checkpoint" if has_checkpoint else "the start: it has no checkpoint"
            self._progress.say(f"the training of {model.id} was cut off at step {at.step}; it goes on from {place}")
        # In a thread of its own: fit() in the main thread would take over SIGINT and never give it back (ray.md).
        thread = threading.Thread(target=fit, name=f"train-{model.id}", daemon=True)
        began = time.monotonic()
        self._events.add("train", model=model.id)
        self._progress.begin(f"training {model.id}", model.train.steps, "steps")
        thread.start()
        self._watch(thread, model)
        self._progress.end()
        if errors:
            if isinstance(errors[0], UserError):
                raise errors[0]
            path = self._log(f"train-{model.id}", "".join(traceback.format_exception(errors[0])))
            raise RunFailed(f"training of model {model.id} failed: {last_line(errors[0])} (all of it: {path})")
        seconds = time.monotonic() - began
        self._events.add("trained", model=model.id, seconds=round(seconds, 3))
        at = training_progress(self.rundir.models, model.id)
        assert at is not None, "the last step is always logged"
        self._progress.say(f"trained model {model.id}: {at.step} steps in {duration(seconds)}, loss {at.loss:.4f}")

    def _watch(self, thread: threading.Thread, model: Model) -> None:
        """Show how far a training is until its thread ends."""
        assert model.train is not None
        elastic = not isinstance(model.train.workers, int)
        step, changed, said = 0, time.monotonic(), False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if (at := training_progress(self.rundir.models, model.id)) is not None:
                self._progress.started(at.step)
                self._progress.update(at.step, workers=at.workers, note=f"loss {at.loss:.4f}")
                if at.step != step:
                    step, changed = at.step, time.monotonic()
            if elastic and not said and time.monotonic() - changed > STANDSTILL_SECONDS:
                said = True
                least = f"{model.train.fewest_workers} worker{'s' * (model.train.fewest_workers > 1)}"
                self._progress.say(
                    f"training {model.id}: no step logged for {duration(STANDSTILL_SECONDS)}; it waits as long as the "
                    f"cluster has no room for {least}"
                )

    def _work(self, works: Sequence[WorkKind], scoring: Evaluation | None) -> dict[str, str]:
        """Do what is missing, if anything is. Returns cell name -> reason for what could not be done."""
        by_key = {piece.task.key: piece for work in works for piece in work.pieces()}
        provenance.write(self.rundir, self.plan, scoring)
        problems: dict[str, str] = {}
        if by_key:
            self._connect()
            problems = self._dispatch(by_key)
        if not problems:
            self.rundir.remove_temporaries()
        for work in works:
            work.clean_up()
        return problems

    def _dispatch(self, pieces: dict[str, Piece]) -> dict[str, str]:
        """Have workers do `pieces`. Returns cell name -> reason for what could not be done."""
        from taugrid.orchestrator.dispatch.loop import Loop
        from taugrid.orchestrator.dispatch.pool import Pool
        from taugrid.workers.actor import Worker

        cpus, gpus = cluster.resources(self.config.cluster)
        probe = self.rundir.root / f".probe.{uuid.uuid4().hex[:12]}.tmp"
        probe.touch()
        pool = Pool(Worker, (max(1, int(cpus)),), cpus, gpus, str(probe))
        try:
            workers = min(cluster.room(self.config.cluster), len(pieces))
            attempts = self.config.cluster.max_attempts
            embedded = self._address == "local"
            return Loop(
                pieces, work_kinds(), pool, workers, embedded, attempts, self._progress, self._events, self._log
            ).run()
        finally:
            pool.close()
            probe.unlink(missing_ok=True)

    def _set_aside(self, damage: Damage) -> None:
        target = self.rundir.set_aside(damage)
        name = self.rundir.relative(damage.path)
        self._events.add("damaged", path=name, reason=damage.reason, moved_to=self.rundir.relative(target))
        self._progress.say(
            f"damaged: {name} ({damage.reason}); moved to {self.rundir.relative(target)}, will be redone"
        )

    def _log(self, name: str, text: str) -> Path:
        path = self.rundir.logs / f"{self._events.path.stem}-{name.replace('/', '-')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n\n")
        return path


def describe_checkpoint(model: Model, settings: Collection[Sample]) -> str:
    """What was taken from a loaded model's files, for people to check, and what the config has in its place.

    `settings` are those of the model's cells.
    """
    checkpoint, d = model.checkpoint, model.diffusion
    assert checkpoint is not None
    theirs = {key: value for key, value in checkpoint.diffusion.model_dump().items() if value is not None}
    changed = [key for key, value in theirs.items() if getattr(d, key) != value]
    sample = Sample(**checkpoint.sample)
    clip = (None if sample.clip == "none" else describe_clip(sample)) or "none"
    offsets = [str(of.steps_offset) for of in settings if of.spacing == "leading"]  # elsewhere it plays no part
    offset = str(sample.steps_offset or 0)
    said = [
        d.in_words,
        "predicts epsilon" * (d.prediction == "epsilon"),
        f"diffusion.{', '.join(changed)} by the config" * bool(changed),
        f"clip {_and_by_the_config(clip, map(describe_clip, settings))}",
        f"steps_offset {_and_by_the_config(offset, offsets)}" * (bool(offsets) and {offset, *offsets} != {"0"}),
    ]
    source = "its scheduler" if checkpoint.sample else "no scheduler in it, so defaults"
    at = f" at commit {checkpoint.commit[:10]}" if checkpoint.commit else ""
    return f"model {model.id}: loaded {checkpoint.path}{at} ({source}: {', '.join(filter(None, said))})"


def _and_by_the_config(theirs: str, ours: Iterable[str | None]) -> str:
    """A setting of a loaded pipeline, followed by those that cells have, if any cell has another."""
    used = [value for value in dict.fromkeys(ours) if value is not None]
    return theirs if set(used) <= {theirs} else f"{theirs} ({', '.join(used)} by the config)"


def describe_custom(model: Model) -> str:
    """What one's own network is, for people to check."""
    own, d = model.own, model.diffusion
    assert own is not None
    weights = f" with {own.weights}" if own.weights else ""
    now = f"; that was when it was sampled, but now {own.unusable}" if own.unusable else ""
    return f"model {model.id}: {own.callable}{weights} returned {own.summary} ({d.in_words}){now}"
