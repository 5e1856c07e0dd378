"""Trains the models of a session, from the driver's side: in turn, or `cluster.trainings` at a time."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError, in_one_line, last_line
from taugrid.jobs import TrainingSpec
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.plan.cells import Model
from taugrid.orchestrator.plan.conditions import NO_GPU
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS, Trained
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.trainings import progress_of
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.run_id import claim
from taugrid.storage import LOCAL, upload_folder
from taugrid.storage.local import make_folder
from taugrid.words import counted, duration, listed, with_urls
from taugrid.workers import ray_compat
from taugrid.workers.accelerator.policy import lacks
from taugrid.workers.data.load import content_fingerprint, load_labels
from taugrid.workers.training import fit
from taugrid.workers.training.log import TrainingProgress

POLL_SECONDS = 0.5  # how often the driver checks the logs and Ctrl-C
CAPACITY_SECONDS = 5.0  # how often a training that waits for its workers checks whether nodes have joined
ABANDON_SECONDS = 2.0  # how long the threads may take to end with the session, of `ending.GRACE_SECONDS`


class TrainingFailed(RunFailed):
    """The training of one model failed; others may still succeed. `fails_again`: whether the same command would fail in
    the same way."""

    def __init__(self, called: str, reason: str, log: Path | str, fails_again: bool = False) -> None:
        super().__init__(f"training of model {called} failed: {reason} (details: {log})")
        self.fails_again = fails_again


class Training:
    """One model's training in a driver session; Ray must be connected. `may_grow`: whether nodes may join the cluster.

    Only Ray Train runs in a thread: in the main thread its `fit` would take over SIGINT and never give it back. The
    caller does the rest: it calls `begin`, then `check_log` now and then, and `end` once the thread has ended. `error`
    is why it ended without a model; after `fit.NoRoom` and `fit.NodesLeave` it can begin again."""

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
        self.model, self.steps = model, source.train.steps
        self._source, self._rundir, self._cluster = source, rundir, cluster
        self._say, self._events, self._may_grow = say, events, may_grow
        self._told: set[str] = set()
        self.error: BaseException | None = None
        self.began_at = float("-inf")
        self.at = self._now()  # progress by its log; None before the first step
        self.has_begun = False  # whether it has logged a step since `begin`

    def begin(self, ended: "SimpleQueue[Training]") -> None:
        """Start or continue it, from its last checkpoint; raises `UserError` if no worker fits, and none ever will. It
        comes into `ended` when its thread ends."""
        wanted = capacity.trainers(self._cluster, self._source.train.workers, self._may_grow)
        model, self._spec = self.model, self.specified(wanted)
        self.at, self.has_begun, self.error = self._now(), False, None
        if self.at is not None:
            has_checkpoint = any(self._spec.running.glob("checkpoint_*"))
            last = f"continues from its checkpoint of step {self.at.checkpoint}"
            then = last if has_checkpoint else "begins again, because it has no checkpoint"
            self._say_once(f"training of {model.called} ended at step {self.at.step}; it {then}")
        self.began_at = self._checked_at = self._fitted_at = time.monotonic()
        # With this step a watching command detects whether the log has grown since.
        self._events.add("train", model=model.id, **({} if self.at is None else {"step": self.at.step}))
        self.thread = threading.Thread(target=self._fit, args=(ended,), name=f"train-{model.id}", daemon=True)
        self.thread.start()

    def check_log(self) -> None:
        """Read the log; raises `UserError` if nodes large enough have been missing for `cluster.max_wait_seconds`. The
        thread goes on waiting, as Ray Train knows no limit, until the session ends."""
        at, now = self._now(), time.monotonic()
        if at is not None and at != self.at:
            self.at, self.has_begun = at, True
        if not self._may_grow or self.has_begun or now - self._checked_at < CAPACITY_SECONDS:
            return
        self._checked_at = now
        size = capacity.Size(self._spec.cpus_per_worker, self._spec.gpus_per_worker)
        limit = self._cluster.max_wait_seconds
        if capacity.total_capacity(size, self._cluster) >= self._spec.train.fewest_workers:
            self._fitted_at = now
        elif now - self._fitted_at >= limit:
            then = f", nor has one joined in {duration(limit)} (cluster.max_wait_seconds)"
            raise capacity.no_capacity(size, self._cluster, then)

    def end(self, log: Callable[[str, str], Path]) -> None:
        """Put the model in place, and report the outcome. `log` writes a file in logs/. Raises `UserError` if something
        must be changed first, `TrainingFailed` if it could not go on."""
        error, model = self.error, self.model
        if isinstance(error, UserError):
            raise error
        if error is not None:
            path = log(f"train-{model.id}", "".join(traceback.format_exception(error)))
            reason, again = with_urls(last_line(error)), isinstance(error, fit.FailsAgain)
            place = self._rundir.relative(path)
            self._events.add("training failed", model=model.id, reason=reason, log=place, fails_again=again)
            raise TrainingFailed(model.called, reason, path, again)
        seconds = time.monotonic() - self.began_at
        self.at = self._now()
        storage, spec = self._rundir.storage, self._spec
        if not storage.on_disk:
            upload_folder(self._rundir.model_folder(model), spec.final, TRAINED_WEIGHTS, storage)
            LOCAL.delete_folder(spec.final)
            LOCAL.delete_folder(spec.running)
        self._events.add("trained", model=model.id, seconds=round(seconds, 3))
        assert self.at is not None, "the last step is always logged"
        steps = counted(self.at.step, "step")
        self._say(f"trained model {model.called}: {steps} in {duration(seconds)}, loss {self.at.loss:.4f}")

    def _say_once(self, text: str) -> None:
        """Say it once: a training that finds no room begins again every ten minutes."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def _fit(self, ended: "SimpleQueue[Training]") -> None:
        try:
            fit.train(self._spec)
        except BaseException as error:
            self.error = error
        ended.put(self)

    def _now(self) -> TrainingProgress | None:
        return progress_of(self.model, self._rundir, self._cluster.scratch)

    def specified(self, wanted: capacity.Trainers) -> TrainingSpec:
        """What the workers `wanted` get; raises `UserError` if its precision needs a GPU and they have none."""
        source = self._source
        need = lacks("cpu", source.train.precision, section="train")
        if need is not None and not wanted.gpus:
            raise UserError(need.refused(*NO_GPU))
        folder, run_id = self._rundir.training_folder(self._cluster.scratch), self._rundir.run_id
        if not self._rundir.storage.on_disk:
            make_folder(folder)
            run_id = claim(folder, LOCAL)  # what every training worker must see is this folder
        asked = source.train.workers
        if self._may_grow and wanted.workers != asked:
            grows = "it begins with as many as fit, at least one, and takes more as nodes join"
            then = f"it trains with {wanted.workers}" if isinstance(wanted.workers, int) else grows
            self._say_once(f"training {self.model.called}: the cluster does not fit {asked} workers now; {then}")
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
            run_id=run_id,
            labels_sha256=None if source.unet.num_classes is None else load_labels(source.data).sha256,
        )


