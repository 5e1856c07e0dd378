"""Small images that a GPU samples are encoded in another process (defect 7): its bytes, its errors, its end."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from snapshots import raises
from tiny import COLUMNS, job_of

from taugrid import parquet
from taugrid.errors import Stopped, is_environment_error
from taugrid.images import encode_png
from taugrid.parquet import samples
from taugrid.parquet.samples import EncodingProcess
from taugrid.workers import sample
from taugrid.workers.device import Device


def images(side=8, number=20, channels=3):
    return np.random.default_rng(0).integers(0, 256, (number, channels, side, side), dtype=np.uint8)


@pytest.fixture
def process():
    found = EncodingProcess()
    yield found
    found.close()


def test_its_bytes_are_those_of_this_process_and_its_errors_are_passed_on(process):
    for some in (images(), images(channels=1), images()[:0]):
        assert process(some) == [encode_png(image) for image in some]
    number = process.pid
    with pytest.raises(TypeError) as expected:
        encode_png(images(channels=5)[0])
    with pytest.raises(TypeError) as raised:
        process(images(channels=5))
    assert str(raised.value) == str(expected.value)
    assert process(images()) == [encode_png(image) for image in images()]
    assert process.pid == number != os.getpid()


def test_if_it_is_killed_that_is_the_nodes_fault_and_another_takes_its_place(process):
    process(images())
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with raises(BrokenPipeError) as raised:
        process(images())
    assert is_environment_error(raised.value)
    assert process(images()) == [encode_png(image) for image in images()]


PARENT = """
import time
import numpy as np
from taugrid.parquet.samples import encode_elsewhere
encode_elsewhere(np.zeros((1, 1, 4, 4), np.uint8))
print(encode_elsewhere.pid, flush=True)
time.sleep(240)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the end of another's child is seen by its descriptor")
def test_it_ends_with_its_worker_however_that_ends_and_has_no_torch():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        ends = os.pidfd_open(child)
        assert "torch" not in Path(f"/proc/{child}/maps").read_text()
        os.kill(child, signal.SIGINT)  # Ctrl-C is not for it
        parent.kill()
        assert select.select([ends], [], [], 60)[0], "it lives on"
        os.close(ends)


def written(path, some, launching):
    with parquet.PartWriter(path, parquet.sample_schema({"cell": "x"})) as part:
        with parquet.SampleWriter(part, COLUMNS, 7, launching) as writer:
            for start in range(0, len(some), 8):
                writer.append(some[start : start + 8])
            writer.finish()
        part.commit(replace=True)
    return path.read_bytes()


@pytest.mark.parametrize(("side", "elsewhere"), [(8, True), (64, False)])
def test_small_images_beside_launches_are_encoded_elsewhere_with_the_same_bytes(
    tmp_path, monkeypatch, process, side, elsewhere
):
    """Defect 7: with `encode = _encoded` in `SampleWriter.append`, they share Python's lock with the launches."""
    asked = []
    monkeypatch.setattr(samples, "encode_elsewhere", lambda some: asked.append(len(some)) or process(some))
    here = written(tmp_path / "here", images(side), False)
    assert asked == [], "a CPU's worker launches nothing"
    assert written(tmp_path / "there", images(side), True) == here
    assert sum(asked) == (20 if elsewhere else 0)


def test_what_could_not_be_encoded_elsewhere_leaves_no_file(tmp_path, monkeypatch, process):
    monkeypatch.setattr(samples, "encode_elsewhere", process)
    with pytest.raises(TypeError):
        written(tmp_path / "x", images(channels=5), True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device", "launching"), [("cpu", False), ("cuda:1", True), ("mps", True)])
def test_a_shard_is_encoded_elsewhere_if_an_accelerator_samples_it(tmp_path, monkeypatch, device, launching):
    """Defect 7: without `launching` in `sample_shard`, no worker does so."""
    asked = []

    def writing(*given, launching, labels):
        asked.append(launching)
        raise Stopped

    monkeypatch.setattr(parquet, "SampleWriter", writing)
    with pytest.raises(Stopped):
        sample.sample_shard(job_of(str(tmp_path / "x"), (3, 8, 8), 10, 20), None, Device(device))
    assert asked == [launching]
