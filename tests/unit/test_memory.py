"""Out of memory: caches go first, a job is tried once more, and what is said then is to halve its batch."""

import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from cards import NO_ENGINE, STICKY, OutOfMemoryError
from snapshots import raises

from taugrid.errors import BrokenAccelerator, DoesNotFit, NotFinite
from taugrid.eval.extract import InBatches
from taugrid.eval.features.load import Extraction
from taugrid.jobs import Job, Result, smaller_batch
from taugrid.orchestrator.dispatch.loop import fault_of
from taugrid.orchestrator.dispatch.policy.dispatcher import Fault
from taugrid.workers.actor import Worker, run_in_memory
from taugrid.workers.device import Device, LRUCache, release_memory

pytestmark = pytest.mark.usefixtures("one_thread")


OUT_OF_MEMORY = OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Card:
    """A simulated device's memory, in images: a network of `network(x, t)` that needs one for each."""

    def __init__(self, room, error=OUT_OF_MEMORY):
        self.room, self.error, self.tried = room, error, []

    def network(self, x, t):
        self.tried.append(len(x))
        if len(x) > self.room:
            raise self.error
        return x


class Thing:
    pass


def test_an_old_value_is_gone_before_a_new_one_is_loaded():
    kept, alive = LRUCache(2), weakref.WeakSet()

    def load():
        at_once.append(len(alive))
        alive.add(thing := Thing())
        return thing

    at_once = []
    for key in "abcab":
        kept.loaded(key, load)
    assert at_once == [0, 1, 1, 1, 1], "never a third beside two"
    before = len(at_once)
    kept.loaded("b", load)
    assert len(at_once) == before
    kept.clear()
    assert not alive


ATTEMPTS = []


@dataclass(frozen=True)
class Hungry(Job):
    """Fits if less than `most` is kept on the device, and says how often it was tried."""

    entry_point = "test_memory:work"
    most: int = 1
    fault: type[Exception] = OutOfMemoryError
    says: str = str(OUT_OF_MEMORY)

    @property
    def remedy(self):
        return smaller_batch("sample.batch_size: 256")


def work(job, device):
    ATTEMPTS.append(device.extractor("taken", lambda: len(ATTEMPTS)) if job.most else None)
    if job.most and ATTEMPTS[-1]:  # kept since this attempt began: there is room
        return Result(0.1, 1, True)
    raise job.fault(job.says)


class Writing(Job):
    entry_point = "test_memory:write"


def write(job, device):
    """Releases the lock as if only writing were left, then lacks memory: a different job holds the lock by then."""
    ATTEMPTS.append("begins")
    if len(ATTEMPTS) > 1:
        return Result(0.1, 1, True)
    lock, holds_it, is_wanted = device.compute_lock, threading.Event(), threading.Event()
    acquire = lock.acquire

    def compute():
        with lock:
            holds_it.set()
            is_wanted.wait(60)
            ATTEMPTS.append("the next job has computed")

    lock.release()
    threading.Thread(target=compute).start()
    assert holds_it.wait(60)
    lock.acquire = lambda: is_wanted.set() or acquire()
    raise MemoryError


@pytest.fixture(autouse=True)
def attempts():
    ATTEMPTS.clear()
    return ATTEMPTS


def test_a_job_is_tried_again_in_its_turn_alone(attempts):
    """Else it would change precision flags, and take memory, while the next job computes."""
    device = Device("cpu")
    with device.compute_lock:
        assert run_in_memory(Writing("x"), device).created_file
    assert attempts == ["begins", "the next job has computed", "begins"]


def test_what_earlier_jobs_left_goes_first_and_the_job_is_tried_once_more(attempts):
    device = Device("cpu")
    device.extractor("taken", lambda: 0)
    assert run_in_memory(Hungry("x"), device) == Result(0.1, 1, True)
    assert attempts == [0, 1]


@pytest.mark.parametrize("fault", [OUT_OF_MEMORY, RuntimeError(NO_ENGINE)])
def test_a_job_that_does_not_fit_is_tried_twice_and_says_what_to_halve(attempts, fault):
    """Defect 3: cuDNN's last word, for which the task was blamed. Patch: `_PERHAPS_OUT_OF_MEMORY` lacks it."""
    device = Device("cpu")
    device.hardware = "NVIDIA Simulated"
    with raises(DoesNotFit) as caught:
        run_in_memory(Hungry("x", most=0, fault=type(fault), says=str(fault)), device)
    assert len(attempts) == 2
    assert fault_of(caught.value) is Fault.FINAL, "the dispatcher does not try it a third time"
    assert "in work\n" in "".join(caught.value.__notes__), "the log has where it was raised"


@pytest.mark.parametrize(("device", "freed"), [("cpu", []), ("cuda", ["cuda"]), ("cuda:1", ["cuda:1"])])
def test_memory_is_returned_to_the_device_that_has_it(monkeypatch, device, freed):
    """Defect 18: put back by `if device == "cuda"` in `release_memory`."""
    current, emptied = [], []

    @contextmanager
    def entered(name):
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.extend(current))
    release_memory(device)
    assert emptied == freed


def test_other_errors_are_not_tried_again(attempts):
    with pytest.raises(NotFinite):
        run_in_memory(Hungry("x", most=0, fault=NotFinite, says="the network returned nan"), Device("cpu"))
    assert len(attempts) == 1


@pytest.mark.parametrize("room", [2, 100])
def test_an_extractor_takes_smaller_batches_once_one_does_not_fit(room):
    card = Card(room)
    images = torch.arange(20, dtype=torch.float32)[:, None]
    extracted = InBatches(lambda x: Extraction(card.network(x, 1), None), 8, Device("cpu"))
    for _ in range(2):
        found = torch.cat([each.features for each in extracted(images)])
        assert torch.equal(found, images), "every image once, in order"
    assert sum(size > room for size in card.tried) == (2 if room == 2 else 0), "7, 3, and never again"


def test_an_extractor_frees_what_sampling_kept_before_its_batches_shrink(monkeypatch):
    """Defect 8: put back by `self._size = len(batch) // 2` without `clear_networks`. Batches of 16 became 2, 2, 2."""
    monkeypatch.setattr("taugrid.workers.device.load_network", lambda *args: Thing())
    device, tried = Device("cpu"), []
    device.network(None, None)

    def extractor(x):
        tried.append(len(x))
        if len(x) > (2 if device.held_networks else 16):
            raise OUT_OF_MEMORY
        return Extraction(x, None)

    assert len(list(InBatches(extractor, 16, device)(torch.zeros(48, 1)))) == 3
    assert tried == [16, 16, 16, 16], "the first one twice"


@dataclass(frozen=True)
class Poison(Job):
    """A job that meets a CUDA error, which a library may turn into its own."""

    entry_point = "test_memory:poison"
    wrapped: bool = False


def poison(job, device):
    ATTEMPTS.append(1)
    if job.wrapped:
        raise ValueError("the picture can't be made") from RuntimeError(STICKY)
    raise RuntimeError(STICKY)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_worker_that_met_a_cuda_error_does_no_more_work(tmp_path, attempts, wrapped):
    """Even if whoever caught the error first has made another of it; Ray passes on only the last one."""
    worker = Worker(1)
    for _ in range(2):
        with raises(BrokenAccelerator):
            worker.do(Poison(str(tmp_path / "x"), wrapped=wrapped))
    assert len(attempts) == 1, "the second job was not begun"
