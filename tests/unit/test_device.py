"""Heartbeats: what a job says while it runs."""

from taugrid.workers import device
from taugrid.workers.device import BEAT_SECONDS, Device


def test_a_job_may_beat_often_and_is_heard_once_a_second(monkeypatch):
    now, heard = [100.0], []
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    beating = Device("cpu", lambda done, of: heard.append((done, of)))
    for done in range(21):
        beating.beat(done, 20)
        now[0] += BEAT_SECONDS / 8
    assert heard == [(0, 20), (8, 20), (16, 20)]


def test_nobody_needs_to_listen():
    Device("cpu").beat(1, 2)
