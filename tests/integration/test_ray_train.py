import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from command import LOOPBACK, Started, interrupt, listening, write_config
from ray.cluster_utils import Cluster
from shared import taugrid, train_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrid import config
from taugrid.config.load import load
from taugrid.jobs import TrainingSpec
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.data import load as data
from taugrid.workers.data.load import load_labels
from taugrid.workers.training import checkpoints
from taugrid.workers.training import fit as training
from tools.machine import command_line, descendants

pytestmark = pytest.mark.usefixtures("ray_session", "sketched")

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS, EVERY = 80, 20
"""In all, and between two checkpoints."""
SETTINGS = {"steps": STEPS, "batch_size": 15, "warmup_steps": 10, "checkpoint_every": EVERY, "workers": 1}
CLASSES = ["model.unet.num_classes=10", "train.label_dropout=0.2", "sample.labels=balanced"]
(DIGITS,) = plan(load("digits", [*CLASSES, *(f"train.{key}={value}" for key, value in SETTINGS.items())])).models
"""The model of configs/digits.yaml with labels, few steps, and batches that are no even number."""

SPEC = TrainingSpec(
    data=DIGITS.data,
    data_sha256=data.content_fingerprint(DIGITS.data),
    unet=DIGITS.source.unet,
    diffusion=DIGITS.diffusion,
    train=DIGITS.source.train,
    model_id=DIGITS.id,
    models_dir="",
    cpus_per_worker=1,
    gpus_per_worker=0,
    labels_sha256=load_labels(DIGITS.data).sha256,
)


def a_spec(folder, **train):
    settings = SPEC.train.model_copy(update=train)
    return dataclasses.replace(SPEC, models_dir=str(folder), train=settings)


def sections(**train):
    """`SPEC` as sections of a config."""
    settings = SPEC.train.model_copy(update=train).model_dump(mode="json", exclude_unset=True)
    data, model = SPEC.data.model_dump(mode="json"), {"unet": SPEC.unet.model_dump()}
    return {"data": data, "model": model, "train": settings, "sample": {"labels": "balanced"}}


def in_a_thread(spec):
    """As the driver calls it: Ray Train would keep the main thread's SIGINT handler."""
    return ThreadPoolExecutor(1).submit(training.train, spec)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_of(folder):
    return records(folder / SPEC.model_id / "train" / "log.jsonl")


def steps_of(path):
    """The last step of a log that is being written; 0 before the first."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def losses_of(folder):
    return [record["loss"] for record in log_of(folder)]


def files_of_weights(model):
    return [(model / name / WEIGHTS).read_bytes() for name in ("unet", "unet_raw")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What one worker learns, by its loop alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_here(a_spec(folder))
    return folder


BY_TWO = """
import os, pickle, sys
from torch import distributed
from taugrid.workers.training import checkpoints, loop, meeting
from taugrid.workers.training.loop import Batches
from taugrid.workers.training.log import Log

spec = pickle.load(sys.stdin.buffer)
spec.running.mkdir(parents=True)
meeting.stay_on_loopback()
child = os.fork()
rank = int(child == 0)
device = loop.device_of(spec)
meeting.connect(meeting.store_in(spec.running / "meeting", 2), rank, 2, device)
state = checkpoints.new_state(spec, device)
log = Log(spec.running, 0, tensorboard=False) if rank == 0 else None
loop.train(spec, state, Batches(spec, rank, 2, device), log, rank, 2)
distributed.destroy_process_group()
if rank == 0:
    checkpoints.commit(spec, state)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


