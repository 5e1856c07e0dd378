"""An interrupted driver: workers commit the whole batches of their shards, and the message counts them."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from in_process import CONFIG, PoolHere, drive, results, small_run
from snapshots import recorded

from taugrid import parquet
from taugrid.errors import NotCommitted
from taugrid.jobs import Result
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch import loop, pool
from taugrid.orchestrator.rundir import directory
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.storage import LocalStorage
from taugrid.workers.actor import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_SHARD = CONFIG.replace("num_samples: 20", "num_samples: 45").replace(
    "shard_evaluations: 20", "shard_evaluations: 200"
)
"""Of each cell: four whole batches of 10, and one of 5."""


class Interrupted(PoolHere):
    """A pool whose driver hears Ctrl-C while the first shard is sampled, and stops it after so many `batches`."""

    batches = 0

    def submit(self, worker, job, key):
        if key.startswith("sample/"):
            self.job, self.worker_of_job, self.key = job, worker, key
        else:
            super().submit(worker, job, key)

    def events(self, timeout_seconds):
        if getattr(self, "job", None) is not None and not self._events:
            raise KeyboardInterrupt
        yield from super().events(timeout_seconds)

    def stop(self):
        with stopped_after(self._worker, self.batches):
            super().submit(self.worker_of_job, self.job, self.key)
            self.job = None
        return [self.key]


@contextmanager
def stopped_after(worker, batches):
    """Stop the job of a worker after so many batches."""
    with pytest.MonkeyPatch.context() as patch:
        append, appended = parquet.SampleWriter.append, []

        def stopping(encoding, images, *latents):
            append(encoding, images, *latents)
            appended.append(len(images))
            if len(appended) == batches:
                worker.stop()

        patch.setattr(parquet.SampleWriter, "append", stopping)
        if not batches:
            worker.stop()
        yield


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Interrupts a run after so many batches of its first shard; returns it, its storage and what the user is told."""

    def run(batches):
        monkeypatch.setattr(Interrupted, "batches", batches)
        storage = LocalStorage(tmp_path / "run")
        with small_run(tmp_path, ONE_SHARD) as opened:
            with monkeypatch.context() as patch:
                patch.setattr(pool, "Pool", Interrupted)
                with pytest.raises(KeyboardInterrupt):
                    drive(opened, tmp_path / "run", storage)
            return opened, storage, ending.interrupted()

    monkeypatch.setattr(loop, "KEEP_SECONDS", 60.0)  # its worker begins to work after that time has begun
    ending.begin()
    yield run
    ending.begin()


def test_whole_batches_are_kept_and_the_same_command_goes_on_from_them(interrupted, tmp_path):
    opened, storage, told = interrupted(2)
    recorded(told, "progress")
    [part] = (tmp_path / "run/samples").glob("*/part-*.parquet")
    found = parquet.inspect(part)
    assert (found.start, found.stop) == (0, 20)
    with small_run(tmp_path, ONE_SHARD):
        drive(opened, tmp_path / "run", storage)
        drive(opened, tmp_path / "undisturbed", LocalStorage(tmp_path / "undisturbed"))
    assert results(tmp_path / "run") == results(tmp_path / "undisturbed")
    shards = [line for line in read_events(RunDir(tmp_path / "run")) if line["event"] == "shard"]
    made = [(line["images"], line["copied"], line["evaluations"]) for line in shards if line["cell"] in str(part)]
    assert made == [(20, 0, 40), (25, 20, 50)], "and who made them, in both sessions"


def test_without_a_whole_batch_nothing_is_kept_and_it_is_said(interrupted, tmp_path):
    _, _, told = interrupted(0)
    assert ": 0 images kept; " in told
    recorded(told, "continue")
    assert not list((tmp_path / "run/samples").glob("*/part-*.parquet"))
    assert not list((tmp_path / "run/samples").glob("*/.*.tmp"))


def test_a_shard_that_ends_meanwhile_is_done(interrupted, tmp_path):
    opened, _, told = interrupted(5)
    recorded(told, "images")
    rundir = RunDir(tmp_path / "run")
    cells, listing = opened.plan.cells, Listing(rundir)
    done = [shard for cell in cells for shard in rundir.sampled(cell, None, True, pytest.fail, listing)]
    assert len(done) == 1


def test_a_driver_that_lost_its_directory_keeps_nothing(interrupted, tmp_path, monkeypatch):
    """The directory is another driver's by then."""
    monkeypatch.setattr(ending, "failure", "taken over")
    recorded(interrupted(2)[2])
    assert not list((tmp_path / "run/samples").glob("*/part-*.parquet"))


class TakenAway(PoolHere):
    """A pool whose worker is stopped after so many `batches` of its first shard; another one follows it."""

    batches, stopped = 0, False

    def submit(self, worker, job, key):
        stops = key.startswith("sample/") and not self.stopped
        with stopped_after(self._worker, self.batches) if stops else nullcontext():
            super().submit(worker, job, key)
        if stops:
            self.stopped, self._worker = True, Worker(1)


