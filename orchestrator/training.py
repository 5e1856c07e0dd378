"""Trains one model, from the driver's side: runs Ray Train in a thread, shows the log's progress, reports the end."""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taugrid.config import Cluster
from taugrid.disk import make_folder
from taugrid.errors import RunFailed, UserError, last_line
from taugrid.orchestrator.dispatch.capacity import resources
from taugrid.orchestrator.dispatch.capacity.nodes import Size
from taugrid.orchestrator.plan.cells import Model
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS, Trained
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.words import counted, duration, with_urls
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.training import fit
from taugrid.workers.training.log import TrainingProgress, training_progress
from taugrid.workers.training.spec import TrainingSpec

POLL_SECONDS = 0.5
"""How often the driver checks the log and Ctrl-C."""

ROOM_SECONDS = 5.0
"""How often a training that waits for room looks whether nodes have joined."""

STANDSTILL_SECONDS = 120.0
"""Time without a logged step after which the user is told what a training may be waiting for."""


class TrainingFailed(RunFailed):
    """The training of one model failed; others may still succeed."""

    def __init__(self, called: str, reason: str, log: Path | str, fails_again: bool = False) -> None:
        super().__init__(f"training of model {called} failed: {reason} (details: {log})")
        self.briefly = f"training of model {called} failed: {reason.partition('; ')[0]} (details: {log})"
        """Without what can be done about it, for a line that the whole one follows."""
        self.fails_again = fails_again
        """Whether the same command would fail in the same way."""


