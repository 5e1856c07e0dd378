"""After a GPU ran out of memory, what the process would compute is not kept: cuDNN remembers other kernels.

A simulated GPU computes on the CPU; `count_ooms` gives the errors of its allocator.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cards import STICKY, Card
from snapshots import raises
from test_memory import OUT_OF_MEMORY, Hungry, Thing, attempts  # noqa: F401
from test_reconstruct_work import GAUSSIAN, reconstruct
from test_training import a_spec, new_state, run_loop
from tiny import UNET
from torch import nn

import taugrid
from taugrid import config
from taugrid.errors import BrokenAccelerator, DoesNotFit, UserError
from taugrid.eval.extract import InBatches
from taugrid.eval.features.load import Extraction
from taugrid.jobs import Result
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers import device as devices
from taugrid.workers import ode
from taugrid.workers.actor import Worker, run_in_memory
from taugrid.workers.device import Device
from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def counted(monkeypatch):
    """Shortages so far, of each device: its length, or what a function says that is put there."""
    found = []
    monkeypatch.setattr(devices, "count_ooms", lambda _: found[0]() if found and callable(found[0]) else len(found))
    return found


@pytest.fixture
def job(tmp_path):
    """A job that samples 32 images in batches of 16 with a small untrained network."""
    values = {
        "name": "x",
        "model": {"unet": UNET},
        "train": {"seed": 0},
        "sample": {"steps": 2, "num_samples": 32, "batch_size": 16, "seed": 0},
    }
    loaded = config.validate(config.Config, values, "test")
    planned, rundir = plan(loaded), RunDir(tmp_path / "run")
    [model] = planned.models
    torch.manual_seed(3)
    unet = build_unet(model.source.unet, (1, 8, 8))
    save_pipeline(rundir.models / model.id, unet, ema_start(unet), model.diffusion)
    survey = Survey(Run(loaded, planned, rundir), None, frozenset({"sample"}), pytest.fail)
    [task] = SampleWork(survey).tasks()
    return task.job


def gpu():
    """A simulated GPU."""
    device = Device("cpu")
    device.kind = "cuda"
    return device


def test_torchs_count_is_read_whoever_caught_the_error(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: asked.append(device) or {"num_ooms": 3})
    assert devices.count_ooms("cuda:1") == 3
    assert devices.count_ooms("cpu") == devices.count_ooms("mps") == 0
    assert asked == ["cuda:1"]
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})  # CUDA has not started
    assert devices.count_ooms("cuda") == 0


def test_a_job_whose_kernels_ran_out_of_memory_is_left_to_a_new_process(attempts):  # noqa: F811
    """Defect 3: without `in_kernels` in `run_in_memory` it is run once more here, with the kernels of a full card."""
    device = gpu()
    device.extractor("taken", lambda: 0)
    with raises(BrokenAccelerator):
        run_in_memory(Hungry("x"), device)
    assert len(attempts) == 1


def test_in_another_one_it_begins_with_empty_caches_or_does_not_fit(attempts):  # noqa: F811
    """But not on a CPU: a hiccup of a bucket must not cost it its networks. Patch: `if job.failed_before` alone."""
    device = gpu()
    device.extractor("taken", lambda: 0)
    attempts.append("in the process that went")
    assert run_in_memory(Hungry("x", failed_before=True), device) == Result(0.1, 1, True)
    assert len(attempts) == 2
    with raises(DoesNotFit):
        run_in_memory(Hungry("x", most=0, failed_before=True), gpu())
    assert len(attempts) == 3
    device = Device("cpu")
    device.extractor("taken", lambda: "kept")
    run_in_memory(Hungry("x", failed_before=True), device)
    assert attempts[3:] == ["kept"]


def test_what_fails_for_the_hosts_memory_is_run_once_more_in_the_same_process(attempts):  # noqa: F811
    device = gpu()
    device.extractor("taken", lambda: 0)
    assert run_in_memory(Hungry("x", fault=MemoryError), device) == Result(0.1, 1, True)
    assert attempts == [0, 1]


def test_a_process_that_ran_out_of_memory_begins_no_other_job(tmp_path, attempts, counted):  # noqa: F811
    """Defect 3: no `finally` in `_guard_accelerator`."""
    worker = Worker(1)
    (tmp_path / "small").touch()
    attempts.append("before")
    worker.do(Hungry(str(tmp_path / "small")))
    counted.append("while the job ran")
    with pytest.raises(DoesNotFit):
        worker.do(Hungry(str(tmp_path / "x"), most=0))
    begun = len(attempts)
    with raises(BrokenAccelerator) as caught:
        worker.do(Hungry(str(tmp_path / "y")))
    assert len(attempts) == begun
    assert "Xid" not in str(caught.value), "the card is well"


def test_images_of_kernels_that_a_library_fell_back_to_are_not_committed(job, counted):
    """Defect 3: `device.compute_lock.release` in place of `device.computed` in workers/sample.py."""
    with Card() as all_fits:
        run_in_memory(job, Device("cpu"))
    Path(job.path).unlink()
    with Card(room=all_fits.memory.peak * 0.3, hides=True) as card:
        counted.append(lambda: card.shortages)
        with raises(DoesNotFit):
            run_in_memory(job, Device("cpu"))
    assert not Path(job.path).exists()


def test_reconstructions_of_such_kernels_are_not_committed(tmp_path, counted):
    """Defect 3: no `computed` in `ode.run`."""
    [task, *_] = reconstruct(tmp_path / "run", 8, **GAUSSIAN).tasks()
    device = Device("cpu")
    counted.append("while it computed")
    with pytest.raises(MemoryError):
        ode.run(task.job, device)
    assert not Path(task.job.path).exists()


def test_memory_that_runs_out_on_the_way_and_a_missing_engine_are_told_with_the_batch(job):
    """A card's own faults, met by the code that workers run."""
    with Card() as all_fits:
        run_in_memory(replace(job, path=job.path + ".first"), Device("cpu"))
    for card in (Card(room=all_fits.memory.peak * 0.6), Card(engine_for=5)):
        with card, raises(DoesNotFit):
            run_in_memory(job, Device("cpu"))


