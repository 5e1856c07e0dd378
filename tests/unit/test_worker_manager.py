"""The worker manager and the loop, with the dispatcher behind them, on a pool and a clock that follow a script."""

import heapq
import io
import sys
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import Faulty
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console
from snapshots import raises, recorded

from taugrid.config import Cluster, Config, validate
from taugrid.errors import (
    BrokenAccelerator,
    DeviceUnusable,
    DoesNotFit,
    NotFinite,
    RunDirectoryNotVisible,
    RunFailed,
    Stopped,
    UserError,
)
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import loop, scaling, worker_manager
from taugrid.orchestrator.dispatch.capacity import Node, Size
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Alive, CpuOnly, Done, Failed, Joined, Located, Lost, Pool, _Call
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import Committed, RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import WorkKind
from taugrid.storage import LocalStorage

START_SECONDS = 5.0
TASK_SECONDS = 10.0
LONG_SECONDS = 300.0
MAX_WAIT_SECONDS = Cluster().max_wait_seconds
COSTS = {"good": 1.0, "long": LONG_SECONDS / TASK_SECONDS, "fills": 1.0, "does not fit": 1.0}
CUDA = "CUDA error: device-side assert triggered"


class Counting(WorkKind):
    name = "count"
    unit = "strokes"
    activity = "counting"
    task_in_words = ("picture", "to count")
    needs_network = False


class Painting(WorkKind):
    name = "paint"
    unit = "strokes"
    activity = "painting"
    task_in_words = ("picture", "to paint")


@dataclass(frozen=True)
class ScriptedJob(Job):
    behaviour: str = "good"


