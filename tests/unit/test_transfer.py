"""Images leave a device as 8 bits, two batches at a time, and are written in order whatever waits for what."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from denoisers import at
from part_files import SETTINGS, write_part
from snapshots import recorded
from torch._subclasses.fake_tensor import FakeTensorMode

from taugrid import parquet
from taugrid.config import Sample
from taugrid.errors import NotFinite
from taugrid.hashing import digests_of
from taugrid.images import to_uint8
from taugrid.parquet import samples
from taugrid.workers.accelerator import transfer
from taugrid.workers.sample import Watched, not_finite

pytestmark = pytest.mark.usefixtures("one_thread")

TRUE = torch.tensor(True)


def between_levels():
    """The middles between two levels and all levels, with the floats next to each."""
    found = [(np.arange(511) / 255 - 1).astype(np.float32)]
    for towards in (-2, 2):
        found += [np.nextafter(found[0], np.float32(towards))]
        found += [np.nextafter(found[-1], np.float32(towards))]
    return np.concatenate(found)


def random_bits():
    """Finite floats of any size, most of them far outside [-1, 1], and many inside."""
    random = np.random.default_rng(0)
    values = random.integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    values = values[abs(values) < 1e30]  # neither NaN nor what NumPy warns of
    return np.concatenate([values, random.uniform(-1.01, 1.01, 1_000_000).astype(np.float32)])


@pytest.mark.parametrize("values", [between_levels(), random_bits()], ids=["at the limits", "anywhere"])
def test_levels_are_those_of_to_uint8_bit_for_bit(values):
    assert np.array_equal(transfer.to_grey_levels(torch.from_numpy(values)).numpy(), to_uint8(values))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_flag_says_what_8_bits_can_not(value):
    x0, watched = torch.zeros(2, 1, 3, 3), Watched(lambda x, *where: x)
    assert transfer.images_to_host(x0, TRUE, 0, 0.0).flags.tolist() == [True, True]
    x0[1, 0, 2, 2] = value
    watched(x0, at(1))
    assert transfer.images_to_host(x0, watched.answer(), 0, 0.0).flags.tolist() == [False, False]
    watched(torch.zeros(1), at(1))
    assert watched.answer(), "each batch is judged by its own calls"


def test_a_network_that_is_not_finite_says_what_to_change():
    for settings in ((Sample(precision="fp16"),), (Sample(precision="bf16"),), ()):
        recorded(str(not_finite(0, 64, *settings)))


def test_from_a_gpu_bytes_and_flags_are_copied_without_waiting_and_then_the_event_is_recorded(monkeypatch):
    """On tensors of a simulated GPU: shapes, types and devices are torch's own, no kernel runs."""
    calls, copied = [], torch.Tensor.copy_

    class Event:
        def __init__(self, blocking=False):
            self.blocking = blocking

        def record(self, stream):
            calls.append(("event", self.blocking, stream))

    def copy(self, source, non_blocking=False):
        if source.is_cuda:
            calls.append((str(self.device), str(source.device), source.dtype, non_blocking))
        return copied(self, source, non_blocking)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    with FakeTensorMode():
        x0 = torch.empty(4, 3, 8, 8, device="cuda:1")
        batch = transfer.images_to_host(x0, x0.isfinite().all(), 0, 0.0)
    copies = [("cpu", "cuda:1", dtype, True) for dtype in (torch.uint8, torch.bool)]
    assert calls == [*copies, ("event", True, "of cuda:1")], "on the stream of the GPU that has the images"
    assert (batch.pixels.shape, batch.flags.shape) == (x0.shape, (2,))
    assert {batch.pixels.device.type, batch.flags.device.type} == {"cpu"}


class Late:
    """The event of a copy that a GPU has not come to; only `synchronize` waits until the bytes are there."""

    def __init__(self, pixels, level, is_quick):
        self.pixels, self.level, self.is_quick = pixels, level, is_quick

    def query(self):
        if self.is_quick:
            self.synchronize()
        return self.is_quick

    def synchronize(self):
        self.pixels.fill_(self.level)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("quick", [(), (0,), (1, 2), (0, 1, 2, 3, 4)])
