"""A device that only keeps time, on a clock that only waiting and launching move on: it has no gaps between batches."""

from types import SimpleNamespace

import fake_device
import pytest
from fake_device import FakeDevice, job_of

from taugrid.workers import sample as sample_module
from taugrid.workers.accelerator import transfer
from taugrid.workers.device import Device

pytestmark = pytest.mark.usefixtures("one_thread")

CALL, LAUNCH = 0.014, 0.004


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    clock.sleep, clock.perf_counter = sleep, lambda: clock.now
    monkeypatch.setattr(fake_device, "time", clock)
    return clock


def waits(device):
    return [after.began - before.ended for before, after in zip(device.calls, device.calls[1:], strict=False)]


@pytest.fixture
def sampled(clock, tmp_path, monkeypatch):
    """Samples four batches of ten calls, with `noise` seconds of the host before each; returns how long it waited."""

    def sample(noise):
        device = FakeDevice(CALL, launch=lambda: clock.sleep(LAUNCH))
        with device.installed(), monkeypatch.context() as patch:
            batch = sample_module.sample_batch
            patch.setattr(sample_module, "sample_batch", lambda *given: (clock.sleep(noise), batch(*given))[1])
            sample_module.sample_shard(job_of(str(tmp_path / "x"), (3, 2, 2), 4, 16), device.network(), Device("cpu"))
        assert len(device.calls) == 40
        return sum(waits(device))

    return sample


def test_a_device_does_not_wait_for_the_next_batchs_noise(sampled):
    """It may take the host as long as CUDA's queue lasts, 1.66 calls."""
    assert sampled(noise=1.6 * CALL) == pytest.approx(0)
    assert sampled(noise=2 * CALL) > 0


def test_it_would_wait_if_only_one_batch_were_in_flight(sampled, monkeypatch):
    monkeypatch.setattr(transfer, "IN_FLIGHT", 1)
    assert sampled(noise=LAUNCH) == pytest.approx(3 * LAUNCH)