class ScriptedPool:
    """Workers on a clock of its own. `rooms` is node -> how many workers it has room for, which is what it is large
    enough for, or that for one if others have taken it all. `node_is` is node -> what ails it: `unseen`, `mute` (no
    health check is answered), `startless`, `broken` (its accelerator), `GPU` (torch can't use it) or `draining`.

    A job is `good`, `count`, `long`, `long count`, `breaks` the accelerator of its process, `kills` it, `fills`
    a GPU's memory beside what other jobs left, `does not fit` even so, or is `infinite` (`NotFinite`).
    """

    size, cpu_only, selector = Size(1, 0), None, {}
    gpus = frozenset()  # nodes that have them
    spare = {}  # node -> CPUs beyond those of its workers with GPUs  # noqa: RUF012

    def __init__(self, rooms, node_is):
        self.now, self.rooms, self.node_is = 0.0, rooms, node_is
        self.where, self.sick, self.ended = {}, set(), Counter()
        self.on_spare = set()  # workers without a GPU on a node with one
        self.free = {}  # worker -> when it will have done what it was given
        self.started = 0
        self.given = []  # (when, node) of each job
        self.gone_at = {}  # node that drains -> when it is taken away, if that is known
        self.stopped = []  # (when, worker)
        self.waiting, self._events, self._order = [], [], count()

    def then(self, when, happen):
        """Call `happen` at a time."""
        self._at(when - self.now, happen)

    def monotonic(self):
        return self.now

    def _at(self, delay, event):
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def start(self, avoid=()):
        without = {node for node in self.rooms if self.size.gpus and node not in self.gpus}
        return self._start({*avoid, *without})

    def start_cpu_only(self, node):
        return self._start({other for other in self.rooms if other != node}, node in self.gpus)

    def _start(self, avoid, on_spare=False):
        worker = f"worker-{self.started}"
        self.started += 1
        if on_spare:
            self.on_spare.add(worker)
        self.waiting.append((worker, frozenset(avoid)))
        self._place()
        return worker

    def _place(self):
        for worker, avoid in list(self.waiting):
            is_spare = worker in self.on_spare
            taken = Counter(node for other, node in self.where.items() if (other in self.on_spare) == is_spare)
            room = self.spare if is_spare else self.rooms
            allowed = [node for node in self.rooms if node not in avoid and self.node_is.get(node) != "draining"]
            free = [node for node in allowed if taken[node] < room[node]]
            if free:
                self.waiting.remove((worker, avoid))
                self.where[worker] = node = min(free, key=lambda node: taken[node])
                startless = self.node_is.get(node) == "startless"
                self._at(START_SECONDS, Lost(worker, "no memory", False) if startless else Located(worker, node, node))

    def check_health(self, worker):
        node = self.where[worker]
        ill = self.node_is.get(node)
        if ill == "GPU" and worker not in self.on_spare:
            self._at(0.1, Failed(worker, DeviceUnusable(f"node {node}: torch can't use its GPU"), "traceback"))
        elif ill == "unseen":
            self._at(0.1, Failed(worker, RunDirectoryNotVisible(f"node {node} does not see /run"), "traceback"))
        elif ill == "broken" or worker in self.sick:
            self._at(0.1, Failed(worker, RuntimeError(CUDA), "traceback"))
        elif ill != "mute":
            self._at(0.1, Joined(worker, WorkerInfo(node, "cpu", {}, node)))

    def submit(self, worker, job, key):
        self.given.append((self.now, self.where[worker]))
        wait = max(0.0, self.free.get(worker, 0.0) - self.now)
        seconds = 0.1
        if worker in self.sick or job.behaviour == "breaks":
            self.sick.add(worker)
            self._at(wait + seconds, Failed(worker, RuntimeError(CUDA), "traceback", key))
        elif job.behaviour in ("fills", "does not fit") and not job.failed_before:
            self.sick.add(worker)
            self._at(wait + seconds, Failed(worker, BrokenAccelerator("out of memory; 64 does"), "traceback", key))
        elif job.behaviour == "does not fit":
            self.sick.add(worker)
            self._at(wait + seconds, Failed(worker, DoesNotFit("256 does not fit, 64 does"), "traceback", key))
        elif job.behaviour == "kills":
            self._at(wait + seconds, Lost(worker, "it died", False))
        elif job.behaviour == "infinite":
            self._at(wait + seconds, Failed(worker, NotFinite("NaN in image 0"), "traceback", key))
        else:
            seconds = LONG_SECONDS if "long" in job.behaviour else TASK_SECONDS
            for after in range(10, int(seconds), 10):
                self._at(wait + after, Alive(worker, key, after, seconds))
            self._at(wait + seconds, Done(worker, Result(seconds, 1, True), key))
        self.free[worker] = self.now + wait + seconds

    def stop(self, workers):
        """End their jobs as a worker does that can keep nothing."""
        for worker in workers:
            self.stopped.append((self.now, worker))
            ends = [
                entry for entry in self._events if isinstance(entry[-1], Alive | Done) and entry[-1].worker == worker
            ]
            self._events = [entry for entry in self._events if entry not in ends]
            heapq.heapify(self._events)
            for key in {entry[-1].key for entry in ends}:
                self._at(0.2, Failed(worker, Stopped(), "traceback", key))

    def kill(self, worker):
        self.waiting = [(other, avoid) for other, avoid in self.waiting if other != worker]
        self.where.pop(worker, None)
        self._place()

    def nodes(self):
        if "head" in self.node_is:
            return None
        return [
            Node(
                node,
                max(1, room) + self.spare.get(node, 0),
                room if node in self.gpus else 0,
                self.node_is.get(node) == "draining",
                seconds_left=self.gone_at.get(node, inf) - self.now,
            )
            for node, room in self.rooms.items()
        ]

    def join(self, node, room):
        self.rooms[node] = room
        self._place()

    def lose(self, node):
        """A node is gone, with all that is on it."""
        del self.rooms[node]
        for worker in [worker for worker, place in self.where.items() if place == node]:
            self._at(0.0, Lost(worker, "its node has died", True))

    def events(self, timeout_seconds):
        self.now = min(self.now + timeout_seconds, self._events[0][0] if self._events else float("inf"))
        while self._events and self._events[0][0] <= self.now:
            event = heapq.heappop(self._events)[-1]
            if callable(event):
                event()
            elif event.worker in self.where:
                if isinstance(event, Lost):
                    self.kill(event.worker)
                yield event
                if isinstance(event, Located):
                    self.check_health(event.worker)


def two_cells():
    values = {"name": "two", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "sample": {"seed": 0}}
    return plan(validate(Config, values | {"grid": {"steps": [2, 5]}}, "test")).cells


