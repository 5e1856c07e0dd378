"""Trains the models of a session: side by side where the cluster has the resources, else one after another."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from taugrid.config import Cluster
from taugrid.errors import UserError
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch.capacity import Size, Trainers, free
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.bars import name_of_trainings, note_of_trainings
from taugrid.orchestrator.training.one import Training, TrainingFailed
from taugrid.words import counted, listed
from taugrid.workers.ray_compat import memory_here

POLL_SECONDS = 0.5
"""How often the driver checks the logs and Ctrl-C."""

ROOM_POLL_SECONDS = 2.0
"""How often the driver checks whether one more training has room."""

HELPERS_BYTES = 500 * 2**20
"""Memory of the driver's machine for Ray Train's controller of one training and its three helpers. Each imports
ray.train and pandas; 470 MB were measured (docs/decisions.md)."""

HELPERS_SHARE = 0.5
"""The share of the machine's memory for the helpers of all trainings, unless `cluster.trainings` sets their number."""


class UnderWay(NamedTuple):
    all: int
    """Trainings that have begun and not ended."""
    starting: int
    """Of these, those whose workers may not have their places yet."""


def most_at_once(cluster: Cluster) -> int:
    """The maximum number of trainings at a time, however much room there is for their workers."""
    return cluster.trainings or max(1, int(memory_here() * HELPERS_SHARE) // HELPERS_BYTES)


def another_fits(wanted: Trainers, under_way: UnderWay, cluster: Cluster, may_grow: bool) -> bool:
    """Whether a training that wants so much begins now. If there is no other, it does, and waits for room itself.

    It takes what it would take alone: fewer CPUs would be fewer threads, and other last digits of weights. An elastic
    training counts with all its workers. With `cluster.trainings` on a cluster that `may_grow`, it begins without room,
    because Ray's autoscaler counts only workers that wait.
    """
    if not under_way.all or (cluster.trainings is not None and may_grow):
        return True
    size = Size(wanted.cpus, wanted.gpus)
    return sum(node.capacity(size) for node in free(cluster.label_selector)) >= wanted.most * (under_way.starting + 1)


class Trainings:
    """The trainings of a session. Only `fit.train` runs in other threads, so nothing here needs a lock."""

    def __init__(
        self,
        trainings: Sequence[Training],
        cluster: Cluster,
        may_grow: bool,
        progress: Progress,
        log: Callable[[str, str], Path],
        others: bool,
    ) -> None:
        """`trainings` begin in their order. `others`: whether the session has models to go on with when one fails."""
        self._all, self._waiting = list(trainings), deque(trainings)
        self._under_way: list[Training] = []
        self._ended: SimpleQueue[Training] = SimpleQueue()
        self._cluster, self._may_grow, self._others = cluster, may_grow, others
        self._progress, self._log = progress, log
        self._beside_work: set[Training] = set()  # those beside which another has worked since they began
        self._failed: dict[str, TrainingFailed] = {}
        self._to_change: UserError | None = None  # ends the stage once no training runs
        self._most, self._told = most_at_once(cluster), False
        self._trained = 0
        self._checked_at = float("-inf")

    def run(self) -> dict[str, TrainingFailed]:
        """Train them all. Returns model id -> error for those that failed.

        Raises:
            UserError: if something must be changed first. Those that run have then ended; the others continue in the
                next session.
        """
        self._show_stage()
        while self._waiting or self._goes_on():
            with self._others_go_on():
                self._begin()
            self._check_logs()
            self._show()
            with suppress(Empty), self._others_go_on():
                self._end(self._ended.get(timeout=POLL_SECONDS))
        self._progress.end()
        ending.lose("")
        if self._to_change is not None:
            raise self._to_change
        return self._failed

    def _goes_on(self) -> bool:
        """Whether the end of one under way is worth waiting for."""
        if self._to_change is None:
            return bool(self._under_way)
        return any(training.has_begun for training in self._under_way)

    @contextmanager
    def _others_go_on(self) -> Iterator[None]:
        """Keep a `UserError` until the others have ended: what one training lacks must not cost hours of others."""
        try:
            yield
        except UserError as error:
            is_first, self._to_change = self._to_change is None, self._to_change or error
            self._waiting.clear()
            if not self._goes_on():
                raise self._to_change from None
            if is_first:
                self._progress.say(f"{error}; no other training begins, and those that run go on to their end")

    def _check_logs(self) -> None:
        for training in self._under_way:
            with self._others_go_on():
                training.check_log()
        for running in self._under_way:
            if running.has_begun:
                self._beside_work.update(other for other in self._under_way if other is not running)

    def _begin(self) -> None:
        """Begin those that wait, in their order, as long as the next one has room."""
        now = time.monotonic()
        if self._under_way and now - self._checked_at < ROOM_POLL_SECONDS:
            return
        self._checked_at = now
        while self._waiting and not self._are_enough() and self._fits(self._waiting[0]):
            training = self._waiting.popleft()
            self._beside_work.discard(training)
            training.begin(self._ended)
            self._under_way.append(training)

    def _are_enough(self) -> bool:
        """Whether the most that may run are under way; tells the user once if only memory is in the way."""
        if len(self._under_way) < self._most:
            return False
        if self._cluster.trainings is None and not self._told and self._fits(self._waiting[0]):
            self._told = True
            self._progress.say(
                f"training {counted(self._most, 'model')} at a time: for each, Ray Train's own processes take "
                f"{HELPERS_BYTES / 2**30:.1f} GiB of this machine; cluster.trainings allows more"
            )
        return True

    def _fits(self, training: Training) -> bool:
        starting = sum(not other.has_begun for other in self._under_way)
        under_way = UnderWay(len(self._under_way), starting)
        return another_fits(training.wanted(), under_way, self._cluster, self._may_grow)

    def _end(self, training: Training) -> None:
        self._under_way.remove(training)
        if training.found_no_room and self._to_change is not None:
            return  # it continues in the next session
        # What another had, it may get. If none has worked in all its attempts, none will ever give room.
        if training.found_no_room and training in self._beside_work:
            training.put_back()
            self._waiting.append(training)
            return
        try:
            training.end(self._log)
            self._trained += 1
            self._beside_work.update(self._under_way)  # also if it was too quick for its steps to be seen
        except TrainingFailed as error:
            self._failed[training.model.id] = error
            self._all.remove(training)
            self._show_stage()
            if self._others:
                self._progress.say(f"{error.briefly}; the others go on")

    def _show_stage(self) -> None:
        """Show a stage of all that have not failed."""
        self._progress.end()
        if self._all:
            name = name_of_trainings([training.model.called for training in self._all])
            self._progress.begin(name, sum(training.steps for training in self._all), "steps")

    def _show(self) -> None:
        ending.lose(listed([lost for training in self._under_way if (lost := training.at_stake)], 3, "training", "; "))
        running = {training.model.called: training.at for training in self._under_way if training.has_begun}
        progress = {called: at for called, at in running.items() if at is not None}
        if progress:
            done = sum(training.done for training in self._all)
            self._progress.started(done)
            workers = sum(at.workers for at in progress.values())
            note = note_of_trainings(progress, len(self._all), self._trained)
            self._progress.update(done, workers=workers, note=note)