def test_an_extractor_on_a_full_card_frees_what_sampling_kept_there(job, monkeypatch):
    """Defect 8, with memory counted: a network of 4 MB, and 3.7 MB for what is computed of 16 images.

    Put back by `InBatches._try` without `clear_networks`.
    """
    layer, device = nn.Conv2d(1, 64, 3).requires_grad_(False), Device("cpu")
    monkeypatch.setattr("taugrid.workers.device.load_network", lambda *_: torch.zeros(10**6))
    with Card(room=5e6) as card:
        device.network(job.network, job.diffusion)
        extracted = InBatches(lambda x: Extraction(layer(x).mean((2, 3)), None), 16, device)
        sizes = [len(each.features) for each in extracted(torch.zeros(48, 1, 32, 32))]
    assert sizes == [16, 16, 16]
    assert card.convolutions == 4


def test_a_sticky_error_costs_the_process_and_no_second_job_is_begun(job):
    worker = Worker(1)
    with Card(breaks_at=3) as card:
        for _ in range(2):
            with pytest.raises(BrokenAccelerator, match=STICKY):
                worker.do(job)
    assert card.convolutions == 3
    assert card.calls_when_broken == 1, "nothing is tried on a broken card, not even to free memory"


@pytest.mark.parametrize("hides", [False, True])
def test_on_a_gpu_an_extractor_never_tries_a_size_again(counted, hides):
    """The defects: `if not freed` alone, `self._size` in place of `most_to_extract`, or no `require_none`."""
    device, tried = gpu(), []
    device.held_networks.loaded("a network and its graphs", Thing)

    def extractor(x):
        tried.append(len(x))
        if len(x) > 8:
            counted.append(len(x))
            if not hides:
                raise OUT_OF_MEMORY
        return Extraction(x, None)

    for _ in range(2):
        extractions = list(InBatches(extractor, 16, device)(torch.zeros(32, 1)))
        assert [len(each.features) for each in extractions] == [8] * 4
    assert tried == [16, *[8] * 8], "not in the next job either"
    device.computed()
    assert not device.held_networks


@pytest.mark.parametrize("hides", [True, False])
def test_sampling_in_memory_says_what_to_set(counted, hides):
    """A second call with the same batch would find the kernels that the first one left."""

    def network(x, t):
        counted.append("a convolution")
        if not hides:
            raise OUT_OF_MEMORY
        return x

    with raises(UserError):
        taugrid.sample(network, 8, shape=(1, 8, 8), steps=2, batch_size=8)


def test_no_checkpoint_is_made_of_weights_that_were_trained_so(tmp_path, counted, monkeypatch):
    from taugrid.workers.training import checkpoints

    reported = []
    monkeypatch.setattr(checkpoints, "report", lambda state, rank: reported.append(state.step) or counted.append("oom"))
    with pytest.raises(MemoryError):
        run_loop(a_spec(tmp_path, steps=6, checkpoint_every=2), new_state(a_spec(tmp_path), "cpu"))
    assert reported == [2]