@pytest.fixture(scope="module")
def uninterrupted_of_two(tmp_path_factory):
    """What two workers learn, by their loops alone, in two processes: Ray Train must not change a byte of it."""
    folder = tmp_path_factory.mktemp("uninterrupted-of-two")
    spec = pickle.dumps(a_spec(folder, workers=2, checkpoint_every=STEPS))  # Ray Train would take the checkpoints
    done = subprocess.run([sys.executable, "-c", BY_TWO], input=spec, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.mark.long
def test_two_workers_learn_what_one_learns(uninterrupted, uninterrupted_of_two):
    # Of configs/digits.yaml. 15 images in a batch are 7 and 8: unweighted means of the two would be off by percents.
    one, two = losses_of(uninterrupted), losses_of(uninterrupted_of_two)
    assert two == pytest.approx(one, rel=1e-4)
    assert {record["workers"] for record in log_of(uninterrupted_of_two)} == {2}


@pytest.fixture(scope="module")
def killed(ray_session, tmp_path_factory):
    """A run whose two models were trained side by side, by two workers each, with half a CPU for each worker.

    One model diverges. Of the other one's workers, the one that does not write the log is killed; `at_the_kill` is a
    folder with a copy of the training's own from then. On the way: all listen on loopback alone, where torch's TCP
    store, Ray Train's default, would not.
    """
    folder = tmp_path_factory.mktemp("killed")
    root = folder / "run"
    spec = a_spec(root / "models")
    spec.running.mkdir(parents=True)
    claim(root, LOCAL)
    (spec.running / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')  # a kill left these two
    (root / "models" / f".{SPEC.model_id}.77.tmp").mkdir()
    changes = {
        "sample": {"num_samples": 20, "batch_size": 20, "labels": "balanced"},
        "grid": {"train.learning_rate": [1e30, SPEC.train.learning_rate], "steps": [2, 4]},
        "evaluate": {"extractor": "pixels", "metrics": ["fid"]},
        "cluster": {"trainings": 2, "train": {"cpus_per_worker": 0.5}},
    }
    file = write_config(folder, **sections(workers=2) | changes)
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_one_of, spec, folder / "at_the_kill")
        said = taugrid("run", file, "--out", root, code=1).stderr
        killing.result()
    return SimpleNamespace(root=root, models=root / "models", said=said, at_the_kill=folder / "at_the_kill")


def kill_one_of(spec, copy):
    """Kill one of the two workers of a training once it has a checkpoint; return when its successor has begun."""
    log = spec.running / "log.jsonl"
    _wait(lambda: steps_of(log) > EVERY)
    before, workers = log.stat().st_ino, _training_workers(os.getpid(), spec.running.name)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # looking takes as long as many steps
    try:
        assert listening(os.getpid()) <= LOOPBACK
        (other,) = set(workers) - {_holder(log, workers)}
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    _wait(lambda: _has_checkpoint(spec.running) and steps_of(log) > 2 * EVERY)
    os.kill(other, signal.SIGKILL)
    shutil.copytree(spec.running, copy / spec.running.name)
    _wait(lambda: log.stat().st_ino != before)  # the new worker has cut the log back
    assert steps_of(log) >= EVERY


@pytest.mark.long
def test_a_finished_training_leaves_a_pipeline_and_its_log_alone(killed):
    folder = killed.models
    assert [path.name for path in folder.iterdir() if SPEC.model_id in path.name] == [SPEC.model_id]
    unet = diffusers.DDIMPipeline.from_pretrained(folder / SPEC.model_id).unet
    assert unet(torch.zeros(2, 1, 8, 8), 5, torch.tensor([9, 10])).sample.shape == (2, 1, 8, 8)
    assert [record["step"] for record in log_of(folder)] == list(range(1, STEPS + 1))
    losses, seconds = losses_of(folder), [record["seconds"] for record in log_of(folder)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert seconds == sorted(seconds)


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(uninterrupted_of_two, killed):
    found, expected = (folder / SPEC.model_id for folder in (killed.models, uninterrupted_of_two))
    assert files_of_weights(found) == files_of_weights(expected)
    found, expected = (log_of(folder) for folder in (killed.models, uninterrupted_of_two))
    assert [r | {"seconds": 0} for r in found] == [r | {"seconds": 0} for r in expected]


@pytest.mark.long
@pytest.mark.chaos
def test_a_training_goes_on_with_another_number_of_workers(uninterrupted, killed, pytestconfig):
    """From a checkpoint of two workers, with one: the losses stay the same up to rounding.

    In short by the loop alone. In the long form Ray Train starts it, and a kill while it wrote its list of checkpoints
    costs none of them (`load_newest`, which finds them then, finds this one in the short form too).
    """
    spec = a_spec(killed.at_the_kill)
    if pytestconfig.getoption("--long"):
        (spec.running / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')
        in_a_thread(spec).result()
    else:
        train_here(spec, lambda its, state: checkpoints.load_newest(state, its.running))
    workers = [record["workers"] for record in log_of(killed.at_the_kill)]
    assert workers in [[2] * done + [1] * (STEPS - done) for done in range(EVERY, STEPS, EVERY)]
    assert losses_of(killed.at_the_kill) == pytest.approx(losses_of(uninterrupted), rel=1e-4)


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("killed_first", [False, True])
def test_ctrl_c_and_the_result_is_the_same(uninterrupted, tmp_path, killed_first):
    """Where driver and worker are killed before that, it is Ctrl-C as soon as it goes on."""
    path, root = write_config(tmp_path, **sections()), tmp_path / "run"
    # Elastic, so that the worker has one CPU and one thread, as in the other tests, and not all of the machine's.
    options = ("--out", root, "--set", "train.workers=[1, 1]", "--set", "train.tensorboard=true")
    with Started(tmp_path / "log", "train", path, *options) as run:
        (log,) = run.wait_until(lambda: list(root.glob("models/.training-*/log.jsonl")))
        assert listening(run.process.pid) <= LOOPBACK
        run.wait_until(lambda: _has_checkpoint(log.parent) and steps_of(log) > EVERY)
        if killed_first:
            (worker,) = _training_workers(run.process.pid)
            os.kill(run.process.pid, signal.SIGKILL)
            os.kill(worker, signal.SIGKILL)
            run.process.wait()
        else:
            interrupt(run)
        kept = records(log)[:EVERY]
    if killed_first:
        with Started(tmp_path / "log", "train", path, *options) as run:
            run.wait_until(lambda: _training_workers(run.process.pid) and _has_checkpoint(log.parent))
            interrupt(run)
    taugrid("train", path, *options)
    (model,) = (root / "models").iterdir()  # and no `.training-*`
    assert files_of_weights(model) == files_of_weights(uninterrupted / SPEC.model_id)
    log = records(model / "train" / "log.jsonl")
    assert log[:EVERY] == kept, "it went on, it did not start anew"
    shown = EventAccumulator(str(model / "train")).Reload().Scalars("loss")
    assert [event.step for event in shown] == list(range(1, STEPS + 1))
    assert {path.name for path in (root / "figures").iterdir()} == {"loss.png", "loss.svg"}


IN_A_THREAD = """
import pickle, sys, time
from concurrent.futures import ThreadPoolExecutor
import ray
from taugrid.workers import ray_compat
from taugrid.workers.training import fit

spec = pickle.load(sys.stdin.buffer)
ray.init(num_cpus=1, include_dashboard=False)
thread = ThreadPoolExecutor(1).submit(fit.train, spec)
while not (spec.running / "log.jsonl").exists():
    time.sleep(0.1)
assert thread.running()
ray_compat.kill_train_controllers()
assert isinstance(thread.exception(timeout=10), ray.exceptions.RayActorError)
"""


@pytest.mark.long
@pytest.mark.chaos
def test_a_thread_that_waits_for_ray_train_ends_before_ray_does(tmp_path):
    """One that spoke to Ray while it shut down ended the driver from C++, with 1 instead of 130."""
    spec = pickle.dumps(a_spec(tmp_path, steps=100_000))
    subprocess.run([sys.executable, "-c", IN_A_THREAD], input=spec, check=True)


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
def test_an_elastic_training_grows_with_the_cluster(uninterrupted, tmp_path):
    """Ray Train considers it every minute, with a list of nodes that is anew every 20 seconds."""
    train = sections(steps=100_000, checkpoint_every=200, workers=(1, 2))
    path, root = write_config(tmp_path, **train), tmp_path / "run"
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
    ours = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        with Started(tmp_path / "log", "train", path, "--out", root, "--address", ours.address) as run:
            (log,) = run.wait_until(lambda: list(root.glob("models/.training-*/log.jsonl")))
            run.wait_until(lambda: len(records(log)) > 50)
            assert {record["workers"] for record in records(log)} == {1}
            ours.add_node(**node)
            run.wait_until(lambda: records(log)[-1]["workers"] == 2, timeout=300)
            of_both = records(log)
    finally:
        ours.shutdown()
    steps = [record["step"] for record in of_both]
    assert steps == [*range(1, 51), *range(100, steps[-1] + 1, 100)]
    assert [record["loss"] for record in of_both[:50]] == pytest.approx(losses_of(uninterrupted)[:50], rel=1e-4)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [config.FLOW_DEFAULTS, config.EDM_DEFAULTS], ids=["flow", "edm"])
def test_two_workers_learn_what_one_learns_on_each_process(ray_session, tmp_path, diffusion):
    for folder, workers in (("one", 1), ("two", 2), ("again", 2)):
        spec = a_spec(tmp_path / folder, workers=workers, steps=5)
        in_a_thread(dataclasses.replace(spec, diffusion=diffusion)).result()
    one, two = (losses_of(tmp_path / folder) for folder in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    assert files_of_weights(tmp_path / "two" / SPEC.model_id) == files_of_weights(tmp_path / "again" / SPEC.model_id)


@pytest.mark.long
def test_a_training_that_diverges_leaves_the_others(killed):
    """What the loop says of one worker is tests/unit/test_training.py's; here the line comes back through Ray Train."""
    [line] = [line for line in killed.said.splitlines() if line.startswith("missing: ")]
    assert line.startswith("missing: learning_rate=1e+30 · S=2 ")
    assert "step 2" in line
    assert "train.learning_rate" in line
    names = [event["event"] for event in read_events(RunDir(killed.root))]
    assert [name for name in names if name.startswith("train")] == ["train", "train", "training failed", "trained"]
    assert [path.name for path in killed.models.glob("[!.]*")] == [SPEC.model_id]
    scores = (killed.root / "tables/quality.csv").read_text().splitlines()
    assert [row.rsplit(",", 1)[1] for row in scores] == ["train.learning_rate", "0.002", "0.002"]


def _has_checkpoint(folder):
    """Ray Train's list of checkpoints is whole and has one."""
    try:
        return bool(json.loads((folder / "checkpoint_manager_snapshot.json").read_bytes())["checkpoint_results"])
    except (FileNotFoundError, ValueError):
        return False


def _wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _training_workers(driver, name=None):
    """Processes of Ray Train's workers that `driver` has, whichever other Ray sessions run on this machine.

    Of one training by the `name` of its folder, which is that of its workers' current folder too.
    """
    found = [pid for pid in descendants(driver) if "RayTrainWorker" in command_line(pid)]
    return [pid for pid in found if name is None or [path.name for path in _links(f"/proc/{pid}", "cwd")] == [name]]


def _holder(path, workers):
    """Which of the processes has `path` open."""
    return next(pid for pid in workers if path in _links(f"/proc/{pid}/fd", "*"))


def _links(folder, pattern):
    """Where links of /proc lead, of those that are still there."""
    found = []
    for link in Path(folder).glob(pattern):
        with suppress(OSError):
            found.append(link.readlink())
    return found
