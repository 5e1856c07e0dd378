"""After a GPU ran out of memory, what the process would compute is not kept: cuDNN remembers other kernels.

A simulated GPU computes on the CPU; `count_shortages` gives the errors of its allocator.
"""

from pathlib import Path

import pytest
import torch
from cards import Card
from snapshots import raises
from test_memory import OUT_OF_MEMORY, Hungry, Thing, attempts  # noqa: F401
from test_preflight import job  # noqa: F401
from test_reconstruct_work import GAUSSIAN, reconstruct
from test_training import a_spec, new_state, run_loop

import taugrid
from taugrid.errors import BrokenAccelerator, DoesNotFit, FellBack, NotEnoughMemory, UserError
from taugrid.eval.extract import InBatches
from taugrid.eval.features.load import Extraction
from taugrid.jobs import Result
from taugrid.workers import ode
from taugrid.workers.accelerator import memory
from taugrid.workers.actor import Worker, run_in_memory
from taugrid.workers.device import Device

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def counted(monkeypatch):
    """Shortages so far, of each device: its length, or what a function says that is put there."""
    found = []
    monkeypatch.setattr(memory, "count_shortages", lambda _: found[0]() if found and callable(found[0]) else len(found))
    return found


def gpu():
    """A simulated GPU."""
    device = Device("cpu")
    device.kind = "cuda"
    return device


def test_torchs_count_is_read_whoever_caught_the_error(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: asked.append(device) or {"num_ooms": 3})
    assert memory.count_shortages("cuda:1") == 3
    assert memory.count_shortages("cpu") == memory.count_shortages("mps") == 0
    assert asked == ["cuda:1"]
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})  # CUDA has not started
    assert memory.count_shortages("cuda") == 0


def test_a_job_whose_kernels_ran_out_of_memory_is_left_to_a_new_process(attempts, monkeypatch):  # noqa: F811
    """Defect 3: without `in_kernels` in `run_in_memory` it is run once more here, with the kernels of a full card.

    Nothing is looked for in a process that goes. Put back by `job.remedy` before `BrokenAccelerator`.
    """
    device = gpu()
    device.extractor("taken", lambda: 0)
    monkeypatch.setattr(Hungry, "remedy", pytest.fail)
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


@pytest.mark.parametrize("fault", [NotEnoughMemory, MemoryError])
def test_what_failed_before_a_kernel_ran_is_run_once_more_in_the_same_process(attempts, fault):  # noqa: F811
    """The comparison with what is free, or the host's memory."""
    device = gpu()
    device.extractor("taken", lambda: 0)
    assert run_in_memory(Hungry("x", fault=fault), device) == Result(0.1, 1, True)
    assert attempts == [0, 1]


def test_weights_that_do_not_fit_beside_others_were_not_computed_with(counted):
    device = gpu()

    def load():
        counted.append("by loading")
        raise OUT_OF_MEMORY

    with raises(NotEnoughMemory):
        device.extractor("large", load)
    device.computed()


def test_a_process_that_ran_out_of_memory_begins_no_other_job(tmp_path, attempts, counted):  # noqa: F811
    """Looking for a batch that fits may have filled the GPU, too. Defect 3: no `finally` in `_guard_accelerator`."""
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


def test_images_of_kernels_that_a_library_fell_back_to_are_not_committed(job, counted):  # noqa: F811
    """Defect 3: `device.compute_lock.release` in place of `device.computed` in workers/sample.py.

    A batch of 8 would fall back too: put back by deleting `require_none` from `memory._fits`.
    """
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
    with pytest.raises(FellBack):
        ode.run(task.job, device)
    assert not Path(task.job.path).exists()


@pytest.mark.parametrize("hides", [False, True])
def test_on_a_gpu_an_extractor_never_tries_a_size_again(counted, hides):
    """The defects: `if not freed` alone, `self._size` in place of `most_to_extract`, or no `require_none`."""
    device, tried = gpu(), []
    device.held_networks.get("a network and its graphs", Thing)

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
    with pytest.raises(FellBack):
        run_loop(a_spec(tmp_path, steps=6, checkpoint_every=2), new_state(a_spec(tmp_path), "cpu"))
    assert reported == [2]
