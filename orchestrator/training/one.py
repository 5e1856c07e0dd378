"""Trains one model, from the driver's side: runs Ray Train in a thread, follows the log, reports the end."""

import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError, last_line
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.plan.cells import Model
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS, Trained
from taugrid.orchestrator.report.trainings import failed_trainings
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.run_id import claim
from taugrid.storage import LOCAL, upload_folder
from taugrid.storage.local import make_folder
from taugrid.words import counted, duration, with_urls
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.training import fit
from taugrid.workers.training.log import TrainingProgress, training_progress
from taugrid.workers.training.spec import TrainingSpec

CAPACITY_SECONDS = 5.0
"""How often a training that waits for its workers checks whether nodes have joined."""

STANDSTILL_SECONDS = 120.0
"""Time without a logged step after which a message says what a training may be waiting for."""


class TrainingFailed(RunFailed):
    """The training of one model failed; others may still succeed."""

    def __init__(self, called: str, reason: str, log: Path | str, fails_again: bool = False) -> None:
        super().__init__(f"training of model {called} failed: {reason} (details: {log})")
        self.briefly = f"training of model {called} failed: {reason.partition('; ')[0]} (details: {log})"
        """The message without what to do, for a line that precedes the whole message."""
        self.fails_again = fails_again
        """Whether the same command would fail in the same way."""


