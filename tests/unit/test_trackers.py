"""Trackers: what each holds after sessions, read back with the real libraries, and that none can harm a run."""

import fcntl
import io
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from signal import SIGALRM
from types import SimpleNamespace

import pytest
from in_process import small_run
from rich.console import Console
from snapshots import raises, recorded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.trackers import __main__ as main
from taugrid.orchestrator.trackers import background
from taugrid.orchestrator.trackers.__main__ import CLASSES, follow
from taugrid.orchestrator.trackers.results import RunResults
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import open_place, replacing
from taugrid.workers.training.log import Log, Record

pytestmark = pytest.mark.usefixtures("one_thread", "few_draws", "sketched")

STAGES = ("sample", "evaluate", "report")
TEXT = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 4, 4]}
sample: {seed: 0, num_samples: 400, batch_size: 400}
grid: {steps: [2, 3], eta: [0.0, 1.0]}
evaluate: {metrics: [fid, kid]}
"""


def work(folder, root, text=TEXT, stages=STAGES):
    """Do what is missing in `root`; returns the outcome and what was printed."""
    printed = io.StringIO()
    with small_run(folder, text) as opened:
        run = Run(opened.config, opened.configured, RunDir(*open_place(str(root), "--out")))
        outcome = Session(run, "local", Progress(Console(file=printed, soft_wrap=True))).do(stages)
    return outcome, printed.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sketched):
    """A run of four cells, made without trackers. Tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    work(folder, folder / "run")
    for path in (folder / "run/figures").glob("*.png"):
        if not path.read_bytes().startswith(b"\x89PNG"):
            path.unlink()  # it is only sketched
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that run in a working directory of its own, without anybody's login."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name in ("TENSORBOARD_LOGDIR", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trained(tmp_path):
    """A run directory with the log of a training that is not over, and nothing else."""
    unet = "{block_out_channels: [8], down_block_types: [DownBlock2D], up_block_types: [UpBlock2D], norm_num_groups: 4}"
    text = f"name: t\nmodel: {{unet: {unet}}}\ngrid: {{steps: [10]}}\n"
    with small_run(tmp_path, text) as opened:
        rundir = RunDir(tmp_path / "run")
        Session(Run(opened.config, opened.plan, rundir), "local", Progress.silent()).do(["report"])
    folder = rundir.models / opened.plan.models[0].id / "train"

    def logged(*steps):
        for step in steps:
            Log(folder, step - 1, tensorboard=False).write(Record(step, 1 / step, 1e-3, 1.0, 1, 0.1))
        return tmp_path / "run"

    return logged


def the_end():
    return "report complete"


def a_kill():
    return ""


def tracked(name, directory):
    said = []
    follow(name, str(directory), the_end, said.append)
    assert "warning" not in "".join(said)
    return said


@contextmanager
def one_scored(directory, cell):
    """Within the block, the run is at work: there is no table, and no other cell has a score."""
    away = directory.with_name("away")
    away.mkdir()
    scores = [path for path in directory.glob("scores/*") if not path.name.startswith(cell)]
    hidden = {path: away / path.name for path in (*scores, directory / "tables/quality.json")}
    for path, place in hidden.items():
        path.rename(place)
    yield
    for path, place in hidden.items():
        place.rename(path)


def rows_of(directory):
    return {row["cell"]: row for row in json.loads((directory / "tables/quality.json").read_text())["rows"]}


# Config


@pytest.mark.long
def test_what_is_tracked_is_in_no_id_and_may_change_between_sessions(run, tmp_path, monkeypatch):
    monkeypatch.setattr(background.Trackers, "session_started", lambda *_: None)
    plan, config = (run / "plan.json").read_bytes(), json.loads((run / "config.json").read_text())
    assert "track" not in config, "what is not set is not recorded"
    outcome, printed = work(tmp_path, run, f"{TEXT}\ntrack: [tensorboard]\n")
    assert (outcome.missing, "to do" in printed) == ({}, False)
    assert (run / "plan.json").read_bytes() == plan
    assert json.loads((run / "config.json").read_text()) == config | {"track": ["tensorboard"]}
    assert open_existing(str(run)).config.track == ["tensorboard"], "it is opened as recorded"
    assert load(str(run), ("track=[]",)).track == []


