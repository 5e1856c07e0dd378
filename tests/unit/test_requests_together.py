"""The driver in a bucket: what ended in one turn is looked at and written down together, and each file fails alone."""

import io
import re
import threading
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from buckets import quick_retries
from in_process import CONFIG, drive, small_run
from rich.console import Console

from taugrid import parquet
from taugrid.config import Cluster, Config, validate
from taugrid.errors import BrokenAccelerator, RunFailed, StoreError
from taugrid.jobs import Result, WorkerInfo
from taugrid.orchestrator import ending
from taugrid.orchestrator.dispatch import loop
from taugrid.orchestrator.dispatch.capacity import Node, Size
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined, Located
from taugrid.orchestrator.dispatch.worker_manager import Outputs, WorkerManager
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.rundir.evidence import read_influences
from taugrid.orchestrator.rundir.ledger import Ledger
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import LocalStorage, end_session, files, open_place, pieces, together

FILES = 20
WAIT_SECONDS = 20.0


class Crowd:
    """Requests of a kind that wait for each other, `size` at a time: one after another, they would be late."""

    def __init__(self, size, belongs):
        self._barrier, self._belongs, self._lock = threading.Barrier(size), belongs, threading.Lock()
        self.late, self.came, self.asked = [], Counter(), 0

    def __call__(self, method, path):
        belongs, folder = self._belongs(method, path), path.partition("/run/")[2].split("/")[0]
        with self._lock:
            self.came[f"{method} {folder} {Path(path).suffix}"] += 1
            self.asked += bool(belongs)
        if belongs:
            try:
                self._barrier.wait(WAIT_SECONDS)
            except threading.BrokenBarrierError:
                self.late.append(path)


class Workers:
    """A pool of `FILES` workers. What they were given is done when the driver next asks, all of it in one turn."""

    size, scorer = Size(1, 0), None

    def __init__(self, template, spoiled=lambda job: False, began=lambda worker, key: None, first=()):
        self._template, self._spoiled, self._began, self._first = template, spoiled, began, list(first)
        self._first_turn = 2 * len(self._first)
        self._events, self._started = [], 0

    def nodes(self):
        return [Node("here", FILES, 0)]

    def start(self, avoid=()):
        worker = f"worker-{self._started}"
        self._started += 1
        self._events += [Located(worker, "here", "here"), Joined(worker, WorkerInfo("here", "cpu", {}, "here"))]
        return worker

    def submit(self, worker, job, key):
        self._began(worker, key)
        conflict = self._spoiled(job)
        if conflict is not True:
            with job.storage.temporary(Path(job.path)) as temporary:
                temporary.write_bytes(self._template.read_bytes())
                job.storage.commit(Path(job.path), temporary)
        part = parquet.PartSummary(job.start, job.stop, {"cell": "c"})
        said = {"conflict": conflict} if isinstance(conflict, str) else {}
        result = Result(1.0, 1, True, size=self._template.stat().st_size, part=part, **said)
        self._events.append(self._first.pop()(worker, key) if self._first else Done(worker, result, key))

    def check_health(self, worker):
        self._events.append(Joined(worker, WorkerInfo("here", "cpu", {}, "here")))

    def kill(self, worker):
        pass

    def stop(self):
        return []

    def events(self, timeout_seconds):
        of_jobs = sum(isinstance(event, Done | Failed) for event in self._events)
        if 0 < of_jobs < self._first_turn:  # the first jobs end together
            return
        events, self._events, self._first_turn = self._events, [], self._first_turn if not of_jobs else 0
        yield from events


@pytest.fixture
def template(tmp_path):
    with parquet.PartWriter(tmp_path / "template.parquet", parquet.number_schema({}, ["x"])) as part:
        part.write({"index": [0], "x": [1.0]})
        part.commit(replace=False)
    return tmp_path / "template.parquet"


