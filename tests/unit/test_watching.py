"""`status --watch`, and the view of a real session: the same state from the disk as from the session itself."""

import io
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from in_process import SMALL_UNET, drive, small_run
from rich.console import Console
from snapshots import recorded

from taugrid.jobs import running_folder
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.state import LiveState
from taugrid.orchestrator.progress.watch import Watching
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, LastSession
from taugrid.orchestrator.session import Session
from taugrid.registry.metrics import METRICS
from taugrid.storage import LocalStorage, write_sealed
from taugrid.workers.training.log import Log, Record

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small run that is done, opened, and the progress that watched it on a terminal."""
    folder = tmp_path_factory.mktemp("watched")
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=80), live=True)
    with small_run(folder) as opened, progress:
        rundir = RunDir(folder / "run", LocalStorage(folder / "run"))
        outcome = Session(replace(opened, rundir=rundir), "local", progress).do(("sample", "evaluate", "report"))
        yield opened, rundir, progress, outcome


@pytest.fixture
def events(done):
    """The path of the only session's events, whole again after the test."""
    path = done[1].root / "events" / "0001.jsonl"
    whole = path.read_text()
    yield path
    path.write_text(whole)


def watching(done, width=80):
    opened, rundir, *_ = done
    progress = Progress(Console(file=io.StringIO(), width=width, force_terminal=True), live=True)
    return Watching(Run(opened.config, opened.plan, rundir), progress), progress


def test_a_session_fills_in_the_table_as_it_goes(done):
    state, rows = done[2].state, done[3].rows
    assert {cell: found.value for cell, found in state.cells.items()} == {row["cell"]: row["fid"] for row in rows}
    assert {(cell.row, cell.column) for cell in state.cells.values()} == {("eta=0", "S=2"), ("eta=1", "S=2")}
    assert all(cell.done == cell.total == 40 for cell in state.cells.values())
    assert not state.todo.open_kinds
    assert state.ended


def test_the_directory_tells_the_same(done):
    watched, progress = watching(done)
    assert watched.poll() is False, "no driver is running there"
    mine, theirs = progress.state, done[2].state
    assert mine.cells == theirs.cells
    assert mine.todo.done == theirs.todo.done
    assert (mine.workers.joined, mine.workers.lost) == (theirs.workers.joined, theirs.workers.lost)


def test_what_comes_in_is_shown_and_counted_once(done, events):
    lines = events.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "shard") + 1
    events.write_text("".join(lines[:first]) + lines[first][:10])
    watched, progress = watching(done)
    watched.poll()
    assert sum(cell.done for cell in progress.state.cells.values()) == 80, "the disk has more than the events so far"
    events.write_text("".join(lines))
    watched.poll()
    assert not progress.state.todo.open_kinds
    assert all(cell.done >= cell.total for cell in progress.state.cells.values())


def test_a_driver_with_a_larger_grid_than_the_watcher_has_read_is_watched_all_the_same(done):
    watched, progress = watching(done)
    watched.poll()
    tail = LastSession(done[1])
    assert (tail.new() != [], tail.new()) == (True, [])
    later = Events(done[1])
    try:
        later.add("session", stages=["evaluate"])
        assert [event["event"] for event in tail.new()] == ["session"], "another session begins anew"
        later.add("worker", worker="w0", node="n", device="cpu", versions={}, threads=1)
        later.add("assigned", task="score/0123456789", worker="w0", device="cpu")
        later.add("score", task="score/0123456789", images=40, seconds=1.0, worker="w0", device="cpu", committed=True)
        watched.poll()
        assert progress.state.todo.done["score"].tasks == 1
    finally:
        later.path.unlink()


def test_only_the_score_of_the_recorded_evaluation_is_shown(done, tmp_path):
    """A run directory keeps the scores of earlier evaluations, and of other N."""
    opened, made, *_ = done
    cell, metric, rundir = opened.plan.cells[0], METRICS["fid"].columns[0], RunDir(tmp_path, LocalStorage(tmp_path))
    assert score_on_disk(rundir, cell, metric, rundir.recorded_scoring(opened.config)) is None
    rundir.plan.write_bytes(made.plan.read_bytes())
    scoring = rundir.recorded_scoring(opened.config)
    assert scoring.id(cell) == scoring_of(opened.config, opened.plan).id(cell)
    for name, value, is_shown in (("a", 1.0, False), (scoring.id(cell), 2.0, True), ("b", 3.0, True)):
        write_sealed(rundir.score(cell, name), {"metrics": {"fid": value}}, rundir.storage)
        assert score_on_disk(rundir, cell, metric, scoring) == (2.0 if is_shown else None)
    others = opened.config.model_copy(update={"evaluate": opened.config.evaluate.model_copy(update={"seed": 3})})
    assert rundir.recorded_scoring(others) is None


