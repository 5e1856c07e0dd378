"""`status --watch`, and the view of a real session: the same table from the disk as from the session itself."""

import io
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
from taugrid.orchestrator.progress.watch import show_files
from taugrid.orchestrator.run import Run, score_on_disk
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
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


def watching(done):
    """A look at the files of a run, and the progress that shows them."""
    opened, rundir, *_ = done
    run, progress, scores = Run(opened.config, opened.plan, rundir), Progress(Console(file=io.StringIO())), {}
    return lambda: show_files(run, progress, scores), progress


def in_table(progress):
    return {name: (cell.done, cell.total, cell.value) for name, cell in progress.state.cells.items()}


def test_a_session_fills_in_the_table_as_it_goes(done):
    state, rows = done[2].state, done[3].rows
    assert {cell: found.value for cell, found in state.cells.items()} == {row["cell"]: row["fid"] for row in rows}
    assert {(cell.row, cell.column) for cell in state.cells.values()} == {("eta=0", "S=2"), ("eta=1", "S=2")}
    assert all(cell.done == cell.total == 40 for cell in state.cells.values())
    assert [work.open for work in state.work.values()] == [0] * len(state.work)
    assert (state.work["sample"].done, state.work["score"].done) == (80, 2)
    assert state.tasks == {}


def test_the_directory_tells_the_same(done):
    look, progress = watching(done)
    look()
    assert in_table(progress) == in_table(done[2])
    assert progress.state.main is None


def test_what_comes_in_is_shown(done):
    look, progress = watching(done)
    part = next(done[1].samples.glob("*/part-000000.parquet"))
    away = part.rename(part.with_suffix(".away"))
    try:
        look()
        assert sum(cell.done for cell in progress.state.cells.values()) == 60
        assert (progress.state.main, progress.state.work["sample"].open) == ("sample", 1)
    finally:
        away.rename(part)
    look()
    assert sum(cell.done for cell in progress.state.cells.values()) == 80


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
    show = Progress.show

    def spy(progress, state):
        before.update({name: cell.done for name, cell in state.cells.items()})
        show(progress, state)

    with small_run(tmp_path) as opened:
        drive(opened, root, LocalStorage(root))
        next((root / "samples").glob("*/part-000000.parquet")).unlink()
        monkeypatch.setattr(Progress, "show", spy)
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


def test_trainings_are_one_bar_until_all_have_ended(tmp_path):
    with small_run(tmp_path, TRAINED) as opened:
        rundir, (first, second) = RunDir(tmp_path), opened.plan.models
        session = Events(rundir)
        session.add("session", stages=["train"])
        look, progress = watching((opened, rundir))
        session.add("train", model=first.id)
        session.add("train", model=second.id)
        log(rundir, first, 40)
        log(rundir, second, 20)
        look()
        assert progress.line == "training 2 models: 60 of 200 steps"
        failed = {"reason": "nan", "log": "logs/x.txt", "fails_again": True}
        session.add("training failed", model=first.id, **failed)
        log(rundir, second, 30)
        look()
        assert "70 of 200 steps" in progress.line
        session.add("training failed", model=second.id, **failed)
        look()
        assert progress.stage is None
        assert progress.state.main == "sample"
