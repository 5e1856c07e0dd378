"""Trainings in turn and side by side: what a failure, a full cluster and Ctrl-C do to the others, and what is shown.

The threads are real; in place of Ray Train, each writes a log and a network. tests/integration/test_ray_train.py has
the real one.
"""

import io
import re
import threading
from dataclasses import replace

import pytest
from in_process import SMALL_UNET, small_run
from rich.console import Console
from snapshots import raises, recorded
from test_reconstruct_work import save_network

from taugrid.config import Cluster
from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch import training as stage
from taugrid.orchestrator.dispatch.capacity import Trainers
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.session import Session
from taugrid.workers.training import fit
from taugrid.workers.training.log import Log, Record, TrainingProgress

CONFIG = f"""
name: several
data: {{name: gaussian, shape: [1, 8, 8]}}
model:
  unet: {SMALL_UNET}
train: {{steps: 10}}
sample: {{num_samples: 8, batch_size: 8}}
grid: {{train.seed: [0, 1, 2], steps: [1]}}
cluster: {{workers: 1}}
"""
MINUTE = 60.0


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(stage.capacity, "trainers", lambda *_: Trainers(1, 1, 0))
    monkeypatch.setattr(stage, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stage, "ABANDON_SECONDS", 0.0)  # what stands in for Ray Train has no controller to kill
    with small_run(tmp_path, CONFIG) as opened:
        yield opened


def do(opened, monkeypatch, train, trainings=3):
    """Trains with `train` in place of Ray Train; returns the outcome and what was printed."""
    monkeypatch.setattr(fit, "train", train)
    printed = io.StringIO()
    progress = Progress(Console(file=printed, width=300))
    config = opened.config.model_copy(update={"cluster": Cluster(trainings=trainings)})
    outcome = Session(replace(opened, config=config), "local", progress).do(("train",))
    return outcome, printed.getvalue()


def trained(spec):
    step(spec, 10)
    save_network(spec.final, spec.unet, (1, 8, 8))
    spec.running.rename(spec.final / "train")


def step(spec, number):
    Log(spec.running, number, tensorboard=False).write(Record(number, 0.5, 1e-3, 1.0, 1, 0.1))


def events(opened):
    return [event["event"] for event in read_events(opened.rundir) if event["event"].startswith("train")]


def test_so_many_as_the_config_says_run_at_the_same_time(opened, monkeypatch):
    meeting = threading.Barrier(3)

    def train(spec):
        meeting.wait(MINUTE)  # breaks unless all three are there
        trained(spec)

    _, printed = do(opened, monkeypatch, train)
    assert events(opened) == ["train"] * 3 + ["trained"] * 3
    assert printed.count("trained model") == 3
    assert all(opened.rundir.is_ready(model) for model in opened.plan.models)


@pytest.mark.parametrize("trainings", [None, 1])
def test_one_at_a_time_they_begin_in_the_configs_order(opened, monkeypatch, trainings):
    begun = []
    do(opened, monkeypatch, lambda spec: (begun.append(spec.model_id), trained(spec)), trainings)
    assert begun == [model.id for model in opened.plan.models]
    assert events(opened) == ["train", "trained"] * 3


def test_one_that_fails_leaves_those_beside_it(opened, monkeypatch):
    failing, failed = opened.plan.models[1].id, threading.Event()

    def train(spec):
        if spec.model_id == failing:
            step(spec, 4)
            failed.set()
            raise fit.FailsAgain("the loss is nan")
        assert failed.wait(MINUTE)
        trained(spec)

    outcome, printed = do(opened, monkeypatch, train)
    assert list(outcome.missing) == [cell.name for cell in opened.plan.cells if cell.model.id == failing]
    recorded(printed, "failed")
    assert [opened.rundir.is_ready(model) for model in opened.plan.models] == [True, False, True]
    _, printed = do(opened, monkeypatch, trained)
    assert len(re.findall("ended .* 4; .* checkpoint", printed)) == 1


def test_one_that_found_no_room_begins_again_beside_those_at_work(opened, monkeypatch):
    late, tries, at_work, again = opened.plan.models[2].id, [], threading.Event(), threading.Event()
    look, begun = stage.Training.check_log, set()

    def looked(self):
        look(self)
        begun.update({self.model.id} if self.has_begun else ())
        if len(begun - {late}) == 2:
            at_work.set()

    def train(spec):
        tries.append(spec.model_id)
        if spec.model_id != late:
            step(spec, 4)
            assert again.wait(MINUTE)
        elif tries.count(late) <= 3:
            assert at_work.wait(MINUTE)
            step(spec, 2)
            raise fit.NoRoom("no room")
        again.set()
        trained(spec)

    monkeypatch.setattr(stage.Training, "check_log", looked)
    outcome, printed = do(opened, monkeypatch, train)
    assert (tries.count(late), outcome.missing) == (4, {})
    assert len(re.findall("seed=2 .* step 2", printed)) == 1
    own = [event for event in read_events(opened.rundir) if event.get("model") == late]
    assert [event["event"] for event in own] == ["train", "training waits"] * 3 + ["train", "trained"]
    assert [event.get("step") for event in own] == [None, None, 2, None, 2, None, 2, None]


def test_one_that_found_no_room_while_another_worked_begins_again(opened, monkeypatch):
    """The others have ended when it gives up."""
    second, others, tries, end = opened.plan.models[1].id, threading.Semaphore(0), [], stage.Training.end

    def ended(self, log):
        end(self, log)
        others.release()

    def train(spec):
        tries.append(spec.model_id)
        if spec.model_id == second and tries.count(second) == 1:
            for _ in range(2):
                assert others.acquire(timeout=MINUTE)
            raise fit.NoRoom("no room")
        trained(spec)

    monkeypatch.setattr(stage.Training, "end", ended)
    outcome, _ = do(opened, monkeypatch, train)
    assert (tries.count(second), outcome.missing) == (2, {})
    assert "training waits" in events(opened)


