"""Trainings side by side: which begin, what a failure, a full cluster and Ctrl-C do to the others, and what is shown.

The threads are real; in place of Ray Train, each writes a log and a network. tests/integration/test_ray_train.py has
the real one.
"""

import io
import threading

import pytest
from in_process import small_run
from rich.console import Console
from test_reconstruct_work import save_network

from taugrid.config import Cluster
from taugrid.orchestrator.dispatch.capacity.nodes import Node
from taugrid.orchestrator.dispatch.capacity.resources import Trainers
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.progress.stage import note_of_trainings
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.session import Run
from taugrid.orchestrator.training import one, room, several
from taugrid.orchestrator.training.room import HELPERS_BYTES, UnderWay, another_fits, most_at_once
from taugrid.workers.training import fit
from taugrid.workers.training.log import Log, Record, TrainingProgress

CONFIG = """
name: several
data: {name: gaussian, shape: [1, 8, 8]}
model:
  unet: {block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, add_attention: false,
         down_block_types: [DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D]}
train: {steps: 10}
sample: {num_samples: 8, batch_size: 8}
grid: {train.seed: [0, 1, 2], steps: [1]}
cluster: {workers: 1}
"""
MINUTE = 60.0


@pytest.fixture
def cluster_of(monkeypatch):
    """Says what is free on which nodes, and what memory the driver has."""

    def give(*nodes, memory=100 * HELPERS_BYTES):
        monkeypatch.setattr(room, "free", lambda selector: list(nodes))
        monkeypatch.setattr(room, "memory_here", lambda: memory)

    return give


GPU, EIGHT_OF_TWO = Trainers(1, 4, 1), Trainers(8, 4, 2)


@pytest.mark.parametrize(
    ("wanted", "under_way", "begins"),
    [
        (GPU, (63, 0), True),
        (GPU, (50, 13), True),
        (GPU, (50, 14), False),  # 14 are free, and those that start will take them
        (EIGHT_OF_TWO, (3, 0), False),  # 14 GPUs hold seven workers
        (Trainers((1, 7), 4, 2), (3, 0), True),
        (Trainers((1, 7), 4, 2), (3, 1), False),
        (Trainers((1, 8), 4, 2), (3, 0), False),  # elastic: the one that runs may take them
    ],
)
def test_as_many_begin_as_what_is_free_holds(cluster_of, wanted, under_way, begins):
    cluster_of(Node("a", 64, 8), Node("b", 64, 6))
    assert another_fits(wanted, UnderWay(*under_way), Cluster(), may_grow=True) is begins


def test_the_first_begins_without_room_and_waits_for_it(cluster_of):
    cluster_of()
    assert another_fits(GPU, UnderWay(0, 0), Cluster(), may_grow=True)
    assert not another_fits(GPU, UnderWay(1, 0), Cluster(), may_grow=True)


def test_a_number_asks_for_so_many_on_a_cluster_that_grows(cluster_of):
    cluster_of()
    assert another_fits(GPU, UnderWay(1, 1), Cluster(trainings=2), may_grow=True)
    assert not another_fits(GPU, UnderWay(1, 1), Cluster(trainings=2), may_grow=False), "this machine does not grow"


def test_the_drivers_memory_limits_them_unless_a_number_is_given(cluster_of):
    cluster_of(memory=5.9 * HELPERS_BYTES)  # of which half is for them
    assert [most_at_once(cluster) for cluster in (Cluster(), Cluster(trainings=64))] == [2, 64]
    cluster_of(memory=0.5 * HELPERS_BYTES)
    assert most_at_once(Cluster()) == 1


