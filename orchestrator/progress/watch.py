"""`status --watch`: how far a run is, by its files alone, wherever its driver is. A shard counts once it is done."""

import time
from contextlib import suppress

from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.display import Console
from taugrid.orchestrator.progress.state import KindProgress, SessionState
from taugrid.orchestrator.progress.summary import grid_cells, shown_metric
from taugrid.orchestrator.report.trainings import progress_of
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.work import kinds_by_name
from taugrid.words import counted

POLL_SECONDS = 2.0  # time between two polls of the directory


def watch(run: Run) -> str:
    """Show a run's progress on stdout until its driver ends, or Ctrl-C. Returns its progress in a line."""
    scores: dict[str, float] = {}
    has_driver = True
    with Progress(Console(highlight=False)) as progress, suppress(KeyboardInterrupt):
        try:
            while has_driver:
                has_driver = Lease(run.rundir).live_holder() is not None
                show_files(run, progress, scores)
                if has_driver:
                    time.sleep(POLL_SECONDS)
        finally:
            progress.keep_table()
    cells = len(run.plan.cells)
    status = f"{len(scores)} of {counted(cells, 'cell')} scored"
    if has_driver:
        return status
    continues = "" if len(scores) == cells else f"; `taugrid run {run.rundir.shown}` continues"
    return f"{status}; no driver is running here{continues}"


def show_files(run: Run, progress: Progress, scores: dict[str, float]) -> None:
    """Show how far trainings are or, once they have ended, the samples and scores that are there. `scores` has what was
    found before by cell; new ones are added."""
    rundir, cells, trained = run.rundir, run.plan.cells, run.plan.trained_here
    listing, scoring = Listing(rundir), rundir.recorded_scoring(run.config)
    metric, kinds = shown_metric(run.config.evaluate.metrics), kinds_by_name()
    left = dict[str, float]()
    for cell in cells:
        is_removed = listing.has_removed_images(cell)
        done = cell.shards if is_removed else cell.shards_in(listing.samples(cell.name))
        left[cell.id] = cell.total_nfe - sum(shard.total_nfe for shard in done)
        if cell.id not in scores and (score := score_on_disk(rundir, cell, metric, scoring)) is not None:
            scores[cell.id] = score
    table = grid_cells(cells, run.config.report.columns, left, lambda cell: scores.get(cell.id))
    sampled, shards = sum(cell.done for cell in table.values()), sum(evaluations > 0 for evaluations in left.values())
    evaluations, unscored = sum(cell.total for cell in table.values()), len(cells) - len(scores)
    work = {
        "sample": KindProgress(kinds["sample"], evaluations, sampled, shards, has_begun=True),
        "score": KindProgress(kinds["score"], len(cells), len(scores), unscored, has_begun=bool(scores)),
    }
    progress.show(SessionState(work, table, metric.title))
    untrained = {model.id for model, _ in trained if not rundir.is_ready(model)}
    if not untrained or untrained <= RunHistory.read(rundir).failures.keys():
        progress.end()
        return
    if progress.stage is None:
        models = counted(len(trained), "model") if len(trained) > 1 else trained[0][0].called
        progress.begin(f"training {models}", sum(source.train.steps for _, source in trained), "steps", waits=True)
    logs = (progress_of(model, rundir, run.config.cluster.scratch) for model, _ in trained)
    progress.update(sum(at.step for at in logs if at is not None))
