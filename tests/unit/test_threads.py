"""Threads decode large images ahead, in order and within bounds; small ones need none, and none is left behind."""

import threading
from contextlib import suppress
from itertools import count, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from snapshots import raises, recorded
from tiny import COLUMNS

from taugrid import parquet, threads
from taugrid.errors import DamagedFile
from taugrid.eval import extract
from taugrid.eval.features.resolve import resolve
from taugrid.eval.sources import batches, open_images
from taugrid.images import encode_png
from taugrid.registry.extractors import PIXELS
from taugrid.workers.data.decoding import DecodedImage, Reader, fitted
from taugrid.workers.device import Device

LIMIT = 64
"""The side of an RGB image from which on threads decode."""


@pytest.fixture(autouse=True)
def several(monkeypatch):
    """Threads, also where there is one core."""
    monkeypatch.setattr(threads, "THREADS", 3)


def decoded(decode, items, size):
    return threads.decode_each(decode, items, lambda _: size)


def of_side(side, number=40, channels=3):
    return np.random.default_rng(side).integers(0, 256, (number, channels, side, side), dtype=np.uint8)


def kept(way, folder, pngs):
    """Where encoded images are kept: in a file of a run, a folder, or a Parquet file as others write it."""
    path = folder / {"shard": "s", "folder": "f", "parquet": "p.parquet"}[way]
    if way == "parquet":
        pq.write_table(pa.table({"image": pngs}), path)
    elif way == "folder":
        path.mkdir()
        for number, png in enumerate(pngs):
            (path / f"{number:04d}.png").write_bytes(png)
    else:
        with parquet.PartWriter(path, parquet.sample_schema({"cell": "x"})) as part:
            writer = parquet.SampleWriter(part, COLUMNS, 0)
            writer.append_encoded(pngs, np.zeros(len(pngs), np.int64))
            writer.finish()
            part.commit(replace=False)
    return path


def read(way, path):
    if way == "shard":
        return np.concatenate([images for _, images in parquet.read_images(path)])
    return np.concatenate([batch.images for batch in batches(open_images(str(path)), 16)])


WAYS = ("shard", "folder", "parquet")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("side", "channels", "expected"), [(LIMIT - 1, 3, False), (LIMIT, 3, True), (LIMIT, 1, False), (111, 1, True)]
)
def test_threads_decode_large_images_alone(side, channels, expected, way, tmp_path, monkeypatch):
    decoders, opened = set(), Image.open

    def watched(*arguments, **more):
        decoders.add(threading.current_thread())
        return opened(*arguments, **more)

    images = of_side(side, channels=channels)
    monkeypatch.setattr(Image, "open", watched)
    assert np.array_equal(read(way, kept(way, tmp_path, [encode_png(image) for image in images])), images)
    assert bool(decoders - {threading.main_thread()}) is expected


def test_images_that_are_made_smaller_count_as_they_were(monkeypatch):
    decoders = set()

    def decode(side):
        decoders.add(threading.current_thread())
        return DecodedImage("x", of_side(side, 1)[0], lossy=False)

    for side, expected in ((LIMIT, True), (LIMIT - 1, False)):
        reader = Reader(9, lambda first, side=side: [side] * (9 - first), decode)
        assert {found.pixels.shape for found in fitted(reader, (3, 8, 8), 9)} == {(3, 8, 8)}
        assert bool(decoders - {threading.main_thread()}) is expected
        decoders.clear()


def test_threads_that_end_out_of_order_change_no_order():
    """The second task is done last here; what yields first what is done first would mix the images."""
    second, images = threading.Event(), threads.MAX_IMAGES_PER_TASK

    def decode(item):
        if item == 1:
            assert second.wait(timeout=60), "nothing ran beside the first task"
        elif item > images:
            second.set()
        return item

    assert list(decoded(decode, range(400), threads.LARGE_BYTES)) == list(range(400))