class Driver:
    def __init__(self, root, storage, pool, monkeypatch, shards=FILES, tasks=None):
        ending.begin()  # another test of this process may have ended its driver
        monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
        values = {"name": "together", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"},
                  "sample": {"seed": 0, "num_samples": shards, "batch_size": 1, "shard_evaluations": 1},
                  "grid": {"steps": [2]}}  # fmt: skip
        config = validate(Config, values, "test")
        planned = plan(config)
        self.rundir, self.storage = RunDir(root, storage), storage
        self.rundir.claim()
        self.rundir.ledger.keep()
        for model in planned.models:
            self.rundir.record_model(model)
        survey = Survey(Run(config, planned, self.rundir), None, frozenset({"sample"}), lambda damage: None)
        self.tasks = tasks or {task.key: task for task in SampleWork(survey).tasks()}
        self.events, self.committed = Events(self.rundir), self.rundir.committed
        progress = Progress(Console(file=io.StringIO()))
        outputs = Outputs(progress, self.events, lambda name, text: root, lambda files: self.committed(files))
        self.loop = Loop(self.tasks, work_kinds(), pool, None, False, Cluster(), outputs)

    @property
    def paths(self):
        return [Path(task.job.path) for task in self.tasks.values()]

    @property
    def named(self):
        """The files that the stored ledger names."""
        fresh = Ledger(self.rundir.root, self.storage)
        return {path for path in self.paths if fresh.find(path, self._version(path)) is not None}

    def _version(self, path):
        return self.storage.stat(path).version if self.storage.exists(path) else ""

    def recorded(self, event):
        return [record for record in read_events(self.rundir) if record["event"] == event]


def is_look(method, path):
    return method in ("GET", "HEAD") and "/samples/" in path


def test_what_ends_in_one_turn_is_looked_at_and_written_together(bucket, s3, template, monkeypatch):
    """Each request waits until all that belong together are at the store: one after another, none would pass."""
    root, storage = bucket
    driver = Driver(root, storage, Workers(template), monkeypatch)
    looks = Crowd(FILES, is_look)
    writes = Crowd(2, lambda method, path: method == "PUT" and re.search("ledger.jsonl|/events/", path) and looks.asked)
    with s3.refusing(lambda *request: looks(*request) or writes(*request)):
        assert driver.loop.run() == {}
    assert looks.late + writes.late == []
    assert (looks.asked, writes.came["PUT ledger.jsonl .jsonl"]) == (FILES, 1), "one request a file, and one for all"
    assert driver.named == set(driver.paths)
    assert len(driver.recorded("shard")) == FILES


@pytest.mark.long
@pytest.mark.parametrize("fault", ["503", "missing", "conflict"])
def test_one_file_of_twenty_that_fails_does_not_touch_the_others(bucket, s3, template, monkeypatch, fault):
    """Planted once: `confirm` not called for the files of a batch but the first; then `missing` is in the ledger."""
    quick_retries(monkeypatch)
    monkeypatch.setattr("taugrid.orchestrator.rundir.directory.DISK_PAUSES", (0.001,) * 3)
    root, storage = bucket
    spoils = {"503": [], "missing": [True], "conflict": ["is damaged"]}[fault]
    bad = "part-000007"
    pool = Workers(template, lambda job: spoils.pop() if bad in job.path and spoils else False)
    driver = Driver(root, storage, pool, monkeypatch)
    answers = [(503, "SlowDown")] * 2 if fault == "503" else []
    seen, before = [], driver.committed
    driver.committed = lambda files: [seen.append({path.name for path, _, _ in files}), before(files)]
    with s3.refusing(lambda method, path: answers.pop() if answers and is_look(method, path) and bad in path else None):
        assert driver.loop.run() == {}
    assert answers == spoils == []
    others = {path.name for path in driver.paths if bad not in path.name}
    assert seen == ([others | {f"{bad}.parquet"}] if fault == "503" else [others, {f"{bad}.parquet"}])
    failed = [event["task"].split("/")[-1] for event in driver.recorded("failed")]
    assert failed == ([] if fault == "503" else ["7"])
    assert driver.named == set(driver.paths)


def test_a_look_that_is_refused_for_good_ends_the_run_and_keeps_what_came_before(bucket, s3, template, monkeypatch):
    root, storage = bucket
    driver = Driver(root, storage, Workers(template), monkeypatch)
    order = [Path(task.job.path) for task in driver.tasks.values()]
    bad = order[7].name
    refused = s3.refusing(lambda method, path: (403, "AccessDenied") if is_look(method, path) and bad in path else None)
    with refused, pytest.raises(StoreError, match="403 AccessDenied"):
        driver.loop.run()
    assert driver.named == set(order[:7])
    assert len(driver.recorded("shard")) == 7


def test_an_assignment_is_stored_before_its_job_begins(bucket, template, monkeypatch):
    """Planted once: `_flush` after the `submit`s of `_turn`."""
    root, storage = bucket
    begun = []

    def began(worker, key):
        stored = {(event["worker"], event["task"]) for event in driver.recorded("assigned")}
        begun.append((worker, key) in stored)

    driver = Driver(root, storage, Workers(template, began=began), monkeypatch, shards=4)
    driver.loop.run()
    assert begun == [True] * 4