def test_a_package_that_is_missing_is_a_user_error_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb").mkdir()  # W&B's own folder is no package
    kept = [path for path in sys.path if not (Path(path) / "wandb" / "__init__.py").exists()]
    monkeypatch.setattr(sys, "path", kept)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with raises(UserError):
        work(tmp_path, tmp_path / "run", f"{TEXT}\ntrack: [wandb]\n")
    assert not (tmp_path / "run").exists()


# TensorBoard


def events(folder):
    return EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(folder):
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_a_curve_over_s_for_each_row_with_its_errors_and_pictures(run):
    said = tracked("tensorboard", run)
    recorded("\n".join(said))
    rows = rows_of(run).values()
    for eta in (0.0, 1.0):
        ours = sorted((row for row in rows if row["eta"] == eta), key=lambda row: row["steps"])
        found = scalars(run / f"tensorboard/eta={eta:g}")
        for name in ("fid", "fid_se", "kid", "kid_se", "kid_reference_se"):
            assert found[name] == [(row["steps"], pytest.approx(row[name], rel=1e-6)) for row in ours], name
        assert found["fid_exact"] == [(row["steps"], pytest.approx(row["fid_exact"], rel=1e-6)) for row in ours]
    (first, _) = events(run / "tensorboard/eta=0").Tensors("settings and protocol")
    text = first.tensor_proto.string_val[0].decode()
    assert "| steps | `2` |" in text
    recorded(text, "pixels")
    pictures = events(run / "tensorboard/figures")
    assert "samples" in pictures.Tags()["images"]
    assert pictures.Images("samples")[0].encoded_image_string == (run / "figures/samples.png").read_bytes()


def test_tensorboard_has_no_step_twice_whatever_was_tracked_before(run):
    follow("tensorboard", str(run), a_kill, lambda text: None)
    every = scalars(run / "tensorboard/eta=0"), scalars(run / "tensorboard/eta=1")
    assert [[step for step, _ in each["fid"]] for each in every] == [[2, 3], [2, 3]], "what is scored is there at once"
    document = json.loads((run / "tables/quality.json").read_text())
    changed = next(row for row in document["rows"] if row["eta"] == 0.0)
    changed["fid"] += 1.0  # it was scored again
    (run / "tables/quality.json").write_text(json.dumps(document))
    tracked("tensorboard", run)
    found = scalars(run / "tensorboard/eta=0")["fid"]
    assert dict(found)[changed["steps"]] == pytest.approx(changed["fid"], rel=1e-6)
    assert [step for step, _ in found] == [2, 3], "each once"
    assert scalars(run / "tensorboard/eta=1") == every[1]
    assert all(len(list(folder.iterdir())) == 1 for folder in (run / "tensorboard").iterdir())


def test_tensorboard_removes_the_old_file_after_the_new_one_is_there(run, monkeypatch):
    tracked("tensorboard", run)
    before = scalars(run / "tensorboard/eta=0")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: 1 / 0)  # as if it was killed
        follow("tensorboard", str(run), the_end, lambda text: None)
    assert max(len(list(folder.iterdir())) for folder in (run / "tensorboard").iterdir()) == 2
    assert scalars(run / "tensorboard/eta=0") == before, "no step is read twice"


# MLflow


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An sqlite database with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        client = MlflowClient(f"sqlite:///{path}")
        client.create_experiment("taugrid", str(path.parent))  # else artifacts are in the working directory
        yield client