@pytest.mark.parametrize(("batches", "made"), [(2, [(20, 0), (25, 20)]), (0, [(45, 0)])])
def test_a_shard_that_is_given_back_is_not_done_and_goes_on_from_what_is_kept(tmp_path, monkeypatch, batches, made):
    """The node of its worker will be taken away: in the same session another worker does the rest."""
    monkeypatch.setattr(TakenAway, "batches", batches)
    with small_run(tmp_path, ONE_SHARD) as opened:
        drive(opened, tmp_path / "undisturbed", LocalStorage(tmp_path / "undisturbed"))
        monkeypatch.setattr(pool, "Pool", TakenAway)
        drive(opened, tmp_path / "run", LocalStorage(tmp_path / "run"))
    assert results(tmp_path / "run") == results(tmp_path / "undisturbed")
    lines = list(read_events(RunDir(tmp_path / "run")))
    shards = [line for line in lines if line["event"] == "shard"]
    first = next(line["task"] for line in lines if line.get("task", "").startswith("sample/"))
    of_first = [line for line in shards if first.split("/")[1] == line["cell"]]
    assert [(line["images"], line["copied"]) for line in of_first] == made
    assert [line["task"] for line in lines if line["event"] == "given back"] == ([] if batches else [first])
    assert not [line for line in lines if line["event"] == "failed"]


class Copied(TakenAway):
    """A pool where another worker makes so many batches of the shard too, and commits them `first`, or after it."""

    batches, first, others = 2, False, 5

    def submit(self, worker, job, key):
        copies = key.startswith("sample/") and not self.stopped
        if copies and self.first:
            self._copy(job)
        super().submit(worker, job, key)
        if copies and not self.first:
            assert self._copy(job).created_file
        if copies:
            assert parquet.inspect(Path(job.path), storage=job.storage).stop == min(10 * self.others, job.stop)

    def _copy(self, job):
        with stopped_after(self._worker, self.others):
            result = self._worker.do(job)
        self._worker = Worker(1)
        return result


@pytest.mark.long
@pytest.mark.parametrize(
    ("images", "first", "others", "place"),
    [(45, True, 5, ""), (45, False, 5, ""), (45, True, 4, ""), (40, False, 4, ""), (45, False, 5, "s3")],
)
def test_a_part_never_takes_the_place_of_a_longer_copy(request, tmp_path, monkeypatch, images, first, others, place):
    """Nor are those of its whole batches that the part lacks made again. In a bucket, only the size tells the two."""
    root, storage = request.getfixturevalue("bucket") if place else (tmp_path / "run", LocalStorage(tmp_path / "run"))
    monkeypatch.setattr(Copied, "first", first)
    monkeypatch.setattr(Copied, "others", others)
    with small_run(tmp_path, ONE_SHARD.replace("45", str(images))) as opened:
        drive(opened, tmp_path / "undisturbed", LocalStorage(tmp_path / "undisturbed"))
        monkeypatch.setattr(pool, "Pool", Copied)
        drive(opened, root, storage)
    undisturbed = results(tmp_path / "undisturbed")
    assert {name: storage.read(root / name) for name in undisturbed} == undisturbed
    lines = list(read_events(RunDir(root, storage)))
    [given_back] = [line for line in lines if line.get("given_back")]
    of_shard = [line for line in lines if line["event"] == "shard" and line["cell"] == given_back["cell"]]
    assert [(line["images"], line["copied"]) for line in of_shard] == [(20, 0), {45: (5, 40), 40: (10, 30)}[images]]
    assert not [line for line in lines if line["event"] == "failed"], "nor is its worker charged"


def test_a_part_that_the_driver_sees_too_late_is_confirmed_by_a_longer_copy_and_by_nothing_else(tmp_path, monkeypatch):
    """Planted once each: any other size is a fault; any file is a copy; what is found is said to be the part."""
    monkeypatch.setattr(directory, "DISK_PAUSES", (0.0,))
    job = SimpleNamespace(path=str(tmp_path / "part.parquet"), storage=LocalStorage(tmp_path), run_id=None)

    def written(stop, cell="a"):
        Path(job.path).unlink(missing_ok=True)
        schema = pa.schema([("index", pa.int64())], metadata={b"taugrid": json.dumps({"cell": cell}).encode()})
        with parquet.PartWriter(Path(job.path), schema) as part:
            part.write({"index": np.arange(stop)})
            part.commit(replace=False)
        return Result(0.0, stop, True, size=Path(job.path).stat().st_size, part=part.content)

    part = written(20)
    whole = written(45)
    assert directory.confirm(job, part).part == whole.part
    for other in ((45, "b"), (10, "a")):
        written(*other)
        with pytest.raises(NotCommitted, match=f"bytes, not {part.size}"):
            directory.confirm(job, part)