def test_looks_at_files_end_with_the_run(bucket, s3, template, monkeypatch):
    """Python joins their threads at its exit. Planted once: `retries.over` is not set."""
    root, storage = bucket
    driver = Driver(root, storage, Workers(template), monkeypatch)
    looked = threading.Event()

    def down(method, path):
        return looked.set() or (503, "SlowDown") if is_look(method, path) else None

    def ends(manager):
        looked.wait(WAIT_SECONDS)
        raise RunFailed("planted")

    monkeypatch.setattr(WorkerManager, "worked", ends)
    before = set(threading.enumerate())
    with s3.refusing(down):
        with pytest.raises(RunFailed, match="planted"):
            driver.loop.run()
        threads = set(threading.enumerate()) - before
        assert len(threads) > 1
        for thread in threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


@pytest.mark.parametrize("last", range(1, 12, 2))
def test_a_driver_that_dies_between_requests_has_named_only_what_it_has_seen(bucket, s3, template, monkeypatch, last):
    root, storage = bucket
    driver = Driver(root, storage, Workers(template), monkeypatch, shards=3)
    seen, requests = set(), count()

    def dies(method, path):
        if next(requests) >= last:
            return 403, "AccessDenied"
        return seen.add(Path(path).name) if is_look(method, path) else None

    with s3.refusing(dies), pytest.raises(StoreError):
        driver.loop.run()
    assert {path.name for path in driver.named} <= seen
    there = {path for path in driver.paths if storage.exists(path)}
    assigned = {event["task"] for event in driver.recorded("assigned")}
    assert there <= {Path(driver.tasks[key].job.path) for key in assigned}
    end_session(storage)
    missing = {key: task for key, task in driver.tasks.items() if Path(task.job.path) not in there}
    if missing:
        assert Driver(root, storage, Workers(template), monkeypatch, tasks=missing).loop.run() == {}
    assert all(map(storage.exists, driver.paths))


def test_what_an_interrupt_leaves_of_a_turn_is_recorded_too_and_looked_at_once(bucket, s3, template, monkeypatch):
    """Defect: what was left was asked for again."""
    root, storage = bucket
    driver = Driver(root, storage, Workers(template), monkeypatch)
    ends, worked = count(1), WorkerManager.worked

    def interrupted(manager):
        if next(ends) == 5:
            raise KeyboardInterrupt
        worked(manager)

    monkeypatch.setattr(WorkerManager, "worked", interrupted)
    monkeypatch.setattr("taugrid.orchestrator.dispatch.loop.KEEP_SECONDS", 60.0)  # it ends as soon as all are recorded
    looks = []
    noted = s3.refusing(lambda method, path: looks.append(path) if is_look(method, path) else None)
    with noted, pytest.raises(KeyboardInterrupt):
        driver.loop.run()
    assert driver.named == set(driver.paths)
    assert len(driver.recorded("shard")) == len(looks) == FILES


def test_a_shard_that_is_given_back_is_looked_at_once_and_a_late_part_of_one_that_is_done_never(
    bucket, s3, template, monkeypatch
):
    """Planted once each: `stat` for the version that the look has found; the version of a file that is not there."""

    def part(worker, key):
        start = driver.tasks[key].job.start
        content = parquet.PartSummary(start, start, {"cell": "c"})
        return Done(worker, Result(1.0, 0, True, size=template.stat().st_size, part=content), key)

    root, storage = bucket
    pool = Workers(template, first=[part])
    pool.nodes = lambda: [Node("here", 1, 0)]
    driver, looks = Driver(root, storage, pool, monkeypatch, shards=4), []
    with s3.refusing(lambda method, path: looks.append(path) if is_look(method, path) else None):
        assert driver.loop.run() == {}
        assert len(looks) == 4 + 1
        key = next(iter(driver.tasks))
        driver.loop._dispatcher.in_flight.begin("worker-0", driver.tasks[key], 0.0)
        driver.loop._handle(part("worker-0", key))
    assert len(looks) == 4 + 1
    driver.events.flush()
    assert [event.get("given_back", False) for event in driver.recorded("shard")] == [True] + 4 * [False] + [True]
    assert (driver.named, driver.recorded("failed")) == (set(driver.paths), [])


def test_what_a_worker_says_after_the_driver_has_ended_it_is_not_heard(tmp_path, template, monkeypatch):
    """Both its jobs end in one turn, the first with an error of its accelerator. Planted once: `has` is always true."""
    root = tmp_path / "run"
    root.mkdir()
    broken = BrokenAccelerator("planted")
    # The first job fails, and the second of the same worker is done
    pool = Workers(template, first=[lambda worker, key: Failed(worker, broken, "traceback", key)])
    pool.nodes = lambda: [Node("here", 1, 0)]
    driver = Driver(root, LocalStorage(root), pool, monkeypatch, shards=4)
    assert driver.loop.run() == {}
    assert driver.named == set(driver.paths)