@dataclass(frozen=True)
class Training:
    """One model's training in a driver session; Ray must be connected."""

    model: Model
    source: Trained
    rundir: RunDir
    cluster: Cluster
    progress: Progress
    events: Events
    may_grow: bool = False
    """Whether nodes may join the cluster."""

    def run(self, log: Callable[[str, str], Path]) -> None:
        """Train the model, continuing interrupted training from its last checkpoint. `log` writes a file in logs/.

        Raises:
            UserError: if something must be changed first.
            TrainingFailed: if this training could not go on.
        """
        model = self.model
        spec = self._spec()
        if (at := self._now()) is not None:
            has_checkpoint = any(spec.running.glob("checkpoint_*"))
            place = "its last checkpoint" if has_checkpoint else "the start, because it has no checkpoint"
            self.progress.say(
                f"training of {model.called} was interrupted at step {at.step}; it continues from {place}"
            )
        began = time.monotonic()
        self.events.add("train", model=model.id)
        self.progress.begin(f"training {model.called}", self.source.train.steps, "steps")
        error = self._fit(spec)
        self.progress.end()
        if isinstance(error, UserError):
            raise error
        if error is not None:
            path = log(f"train-{model.id}", "".join(traceback.format_exception(error)))
            reason = with_urls(last_line(error))
            again = isinstance(error, fit.FailsAgain)
            place = self.rundir.relative(path)
            self.events.add("training failed", model=model.id, reason=reason, log=place, fails_again=again)
            raise TrainingFailed(model.called, reason, path, again)
        seconds = time.monotonic() - began
        at = self._now()
        self._upload(spec)
        self.events.add("trained", model=model.id, seconds=round(seconds, 3))
        assert at is not None, "the last step is always logged"
        steps = counted(at.step, "step")
        self.progress.say(f"trained model {model.called}: {steps} in {duration(seconds)}, loss {at.loss:.4f}")

    def _now(self) -> TrainingProgress | None:
        """How far the training is, by the log in the folder where it runs."""
        storage = self.rundir.storage if self.rundir.storage.on_disk else LOCAL
        return training_progress(self.rundir.training_folder(self.cluster.scratch), self.model.id, storage)

    def _upload(self, spec: TrainingSpec) -> None:
        """Put the trained model into the run directory, if it was trained elsewhere, and remove what is left there."""
        if not self.rundir.storage.on_disk:
            self.rundir.storage.create_folder(self.rundir.model_folder(self.model), spec.final, TRAINED_WEIGHTS)
            LOCAL.delete_folder(spec.final)
            LOCAL.delete_folder(spec.running)

    def _spec(self) -> TrainingSpec:
        source = self.source
        folder, run = self.rundir.training_folder(self.cluster.scratch), self.rundir.run
        if not self.rundir.storage.on_disk:
            make_folder(folder)
            run = claim(folder, LOCAL)  # what every training worker must see is this folder
        asked = source.train.workers
        trainers = resources.trainers(self.cluster, asked, self.may_grow)
        if self.may_grow and trainers.workers != asked:
            grows = "it begins with as many as fit, at least one, and takes more as nodes join"
            then = f"it trains with {trainers.workers}" if isinstance(trainers.workers, int) else grows
            self.progress.say(f"training {self.model.called}: the cluster does not fit {asked} workers now; {then}")
        return TrainingSpec(
            data=source.data,
            data_sha256=content_fingerprint(source.data),
            unet=source.unet,
            diffusion=self.model.diffusion,
            train=source.train.model_copy(update={"workers": trainers.workers}),
            model_id=self.model.id,
            models_dir=str(folder),
            cpus_per_worker=trainers.cpus,
            gpus_per_worker=trainers.gpus,
            label_selector=self.cluster.label_selector,
            run=run,
        )

    def _fit(self, spec: TrainingSpec) -> BaseException | None:
        """The error that ended training, if any.

        Ray Train runs in a thread: in the main thread its `fit` would take over SIGINT and never give it back.
        """
        errors: list[BaseException] = []

        def train() -> None:
            try:
                fit.train(spec)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=train, name=f"train-{self.model.id}", daemon=True)
        thread.start()
        waited_too_long = self._watch(thread, spec)
        return errors[0] if errors else waited_too_long

    def _watch(self, thread: threading.Thread, spec: TrainingSpec) -> UserError | None:
        """Show the training's progress until its thread ends; an error if nodes large enough did not join in time.

        In that case the thread goes on waiting, as Ray Train knows no limit. It ends with the driver.
        """
        train = spec.train
        first = step = at.step if (at := self._now()) else 0
        changed, told = time.monotonic(), False
        room = _WaitForRoom(spec, self.cluster)
        while thread.is_alive():
            if self.may_grow and step == first and (error := room.too_long()):
                return error
            thread.join(POLL_SECONDS)
            if (at := self._now()) is not None:
                self.progress.started(at.step)
                self.progress.update(at.step, workers=at.workers, note=f"loss {at.loss:.4f}")
                if at.step != step:
                    step, changed = at.step, time.monotonic()
            may_wait = train.is_elastic or (self.may_grow and step == first)
            if may_wait and not told and time.monotonic() - changed > STANDSTILL_SECONDS:
                told = True
                self.progress.say(
                    f"training {self.model.called}: no step logged for {duration(STANDSTILL_SECONDS)}; it waits while "
                    f"the cluster has no room for {counted(train.fewest_workers, 'worker')}"
                )
        return None


class _WaitForRoom:
    """Whether a training that has not begun has waited longer for nodes than `cluster.max_wait_seconds`."""

    def __init__(self, spec: TrainingSpec, cluster: Cluster) -> None:
        self._size = Size(spec.cpus_per_worker, spec.gpus_per_worker)
        self._fewest, self._cluster = spec.train.fewest_workers, cluster
        self._looked_at = self._room_at = time.monotonic()

    def too_long(self) -> UserError | None:
        """The error to end with, if nodes for the fewest workers have been missing for too long."""
        now, limit = time.monotonic(), self._cluster.max_wait_seconds
        if now - self._looked_at < ROOM_SECONDS:
            return None
        self._looked_at = now
        if resources.fits(self._size, self._cluster) >= self._fewest:
            self._room_at = now
        if now - self._room_at < limit:
            return None
        then = f", nor has one joined in {duration(limit)} (cluster.max_wait_seconds)"
        return resources.no_room(self._size, self._cluster.label_selector, then)
