"""The crew and the loop, with the dispatcher that decides for them, on a pool and a clock that follow a script."""

import heapq
import io
from collections import Counter
from dataclasses import dataclass
from itertools import count

import pytest
from rich.console import Console

from taugrid.config import Cluster, Config, validate
from taugrid.errors import NotFinite, RunDirectoryNotSeen, RunFailed
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import crew, loop
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined, Located, Lost, Pool
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import Piece, WorkKind

START_SECONDS = 5.0
TASK_SECONDS = 10.0
CUDA = "CUDA error: device-side assert triggered"


class Painting(WorkKind):
    name = "paint"
    unit = "strokes"
    activity = "painting"
    task = ("picture", "to paint")


@dataclass(frozen=True)
class ScriptedJob(Job):
    behaviour: str = "good"


class ScriptedPool:
    """Workers on a clock of its own. `rooms` is node -> how many workers it has room for; `node_is` is node -> what
    ails it: `unseen`, `mute` (no hello is answered), `startless` or `broken` (its accelerator).

    A job is `good`, `breaks` the accelerator of its process, `kills` it, or is `infinite` (`NotFinite`).
    """

    def __init__(self, rooms, node_is):
        self.now, self.rooms, self.node_is = 0.0, rooms, node_is
        self.where, self.sick, self.ended = {}, set(), Counter()
        self.started = 0
        self._waiting, self._events, self._order = [], [], count()

    def monotonic(self):
        return self.now

    def _at(self, delay, event):
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def start(self, avoid=()):
        worker = f"worker-{self.started}"
        self.started += 1
        self._waiting.append((worker, frozenset(avoid)))
        self._place()
        return worker

    def _place(self):
        for worker, avoid in list(self._waiting):
            taken = Counter(self.where.values())
            free = [node for node in self.rooms if node not in avoid and taken[node] < self.rooms[node]]
            if free:
                self._waiting.remove((worker, avoid))
                self.where[worker] = node = min(free, key=lambda node: taken[node])
                startless = self.node_is.get(node) == "startless"
                self._at(START_SECONDS, Lost(worker, "no memory", False) if startless else Located(worker, node, node))

    def greet(self, worker):
        node = self.where[worker]
        ill = self.node_is.get(node)
        if ill == "unseen":
            self._at(0.1, Failed(worker, RunDirectoryNotSeen(f"node {node} does not see /run"), "traceback"))
        elif ill == "broken" or worker in self.sick:
            self._at(0.1, Failed(worker, RuntimeError(CUDA), "traceback"))
        elif ill != "mute":
            self._at(0.1, Joined(worker, WorkerInfo(node, "cpu", {}, node)))

    def give(self, worker, job):
        if worker in self.sick or job.behaviour == "breaks":
            self.sick.add(worker)
            self._at(0.1, Failed(worker, RuntimeError(CUDA), "traceback"))
        elif job.behaviour == "kills":
            self._at(0.1, Lost(worker, "it died", False))
        elif job.behaviour == "infinite":
            self._at(0.1, Failed(worker, NotFinite("NaN in image 0"), "traceback"))
        else:
            self._at(TASK_SECONDS, Done(worker, Result(TASK_SECONDS, 1, True)))

    def kill(self, worker):
        del self.where[worker]
        self._place()

    def places(self):
        return set(self.rooms)

    def events(self, timeout_seconds):
        self.now = min(self.now + timeout_seconds, self._events[0][0] if self._events else float("inf"))
        while self._events and self._events[0][0] <= self.now:
            event = heapq.heappop(self._events)[-1]
            if event.worker in self.where:
                if isinstance(event, Lost):
                    self.kill(event.worker)
                yield event
                if isinstance(event, Located):
                    self.greet(event.worker)


def two_cells():
    values = {"name": "two", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "sample": {"seed": 0}}
    return plan(validate(Config, values | {"grid": {"steps": [2, 5]}}, "test")).cells