def runs_of(client, directory):
    """The tracked run of a directory and its nested runs by cell; there must be one."""
    identity = json.loads((directory / "run.json").read_text())["run"]
    experiment = client.get_experiment_by_name("taugrid").experiment_id
    every = client.search_runs([experiment])
    (parent,) = [run for run in every if run.data.tags.get("taugrid.run") == identity]
    nested = [run for run in every if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    by_cell = {run.data.tags["taugrid.cell"]: run for run in nested}
    assert len(by_cell) == len(nested), "a cell has one run"
    return parent, by_cell


def artifacts(client, run_id, path=None):
    for file in client.list_artifacts(run_id, path):
        if file.is_dir:
            yield from artifacts(client, run_id, file.path)
        else:
            yield file.path


@pytest.mark.long
def test_mlflow_has_a_run_with_one_for_each_cell_and_sessions_continue_it(run, database, monkeypatch):
    cell, rows = next(iter(rows_of(run))), rows_of(run)
    failed = []
    with one_scored(run, cell):
        follow("mlflow", str(run), a_kill, failed.append)
    parent, cells = runs_of(database, run)
    assert (parent.info.status, list(cells)) == ("FAILED", [cell])
    recorded(failed[0], "mlflow")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_batch", lambda *_: 1 / 0)  # a kill after a cell's run was begun
        follow("mlflow", str(run), the_end, failed.append)
    assert len(runs_of(database, run)[1]) == 2
    tracked("mlflow", run)
    first, first_cells = runs_of(database, run)
    assert first.info.run_id == parent.info.run_id
    assert first.info.status == "FINISHED"
    assert first_cells.keys() == rows.keys()
    for cell, row in rows.items():
        data = first_cells[cell].data
        for name in ("fid", "fid_se", "kid", "kid_se", "kid_std", "kid_reference_se", "fid_exact"):
            assert data.metrics[name] == row[name], name
        shown = {key: data.params[key] for key in ("steps", "eta", "num_samples", "network_evaluations", "sampler")}
        assert shown == {key: str(row[key]) for key in shown}
        assert data.tags["protocol.extractor.name"] == "pixels"
    assert first.data.tags["protocol.num_samples"] == "400"
    assert "protocol.tau" not in first.data.tags, "cells differ in it"
    assert {"tables/quality.csv", "figures/samples.png", "report.html"} <= set(artifacts(database, first.info.run_id))
    tracked("mlflow", run)
    second, second_cells = runs_of(database, run)
    assert second.data.to_dictionary() == first.data.to_dictionary()
    assert second_cells.keys() == first_cells.keys()
    for cell, nested in second_cells.items():
        assert nested.info.end_time == first_cells[cell].info.end_time, "it was not touched"
        assert len(database.get_metric_history(nested.info.run_id, "fid")) == 1
    follow("mlflow", str(run), lambda: "report", failed.append)
    assert runs_of(database, run)[0].info.status == "FAILED", "cells are missing"


# Weights & Biases


@pytest.fixture
def offline(monkeypatch):
    """Says that W&B is offline, and reads its runs in the working directory, in their order."""
    import wandb
    from wandb_files import Offline

    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield lambda: [Offline(path) for path in sorted(Path("wandb").glob("offline-run-*/*.wandb"))]
    wandb.teardown()


@pytest.mark.long
def test_wandb_has_one_run_and_each_cell_once(run, offline):
    rows, identity = rows_of(run), json.loads((run / "run.json").read_text())["run"]
    cell = next(iter(rows))
    with one_scored(run, cell):
        follow("wandb", str(run), a_kill, lambda text: None)
    said = tracked("wandb", run)
    recorded(said[0], "project")
    tracked("wandb", run)
    begun, finished = offline()
    assert {begun.run.run_id, finished.run.run_id} == {identity}
    assert (begun.exit, finished.exit) == ([1], [0])
    assert begun.run.resumed is False
    points = [point for point in (*begun.history, *finished.history) if "steps" in point]
    assert len(points) == len(rows), "each cell once"
    for row in rows.values():
        key = f"eta_{row['eta']:g}"
        (point,) = [p for p in points if p["steps"] == row["steps"] and f"fid/{key}" in p]
        for name in ("fid", "fid_se", "kid", "kid_se", "kid_reference_se"):
            assert point[f"{name}/{key}"] == row[name], name
        assert point["network_evaluations"] == row["network_evaluations"]
        assert finished.axes[f"fid_se/{key}"] == "steps"
    assert finished.config["data"]["name"] == "gaussian"
    assert finished.config["protocol"]["extractor.name"] == "pixels"
    logged = {key for point in finished.history for key in point}
    assert {"quality.nrows", "figures/samples.path"} <= logged
    tables = next(artifact for artifact in finished.artifacts if artifact.type == "tables")
    assert "tables/quality.csv" in {entry.path for entry in tables.manifest.contents}


def test_wandb_without_a_login_asks_nothing_and_says_so(run, monkeypatch):
    import wandb

    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    said = []
    follow("wandb", str(run), the_end, said.append)
    (line,) = said
    recorded(line, "warning")
    assert "login" in line.lower()


def test_what_wandb_was_not_seen_to_take_is_not_recorded(run, offline, monkeypatch):
    import wandb

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "finish", lambda *_, **__: 1 / 0)  # as if it was killed while it waits for a server
        follow("wandb", str(run), the_end, lambda text: None)
        assert not (run / "tracked/wandb.json").exists()
    wandb.teardown()
    tracked("wandb", run)
    record = json.loads((run / "tracked/wandb.json").read_text())
    assert record["sent"]["cells"].keys() == rows_of(run).keys()