class Scripted:
    """A run of tasks that behave as told, of two cells in turns."""

    def __init__(self, monkeypatch, root, behaviours, rooms, node_is, workers, embedded):
        self.pool = ScriptedPool(rooms, node_is)
        monkeypatch.setattr(worker_manager, "time", self.pool)
        monkeypatch.setattr(loop, "time", self.pool)
        monkeypatch.setattr(scaling, "time", self.pool)
        there = Committed(Path("unused"), "", None)
        monkeypatch.setattr(loop, "confirm", lambda job, result: there)  # there are no files
        tasks, cells = {}, two_cells()
        for number, behaviour in enumerate(behaviours):
            cost = COSTS.get(behaviour, 9.0)  # bad ones first
            kind = "count" if behaviour.endswith("count") else "paint"
            key, job = f"{kind}/{number}", ScriptedJob("unused", behaviour=behaviour)
            tasks[key] = Task(key, kind, cost, cell=cells[number % 2], given=job)
        root.mkdir()
        self.printed, self.rundir = io.StringIO(), RunDir(root)
        progress = Progress(Console(file=self.printed, soft_wrap=True))
        events = Events(self.rundir)
        outputs = Outputs(progress, events, lambda name, text: root)
        self.loop = Loop(tasks, [Painting, Counting], self.pool, workers, embedded, Cluster(), outputs)

    def run(self):
        self.problems = self.loop.run()
        return self.loop._dispatcher

    @property
    def events(self):
        return read_events(self.rundir)

    def said(self, words):
        return self.printed.getvalue().count(words)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Makes a run; it must end within a simulated day."""

    def make(behaviours, rooms=None, node_is=None, workers=1, embedded=False):
        rooms = {"n0": 1} if rooms is None else rooms
        run = Scripted(monkeypatch, tmp_path / "run", behaviours, rooms, node_is or {}, workers, embedded)
        events = run.pool.events

        def bounded(timeout_seconds):
            assert run.pool.now < 86_400, f"it must come to an end; {run.pool.started} workers started"
            return events(timeout_seconds)

        run.pool.events = bounded
        return run

    return make


def test_a_task_that_breaks_the_accelerator_of_every_process_is_given_up_and_the_rest_is_done(scripted):
    run = scripted(["breaks"] + ["good"] * 5)
    d = run.run()
    assert (d.quarantined, len(d.done)) == ({"paint/0"}, 5)
    assert run.pool.started == 3, "one in the beginning, and one after each attempt but the last"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("where", range(0, 20, 3))
def test_a_job_for_which_a_gpus_memory_was_short_gets_another_process_with_empty_caches(scripted, where, workers):
    """Defect 3: processes that have done other jobs are given it, and it is given up. Patch: no `failed_before`."""
    behaviours = ["good"] * 20
    behaviours[where] = "fills"
    d = scripted(behaviours, {"n0": workers}, workers=workers).run()
    assert (d.quarantined, len(d.done)) == (set(), 20)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("where", range(0, 20, 3))
def test_a_job_that_does_not_fit_into_a_gpu_is_given_up_with_the_batch_that_does(scripted, where, workers):
    behaviours = ["good"] * 20
    behaviours[where] = "does not fit"
    run = scripted(behaviours, {"n0": workers}, workers=workers)
    d = run.run()
    assert f"paint/{where}" in d.quarantined
    assert len(d.done) + len(d.quarantined) == 20
    assert "64 does" in "".join(run.problems.values())


def test_a_broken_accelerator_costs_no_task(scripted):
    run = scripted(["good"] * 20, {"n0": 1, "n1": 1}, {"n1": "broken"}, workers=2)
    assert len(run.run().done) == 20


def test_accelerators_that_are_all_broken_end_the_run(scripted):
    run = scripted(["good"] * 20, {"n0": 1, "n1": 1}, {"n0": "broken", "n1": "broken"}, workers=2)
    with pytest.raises(RunFailed, match=CUDA):
        run.run()
    assert run.pool.started < 20


@pytest.mark.parametrize("behaviour", ["kills", "breaks"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_queue_of_which_every_task_kills_its_worker_ends_after_some(scripted, behaviour, workers):
    run = scripted([behaviour] * 200, {"n0": 2, "n1": 2}, workers=workers)
    with raises(RunFailed):
        run.run()
    assert run.pool.started < 60


@pytest.mark.parametrize("behaviour", ["kills", "breaks"])
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_costliest_tasks_that_kill_are_given_up_and_all_others_done(scripted, behaviour, workers):
    run = scripted([behaviour] * 20 + ["good"] * 100, {"n0": workers}, workers=workers)
    d = run.run()
    assert (len(d.quarantined), len(d.done)) == (20, 100)


def test_a_network_that_returns_nan_costs_its_cell_one_task_and_other_cells_nothing(scripted):
    run = scripted(["infinite"] + ["good"] * 39)
    d = run.run()
    assert d.done == {f"paint/{number}" for number in range(1, 40, 2)}
    assert len(d.quarantined) == 20
    assert run.pool.now < 220, "20 tasks of 10 s; the other 20 are not tried"
    [problem] = run.problems.values()
    recorded(problem, "paint")
    assert run.loop.permanent_failures == set(run.problems), "the same command would meet the same NaN"


def test_the_heartbeats_of_a_second_task_are_not_taken_for_those_of_a_first_that_is_being_written(
    scripted, monkeypatch
):
    run = scripted(["long"] * 4)
    running, heard = run.loop._dispatcher.in_flight.running, {}
    monkeypatch.setattr(
        Progress, "heard", lambda _, worker, at, doing: heard.setdefault(running[worker].key, []).append(at)
    )
    begun = START_SECONDS + 0.1
    for after in (0.5, 0.6):  # the first is computed, and the second at its beginning
        run.pool._at(begun + LONG_SECONDS - 10 + after, Alive("worker-0", "paint/1", after, LONG_SECONDS))
    run.run()
    assert [len(fractions) for fractions in heard.values()] == [29] * 4
    assert all(fractions == sorted(fractions) for fractions in heard.values())


def test_the_time_of_compiling_says_nothing_of_a_shards(scripted, monkeypatch):
    """Defect 17: a shard whose first minutes compile would be warned of. Patch: no `if event.doing` in `_heard`."""
    run, warned = scripted(["long"]), []
    monkeypatch.setattr(run.loop._long_shards, "warning", lambda *about: warned.append(about))
    run.pool._at(START_SECONDS + 0.2, Alive("worker-0", "paint/0", 0.0, 0.0, "compiling"))
    run.run()
    assert len(warned) == 29, "of those with progress"


def test_a_slot_that_fails_to_start_ends_no_healthy_run(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1, "n2": 1}, {"n2": "startless"}, workers=3)
    assert len(run.run().done) == 200
    assert run.said("no memory") > 5
    assert run.pool.started < 40, "later each time"


def test_a_worker_on_an_unfit_node_is_replaced_elsewhere(scripted):
    run = scripted(["good"] * 20, {"n0": 1, "n1": 1, "n2": 1}, {"n0": "unseen"}, workers=2)
    assert len(run.run().done) == 20
    workers = {event["node"] for event in read_events(run.rundir) if event["event"] == "worker"}
    assert workers == {"n1", "n2"}


def test_a_run_whose_nodes_are_unfit_waits_for_room_elsewhere_says_so_and_ends(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    with raises(RunDirectoryNotVisible):
        run.run()
    assert run.said("is full") > 8
    assert MAX_WAIT_SECONDS < run.pool.now < 1.2 * MAX_WAIT_SECONDS
    assert run.said("not see") == 1, "a reason may be a long line"
    assert run.said(" for 2 s, ") == 1


def test_room_elsewhere_that_is_found_in_time_is_used(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    run.pool._at(300.0, Located("worker-1", "full", "full"))
    run.pool.where["worker-1"] = "full"
    run.run()
    assert 300 < run.pool.now < 320


def test_the_reason_of_each_unfit_node_is_told_once(scripted):
    run = scripted(["good"] * 2, {"n0": 1, "n1": 1}, {"n0": "unseen", "n1": "unseen"}, workers=2)
    with raises(Exception):
        run.run()


def test_a_health_check_that_hangs_ends_its_worker_only(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1}, {"n1": "mute"}, workers=2)
    assert len(run.run().done) == 200
    assert run.said(" for 10 min") == 3, "200 tasks of 10 s take 2000 s"


def test_health_checks_that_all_hang_end_the_run(scripted):
    run = scripted(["good"], node_is={"n0": "mute"})
    with raises(RunFailed):
        run.run()


@pytest.mark.parametrize("node_is", [{}, {"n1": "mute"}], ids=["at work", "greeted"])
def test_what_a_driver_that_was_held_up_could_not_hear_is_no_silence_of_its_workers(scripted, monkeypatch, node_is):
    """Its disk hung, or it was stopped, for longer than `cluster.hang_seconds`: all workers were killed for it."""
    monkeypatch.setattr(sys.modules[__name__], "LONG_SECONDS", 3000.0)
    run = scripted(["long"] * 2, {"n0": 1, "n1": 1}, dict(node_is), workers=2)

    def held_up():
        until = run.pool.now + 700.0
        kept = [event for event in run.pool._events if event[0] > until or not isinstance(event[-1], Alive)]
        run.pool._events[:] = sorted(kept)
        run.pool.now = until
        if run.pool.node_is:
            run.pool.node_is.clear()
            run.pool._at(20.0, Joined("worker-1", WorkerInfo("n1", "cpu", {}, "n1")))

    run.pool.then(100.0, held_up)
    assert len(run.run().done) == 2
    assert run.pool.started == 2
    assert run.said("cluster.hang_seconds") == run.said("not answered") == 0


def test_what_happens_at_a_time_is_written_at_once(scripted, monkeypatch):
    """In an object store each write is a request, and Google takes one a second."""
    append, writes = LocalStorage.append, []
    monkeypatch.setattr(LocalStorage, "append", lambda *given, **more: [writes.append(given), append(*given, **more)])
    run = scripted(["good"] * 64, {"n0": 64}, workers=64)
    run.run()
    assert Counter(event["event"] for event in run.events)["worker"] == 64
    assert len(writes) < 8


def test_nodes_that_join_get_work_soon(scripted):
    run = scripted(["good"] * 60, {}, workers=None)
    run.pool.then(150.0, lambda: run.pool.join("n0", 1))
    run.pool.then(200.0, lambda: run.pool.join("n1", 2))
    assert len(run.run().done) == 60
    began = {node: min(when for when, place in run.pool.given if place == node) for node in run.pool.rooms}
    assert began["n0"] < 150 + 30
    assert began["n1"] < 200 + 30
    assert run.said("large enough") == 3
    assert run.pool.now < 150 + 60 * TASK_SECONDS / 3 + 60


@pytest.mark.parametrize(("workers", "tasks", "waiting"), [(4, 60, 4), (4, 3, 3), (None, 60, 1)])
def test_what_waits_for_room_is_at_most_what_was_asked_for_and_what_there_is_to_do(scripted, workers, tasks, waiting):
    """Ray tells an autoscaler of it. Without `cluster.workers`, one says that there is need at all."""
    run = scripted(["good"] * tasks, {}, workers=workers)
    seen = []
    run.pool.then(100.0, lambda: seen.append(len(run.pool.waiting)))
    run.pool.then(101.0, lambda: run.pool.join("n0", 1))
    run.run()
    assert seen == [waiting]


def test_workers_without_work_are_released_within_a_minute_and_so_are_those_that_wait(scripted):
    run = scripted(["long", "good", "good"], {"n0": 1, "n1": 1}, workers=3)
    seen = {}
    run.pool.then(10.0, lambda: seen.update(before=(len(run.pool.where), len(run.pool.waiting))))
    run.pool.then(25.0 + 60.0, lambda: seen.update(after=(dict(run.pool.where), run.pool.waiting)))
    assert len(run.run().done) == 3
    assert seen["before"] == (2, 1)
    assert seen["after"] == ({"worker-0": "n0"}, [])
    assert [event["worker"] for event in run.events if event["event"] == "released"] == ["worker-2", "worker-1"]


def test_a_worker_that_was_released_is_started_again_for_a_straggler(scripted):
    run = scripted(["good"] * 3 + ["long"], {"n0": 1, "n1": 1}, workers=2)
    run.loop._dispatcher.throughput.late = lambda running, now: list(running) if now > 200.0 else []
    run.pool.then(199.0, lambda: run.pool.given.append(list(run.pool.where)))
    run.run()
    assert ["worker-0"] in run.pool.given
    assert [event["worker"] for event in run.events if event["event"] == "duplicate"] == ["worker-2"]


def test_a_late_copy_of_a_task_that_is_done_is_no_fault_of_its_worker(scripted):
    """It differs, and its worker cooled down. The patch: `_found` raises the fault of any task."""
    run = scripted(["good", "good"])
    assert len(run.run().done) == 2
    late = Result(1.0, 1, False, conflict="is damaged")
    assert [run.loop._found("worker-0", late, f"paint/{number}") for number in (0, 1)] == [None, None]
    run.loop._flush()
    run.loop._dispatcher.succeeded = lambda worker, now, key: False  # as of a worker that has just ended it
    run.loop._record("worker-0", Result(1.0, 1, True), "paint/0")
    assert run.loop._jobs._jobs.keys() == {"paint/1"}, "which was looked at, but not recorded"
    assert [event["task"] for event in run.events if event["event"] == "late copy"] == ["paint/0", "paint/1"]
    assert run.said("already done") == 1


@pytest.mark.parametrize(
    ("rooms", "error"),
    [({}, UserError), ({"n0": 0}, RunFailed)],
)
def test_room_is_waited_for_a_while_with_a_line_every_minute(scripted, rooms, error):
    run = scripted(["good"], rooms, workers=2)
    with raises(error):
        run.run()
    assert MAX_WAIT_SECONDS <= run.pool.now < MAX_WAIT_SECONDS + 5
    assert 9 <= run.said("for room") <= 11


def test_a_private_cluster_on_which_no_worker_starts_is_given_up(scripted):
    run = scripted(["good"], {"n0": 0}, embedded=True)
    with pytest.raises(RunFailed):
        run.run()
    assert run.pool.now == pytest.approx(MAX_WAIT_SECONDS, abs=loop.POLL_SECONDS)


def test_a_run_that_loses_its_last_node_waits_for_another(scripted):
    run = scripted(["good"] * 10, workers=None)
    run.pool.then(42.0, lambda: run.pool.lose("n0"))
    run.pool.then(500.0, lambda: run.pool.join("n1", 1))
    d = run.run()
    assert len(d.done) == 10
    assert all(d.attempts(key) == 0 for key in d.done)


def test_a_run_that_loses_its_last_node_for_good_can_be_continued_and_blames_no_config(scripted):
    run = scripted(["good"] * 10, workers=None)
    run.pool.then(42.0, lambda: run.pool.lose("n0"))
    with raises(RunFailed):
        run.run()
    assert run.pool.now == pytest.approx(42 + MAX_WAIT_SECONDS, abs=loop.POLL_SECONDS)


def test_a_node_that_drains_gets_no_more_work_and_its_place_is_taken(scripted):
    run = scripted(["good"] * 30, {"n0": 2, "n1": 1}, workers=3)
    run.pool.then(42.0, lambda: run.pool.node_is.update(n0="draining"))
    run.pool.then(60.0, lambda: run.pool.join("n2", 2))
    d = run.run()
    assert len(d.done) == 30
    assert max(when for when, node in run.pool.given if node == "n0") < 42.0 + scaling.POLL_SECONDS
    assert {node for when, node in run.pool.given if when > 80.0} == {"n1", "n2"}
    assert run.said("node n0 will") == 1
    assert not [event for event in run.events if event["event"] in ("failed", "lost")]


def test_what_is_lost_on_a_node_that_drains_is_nobodys_fault(scripted):
    """Ray may tell of the processes before it tells of the node."""
    run = scripted(["good"] * 30, {"n0": 1, "n1": 1}, workers=2)

    def preempt():
        run.pool.node_is["n0"] = "draining"
        for worker in [worker for worker, node in run.pool.where.items() if node == "n0"]:
            run.pool._at(0.1, Lost(worker, "worker process has died", False))

    run.pool.then(38.0, preempt)
    d = run.run()
    assert len(d.done) == 30
    assert [event["event"] for event in run.events].count("lost") == 1
    assert all(d.attempts(key) == 0 for key in d.done)


def test_a_run_goes_on_while_its_head_does_not_answer(scripted):
    run = scripted(["good"] * 10)
    run.pool.then(12.0, lambda: run.pool.node_is.update(head="gone"))
    run.pool.then(60.0, lambda: run.pool.node_is.pop("head"))
    assert len(run.run().done) == 10


def drains(run, at, seconds):
    """Node n0 drains at a time and is taken away so many seconds later."""

    def notice():
        run.pool.node_is["n0"], run.pool.gone_at["n0"] = "draining", at + seconds

    run.pool.then(at, notice)
    run.pool.then(at + seconds, lambda: run.pool.lose("n0"))
    return run


def test_what_a_node_can_not_end_in_time_others_begin_at_once(scripted):
    """It is nobody's fault, and not done: the other node does it all."""
    run = drains(scripted(["long", "long"], {"n0": 1, "n1": 1}, workers=2), at=42.0, seconds=120.0)
    run.pool.then(43.0, lambda: run.pool.join("n2", 1))
    d = run.run()
    assert len(d.done) == 2
    assert all(d.attempts(key) == 0 for key in d.done)
    [(when, worker)] = run.pool.stopped
    assert when < 42.0 + scaling.POLL_SECONDS + 1
    assert [event["worker"] for event in run.events if event["event"] == "given back"] == [worker]
    assert [node for _, node in run.pool.given] == ["n0", "n1", "n2"]
    assert run.pool.now < 42.0 + scaling.POLL_SECONDS + START_SECONDS + LONG_SECONDS + 5
    assert run.said(" in 1 min") == 1