def test_a_batch_is_read_once_it_is_there_and_after_the_next_was_begun(count, quick):
    begun = []

    def batches():
        for number in range(count):
            begun.append(number)
            pixels = torch.zeros(1, dtype=torch.uint8)
            event = Late(pixels, number + 1, number in quick)
            yield transfer.ImageTransfer(number, 0.0, pixels, torch.ones(2, dtype=torch.bool), copied=event)

    for number, batch in enumerate(transfer.completed(batches())):
        assert batch.images.tolist() == [number + 1], "in order, and not before it was copied"
        assert len(begun) - number <= transfer.IN_FLIGHT
        if number not in quick and number + 1 < count:
            assert len(begun) == number + 2, "the next is under way while this one is waited for"
    assert len(begun) == count


def test_seconds_of_batches_in_flight_together_count_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(transfer.time, "perf_counter", lambda: now[0])
    clock, batch = transfer.Clock(), transfer.images_to_host(torch.zeros(1, 1, 1, 1), TRUE, 0, 0.0)
    for began, done in ((10.0, 15.0), (12.0, 18.0), (30.0, 31.0)):
        now[0] = done
        clock.completed(replace(batch, began=began))
    assert clock.seconds == (18 - 10) + (31 - 30)


def written(path, batches):
    return write_part(path, batches, 7).read_bytes()


@pytest.mark.parametrize("slow", [False, True])
def test_a_file_has_the_bytes_that_one_thread_would_write(tmp_path, monkeypatch, slow):
    """Also if the thread with the first half of each batch takes longest."""
    images = np.random.default_rng(0).integers(0, 256, (1100, 1, 4, 4), dtype=np.uint8)
    batches = np.array_split(images, 24)
    with parquet.PartWriter(tmp_path / "plain", parquet.sample_schema({"cell": SETTINGS["cell"]})) as part:
        writer = parquet.SampleWriter(part, SETTINGS, 7)
        writer.append_encoded([samples.encode_png(image) for image in images], digests_of(images))
        writer.finish()
        part.commit(replace=False)
    if slow:
        encode, firsts = samples.encode_png, {batch[0].tobytes() for batch in batches}
        pause = threading.Event()

        def late(image):
            if image.tobytes() in firsts:
                pause.wait(0.005)
            return encode(image)

        monkeypatch.setattr(samples, "encode_png", late)
    assert written(tmp_path / "threads", [*batches, images[:1][:0]]) == (tmp_path / "plain").read_bytes()


def test_whoever_brings_batches_faster_than_they_are_encoded_waits(tmp_path, monkeypatch):
    brought, came_so_far, go_on = [], threading.Event(), threading.Event()
    monkeypatch.setattr(samples, "encode_png", lambda image: go_on.wait(120) and b"")
    image = np.zeros((2, 1, 4, 4), np.uint8)

    def batches():
        for number in range(6):
            brought.append(number)
            if len(brought) > samples.MAX_WAITING_BATCHES:
                came_so_far.set()
            yield image

    thread = threading.Thread(target=written, args=(tmp_path / "x", batches()))
    thread.start()
    assert came_so_far.wait(60)
    thread.join(0.1)
    assert len(brought) == samples.MAX_WAITING_BATCHES + 1, "none waits beyond that"
    go_on.set()
    thread.join(60)
    assert len(brought) == 6


def test_an_image_that_can_not_be_encoded_leaves_no_file(tmp_path):
    good, bad = np.zeros((4, 1, 4, 4), np.uint8), np.zeros((4, 5, 4, 4), np.uint8)
    with pytest.raises((TypeError, ValueError)):
        written(tmp_path / "x", [good, bad, good, good, good])
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_asked_for_its_answer_where_nothing_is_in_flight():
    watched = Watched(lambda x, *where: x)
    watched(torch.full((2,), float("nan")), at(1))
    with pytest.raises(NotFinite, match="images 0 to 1"):
        watched.require_finite(0, 2)