class Training:
    """One model's training in a driver session; Ray must be connected.

    Only Ray Train runs in a thread: in the main thread its `fit` would take over SIGINT and never give it back. The
    caller does the rest: it calls `begin`, then `check_log` now and then, and `end` once the thread has ended.
    """

    def __init__(
        self,
        model: Model,
        source: Trained,
        rundir: RunDir,
        cluster: Cluster,
        say: Callable[[str], None],
        events: Events,
        may_grow: bool = False,
    ) -> None:
        """`may_grow`: whether nodes may join the cluster."""
        self.model = model
        self.steps = source.train.steps
        self._source, self._rundir, self._cluster = source, rundir, cluster
        self._say, self._events, self._may_grow = say, events, may_grow
        self._told: set[str] = set()
        self._error: BaseException | None = None
        self.at = self._now()
        """Progress by its log; None before the first step."""
        self.has_begun = False
        """Whether it has logged a step since `begin`."""

    @property
    def done(self) -> int:
        """Steps done; before it has begun, those of its last checkpoint."""
        if self.at is None:
            return 0
        return self.at.step if self.has_begun else self.at.checkpoint

    @property
    def at_stake(self) -> str:
        """What an interruption loses, as a phrase; empty: nothing."""
        if self.at is None or not self.has_begun or self.at.step <= self.at.checkpoint:
            return ""
        lost = counted(self.at.step - self.at.checkpoint, "step")
        since = (
            f"since its checkpoint of step {self.at.checkpoint:,}"
            if self.at.checkpoint
            else "before its first checkpoint"
        )
        return f"training of {self.model.called}: {lost} {since} lost"

    @property
    def found_no_room(self) -> bool:
        """Whether it ended because other work took the room for its workers. It can begin again."""
        return isinstance(self._error, fit.NoRoom)

    def wanted(self) -> capacity.Trainers:
        """The workers that it would start on the cluster as it is now.

        Raises:
            UserError: if no worker fits, and none ever will.
        """
        return capacity.trainers(self._cluster, self._source.train.workers, self._may_grow)

    def begin(self, ended: "SimpleQueue[Training]") -> None:
        """Start or continue it, from its last checkpoint. It comes into `ended` when its thread ends."""
        model, self._spec = self.model, self._specified(self.wanted())
        self.at, self.has_begun, self._error = self._now(), False, None
        if self.at is not None:
            has_checkpoint, step = any(self._spec.running.glob("checkpoint_*")), self.at.checkpoint
            last = f"continues from its last checkpoint{f', of step {step}' if step else ''}"
            then = last if has_checkpoint else "begins again, because it has no checkpoint"
            how = "failed" if model.id in failed_trainings(self._rundir) else "was interrupted"
            message = f"training of {model.called} {how} at step {self.at.step}; it {then}"
            self._say_once("interrupted", message)
        self._began = self._changed = self._checked_at = self._fitted_at = time.monotonic()
        # With this step a watching command detects whether the log has grown since.
        self._events.add("train", model=model.id, **({} if self.at is None else {"step": self.at.step}))
        threading.Thread(target=self._fit, args=(ended,), name=f"train-{model.id}", daemon=True).start()

    def put_back(self) -> None:
        """Record an event: it found no room and waits for `begin`."""
        self._events.add("training waits", model=self.model.id)

    def check_log(self) -> None:
        """Read the log, and say once if no step is logged for long.

        Raises:
            UserError: if nodes large enough did not join in time. The thread goes on waiting, as Ray Train knows no
                limit. It ends with the driver.
        """
        if self._may_grow and not self.has_begun:
            self._require_capacity()
        at = self._now()
        if at is not None and at != self.at:
            self.at, self.has_begun, self._changed = at, True, time.monotonic()
        train = self._spec.train
        may_wait = train.is_elastic or (self._may_grow and not self.has_begun)
        if may_wait and time.monotonic() - self._changed > STANDSTILL_SECONDS:
            self._say_once(
                "standstill",
                f"training {self.model.called}: no step logged for {duration(STANDSTILL_SECONDS)}; it waits while "
                f"the cluster has no room for {counted(train.fewest_workers, 'worker')}",
            )

    def _require_capacity(self) -> None:
        """Raise `UserError` if nodes for the fewest workers have been missing for `cluster.max_wait_seconds`."""
        now, limit = time.monotonic(), self._cluster.max_wait_seconds
        if now - self._checked_at < CAPACITY_SECONDS:
            return
        self._checked_at = now
        size = capacity.Size(self._spec.cpus_per_worker, self._spec.gpus_per_worker)
        if capacity.total_capacity(size, self._cluster) >= self._spec.train.fewest_workers:
            self._fitted_at = now
        if now - self._fitted_at >= limit:
            then = f", nor has one joined in {duration(limit)} (cluster.max_wait_seconds)"
            raise capacity.no_capacity(size, self._cluster.label_selector, then)

    def end(self, log: Callable[[str, str], Path]) -> None:
        """Put the model in place, and report the outcome. `log` writes a file in logs/.

        Raises:
            UserError: if something must be changed first.
            TrainingFailed: if it could not go on.
        """
        error, model = self._error, self.model
        if isinstance(error, UserError):
            raise error
        if error is not None:
            path = log(f"train-{model.id}", "".join(traceback.format_exception(error)))
            reason = with_urls(last_line(error))
            again = isinstance(error, fit.FailsAgain)
            place = self._rundir.relative(path)
            self._events.add("training failed", model=model.id, reason=reason, log=place, fails_again=again)
            raise TrainingFailed(model.called, reason, path, again)
        seconds = time.monotonic() - self._began
        self.at = self._now()
        self._upload()
        self._events.add("trained", model=model.id, seconds=round(seconds, 3))
        assert self.at is not None, "the last step is always logged"
        steps = counted(self.at.step, "step")
        self._say(f"trained model {model.called}: {steps} in {duration(seconds)}, loss {self.at.loss:.4f}")

    def _say_once(self, about: str, text: str) -> None:
        """Say it once: a training that finds no room begins again every ten minutes."""
        if about not in self._told:
            self._told.add(about)
            self._say(text)

    def _fit(self, ended: "SimpleQueue[Training]") -> None:
        try:
            fit.train(self._spec)
        except BaseException as error:
            self._error = error
        ended.put(self)

    def _now(self) -> TrainingProgress | None:
        """How far the training is, by the log in the folder where it runs."""
        storage = self._rundir.storage if self._rundir.storage.on_disk else LOCAL
        return training_progress(self._rundir.training_folder(self._cluster.scratch), self.model.id, storage)

    def _upload(self) -> None:
        """Put the trained model into the run directory, if it was trained elsewhere, and remove what is left there."""
        storage, spec = self._rundir.storage, self._spec
        if not storage.on_disk:
            upload_folder(self._rundir.model_folder(self.model), spec.final, TRAINED_WEIGHTS, storage)
            LOCAL.delete_folder(spec.final)
            LOCAL.delete_folder(spec.running)

    def _specified(self, wanted: capacity.Trainers) -> TrainingSpec:
        source = self._source
        folder, run = self._rundir.training_folder(self._cluster.scratch), self._rundir.run
        if not self._rundir.storage.on_disk:
            make_folder(folder)
            run = claim(folder, LOCAL)  # what every training worker must see is this folder
        asked = source.train.workers
        if self._may_grow and wanted.workers != asked:
            grows = "it begins with as many as fit, at least one, and takes more as nodes join"
            then = f"it trains with {wanted.workers}" if isinstance(wanted.workers, int) else grows
            message = f"training {self.model.called}: the cluster does not fit {asked} workers now; {then}"
            self._say_once("workers", message)
        return TrainingSpec(
            data=source.data,
            data_sha256=content_fingerprint(source.data),
            unet=source.unet,
            diffusion=self.model.diffusion,
            train=source.train.model_copy(update={"workers": wanted.workers}),
            model_id=self.model.id,
            models_dir=str(folder),
            cpus_per_worker=wanted.cpus,
            gpus_per_worker=wanted.gpus,
            label_selector=self._cluster.label_selector,
            run=run,
        )