@pytest.mark.parametrize("seconds", [LONG_SECONDS, inf])
def test_what_a_node_ends_in_time_it_ends(scripted, seconds):
    run = scripted(["long", "long"], {"n0": 1, "n1": 1}, workers=2)
    drains(run, 42.0, seconds) if seconds < inf else run.pool.then(42.0, lambda: run.pool.node_is.update(n0="draining"))
    assert len(run.run().done) == 2
    assert not run.pool.stopped
    assert [node for _, node in run.pool.given] == ["n0", "n1"]


def test_workers_without_gpus_do_what_needs_no_network_beside_those_with_one(scripted):
    run = scripted(["good"] * 20 + ["count"] * 20, {"g": 1, "c": 2}, workers=None)
    run.pool.gpus, run.pool.size, run.pool.cpu_only = {"g"}, Size(1, 1), CpuOnly((), 1, on_cpu_nodes=True)
    d = run.run()
    assert len(d.done) == 40
    where = {(event["task"].split("/")[0], event["node"]) for event in run.events if event["event"] == "assigned"}
    assert where == {("paint", "g"), ("count", "c")}
    assert run.pool.started == 3
    assert run.pool.now < 250


def beside_gpus(run):
    """Let node g have GPUs, which workers take, but for those without one on other nodes."""
    run.pool.gpus, run.pool.size, run.pool.cpu_only = {"g"}, Size(1, 1), CpuOnly((), 1, on_cpu_nodes=True)
    return run