@pytest.mark.parametrize(("size", "of_a_task"), [(threads.LARGE_BYTES, 32), (2**18, 4), (2**20 + 1, 1), (2**30, 1)])
def test_what_is_decoded_ahead_is_bounded_in_images_and_bytes(size, of_a_task):
    begun, beginning = [], threading.Semaphore(0)
    reader = decoded(lambda item: begun.append(item) or beginning.release(), range(10_000), size)
    list(islice(reader, 2))
    most = 1 + (2 * threads.THREADS + 1) * of_a_task
    assert all(beginning.acquire(timeout=60) for _ in range(most))
    reader.close()
    assert len(begun) == most


def test_the_next_value_is_made_while_the_last_one_is_used():
    made, wanted = [], threading.Event()

    def values():
        for number in range(4):
            made.append((number, threading.current_thread() is threading.main_thread()))
            if number == 1:
                assert wanted.wait(60)
            yield number

    found = threads.one_ahead(values())
    assert next(found) == 0
    wanted.set()  # had it been awaited before the first value was handed over, this would never come
    assert list(found) == [1, 2, 3]
    assert made == [(number, False) for number in range(4)]
    assert list(threads.one_ahead(iter(()))) == []


@pytest.mark.parametrize("side", [8, LIMIT])
@pytest.mark.parametrize(
    ("way", "broken"), [("folder", 0), ("folder", 37), ("parquet", 1), ("parquet", 37), ("shard", 20)]
)
def test_a_broken_image_is_the_same_line_with_and_without_threads(side, way, broken, tmp_path, monkeypatch):
    pngs, told = [encode_png(image) for image in of_side(side)], set()
    pngs[broken] = pngs[broken][: len(pngs[broken]) // 2]
    path = kept(way, tmp_path, pngs)
    for large in (0, 10**9):
        monkeypatch.setattr(threads, "LARGE_BYTES", large)
        with pytest.raises(DamagedFile) as caught:
            read(way, path)
        told.add(str(caught.value))
    [line] = told
    recorded(line)


def gone(before):
    """Whether all threads that were not there before end, each within a minute."""
    while others := set(threading.enumerate()) - before:
        thread = others.pop()
        with suppress(RuntimeError):  # it has not begun yet
            thread.join(60)
        if thread.is_alive():
            return False
    return True


@pytest.mark.parametrize("fails", ["extractor", "image", "nothing"])
def test_a_job_leaves_no_threads_behind(fails, tmp_path):
    spec, before = resolve(PIXELS, "any", None, (3, LIMIT, LIMIT)), set(threading.enumerate())
    pngs = [encode_png(image) for image in of_side(LIMIT, 300)] * 4
    if fails == "image":
        pngs[1100] = b"no picture"
    path = kept("shard", tmp_path, pngs)
    device, job = Device("cpu"), extract.ExtractJob(str(tmp_path / "x"), str(path), None, spec, 50, {"cell": "x"})
    calls = count()

    def extractor(images):
        if next(calls) == 3:
            raise RuntimeError("the extractor fails")

    if fails == "extractor":
        device.extractor(spec, lambda: extractor)
    if fails == "nothing":
        assert extract.run(job, device).images == 1200
    else:
        with raises((RuntimeError, DamagedFile)):
            extract.run(job, device)
    assert gone(before)


def test_a_reader_that_is_left_does_not_wait_for_its_threads():
    """The garbage collector may close it in a thread that is about to start; to wait there is a deadlock."""
    begun, hold, before = threading.Event(), threading.Event(), set(threading.enumerate())

    def work(item):
        if item:
            begun.set()
            assert hold.wait(60)
        return DecodedImage(str(item), np.zeros((3, LIMIT, LIMIT), np.uint8), lossy=False)

    reader = Reader(200, lambda first: range(first, 200), work).images()
    assert next(reader).name == "0"
    waiting = threading.Thread(target=lambda: next(reader, None), daemon=True)
    waiting.start()
    assert begun.wait(60)
    hold.set()
    waiting.join(60)
    hold.clear()
    closing = threading.Thread(target=reader.close, daemon=True)
    closing.start()
    closing.join(30)
    waits = closing.is_alive()
    hold.set()
    assert not waits
    assert gone(before)