class Trainings:
    """The trainings of a session, which begin in their order. `others`: whether the session has models to go on with
    when one fails. Only `fit.train` runs in other threads, so nothing here needs a lock."""

    def __init__(
        self,
        trainings: Sequence[Training],
        cluster: Cluster,
        progress: Progress,
        events: Events,
        log: Callable[[str, str], Path],
        others: bool,
    ) -> None:
        self._all, self._waiting = list(trainings), deque(trainings)
        self._under_way: list[Training] = []
        self._ended: SimpleQueue[Training] = SimpleQueue()
        self._most, self._others = cluster.trainings or 1, others
        self._progress, self._events, self._log = progress, events, log
        self._worked_at = float("-inf")  # when one of them was last seen to train
        self._failed: dict[str, TrainingFailed] = {}
        self._to_change: UserError | OSError | None = None  # ends the stage once no training runs
        self._trained = 0

    def run(self) -> dict[str, TrainingFailed]:
        """Train them all. Returns model id -> error for those that failed. Raises `UserError` if something must be
        changed first, `OSError` if a file or an upload failed. Those that run have then ended; the others continue in
        the next session."""
        self._show_stage()
        try:
            while self._waiting or self._goes_on():
                with self._others_go_on():
                    while self._waiting and len(self._under_way) < self._most:
                        training = self._waiting.popleft()
                        training.begin(self._ended)
                        self._under_way.append(training)
                for training in self._under_way:
                    with self._others_go_on():
                        training.check_log()
                if any(training.has_begun for training in self._under_way):
                    self._worked_at = time.monotonic()
                self._show()
                with suppress(Empty), self._others_go_on():
                    self._end(self._ended.get(timeout=POLL_SECONDS))
        finally:
            # A thread that speaks to Ray while Ray shuts down would end the process from Ray's C++. Ray waits for a
            # minute for a head that is gone, so the threads are ended from another one.
            until = time.monotonic() + ABANDON_SECONDS
            if self._under_way:
                threading.Thread(target=ray_compat.kill_train_controllers, name="abandon", daemon=True).start()
            for training in self._under_way:
                training.thread.join(max(0.0, until - time.monotonic()))
        self._progress.end()
        ending.lost = ""
        if self._to_change is not None:
            raise self._to_change
        return self._failed

    def _goes_on(self) -> bool:
        """Whether the end of one under way is worth waiting for."""
        return any(training.has_begun or self._to_change is None for training in self._under_way)

    @contextmanager
    def _others_go_on(self) -> Iterator[None]:
        """Keep a `UserError`, or an error of the disk or the store, until the others have ended: what one training
        lacks must not cost hours of others."""
        try:
            yield
        except (UserError, OSError) as error:
            is_first, self._to_change = self._to_change is None, self._to_change or error
            self._waiting.clear()
            if not self._goes_on():
                raise self._to_change from None
            if is_first:
                reason = in_one_line(error) if isinstance(error, OSError) else error
                self._progress.say(f"{reason}; no other training begins, and those that run go on to their end")

    def _end(self, training: Training) -> None:
        self._under_way.remove(training)
        # It begins again at once where its nodes leave, and later where one that has worked meanwhile had its room.
        has_left = isinstance(training.error, fit.NodesLeave)
        if has_left or (isinstance(training.error, fit.NoRoom) and self._worked_at > training.began_at):
            if self._to_change is None:
                self._events.add("training waits", model=training.model.id)
                self._waiting.insert(0 if has_left else len(self._waiting), training)
            return
        try:
            training.end(self._log)
            self._trained, self._worked_at = self._trained + 1, time.monotonic()
        except TrainingFailed as error:
            self._failed[training.model.id] = error
            self._all.remove(training)
            self._show_stage()
            if self._others:
                self._progress.say(f"{error}; the others go on")

    def _show_stage(self) -> None:
        """Show a stage of all that have not failed."""
        self._progress.end()
        if self._all:
            models = counted(len(self._all), "model") if len(self._all) > 1 else self._all[0].model.called
            steps = sum(training.steps for training in self._all)
            self._progress.begin(f"training {models}", steps, "steps", waits=True)

    def _show(self) -> None:
        """Show the steps done, and what an interruption would lose. One that has not begun has its checkpoint's."""
        done, lost, running = 0, list[str](), dict[str, TrainingProgress]()
        for training in self._all:
            if (at := training.at) is None:
                continue
            done += at.step if training.has_begun else at.checkpoint
            if training in self._under_way and training.has_begun:
                running[training.model.called] = at
                if at.step > at.checkpoint:
                    steps = counted(at.step - at.checkpoint, "step")
                    last = f"since its checkpoint of step {at.checkpoint:,}"
                    since = last if at.checkpoint else "before its first checkpoint"
                    lost.append(f"training of {training.model.called}: {steps} {since} lost")
        ending.lost = listed(lost, 3, "training", "; ")
        if running:
            note = note_of_trainings(running, len(self._all), self._trained)
            self._progress.update(done, workers=sum(at.workers for at in running.values()), note=note)


def note_of_trainings(running: Mapping[str, TrainingProgress], models: int, trained: int) -> str:
    """What the bar of `models` trainings says beside their steps; `running` is by what the models are called."""
    losses = sorted(at.loss for at in running.values())
    shown = "loss " + " to ".join(f"{loss:.4f}" for loss in sorted({losses[0], losses[-1]}))
    if len(running) > 1:
        shown = f"{len(running)} at a time, {shown}"
    elif models > 1:
        shown = f"{next(iter(running))}: {shown}"
    return ", ".join(filter(None, [shown, f"{trained} trained" if trained else ""]))