def test_no_worker_with_a_gpu_waits_for_room_for_what_workers_without_one_do(scripted):
    """Ray would tell an autoscaler of it, which would buy GPUs to compute scores."""
    run = beside_gpus(scripted(["count"] * 200, {"g": 1, "c": 6}, workers=8))
    seen = []
    for when in range(5, 200, 10):
        run.pool.then(when, lambda: seen.append((len(run.pool.where), len(run.pool.waiting))))
    assert len(run.run().done) == 200
    assert set(seen) == {(7, 0)}


def test_a_worker_with_a_gpu_is_released_while_those_without_one_work(scripted):
    run = beside_gpus(scripted(["good"] + ["long count"] * 6, {"g": 1, "c": 6}, workers=8))
    seen = []
    run.pool.then(15.0 + 60.0, lambda: seen.append(sorted(run.pool.where.values())))
    assert len(run.run().done) == 7
    assert seen == [["c"] * 6]


def test_the_last_node_with_gpus_may_go_while_the_others_do_all_that_is_left(scripted):
    run = beside_gpus(scripted(["count"] * 200, {"g": 1, "c": 2}, workers=None))
    run.pool.then(30.0, lambda: run.pool.lose("g"))
    assert len(run.run().done) == 200
    assert run.pool.now > 30 + MAX_WAIT_SECONDS
    assert run.said("for room") == 0