def test_one_that_leaves_its_nodes_goes_on_elsewhere_at_once_and_before_those_that_wait(opened, monkeypatch):
    first, *others = (model.id for model in opened.plan.models)
    tries = []

    def train(spec):
        tries.append(spec.model_id)
        if len(tries) < 3:
            step(spec, 3 * len(tries))
            raise fit.NodesLeave("its nodes will be taken away")
        trained(spec)

    outcome, printed = do(opened, monkeypatch, train, trainings=1)
    assert (tries, outcome.missing) == ([first] * 3 + others, {})
    assert [len(re.findall(f"ended at step {at};", printed)) for at in (3, 6)] == [1, 1]
    assert events(opened) == ["train", "training waits"] * 2 + ["train", "trained"] * 3


def test_if_none_finds_room_they_have_failed(opened, monkeypatch):
    def train(spec):
        raise fit.NoRoom("no room")

    with pytest.raises(stage.TrainingFailed, match="no room"):
        do(opened, monkeypatch, train)


def test_a_setting_to_change_is_told_at_once_and_those_at_work_end_first(opened, monkeypatch):
    first, second, third = (model.id for model in opened.plan.models)
    works, told, stay = threading.Event(), threading.Event(), threading.Event()
    look, say = stage.Training.check_log, Progress.say

    def too_long(self):
        if self.model.id == second and works.is_set():
            raise UserError("no worker fits")
        look(self)
        if self.model.id == first and self.has_begun:
            works.set()

    def said(self, text):
        say(self, text)
        if "worker fits" in text:
            told.set()

    def train(spec):
        if spec.model_id == first:
            step(spec, 4)
            assert told.wait(MINUTE)
            trained(spec)
        else:
            stay.wait(MINUTE)

    monkeypatch.setattr(stage.Training, "check_log", too_long)
    monkeypatch.setattr(Progress, "say", said)
    with raises(UserError):
        do(opened, monkeypatch, train, trainings=2)
    stay.set()
    assert [opened.rundir.is_ready(model) for model in opened.plan.models] == [True, False, False]
    assert third not in {event.get("model") for event in read_events(opened.rundir)}, "no other has begun"


def test_an_upload_that_fails_is_told_at_once_and_those_at_work_end_first(opened, bucket, store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened = replace(opened, rundir=RunDir(*bucket))
    first, second, _ = (model.id for model in opened.plan.models)
    told, say = threading.Event(), Progress.say

    def said(self, text):
        say(self, text)
        if "no other training begins" in text:
            told.set()

    def train(spec):
        if spec.model_id == second:
            step(spec, 4)
            assert told.wait(MINUTE)
        if not spec.final.exists():
            trained(spec)

    def refusal(method, path):
        return (403, "AccessDenied") if method == "PUT" and f"{first}/unet" in path else None

    monkeypatch.setattr(Progress, "say", said)
    with store.refusing(refusal), pytest.raises(RunFailed, match=f"{first}/unet.*run the same command again"):
        do(opened, monkeypatch, train, trainings=2)
    assert [opened.rundir.is_ready(model) for model in opened.plan.models] == [False, True, False]
    do(opened, monkeypatch, train, trainings=2)
    assert all(opened.rundir.is_ready(model) for model in opened.plan.models)


def test_ctrl_c_ends_all_and_each_continues(opened, monkeypatch):
    stay, written = threading.Event(), threading.Barrier(4)

    def train(spec):
        step(spec, 4)
        written.wait(MINUTE)
        stay.wait(MINUTE)

    def interrupted(progress, done, **_):
        written.wait(MINUTE)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "update", interrupted)
        patched.setattr(stage, "ABANDON_SECONDS", MINUTE)
        patched.setattr(stage.ray_compat, "kill_train_controllers", stay.set)
        with pytest.raises(KeyboardInterrupt):
            do(opened, patched, train)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("train-")]
    _, printed = do(opened, monkeypatch, trained)
    assert len(re.findall("ended .* 4; ", printed)) == 3
    assert events(opened) == ["train"] * 6 + ["trained"] * 3


def test_ctrl_c_tells_which_steps_are_lost_and_where_a_training_continues(opened, monkeypatch):
    def train(spec):
        log = Log(spec.running, 0, tensorboard=False)
        (spec.running / "checkpoint_1").mkdir()
        log.checkpointed(5)
        log.write(Record(7, 0.5, 1e-3, 1.0, 1, 0.1))  # last, since the driver looks as soon as a step is logged
        threading.Event().wait(MINUTE)

    def interrupted(progress, done, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do(opened, patched, train, trainings=1)
    recorded(ending.interrupted(), "checkpoint")
    _, printed = do(opened, monkeypatch, trained)
    recorded(printed, "ended")
    assert "lost" not in ending.interrupted()


def test_a_bar_says_which_training_it_is_of_or_how_many():
    at = {f"seed={n}": TrainingProgress(5, loss, 1) for n, loss in enumerate((0.5, 0.25, 0.3))}
    one = {"seed=0": at["seed=0"]}
    assert stage.note_of_trainings(one, 1, 0) == "loss 0.5000"
    recorded(stage.note_of_trainings(one, 3, 2))
    recorded(stage.note_of_trainings(at, 4, 1))
    assert "loss 0.5000," in stage.note_of_trainings(one, 3, 2)
    assert "loss 0.2500 to 0.5000," in stage.note_of_trainings(at, 4, 1)