class Scripted:
    """A run of tasks that behave as told, of two cells in turns."""

    def __init__(self, monkeypatch, root, behaviours, rooms, node_is, workers):
        self.pool = ScriptedPool(rooms, node_is)
        monkeypatch.setattr(crew, "time", self.pool)
        monkeypatch.setattr(loop, "time", self.pool)
        monkeypatch.setattr(loop, "confirm", lambda job, result: None)  # there are no files
        pieces, cells = {}, two_cells()
        for number, behaviour in enumerate(behaviours):
            cost = 1.0 if behaviour == "good" else 9.0  # bad ones first
            task = Task(f"paint/{number}", "paint", cost)
            pieces[task.key] = Piece(task, ScriptedJob("unused", behaviour=behaviour), cells[number % 2])
        root.mkdir()
        self.printed, self.rundir = io.StringIO(), RunDir(root)
        progress = Progress(Console(file=self.printed, soft_wrap=True))
        events = Events(self.rundir)
        self.loop = Loop(
            pieces, [Painting], self.pool, workers, False, Cluster(), progress, events, lambda name, text: root
        )

    def run(self):
        self.problems = self.loop.run()
        return self.loop._dispatcher

    def said(self, words):
        return self.printed.getvalue().count(words)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Makes a run; it must end within a simulated day."""

    def make(behaviours, rooms=None, node_is=None, workers=1):
        run = Scripted(monkeypatch, tmp_path / "run", behaviours, rooms or {"n0": 1}, node_is or {}, workers)
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
    assert run.pool.started == 4, "one in the beginning, and one after each attempt"


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
    with pytest.raises(RunFailed, match="no task was done"):
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
    assert problem.startswith("paint/0: NotFinite: NaN in image 0")


def test_a_slot_that_fails_to_start_ends_no_healthy_run(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1, "n2": 1}, {"n2": "startless"}, workers=3)
    assert len(run.run().done) == 200
    assert run.said("could not be started: no memory") > 5
    assert run.pool.started < 40, "later each time"


def test_a_worker_on_an_unfit_node_is_replaced_elsewhere(scripted):
    run = scripted(["good"] * 20, {"n0": 1, "n1": 1, "n2": 1}, {"n0": "unseen"}, workers=2)
    assert len(run.run().done) == 20
    workers = {event["node"] for event in read_events(run.rundir) if event["event"] == "worker"}
    assert workers == {"n1", "n2"}


def test_a_run_whose_nodes_are_unfit_waits_for_room_elsewhere_says_so_and_ends(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    with pytest.raises(RunDirectoryNotSeen, match=r"^node n0 does not see /run$"):
        run.run()
    assert run.said("the cluster is full") > 2
    assert crew.REPLACEMENT_SECONDS < run.pool.now < 2 * crew.REPLACEMENT_SECONDS


def test_room_elsewhere_that_is_found_in_time_is_used(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    run.pool._at(300.0, Located("worker-1", "full", "full"))
    run.pool.where["worker-1"] = "full"
    run.run()
    assert 300 < run.pool.now < 320


def test_the_reason_of_each_unfit_node_is_told_once(scripted):
    run = scripted(["good"] * 2, {"n0": 1, "n1": 1}, {"n0": "unseen", "n1": "unseen"}, workers=2)
    with pytest.raises(Exception, match=r"^node n0 does not see /run; node n1 does not see /run$"):
        run.run()


def test_a_hello_that_hangs_ends_its_worker_only(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1}, {"n1": "mute"}, workers=2)
    assert len(run.run().done) == 200
    assert run.said("has not answered hello for 10 min") == 3, "200 tasks of 10 s take 2000 s"


def test_hellos_that_all_hang_end_the_run(scripted):
    run = scripted(["good"], node_is={"n0": "mute"})
    with pytest.raises(RunFailed, match="has not answered hello"):
        run.run()


def test_a_pool_without_workers_waits(monkeypatch):
    pauses = []
    from taugrid.orchestrator.dispatch import pool

    monkeypatch.setattr(pool.time, "sleep", pauses.append)
    assert list(Pool(type("Idle", (), {}), (), 1, 0, None).events(0.5)) == []
    assert pauses == [0.5]