def test_workers_without_gpus_do_not_hide_that_none_has_one_for_the_rest(scripted):
    run = beside_gpus(scripted(["good"] * 20 + ["count"] * 400, {"g": 1, "c": 2}, workers=None))
    run.pool.then(30.0, lambda: run.pool.lose("g"))
    with raises(RunFailed):
        run.run()
    assert run.pool.now == pytest.approx(30 + MAX_WAIT_SECONDS, abs=loop.POLL_SECONDS)
    assert run.said(" and 1 GPU") > 8


def test_workers_without_gpus_that_are_well_do_not_hide_that_no_gpu_is_fit(scripted):
    run = scripted(["good"] * 3, {"g": 1, "c": 1}, {"g": "unseen"}, workers=None)
    run.pool.gpus, run.pool.size, run.pool.cpu_only = {"g"}, Size(1, 1), CpuOnly((), 1, on_cpu_nodes=True)
    with raises(RunDirectoryNotVisible):
        run.run()


def with_spare_cpus(run, spare=4, most=8):
    """Let node g have GPUs, and `spare` CPUs beside those of the workers with GPUs."""
    run.pool.gpus, run.pool.size, run.pool.spare = {"g"}, Size(1, 1), {"g": spare}
    run.pool.cpu_only = CpuOnly((), 1, per_gpu_node=most)
    return run