# Scores, live and from the table


def test_a_live_score_is_the_same_as_that_of_the_table(run):
    results = RunResults(str(run))
    live, table = ({cell.id: cell for cell in cells} for cells in (results.all_scored(), results.cells()))
    assert len(live) == 4
    for cell in live.values():
        assert cell.metrics == table[cell.id].metrics
        assert cell.digest == table[cell.id].digest
        assert cell.metrics["fid_exact"] > 0
        changed = replace(cell, metrics={**cell.metrics, "fid_exact": 0.0})
        assert changed.digest == cell.digest, "another machine may compute another last digit"


def test_each_score_is_new_once_and_those_of_the_table_are_not(run):
    cell, *others = rows_of(run)
    assert RunResults(str(run)).newly_scored() == []
    with one_scored(run, cell):
        results = RunResults(str(run))
        assert [each.id for each in results.newly_scored()] == [cell]
        assert results.newly_scored() == []
    assert {each.id for each in results.newly_scored()} == {*others}


# Losses


def test_losses_continue_where_they_were_in_every_tracker(trained, database, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for steps in ((1, 2), (3,), ()):
        for name in CLASSES:
            tracked(name, trained(*steps))
    (folder,) = (tmp_path / "run/tensorboard").glob("train-*")
    model = json.loads((tmp_path / "run/plan.json").read_text())["models"][0]["id"]
    expected = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3, rel=1e-6))]
    assert scalars(folder)["loss"] == expected
    parent, _ = runs_of(database, tmp_path / "run")
    history = database.get_metric_history(parent.info.run_id, f"train/{model}/loss")
    assert [(metric.step, metric.value) for metric in history] == expected
    points = [point for each in offline() for point in each.history if "train_step" in point]
    assert [(point["train_step"], point[f"train_{model}/loss"]) for point in points] == expected
    assert len(offline()) == 2, "a session with nothing new opens no run"


# Nothing harms a run


@pytest.mark.parametrize("method", ["__init__", "start", "cell", "shared", "close"])
def test_a_tracker_that_raises_anywhere_is_dropped_with_a_line(run, monkeypatch, method):
    calls = []

    class Faulty:
        def __init__(self, results):
            self.called("__init__")

        def __getattr__(self, name):
            return lambda *_: self.called(name)

        def called(self, name):
            calls.append(name)
            if name == method:
                raise OSError("no server\nat port 1")
            return "here"

    monkeypatch.setitem(sys.modules, "taugrid.orchestrator.trackers.wandb", SimpleNamespace(WandbTracker=Faulty))
    said = []
    follow("wandb", str(run), the_end, said.append)
    recorded(said[-1])
    assert calls[-1] == method, "it is not called again"


@pytest.fixture
def patient(monkeypatch):
    """Waits as long as a busy machine takes to start another process."""
    monkeypatch.setattr(background, "WAIT_SECONDS", 200.0)
    monkeypatch.setattr(background, "QUIET_SECONDS", 200.0)


@pytest.mark.long
def test_a_session_is_tracked_by_another_process_and_gives_the_same_files(finished, tmp_path, monkeypatch, patient):
    monkeypatch.chdir(tmp_path)
    outcome, printed = work(tmp_path, tmp_path / "run", f"{TEXT}\ntrack: [tensorboard]\n")
    assert outcome.missing == {}
    lines = [line for line in printed.splitlines() if "track" in line]
    recorded("\n".join(lines))
    assert dict(scalars(tmp_path / "run/tensorboard/eta=0")["fid_se"]).keys() == {2, 3}
    for name in ("tables/quality.csv", "tables/cells.csv", "plan.json"):
        ours, theirs = ((root / name).read_text().splitlines() for root in (tmp_path / "run", finished))
        if name == "tables/quality.csv":  # the seconds differ
            ours, theirs = ([line.split(",")[:12] for line in lines] for lines in (ours, theirs))
        assert ours == theirs, name
    opened = open_existing(str(tmp_path / "run"))
    assert verify(opened, lambda n: None) == ([], [])


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    every = []

    def start(script, *names):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(background, "sys", SimpleNamespace(executable=str(program)))
        every.append(background.Trackers(names, (said := []).append))
        every[0].session_started(None, "runs/x", ["report", "sample"])
        return every[0], said

    yield start
    for process in every[0].processes.values():
        process.kill()


