"""Heartbeats: what a job says while it runs."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from denoisers import at

from taugrid.errors import Stopped
from taugrid.eval.extract import InBatches
from taugrid.eval.metrics.kernel import kernel_distance
from taugrid.eval.metrics.neighbours import ball_radii
from taugrid.eval.metrics.statistics import moments
from taugrid.orchestrator.dispatch.policy.tasks import SILENT_SECONDS
from taugrid.workers import actor, device, heartbeat
from taugrid.workers.accelerator import transfer
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.device import MIN_HEARTBEAT_SECONDS, Device
from taugrid.workers.diffusion.denoiser import Wrapped


@pytest.fixture
def job(monkeypatch):
    """(a device, what was heard of it, its clock)."""
    now, heard = [100.0], []
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    return Device("cpu", lambda done, of: heard.append((done, of))), heard, now


def test_a_job_may_beat_often_and_is_heard_once_a_second(job):
    beating, heard, clock = job
    for done in range(21):
        beating.heartbeat(done, 20)
        clock[0] += MIN_HEARTBEAT_SECONDS / 8
    assert heard == [(0, 20), (8, 20), (16, 20)]


def test_a_job_of_less_than_a_second_is_not_heard_and_a_longer_one_is(job):
    """Each heartbeat is a call that the driver pays for; of a short job it hears the end."""
    beating, heard, clock = job
    for _ in range(5):
        beating.start_job()
        for done in range(8):
            beating.heartbeat(done, 8)
            clock[0] += MIN_HEARTBEAT_SECONDS / 10
    assert heard == []
    beating.start_job()
    for done in range(16):
        beating.heartbeat(done, 16)
        clock[0] += MIN_HEARTBEAT_SECONDS / 8
    assert heard == [(8, 16)]


def test_loops_that_do_not_know_the_device_say_that_the_job_goes_on(monkeypatch, job):
    monkeypatch.setattr(device, "MIN_HEARTBEAT_SECONDS", 0.0)
    beating, heard, _ = job
    features = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)

    def beats(work, *arguments, **named):
        before = len(heard)
        work(*arguments, **named)
        return len(heard) - before

    with heartbeat.forwarded_to(beating.alive):
        beating.heartbeat(3, 4)
        assert beats(moments, iter([features[:32], features[32:]]), 64)
        assert beats(ball_radii, features, 3)
        assert beats(kernel_distance, features, features, subsets=2, subset_size=8, seed=0)
    assert set(heard) == {(3, 4)}, "what was last known of its progress"
    assert not beats(moments, iter([features]), 64), "nobody listens any more"


def test_a_reader_that_a_failed_job_left_behind_does_not_beat_for_the_next():
    heard = []
    with ThreadPoolExecutor(1) as left_behind, ThreadPoolExecutor(1) as own:
        with heartbeat.forwarded_to(lambda: heard.append("first")):
            left_behind.submit(heartbeat.alive).result()
        with heartbeat.forwarded_to(lambda: heard.append("second")):
            left_behind.submit(heartbeat.alive).result()
            assert heard == ["first"]
            own.submit(heartbeat.alive).result()
            heartbeat.alive()
    assert heard == ["first", "second", "second"]


def test_a_beat_of_the_job_before_does_not_take_the_next_ones_key_away(monkeypatch):
    """It still writes, and a request of its is tried again, at the moment at which the next job begins."""

    class Idle(actor.HeartbeatActor):
        def do(self, job):
            return None

    worker, whole = Idle(), actor.LastHeartbeat
    begins = threading.Thread(target=worker.perform, args=[pickle.dumps((None, "next"))])

    def recorded(*fields):
        begins.start()
        begins.join(timeout=0.2)  # for good, if it need not wait for this beat
        return whole(*fields)

    monkeypatch.setattr(actor, "LastHeartbeat", recorded)
    worker.beat(3.0, 4.0, "waiting")
    begins.join()
    assert worker.next_heartbeat(0, 0.0) == (1, "next", 3.0, 4.0, "waiting")


class Gpu:
    """A simulated GPU: calls are queued at once, and each takes `seconds` of a clock that only waiting moves on."""

    def __init__(self, monkeypatch, seconds, hangs_at=None):
        self.now, self.free_at, self.submitted, self.ahead = 0.0, 0.0, 0, []
        self.seconds, self.hangs_at = seconds, hangs_at
        monkeypatch.setattr(transfer, "mark", self.mark)
        monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(device, "time", SimpleNamespace(monotonic=lambda: self.now))

    def mark(self, _):
        hangs, self.submitted = self.submitted == self.hangs_at, self.submitted + 1
        self.ahead.append(self.free_at - self.now)
        self.free_at = float("inf") if hangs else max(self.free_at, self.now) + self.seconds
        return SimpleNamespace(
            query=lambda at=self.free_at: at <= self.now, synchronize=lambda at=self.free_at: self.wait(at)
        )

    def wait(self, until):
        if until == float("inf"):
            raise TimeoutError("a worker would wait for ever")
        self.now = max(self.now, until)


def sampled(gpu, calls, send=lambda *_: None):
    """(time, done) of each heartbeat that a driver hears of `calls` calls, with 0.12 ms of the host for each."""
    heard = []
    worker = Device("cuda", lambda done, of: heard.append((gpu.now, done)) or send(worker))
    network = Wrapped(lambda x, *_: x, device.beating(worker.heartbeat, calls))
    try:
        for _ in range(calls):
            network(torch.zeros(1), at(1))
            gpu.now += 2**-13
    except TimeoutError:
        heard.append("hangs")
    return heard


@pytest.mark.parametrize("seconds", [2**-9, 0.875, 6.0, 20.0])
def test_heartbeats_of_a_gpu_count_the_calls_that_it_has_finished_and_come_as_often(monkeypatch, seconds):
    """Defect 4: `beating` beats at launches alone (`submitted.add(None)`). CUDA queues about 1,000 launches,
    so the host ends within 0.1 s and is then silent for as long as the device computes: over 60 s of silence gets a
    copy, over 600 s a kill."""
    gpu, calls = Gpu(monkeypatch, seconds), 200
    heard = sampled(gpu, calls)
    for (before, done), (now, _) in zip(heard, [*heard[1:], (gpu.free_at, calls)], strict=True):
        assert now - before <= max(2.01 * seconds, MIN_HEARTBEAT_SECONDS + 9 * seconds)
        assert now - before < SILENT_SECONDS, "no copy is made of a job that goes on"
        assert done <= before / seconds <= done + 1, "finished, not launched"
    assert min(gpu.ahead[1:]) > 0, "the device never waits for the host"


def test_a_gpu_that_hangs_is_not_heard_of(monkeypatch):
    heard = sampled(Gpu(monkeypatch, 2.0, hangs_at=5), 50)
    assert heard[-2:] == [(10.0, 5), "hangs"], "heard when the last call ended, and never again"


def test_a_gpu_job_that_must_stop_does_so_within_a_call(monkeypatch):
    gpu, stopped_at = Gpu(monkeypatch, 10.0), []

    def stop(beating):
        if gpu.now > 100 and not stopped_at:
            stopped_at.append(gpu.now)
            beating.stop_requested = True

    with pytest.raises(Stopped):
        sampled(gpu, 50, stop)
    assert gpu.now - stopped_at[0] <= 10.01


def test_an_extraction_counts_the_images_of_which_features_are_there(monkeypatch):
    """Defect 4: `add(None, len(batch))` in `InBatches` counts batches that were only launched."""
    gpu, heard, beating = Gpu(monkeypatch, 0.5), [], Device("cuda")
    beating.heartbeat = lambda done, of: heard.append((gpu.now, done))

    def extractor(x):
        return transfer.Transfer(copied=gpu.mark(x.device))

    for _ in transfer.completed(InBatches(extractor, 5, beating, 40)(torch.zeros(40, 1))):
        pass
    assert [done for _, done in heard] == [0, 0, 5, 10, 15, 20, 25, 30]
    assert all(done == 10 * now for now, done in heard)


def test_amds_gpus_have_a_kind_of_their_own(monkeypatch):
    """torch calls them cuda (torch.version.hip: "HIP interfaces reuse the CUDA interfaces")."""
    assert [kind_of(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert [kind_of(name) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "rocm", "mps"]