def who_did(run):
    """Kind of task, and whether its worker had no GPU -> the number of such tasks."""
    starts = {event["worker"]: "cpu_only" in event for event in run.events if event["event"] == "starting"}
    assigned = [event for event in run.events if event["event"] == "assigned"]
    return Counter((event["task"].split("/")[0], starts[event["worker"]]) for event in assigned)


@pytest.mark.parametrize("embedded", [False, True])
def test_spare_cpus_of_a_node_with_gpus_do_what_needs_no_network(scripted, embedded):
    """Defect 6: GPUs' workers do it all if `_embedded` is empty, or `if node.gpus: continue` in `cpu_only_capacity`."""
    run = with_spare_cpus(scripted(["good"] * 20 + ["count"] * 20, {"g": 1}, workers=1, embedded=embedded))
    assert len(run.run().done) == 40
    assert who_did(run) == {("paint", False): 20, ("count", True): 20}
    assert run.pool.started == 1 + 4
    assert run.pool.now < 20 * TASK_SECONDS + 20


@pytest.mark.parametrize(("spare", "most", "helpers"), [(100, 3, 3), (0, 8, 0), (100, 0, 0)])
def test_scoring_workers_of_a_node_are_limited_and_workers_with_gpus_score_without_them(scripted, spare, most, helpers):
    run = with_spare_cpus(scripted(["count"] * 30, {"g": 1}, embedded=True), spare, most)
    assert len(run.run().done) == 30
    assert run.pool.started == 1 + helpers