def test_pieces_are_read_together_and_the_next_is_begun_without_a_list(bucket, s3, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 10)
    root, storage = bucket
    before = s3.requests["LIST"]
    for number in range(6):
        storage.append(root / "log", f"line {number:05d}\n".encode())
    assert s3.requests["LIST"] - before == 1
    names = pieces(storage, root / "log")
    reads = Crowd(6, lambda method, path: method == "GET")
    with s3.refusing(reads):
        read = b"".join(together(storage, storage.read, names))
    assert read.split(b"\n")[:-1] == [b"line %05d" % n for n in range(6)]
    assert (reads.late, reads.asked) == ([], 6)


def asked_by_report(s3, folder, steps):
    """The requests of the first report of a run that is done, by kind (`Crowd`), but for those of its figures."""
    root, storage = open_place(f"s3://{s3.bucket()}/run", "--out")
    config = CONFIG.replace("steps: [2]", f"steps: {steps}").replace("num_samples: 20", "num_samples: 160")
    with small_run(folder, config.replace("batch_size: 10", "batch_size: 160")) as opened:
        cells = len(opened.plan.cells)
        drive(opened, root, storage)
        crowd = Crowd(cells, lambda method, path: method == "GET" and "/scores/" in path)
        with s3.refusing(crowd):
            outcome, _ = drive(opened, root, storage, ("sample", "evaluate", "report"))
    assert [row["fid_se"] is not None for row in outcome.rows] == [True] * cells, "there are influences"
    assert crowd.late == []
    return Counter({kind: n for kind, n in crowd.came.items() if "figures" not in kind and "conditions" not in kind})


@pytest.mark.long
@pytest.mark.usefixtures("one_thread", "sketched")
def test_a_report_reads_its_cells_together_and_what_one_list_tells_is_not_asked_for_each(s3, tmp_path, monkeypatch):
    """Planted once each: influences read one after another; a record of removed images asked for each cell; samples
    that are read looked up before; provenance.json written twice."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 600.0)  # each beat has requests of its own
    few, many = asked_by_report(s3, tmp_path, [2]), asked_by_report(s3, tmp_path, [2, 3])
    assert many - few == {"GET scores .json": 2 * 3, "GET scores .parquet": 2, "GET samples .parquet": 2 * 2}
    assert few["PUT provenance.json .json"] == 1


def test_influences_that_the_ledger_lacks_are_read_together_and_written_down_once(bucket, s3, tmp_path):
    root, storage = bucket
    with small_run(tmp_path) as opened:
        rundir, cells = RunDir(root, storage), [(cell, "id") for cell in opened.plan.cells]
    rundir.ledger.keep()
    for cell, scoring in cells:
        with parquet.PartWriter(rundir.influence(cell, scoring), parquet.number_schema({}, ("b",)), storage) as part:
            part.write({"index": [0], "b": [0.0]})
            part.commit(replace=False)
    crowd = Crowd(len(cells), lambda method, path: method == "GET" and "/scores/" in path)
    with s3.refusing(crowd):
        rundir.know_influences(cells, Listing(rundir))
        rundir.know_influences(cells, Listing(rundir))
    assert crowd.late == []
    assert (crowd.came["GET scores .parquet"], crowd.came["PUT ledger.jsonl .jsonl"]) == (len(cells), 1)


def test_influences_of_many_row_groups_are_one_request(bucket, s3):
    root, storage = bucket
    n = 20_000
    with parquet.PartWriter(root / "scores/c.parquet", parquet.number_schema({}, ("influence", "b")), storage) as part:
        part.write({"index": np.arange(n), "influence": np.arange(n) / 2, "b": np.zeros(n)})
        part.commit(replace=False)
    before = s3.requests.copy()
    found = read_influences(root / "scores/c.parquet", n, ["fid", "b"], storage)
    assert s3.requests - before == {"GET": 1}
    assert np.array_equal(found["fid"], np.arange(n) / 2)


def test_the_files_of_a_report_are_uploaded_together(bucket, s3):
    root, storage = bucket
    writes = Crowd(5, lambda how, _: how == "PUT")
    with s3.refusing(writes), storage.local_folder(root / "tables") as local:
        for name in "abcde":
            (local / name).write_text(name)
    assert writes.late == []
    assert sorted(path.name for path in storage.list(root / "tables", "*")) == list("abcde")
