"""Heartbeats: what a job says while it runs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from taugrid.eval.metrics.kernel import kernel_distance
from taugrid.eval.metrics.neighbours import ball_radii
from taugrid.eval.metrics.statistics import moments
from taugrid.workers import device, heartbeat
from taugrid.workers.device import MIN_HEARTBEAT_SECONDS, Device


def test_a_job_may_beat_often_and_is_heard_once_a_second(monkeypatch):
    now, heard = [100.0], []
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    beating = Device("cpu", lambda done, of: heard.append((done, of)))
    for done in range(21):
        beating.heartbeat(done, 20)
        now[0] += MIN_HEARTBEAT_SECONDS / 8
    assert heard == [(0, 20), (8, 20), (16, 20)]


def test_a_job_of_less_than_a_second_is_not_heard_and_a_longer_one_is(monkeypatch):
    """Each heartbeat is a call that the driver pays for; of a short job it hears the end."""
    now, heard = [100.0], []
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    beating = Device("cpu", lambda done, of: heard.append((done, of)))
    for _ in range(5):
        beating.start_job()
        for done in range(8):
            beating.heartbeat(done, 8)
            now[0] += MIN_HEARTBEAT_SECONDS / 10
    assert heard == []
    beating.start_job()
    for done in range(16):
        beating.heartbeat(done, 16)
        now[0] += MIN_HEARTBEAT_SECONDS / 8
    assert heard == [(8, 16)]


def test_nobody_needs_to_listen():
    Device("cpu").heartbeat(1, 2)


def test_loops_that_do_not_know_the_device_say_that_the_job_goes_on(monkeypatch):
    monkeypatch.setattr(device, "MIN_HEARTBEAT_SECONDS", 0.0)
    heard = []
    beating = Device("cpu", lambda done, of: heard.append((done, of)))
    features = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    with heartbeat.forwarded_to(beating.alive):
        beating.heartbeat(3, 4)
        for work in (
            lambda: moments(iter([features[:32], features[32:]]), 64),
            lambda: ball_radii(features, 3),
            lambda: kernel_distance(features, features, subsets=2, subset_size=8, seed=0),
        ):
            before = len(heard)
            work()
            assert len(heard) > before
    assert set(heard) == {(3, 4)}, "what was last known of its progress"
    before = len(heard)
    moments(iter([features]), 64)
    assert len(heard) == before, "nobody listens any more"


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
