"""`status --watch`: the live view of a run from its directory alone, wherever its driver is.

It reads the events file. Heartbeats are not recorded, so a shard counts once it is done.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from taugrid.orchestrator.plan.cells import Cell, Model
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.console import Console
from taugrid.orchestrator.progress.state import LiveState, name_of_trainings, note_of_trainings
from taugrid.orchestrator.progress.summary import grid_cells, shown_metric
from taugrid.orchestrator.report.trainings import progress_of
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.rundir.events import LastSession
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import kinds_by_name
from taugrid.orchestrator.work.kind import shard_key
from taugrid.words import counted
from taugrid.workers.training.log import TrainingProgress

POLL_SECONDS = 2.0
"""Time between two polls of the directory."""


def watch(run: Run) -> str:
    """Show a run's progress on stdout until its driver ends, or Ctrl-C. Returns its progress in a line."""
    with Progress(Console(highlight=False)) as progress, suppress(KeyboardInterrupt):
        watched = Watching(run, progress)
        try:
            while watched.poll():
                time.sleep(POLL_SECONDS)
        finally:
            progress.keep_table()
    scored, cells = sum(watched.score(cell) is not None for cell in run.plan.cells), len(run.plan.cells)
    status = f"{scored} of {counted(cells, 'cell')} scored"
    if watched.has_driver:
        return status
    continues = "" if scored == cells else f"; `taugrid run {run.rundir.shown}` continues"
    return f"{status}; no driver is running here{continues}"


class Watching:
    def __init__(self, run: Run, progress: Progress) -> None:
        self._config, self._plan, self._rundir, self._progress = run.config, run.plan, run.rundir, progress
        self._events = LastSession(run.rundir)
        self._session: int | None = None
        self._trainings: list[Model] = []
        self._waits_at: dict[str, int] = {}
        """Model id -> the step in its log when it began, until the log has a later one."""
        self._metric = shown_metric(run.config.evaluate.metrics)
        self._scoring = run.rundir.recorded_scoring(run.config)
        self._by_id = {cell.id: cell for cell in run.plan.cells}
        self.has_driver = False

    def poll(self) -> bool:
        """Show new events. Returns whether a driver is running."""
        self.has_driver = Lease(self._rundir).live_holder() is not None
        events = self._events.new()
        if self._events.number != self._session:
            self._session, self._trainings, self._waits_at = self._events.number, [], {}
            self._scoring = self._rundir.recorded_scoring(self._config)  # the session may be the first that scores
            self._progress.follow(self._state(events), self._score)
        for event in events:
            self._progress.happened(datetime.fromisoformat(event["time"]), event)
            if event["event"] in ("train", "training waits", "trained", "training failed", "to do"):
                self._follow_trainings(event)
        self._show_trainings()
        return self.has_driver

    def score(self, cell: Cell) -> float | None:
        """A cell's score by the config's scoring, as tables show it; None if it has none."""
        return score_on_disk(self._rundir, cell, self._metric, self._scoring)

    def _score(self, cell: str) -> float | None:
        """A cell's score, by its id. A driver may have started with a larger grid than the one that was read."""
        return self.score(self._by_id[cell]) if cell in self._by_id else None

    def _state(self, events: Iterable[Mapping[str, Any]]) -> LiveState:
        """The state before the last session; its `events` are added later."""
        state = LiveState(kinds_by_name())
        made_since = {(event["cell"], event["path"]) for event in events if event["event"] == "shard"}
        left, listing = {}, Listing(self._rundir)
        for cell in self._plan.cells:
            done = self._rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None, listing=listing)
            before = [s for s in cell.shards if s.number in done and (cell.id, s.name) not in made_since]
            left[cell.id] = float(cell.total_nfe - sum(s.total_nfe for s in before))
        state.expect({task.key: task for task in self._tasks()})
        cells = grid_cells(self._plan.cells, self._config.report.columns, left, self.score)
        state.show_cells(cells, self._metric.title)
        return state

    def _tasks(self) -> Iterator[Task]:
        for cell in self._plan.cells:
            for shard in cell.shards:
                yield Task(shard_key("sample", shard), "sample", shard.total_nfe, cell=cell)
                yield Task(shard_key("extract", shard), "extract", shard.images, cell=cell)
            yield Task(f"score/{cell.id}", "score", cell.settings.num_samples, cell=cell)

    def _follow_trainings(self, event: Mapping[str, Any]) -> None:
        """Show the running trainings as one stage, which starts over when one begins or ends."""
        self._progress.end()
        others = [model for model in self._trainings if model.id != event.get("model")]
        begun = [model for model in self._plan.models if event["event"] == "train" and model.id == event["model"]]
        self._trainings = [] if event["event"] == "to do" else others + begun
        self._waits_at.pop(event.get("model", ""), None)
        if "step" in event:
            self._waits_at[event["model"]] = event["step"]
        steps = [model.source.train.steps for model in self._trainings if isinstance(model.source, Trained)]
        if steps:
            called = [model.called for model in self._trainings]
            self._progress.begin(name_of_trainings(called), sum(steps), "steps", waits=True)

    def _show_trainings(self) -> None:
        scratch = self._config.cluster.scratch
        done, running = 0, dict[str, TrainingProgress]()
        for model in self._trainings:
            if (at := progress_of(model, self._rundir, scratch)) is not None:
                waits = at.step == self._waits_at.get(model.id)
                done += at.checkpoint if waits else at.step
                if not waits:
                    self._waits_at.pop(model.id, None)
                    running[model.called] = at
        if running:
            workers = sum(at.workers for at in running.values())
            self._progress.update(done, workers, note_of_trainings(running, len(self._trainings), 0))