@pytest.fixture
def opened(tmp_path, monkeypatch, cluster_of):
    """A run of three models on a machine that holds three trainings."""
    cluster_of(Node("a", 3, 0))
    monkeypatch.setattr(one.Training, "wanted", lambda self: Trainers(1, 1, 0))
    monkeypatch.setattr(several, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(several, "ROOM_SECONDS", 0.0)
    with small_run(tmp_path, CONFIG) as opened:
        yield opened


def do(opened, monkeypatch, train, **cluster):
    """Trains with `train` in place of Ray Train; returns the outcome and what was printed."""
    monkeypatch.setattr(fit, "train", train)
    progress = Progress(Console(file=io.StringIO(), width=300))
    config = opened.config.model_copy(update={"cluster": Cluster(**cluster)})
    outcome = Run(config, opened.plan, opened.rundir, "local", progress).do(("train",))
    return outcome, progress._console.file.getvalue()


def trained(spec):
    step(spec, 10)
    save_network(spec.final, spec.unet, (1, 8, 8))
    spec.running.rename(spec.final / "train")


def step(spec, number):
    Log(spec.running, number, tensorboard=False).write(Record(number, 0.5, 1e-3, 1.0, 1, 0.1))


def events(opened):
    return [event["event"] for event in read_events(opened.rundir) if event["event"].startswith("train")]


def test_trainings_with_room_run_at_the_same_time(opened, monkeypatch):
    meeting = threading.Barrier(3)

    def train(spec):
        meeting.wait(MINUTE)  # breaks unless all three are there
        trained(spec)

    _, printed = do(opened, monkeypatch, train)
    assert events(opened) == ["train"] * 3 + ["trained"] * 3
    assert printed.count("trained model") == 3
    assert all(opened.rundir.is_ready(model) for model in opened.plan.models)


@pytest.mark.parametrize(("cluster", "memory", "told"), [({"trainings": 1}, 100, 0), ({}, 2, 1)])
def test_one_at_a_time_they_begin_in_the_configs_order(opened, monkeypatch, cluster_of, cluster, memory, told):
    cluster_of(Node("a", 3, 0), memory=memory * HELPERS_BYTES)
    begun = []
    _, printed = do(opened, monkeypatch, lambda spec: (begun.append(spec.model_id), trained(spec)), **cluster)
    assert begun == [model.id for model in opened.plan.models]
    assert events(opened) == ["train", "trained"] * 3
    assert printed.count("training 1 model at a time") == told


def test_one_that_fails_leaves_those_beside_it(opened, monkeypatch):
    failing, failed = opened.plan.models[1].id, threading.Event()

    def train(spec):
        if spec.model_id == failing:
            failed.set()
            raise fit.FailsAgain("the loss is nan")
        assert failed.wait(MINUTE)
        trained(spec)

    outcome, printed = do(opened, monkeypatch, train)
    assert list(outcome.missing) == [cell.name for cell in opened.plan.cells if cell.model.id == failing]
    assert "train.seed=1 failed: the loss is nan" in printed
    assert [opened.rundir.is_ready(model) for model in opened.plan.models] == [True, False, True]


def test_one_that_found_no_room_begins_again_beside_those_at_work(opened, monkeypatch):
    late, tries, at_work, again = opened.plan.models[2].id, [], threading.Event(), threading.Event()
    show = several.Trainings._show

    def shown(self):
        show(self)
        if sum(training.has_begun for training in self._under_way) == 2:
            at_work.set()

    def train(spec):
        tries.append(spec.model_id)
        if spec.model_id != late:
            step(spec, 4)
            assert again.wait(MINUTE)
        elif tries.count(late) == 1:
            assert at_work.wait(MINUTE)
            raise fit.NoRoom("no room")
        again.set()
        trained(spec)

    monkeypatch.setattr(several.Trainings, "_show", shown)
    outcome, _ = do(opened, monkeypatch, train)
    assert (tries.count(late), outcome.missing) == (2, {})


def test_if_none_finds_room_they_have_failed(opened, monkeypatch):
    def train(spec):
        raise fit.NoRoom("no room")

    with pytest.raises(one.TrainingFailed, match="no room"):
        do(opened, monkeypatch, train)


def test_ctrl_c_ends_all_and_each_continues(opened, monkeypatch):
    stay, written = threading.Event(), threading.Barrier(4)

    def train(spec):
        step(spec, 4)
        written.wait(MINUTE)
        stay.wait(MINUTE)

    def interrupted(progress):
        written.wait(MINUTE)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(several.Trainings, "_show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do(opened, patched, train)
    stay.set()
    _, printed = do(opened, monkeypatch, trained)
    assert printed.count("was interrupted at step 4; it continues") == 3
    assert events(opened) == ["train"] * 6 + ["trained"] * 3


def test_a_bar_says_which_training_it_is_of_or_how_many():
    at = {f"seed={n}": TrainingProgress(5, loss, 1) for n, loss in enumerate((0.5, 0.25, 0.3))}
    one = {"seed=0": at["seed=0"]}
    assert note_of_trainings(one, 1, 0) == "loss 0.5000"
    assert note_of_trainings(one, 3, 2) == "seed=0: loss 0.5000, 2 trained"
    assert note_of_trainings(at, 4, 1) == "3 at a time, loss 0.2500 to 0.5000, 1 trained"


def test_a_training_that_failed_was_not_interrupted(opened, monkeypatch):
    def train(spec):
        step(spec, 4)
        raise fit.FailsAgain("the loss is nan")

    with pytest.raises(one.TrainingFailed, match="nan"):
        do(opened, monkeypatch, train)
    _, printed = do(opened, monkeypatch, trained)
    assert printed.count("failed at step 4; it continues from the start") == 3
    assert "interrupted" not in printed