def test_workers_on_spare_cpus_that_are_well_do_not_hide_that_no_gpu_is_fit(scripted):
    """They finish what they can; then the run ends. It never would if `broken_nodes` asked all workers of a node."""
    run = scripted(["good"] + ["count"] * 4, {"g": 1}, {"g": "GPU"}, embedded=True)
    with raises(DeviceUnusable):
        with_spare_cpus(run).run()
    assert run.loop._dispatcher.done == {f"count/{number}" for number in range(1, 5)}


def test_a_gpu_scores_where_others_took_its_nodes_spare_cpus(scripted):
    """Ray does not place workers on them: after a while nobody counts on those."""
    run = with_spare_cpus(scripted(["long"] + ["count"] * 3, {"g": 2}, workers=2, embedded=True))
    run.pool.spare = {"g": 4}
    nodes = run.pool.nodes()
    run.pool.nodes, run.pool.spare = lambda: nodes, {"g": 0}
    assert len(run.run().done) == 4
    assert who_did(run) == {("paint", False): 1, ("count", False): 3}
    counted = [event for event in run.events if event["event"] == "assigned"][1:]
    assert len(counted) == 3
    assert run.pool.now < LONG_SECONDS + 30


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), RunFailed("taken over")], ids=["^C", "lease"])
def test_a_store_that_fails_at_the_end_does_not_hide_what_ended_the_run(scripted, cause):
    run = scripted(["good"] * 10)
    store = Faulty(run.rundir.root, fails_at=0, for_good=True)

    def end():
        run.loop._events.storage = store
        run.loop._events.note("ended")
        raise cause

    run.pool.then(15.0, end)
    with pytest.raises(type(cause)) as raised:
        run.run()
    assert raised.value is cause
    assert [name for name, path in store.calls] == ["append"], "one try"


def test_a_store_that_fails_ends_the_run(scripted):
    run = scripted(["good"])
    committed = Faulty(run.rundir.root, fails_at=0)
    run.loop._committed = lambda files: committed.append(files[0].path, b"")
    with pytest.raises(OSError, match="planted"):
        run.run()


def test_a_pool_without_workers_waits():
    began = time.monotonic()
    assert list(Pool(type("Idle", (), {}), (), 1, 0, None).events(0.05)) == []
    assert time.monotonic() - began >= 0.05


def test_a_worker_whose_death_is_told_in_the_same_turn_may_be_killed():
    """Its first job fails on its accelerator, the second with its process: the driver kills it before it hears that."""
    pool = Pool(type("Idle", (), {}), (), 1, 0, None)
    pool._handles["worker-0"] = object()
    for key, error in (("a", RayTaskError("perform", "", BrokenAccelerator("planted"))), ("b", ActorDiedError())):
        pool._call(SimpleNamespace(future=partial(failed_with, error)), _Call("worker-0", key=key))
    failed, lost = pool.events(0.0)
    assert (failed.key, lost.worker) == ("a", "worker-0")
    pool.kill("worker-0")


def failed_with(error):
    answer = Future()
    answer.set_exception(error)
    return answer