def test_a_tracker_that_is_slow_delays_nothing_but_the_end_and_finishes(tracking, monkeypatch, tmp_path):
    """Once it was killed: what it had sent was not recorded, and the next session sent it again."""
    monkeypatch.setattr(background, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(background, "WAIT_SECONDS", 0.5)
    script = f"cat > {tmp_path}/heard; while [ ! -e {tmp_path}/sent ]; do sleep 0.1; done"
    trackers, said = tracking(script, "wandb", "mlflow")
    trackers.happened(None, {})
    trackers.session_finished([], {})
    recorded("\n".join(said))
    (tmp_path / "sent").touch()
    assert [process.wait(60) for process in trackers.processes.values()] == [0, 0]


def test_a_session_that_fails_waits_for_no_tracker(tracking):
    trackers, said = tracking("exec sleep 120", "wandb")
    trackers.session_failed(KeyboardInterrupt())
    assert said == []
    assert all(process.stdin.closed for process in trackers.processes.values()), "they hear that nothing follows"


@pytest.mark.parametrize(("missing", "words"), [({}, ["report", "complete"]), ({"S2": "why"}, ["report"])])
def test_a_process_hears_of_what_is_missing(tmp_path, tracking, patient, missing, words):
    trackers, said = tracking(f"exec cat > {tmp_path}/heard", "wandb")
    trackers.session_finished([], missing)
    assert (said, (tmp_path / "heard").read_text().split()) == ([], words)


def test_a_process_that_ends_by_itself_is_said(tracking, patient):
    trackers, said = tracking("echo Traceback >&2; echo no module >&2; exit 3", "wandb")
    trackers.session_finished([], {})
    recorded("\n".join(said))


HANGS = """
import time
from taugrid.orchestrator.trackers import __main__ as main

main.LONGEST_SECONDS = 1
main.follow = lambda *_: time.sleep(600)
main.main()
"""
"""A tracker whose library waits for a server for ever, and hears of nothing else."""


def test_a_process_ends_by_itself_once_its_driver_is_gone():
    """The next session's process would wait for it."""
    process = subprocess.Popen([sys.executable, "-c", HANGS, "wandb", "runs/x"], stdin=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.stdin.close()
    assert process.wait(60) == -SIGALRM


def test_a_tracker_waits_for_the_process_of_the_session_before(run):
    results, said = RunResults(str(run)), []
    lock = main.user_cache() / "trackers" / f"{results.id}-tensorboard"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as before:
        fcntl.flock(before, fcntl.LOCK_EX)
        thread = threading.Thread(target=follow, args=("tensorboard", str(run), the_end, said.append))
        thread.start()
        thread.join(0.5)
        assert said == []
        assert not (run / "tensorboard").exists()
    thread.join()
    recorded("\n".join(said))


# A bucket


def test_a_run_in_a_bucket_is_tracked_beside_it(finished, bucket, tmp_path, offline, monkeypatch, user_cache):
    root, storage = bucket
    url = RunDir(root, storage).shown
    monkeypatch.chdir(tmp_path)
    for path in finished.rglob("*"):
        if path.is_file():
            with replacing(root / path.relative_to(finished), storage) as temporary:
                temporary.write_bytes(path.read_bytes())
    said = tracked("tensorboard", url)
    assert said == [f"track: tensorboard: {next((user_cache / 'tensorboard').iterdir())}"]
    assert scalars(next((user_cache / "tensorboard").iterdir()) / "eta=0")["fid"][0][0] == 2
    tracked("wandb", url)
    tracked("wandb", url)
    assert len(offline()) == 1
    assert storage.exists(root / "tracked/wandb.json")
    row = json.loads(storage.read(root / "tables/quality.json"))["rows"][0]
    assert offline()[0].history[0]["fid/eta_0"] == row["fid"]
