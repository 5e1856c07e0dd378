"""A worker commits a shard and dies unheard; the copy made by another one has other bytes, or the file is not whole.

Defect 11, the patch that these tests fail with: `Loop._judge` raises `FileConflict` for every conflict.
"""

import errno
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from in_process import CONFIG, PoolHere, drive, flip, small_run
from snapshots import recorded

from taugrid.eval import extract, score_cell
from taugrid.orchestrator.dispatch import pool
from taugrid.orchestrator.dispatch.pool import Joined, Lost
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import LocalStorage, replacing
from taugrid.workers.actor import Worker

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

GPU = "NVIDIA A100-SXM4-80GB"


class DiesUnheard(PoolHere):
    """Its first worker commits its first shard, whose bytes only it makes, and dies without a word."""

    devices = (GPU, "cpu")
    processors = ("one model", "one model")
    kind = "sample"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._started, self._dead = 0, False

    def start(self, avoid=()):
        worker = f"worker-{self._started}"
        number = min(self._started, 1)
        info = self._worker.check_health(self._probe)
        info = replace(info, device=self.devices[number], processor=self.processors[number])
        self._started += 1
        self._events.append(Joined(worker, info))
        return worker

    def submit(self, worker, job, key):
        if worker != "worker-0" or not key.startswith(f"{self.kind}/"):
            super().submit(worker, job, key)
        elif not self._dead:
            self._dead = True
            self.commit_other_bytes(job)
            self.spoil(job)
            self._events.append(Lost(worker, "it died", False))

    def commit_other_bytes(self, job):
        seed = {"seed": job.settings.seed + 1}  # stands for a device that rounds differently
        Worker(1).do(replace(job, settings=job.settings.model_copy(update=seed)))

    def spoil(self, job):
        pass

    def kill(self, worker):
        pass


class InSmallerBatches(extract.InBatches):
    """Stands for batches that were halved, after which features differ in the last digits."""

    def __call__(self, images):
        for extraction in super().__call__(images):
            with torch.inference_mode():
                extraction.features.mul_(1.000001)
            yield extraction


def extract_in_smaller_batches(pool, job):
    with mock.patch.object(extract, "InBatches", InSmallerBatches):
        Worker(1).do(job)


def flip_a_bit(pool, job):
    data = job.storage.read(Path(job.path))
    with replacing(Path(job.path), job.storage) as temporary:
        temporary.write_bytes(data)
        flip(temporary)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return tmp_path / "run", LocalStorage(tmp_path / "run")


@pytest.fixture
def run_of(place, tmp_path, monkeypatch):
    """Drives a run whose first worker dies unheard; returns the outcome, what was printed, and the run directory."""

    def run(config=CONFIG, **attributes):
        root, storage = place
        with small_run(tmp_path, config) as opened:
            monkeypatch.setattr(pool, "Pool", type("Planted", (DiesUnheard,), attributes))
            outcome, printed = drive(opened, root, storage)
            return outcome, printed, replace(opened, rundir=RunDir(root, storage))

    return run


def events_of(run, name):
    return [event for event in read_events(run.rundir) if event["event"] == name]


@pytest.mark.long
def test_of_two_kinds_of_device_the_first_to_commit_counts(run_of):
    outcome, printed, run = run_of()
    assert outcome.missing == {}
    assert [event["worker"] for event in events_of(run, "failed")] == ["worker-0"], "its death, and no other failure"
    [noted] = events_of(run, "other bytes")
    assert (noted["device"], noted["first"]) == ("cpu", [GPU])
    assert printed.count("made twice") == 1
    cell = noted["task"].split("/")[1]
    assert {shard["cell"] for shard in events_of(run, "shard") if not shard["own"]} == {cell}
    assert not RunHistory.read(run.rundir).origin(cell).is_known
    assert list(verify(run, lambda images: None)[0]) == []
    assert "damaged" not in printed


@pytest.mark.long
def test_of_two_equal_workers_one_is_wrong_and_the_shard_is_an_error(run_of):
    outcome, printed, run = run_of(devices=("cpu", "cpu"))
    assert len(outcome.missing) == 1
    recorded(printed.partition(".parquet ")[2].partition(" (details")[0])
    assert events_of(run, "other bytes") == []


@pytest.mark.long
def test_two_models_of_cpu_are_not_equal_workers(run_of):
    """Their vectors are equally wide, so their `device` is the same; the patch: `processor` is not recorded."""
    outcome, _, run = run_of(devices=("cpu", "cpu"), processors=("one model", "another model"))
    assert outcome.missing == {}
    assert len(events_of(run, "other bytes")) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["extract", "reference"])
def test_features_of_equal_workers_may_differ_because_memory_decides_the_size_of_a_batch(run_of, kind):
    """Defect 11. The patch: `if not others` alone in `Loop._judge`."""
    outcome, printed, run = run_of(devices=("cpu", "cpu"), kind=kind, commit_other_bytes=extract_in_smaller_batches)
    assert outcome.missing == {}
    [noted] = events_of(run, "other bytes")
    assert noted["task"].startswith(kind)
    recorded(printed, "decides")


@pytest.mark.long
def test_a_first_copy_that_is_not_whole_does_not_count(run_of):
    outcome, printed, run = run_of(spoil=flip_a_bit)
    assert len(outcome.missing) == 1
    recorded(printed.partition(".parquet ")[2].partition(" (details")[0])
    assert events_of(run, "other bytes") == []


def influences_of_another_device(pool, job):
    """It writes them, but dies before it writes the score."""
    read = score_cell.read_stream
    with (
        mock.patch.object(score_cell, "read_stream", lambda *given: lambda: (1.000001 * x for x in read(*given)())),
        mock.patch.object(score_cell, "write_sealed", side_effect=OSError(errno.EIO, "planted", job.path)),
        suppress(OSError),
    ):
        Worker(1).do(job)


def test_influences_whose_worker_died_before_it_wrote_the_score_do_not_block_the_cell(run_of):
    config = CONFIG.replace("num_samples: 20, batch_size: 10, shard_evaluations: 20", "num_samples: 200")  # for errors
    outcome, printed, run = run_of(config, kind="score", commit_other_bytes=influences_of_another_device)
    assert outcome.missing == {}
    assert [event["worker"] for event in events_of(run, "failed")] == ["worker-0"], "its death, and no other failure"
    assert "mounted" not in printed
    assert len(run.rundir.storage.list(run.rundir.scores, "*.parquet")) == 2
    assert list(verify(run, lambda images: None)[0]) == []


class KilledAtACopy(PoolHere):
    """Stands for a worker that is killed while it writes the copy of a shard that another one has done."""

    def submit(self, worker, job, key):
        super().submit(worker, job, key)
        path = Path(job.path)
        path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp").touch()


@pytest.mark.parametrize(("is_left", "by_force"), [(False, False), (True, False), (True, True)])
def test_what_a_killed_copy_has_written_is_removed_once_nobody_can_write_it(tmp_path, monkeypatch, is_left, by_force):
    """Workers of a driver whose directory was taken by force may need theirs."""
    rundir = RunDir(tmp_path / "run")
    if is_left:
        with rundir.lock():
            lease = rundir.lease.read_bytes()
        rundir.lease.write_bytes(lease)
    with small_run(tmp_path) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(pool, "Pool", KilledAtACopy)
            Session(replace(opened, rundir=rundir), "local", Progress.silent()).do(("sample", "evaluate"), by_force)
        assert bool(list(rundir.root.rglob(".part-*.tmp"))) == by_force
        drive(opened, rundir.root, rundir.storage)
    assert not list(rundir.root.rglob(".*.tmp"))