def test_the_command_ends_once_nobody_is_at_work_and_is_not_for_scripts(done):
    said = CliRunner().invoke(cli, ["status", str(done[1].root), "--watch"])
    assert said.exit_code == 0
    recorded(said.output, "running")
    assert "taugrid run" not in said.output, "there is nothing to continue"
    said = CliRunner().invoke(cli, ["status", str(done[1].root), "--watch", "--json"])
    assert said.exit_code == 2
    assert "--json" in said.output


def test_a_second_session_counts_what_is_there(tmp_path, monkeypatch):
    root, before = tmp_path / "run", {}
    show = LiveState.show_cells

    def spy(state, cells, metric):
        before.update({name: cell.done for name, cell in cells.items()})
        show(state, cells, metric)

    with small_run(tmp_path) as opened:
        drive(opened, root, LocalStorage(root))
        next((root / "samples").glob("*/part-000000.parquet")).unlink()
        monkeypatch.setattr(LiveState, "show_cells", spy)
        drive(opened, root, LocalStorage(root))
    assert sum(before.values()) == 60, "of 80 evaluations, 20 were gone"


TRAINED = f"""
name: two
data: {{name: gaussian, shape: [1, 8, 8]}}
model:
  unet: {SMALL_UNET}
train: {{steps: 100}}
grid: {{train.seed: [0, 1], steps: [1]}}
"""


def log(rundir, model, step):
    """Writes a step into the log of a training with two workers."""
    folder = running_folder(rundir.models, model.id)
    Log(folder, step - 1, tensorboard=False).write(Record(step, 1 / step, 1e-3, 1.0, 2, 0.1))


def test_trainings_side_by_side_are_one_bar(tmp_path):
    with small_run(tmp_path, TRAINED) as opened:
        rundir, (first, second) = RunDir(tmp_path), opened.plan.models
        session = Events(rundir)
        session.add("session", stages=["train"])
        watched, progress = watching((opened, rundir))
        session.add("train", model=first.id)
        session.add("train", model=second.id)
        log(rundir, first, 40)
        log(rundir, second, 20)
        watched.poll()
        said = "60 of 200 steps, 4 workers, 2 at a time, loss 0.0250 to 0.0500"
        assert progress.stage.snapshot().line == f"training 2 models: {said}"
        session.add("training failed", model=first.id, reason="nan", log="logs/x.txt", fails_again=True)
        watched.poll()
        only = progress.stage.snapshot().line
        recorded(only)
        assert only.endswith("loss 0.0500")
        assert progress.state.trainings == {second.id}
        session.add("trained", model=second.id, seconds=1.0)
        watched.poll()
        assert (progress.stage, progress.state.trainings) == (None, set())


def test_a_training_that_waits_is_not_at_work(tmp_path):
    with small_run(tmp_path, TRAINED) as opened:
        rundir, (first, second) = RunDir(tmp_path), opened.plan.models
        log(rundir, first, 40)
        log(rundir, second, 20)
        session = Events(rundir)
        session.add("session", stages=["train"])
        watched, progress = watching((opened, rundir))

        def shown():
            watched.poll()
            return progress.stage.snapshot().line

        session.add("train", model=first.id, step=40)
        session.add("train", model=second.id, step=20)
        recorded(shown())
        log(rundir, first, 41)
        recorded(shown())
        assert shown().endswith("loss 0.0244")
        log(rundir, second, 15)  # from its last checkpoint
        recorded(shown(), "workers")
        log(rundir, second, 20)
        recorded(shown(), "workers")
        session.add("training waits", model=second.id)
        recorded(shown())
        assert shown().endswith("loss 0.0244")
        assert progress.state.trainings == {first.id}
