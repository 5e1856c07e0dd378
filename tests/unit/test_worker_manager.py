"""The worker manager and the loop, with the dispatcher behind them, on a pool and a clock that follow a script."""

import heapq
import io
from collections import Counter
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path

import pytest
from in_process import Faulty
from rich.console import Console
from snapshots import raises, recorded

from taugrid.config import Cluster, Config, validate
from taugrid.errors import (
    BrokenAccelerator,
    DoesNotFit,
    NotFinite,
    RunFailed,
    Stopped,
    UserError,
    WorkerRefusal,
)
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import loop, worker_manager
from taugrid.orchestrator.dispatch.capacity import Node, Size
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.pool import Alive, Done, Failed, Joined, Located, Lost
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import Committed, RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import WorkKind
from taugrid.parquet import OTHER_BYTES
from taugrid.storage import LocalStorage

START_SECONDS = 5.0
TASK_SECONDS = 10.0
LONG_SECONDS = 300.0
SECONDS = {"long": LONG_SECONDS, "long count": LONG_SECONDS, "late": LONG_SECONDS, "longer": 3000.0}
COSTS = {"good": 1.0, "fills": 1.0, "does not fit": 1.0, "long": 30.0, "late": 4.0, "longer": 300.0}
"""`late` takes 7.5 times what others of its cost do: too long even for a worker's first task."""
MAX_WAIT_SECONDS = Cluster().max_wait_seconds
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

    A job is `good`, `count`, `long`, `long count`, `longer`, `late` (a second copy of it then finds another file),
    finds a file with `other bytes`, `breaks` the accelerator of its process, `kills` it, `fills` a GPU's memory beside
    what other jobs left, `does not fit` even so, or is `infinite` (`NotFinite`).
    """

    size, scorer, selector = Size(1, 0), None, {}
    gpus = frozenset()  # nodes that have them
    memory = inf  # of each node
    spare = {}  # node with GPUs -> CPUs beyond those of its workers with GPUs, and room for scorers  # noqa: RUF012

    def __init__(self, rooms, node_is):
        self.now, self.rooms, self.node_is = 0.0, rooms, node_is
        self.where, self.sick = {}, set()
        self.scorers = set()
        self.free = {}  # worker -> when it will have done what it was given
        self.started = 0
        self.given = []  # (when, node) of each job
        self.begun = Counter()  # key -> how often it was given
        self.blamed = set()  # keys of those that were to blame for a failure before
        self.devices = {}  # node -> its device, if that is not "cpu"
        self.gone_at = {}  # node that drains -> when it is taken away, if that is known
        self.stopped = []  # (when, worker)
        self.waiting, self._events, self._order = [], [], count()

    def then(self, when, event):
        """Call an event at a time, or let it be heard of."""
        self._at(when - self.now, event)

    def monotonic(self):
        return self.now

    def _at(self, delay, event):
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def take_over(self):
        """Those that have done what they were given."""
        idle = [worker for worker in self.where if self.free.get(worker, inf) <= self.now]
        return [(Located(worker, self.where[worker], self.where[worker]), worker in self.scorers) for worker in idle]

    def start(self, avoid=()):
        without = {node for node in self.rooms if self.size.gpus and node not in self.gpus}
        return self._start({*avoid, *without})

    def start_scorer(self, nodes):
        self.scorers.add(f"worker-{self.started}")
        return self._start({other for other in self.rooms if other not in nodes})

    def _start(self, avoid):
        worker = f"worker-{self.started}"
        self.started += 1
        self.waiting.append((worker, frozenset(avoid)))
        self._place()
        return worker

    def _place(self):
        for worker, avoid in list(self.waiting):
            is_scorer = worker in self.scorers
            taken = Counter(node for other, node in self.where.items() if (other in self.scorers) == is_scorer)
            room = self.rooms | self.spare if is_scorer else self.rooms
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
        if ill == "GPU" and worker not in self.scorers:
            self._at(0.1, Failed(worker, WorkerRefusal(f"node {node}: torch can't use its GPU"), "traceback"))
        elif ill == "unseen":
            self._at(0.1, Failed(worker, WorkerRefusal(f"node {node} does not see /run"), "traceback"))
        elif ill == "broken" or worker in self.sick:
            self._at(0.1, Failed(worker, RuntimeError(CUDA), "traceback"))
        elif ill != "mute":
            self._at(0.1, Joined(worker, WorkerInfo(node, self.devices.get(node, "cpu"), {}, node)))

    def submit(self, worker, job, key):
        self.given.append((self.now, self.where[worker]))
        self.begun[key] += 1
        self.blamed |= {key} if job.failed_before else set()
        wait, seconds = max(0.0, self.free.get(worker, 0.0) - self.now), 0.1
        match job.behaviour:
            case _ if worker in self.sick:
                ends = RuntimeError(CUDA)
            case "breaks":
                ends = RuntimeError(CUDA)
            case "fills" | "does not fit" if not job.failed_before:
                ends = BrokenAccelerator("out of memory; 64 does")
            case "does not fit":
                ends = DoesNotFit("256 does not fit, 64 does")
            case "infinite":
                ends = NotFinite("NaN in image 0")
            case "kills":
                ends = None
                self._at(wait + seconds, Lost(worker, "it died", False))
            case behaviour:
                ends, seconds = None, SECONDS.get(behaviour, TASK_SECONDS)
                for after in range(10, int(seconds), 10):
                    self._at(wait + after, Alive(worker, key, after, seconds))
                conflict = "is damaged" if behaviour == "late" and self.begun[key] > 1 else None
                conflict = OTHER_BYTES if behaviour == "other bytes" else conflict
                self._at(wait + seconds, Done(worker, Result(seconds, 1, True, conflict=conflict), key))
        if ends is not None:
            self._at(wait + seconds, Failed(worker, ends, "traceback", key))
            if not isinstance(ends, NotFinite):
                self.sick.add(worker)
        self.free[worker] = self.now + wait + seconds

    def stop(self, workers):
        """End their jobs as a worker does that can keep nothing."""
        for worker in workers:
            self.stopped.append((self.now, worker))
            for key in {event.key for event in self.forget(worker)}:
                self._at(0.2, Failed(worker, Stopped(), "traceback", key))

    def forget(self, worker=None, until=inf, kinds=Alive | Done):
        """Take what was to be heard of a worker, or of all, until then."""
        gone = [entry for entry in self._events if entry[0] <= until and isinstance(entry[-1], kinds)
                and worker in (None, entry[-1].worker)]  # fmt: skip
        self._events = sorted(entry for entry in self._events if entry not in gone)
        return [event for *_, event in gone]

    def kill(self, worker):
        self.waiting = [(other, avoid) for other, avoid in self.waiting if other != worker]
        self.where.pop(worker, None)
        self._place()

    def nodes(self):
        if "head" in self.node_is:
            return None
        return [
            Node(node, max(1, room) + self.spare.get(node, 0), room if node in self.gpus else 0, is_draining,
                 self.memory, self.gone_at.get(node, inf) - self.now)
            for node, room in self.rooms.items() for is_draining in [self.node_is.get(node) == "draining"]
        ]  # fmt: skip

    def join(self, node, room):
        self.rooms[node] = room
        self._place()

    def lose(self, node):
        """A node is gone, with all that is on it."""
        del self.rooms[node]
        for worker in [worker for worker, place in self.where.items() if place == node]:
            self._at(0.0, Lost(worker, "its node has died", True))

    def events(self, timeout_seconds):
        assert self.now < 86_400, f"it must come to an end; {self.started} workers started"
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

    def __init__(self, monkeypatch, root, behaviours, pool, workers, embedded, cluster):
        self.pool = pool
        for module in (worker_manager, loop):
            monkeypatch.setattr(module, "time", self.pool)
        there = Committed(Path("unused"), "", None)
        monkeypatch.setattr(loop, "confirm", lambda job, result: there)  # there are no files
        self.tasks, self._settings = {}, (workers, embedded, cluster)
        root.mkdir()
        self.printed, self.rundir, self.committed = io.StringIO(), RunDir(root), lambda files: None
        self.session = Events(self.rundir)
        progress = Progress(Console(file=self.printed, soft_wrap=True))
        self._outputs = Outputs(progress, self.session, lambda name, text: root, lambda files: self.committed(files))
        self.prepare(behaviours)

    def prepare(self, behaviours):
        """Another loop on the same pool, with tasks that behave as told."""
        tasks, cells = {}, two_cells()
        for number, behaviour in enumerate(behaviours, start=len(self.tasks)):
            cost = COSTS.get(behaviour, 9.0)  # bad ones first
            kind = "count" if behaviour.endswith("count") else "paint"
            key, job = f"{kind}/{number}", ScriptedJob("unused", behaviour=behaviour)
            tasks[key] = Task(key, kind, cost, cell=cells[number % 2], given=job)
        self.tasks |= tasks
        self.loop = Loop(tasks, [Painting, Counting], self.pool, *self._settings, self._outputs)
        return self

    def run(self):
        self.problems = self.loop.run()
        return self

    def finish(self):
        """Run; every task is done, and none was to blame for anything."""
        self.run()
        assert sorted(self.done) == sorted(self.tasks)
        assert self.pool.blamed == set()
        return self

    @property
    def events(self):
        return list(read_events(self.rundir))

    def of(self, name, field):
        """A field of the events of that name."""
        return [event[field] for event in self.events if event["event"] == name]

    @property
    def done(self):
        return [event["task"] for event in self.events if event.get("committed")]

    @property
    def given_up(self):
        with_others = {task for tasks in self.of("given up", "tasks") for task in tasks}
        return {event["task"] for event in self.events if event.get("quarantined")} | with_others

    def said(self, words):
        return self.printed.getvalue().count(words)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Makes a run."""

    def make(behaviours, rooms=None, node_is=None, workers=1, embedded=False, spare=None, **cluster):
        """With `spare`, node g has GPUs, which all workers but scorers take. It has room for so many scorers."""
        rooms, root = {"n0": 1} if rooms is None else rooms, tmp_path / str(len(list(tmp_path.iterdir())))
        pool = ScriptedPool(rooms, node_is or {})
        if spare is not None:
            pool.gpus, pool.size, pool.spare, pool.scorer = {"g"}, Size(1, 1), {"g": spare}, ()
        return Scripted(monkeypatch, root, behaviours, pool, workers, embedded, Cluster(**cluster))

    return make


def test_a_task_that_breaks_the_accelerator_of_every_process_is_given_up_and_the_rest_is_done(scripted):
    run = scripted(["breaks"] + ["good"] * 5).run()
    assert (run.given_up, len(run.done)) == ({"paint/0"}, 5)
    assert run.pool.started == 3, "one in the beginning, and one after each attempt but the last"


@pytest.mark.parametrize("embedded", [True, False])
def test_another_loop_goes_on_with_the_workers_of_the_one_before(scripted, embedded):
    run = scripted(["good"] * 4, {"n0": 8}, workers=4, embedded=embedded).finish()
    run.prepare(["good"] * 4).finish()
    assert (run.pool.started, run.pool.now) == (4, START_SECONDS + 2 * (TASK_SECONDS + 0.1))
    run.prepare(["long"]).finish()
    assert run.pool.started == 4
    assert len(run.of("released", "worker")) == (0 if embedded else 3), "those for which there is no work"


def test_a_worker_of_an_earlier_loop_that_dies_before_its_health_check_is_lost(scripted):
    run = scripted(["good"]).finish()
    run.prepare(["good"])
    run.pool.then(run.pool.now + 0.05, Lost("worker-0", "it died", False))
    run.finish()
    assert (run.said("lost worker-0, which was idle: it died"), run.said("could not be started")) == (1, 0)


ANYWHERE = pytest.mark.parametrize(("where", "workers"), [(0, 1), (9, 4), (18, 1), (18, 4)])


@ANYWHERE
def test_a_job_for_which_a_gpus_memory_was_short_gets_another_process_with_empty_caches(scripted, where, workers):
    """Defect 3: processes that have done other jobs are given it, and it is given up. Patch: no `failed_before`."""
    behaviours = ["good"] * 20
    behaviours[where] = "fills"
    assert len(scripted(behaviours, {"n0": workers}, workers=workers).run().done) == 20


@ANYWHERE
def test_a_job_that_does_not_fit_into_a_gpu_is_given_up_with_the_batch_that_does(scripted, where, workers):
    behaviours = ["good"] * 20
    behaviours[where] = "does not fit"
    run = scripted(behaviours, {"n0": workers}, workers=workers).run()
    assert f"paint/{where}" in run.given_up
    assert len(run.done) + len(run.given_up) == 20
    assert "64 does" in "".join(run.problems.values())


def test_a_broken_accelerator_costs_no_task_and_broken_ones_alone_end_the_run(scripted):
    scripted(["good"] * 20, {"n0": 1, "n1": 1}, {"n1": "broken"}, workers=2).finish()
    run = scripted(["good"] * 20, {"n0": 1, "n1": 1}, {"n0": "broken", "n1": "broken"}, workers=2)
    with pytest.raises(RunFailed, match=CUDA):
        run.run()
    assert run.pool.started < 20


@pytest.mark.parametrize(("behaviour", "workers"), [("kills", 1), ("kills", 4), ("breaks", 4)])
def test_a_queue_of_which_every_task_kills_its_worker_ends_after_some(scripted, behaviour, workers):
    run = scripted([behaviour] * 200, {"n0": 2, "n1": 2}, workers=workers)
    with raises(RunFailed):
        run.run()
    assert run.pool.started < 60


def test_a_network_that_returns_nan_costs_its_cell_one_task_and_other_cells_nothing(scripted):
    run = scripted(["infinite"] + ["good"] * 39).run()
    assert set(run.done) == {f"paint/{number}" for number in range(1, 40, 2)}
    assert len(run.given_up) == 20
    assert run.pool.now < 220, "20 tasks of 10 s; the other 20 are not tried"
    [problem] = run.problems.values()
    recorded(problem, "paint")
    assert run.loop.permanent_failures == set(run.problems), "the same command would meet the same NaN"


def test_the_heartbeats_of_a_second_task_are_not_taken_for_those_of_a_first_that_is_being_written(
    scripted, monkeypatch
):
    run, heard = scripted(["long"] * 4), []
    monkeypatch.setattr(Progress, "tick", lambda _, look, **at: heard.extend(busy.fraction for busy in look().busy))
    begun = START_SECONDS + 0.1
    for after in (0.5, 0.6):  # the first is computed, and the second at its beginning
        beat = Alive("worker-0", "paint/1", after, LONG_SECONDS)
        run.pool.then(begun + LONG_SECONDS - 10 + after, beat)
    run.run()
    assert set(heard) == {after / LONG_SECONDS for after in range(0, 300, 10)}


def test_what_a_worker_does_that_is_no_progress_is_shown(scripted, monkeypatch):
    """Defect 17: minutes of compiling were silent. Patch: no `doing` in `_handle`."""
    run, heard = scripted(["long"]), []
    monkeypatch.setattr(Progress, "tick", lambda _, look, **at: heard.extend(busy.doing for busy in look().busy))
    run.pool.then(START_SECONDS + 0.2, Alive("worker-0", "paint/0", 0.0, 0.0, "compiling"))
    run.run()
    assert set(heard) == {"compiling", ""}
    assert heard.index("compiling") < len(heard) - 1 - heard[::-1].index("")


def test_a_slot_that_fails_to_start_ends_no_healthy_run(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1, "n2": 1}, {"n2": "startless"}, workers=3).finish()
    assert run.said("no memory") > 5
    assert run.pool.started < 40, "later each time"


def test_a_run_whose_nodes_are_unfit_waits_for_room_elsewhere_says_so_and_ends(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    with raises(WorkerRefusal):
        run.run()
    assert run.said("nodes large enough: 1") > 8
    assert MAX_WAIT_SECONDS < run.pool.now < 1.2 * MAX_WAIT_SECONDS
    assert run.said("not see") == 1, "a reason may be a long line"
    assert run.said(" for 2 s, ") == 1


def test_room_elsewhere_that_is_found_in_time_is_used(scripted):
    run = scripted(["good"], {"n0": 1, "full": 0}, {"n0": "unseen"})
    run.pool.then(300.0, lambda: run.pool.join("full", 1))
    run.run()
    assert 300 < run.pool.now < 320


def test_a_health_check_that_hangs_ends_its_worker_only_but_the_run_if_all_do(scripted):
    run = scripted(["good"] * 200, {"n0": 1, "n1": 1}, {"n1": "mute"}, workers=2).finish()
    assert run.said(" for 10 min") == 3, "200 tasks of 10 s take 2000 s"
    with raises(RunFailed):
        scripted(["good"], node_is={"n0": "mute"}).run()


@pytest.mark.parametrize("node_is", [{}, {"n1": "mute"}], ids=["at work", "greeted"])
def test_what_a_driver_that_was_held_up_could_not_hear_is_no_silence_of_its_workers(scripted, node_is):
    """Its disk hung, or it was stopped, for longer than `cluster.hang_seconds`: all workers were killed for it."""
    run = scripted(["longer"] * 2, {"n0": 1, "n1": 1}, dict(node_is), workers=2)

    def held_up():
        run.pool.forget(until=run.pool.now + 700.0, kinds=Alive)
        run.pool.now += 700.0
        if run.pool.node_is:
            run.pool.node_is.clear()
            run.pool.then(run.pool.now + 20.0, Joined("worker-1", WorkerInfo("n1", "cpu", {}, "n1")))

    run.pool.then(100.0, held_up)
    run.finish()
    assert run.pool.started == 2
    assert run.said("cluster.hang_seconds") == run.said("not answered") == 0


def test_a_driver_that_was_held_up_still_waits_for_a_worker_as_long_as_it_may(scripted):
    """Defect: a driver that was stopped for as long as that, and lost its last worker meanwhile, ended at once."""
    run = scripted(["good"] * 10, {"n0": 1})

    def held_up():
        run.pool.lose("n0")
        run.pool.now += MAX_WAIT_SECONDS + 100.0

    run.pool.then(42.0, held_up)
    run.pool.then(42.0 + 2 * MAX_WAIT_SECONDS, lambda: run.pool.join("n1", 1))
    run.finish()


def test_nodes_that_join_get_work_soon(scripted):
    run = scripted(["good"] * 60, {}, workers=None)
    run.pool.then(150.0, lambda: run.pool.join("n0", 1))
    run.pool.then(200.0, lambda: run.pool.join("n1", 2))
    run.finish()
    began = {node: min(when for when, place in run.pool.given if place == node) for node in run.pool.rooms}
    assert began["n0"] < 150 + 30
    assert began["n1"] < 200 + 30
    assert run.said("large enough") == 3
    assert run.pool.now < 150 + 60 * TASK_SECONDS / 3 + 60


@pytest.mark.parametrize(("workers", "tasks", "waiting"), [(4, 60, 4), (4, 3, 3), (None, 60, 1)])
def test_what_waits_for_room_is_at_most_what_was_asked_for_and_what_there_is_to_do(scripted, workers, tasks, waiting):
    """Ray tells an autoscaler of it. Without `cluster.workers`, one says that there is need at all."""
    run, seen = scripted(["good"] * tasks, {}, workers=workers), []
    run.pool.then(100.0, lambda: seen.append(len(run.pool.waiting)))
    run.pool.then(101.0, lambda: run.pool.join("n0", 1))
    run.run()
    assert seen == [waiting]


def test_workers_without_work_are_released_within_a_minute_and_so_are_those_that_wait(scripted):
    run, seen = scripted(["long", "good", "good"], {"n0": 1, "n1": 1}, workers=3), {}
    run.pool.then(10.0, lambda: seen.update(before=(len(run.pool.where), len(run.pool.waiting))))
    run.pool.then(25.0 + 60.0, lambda: seen.update(after=(dict(run.pool.where), run.pool.waiting)))
    run.finish()
    assert seen == {"before": (2, 1), "after": ({"worker-0": "n0"}, [])}
    assert run.of("released", "worker") == ["worker-2", "worker-1"]


def test_a_worker_that_was_released_is_started_again_for_a_straggler(scripted):
    run, seen = scripted(["late"] + ["good"] * 3, {"n0": 1, "n1": 1}, workers=2), []
    run.pool.then(199.0, lambda: seen.append(list(run.pool.where)))
    run.finish()
    assert seen == [["worker-0"]]
    assert run.of("duplicate", "worker") == ["worker-2"]


def test_a_task_of_a_slow_network_is_late_for_no_other_and_needs_no_node(scripted, monkeypatch):
    """Defect: a small network's tasks said how long those of a large one may take. Patch: no `pace` in `Loop`."""
    monkeypatch.setattr(Painting, "pace", classmethod(lambda cls, task: task.job.behaviour))
    run, seen = scripted(["late"] * 3 + ["good"] * 8, {"n0": 4}, workers=8), []
    for when in range(150, 300, 10):
        run.pool.then(when, lambda: seen.append((len(run.pool.where), len(run.pool.waiting))))
    run.finish()
    assert not {"paint/0", "paint/1", "paint/2"} & set(run.of("duplicate", "task"))
    assert set(seen) == {(3, 0)}, "the worker without work was released, and none waits for room"


def test_a_late_copy_of_a_task_that_is_done_is_no_fault_of_its_worker(scripted):
    """It differs, and its worker cooled down. The patch: `_found` raises the fault of any task."""
    run = scripted(["longer", "late", "late"] + ["good"] * 4, {"n0": 5}, workers=5).finish()
    assert sorted(run.of("late copy", "task")) == ["paint/1", "paint/2"]
    assert run.said("already done") == 1
    assert {event["event"] for event in run.events}.isdisjoint({"failed", "benched"})


def another_session(run):
    """The events of another driver in the run directory, one of whose workers has a GPU."""
    other = Events(run.rundir)
    other.add("worker", worker="worker-7", node="n7", device="GPU", versions={}, threads=None)
    return other


def test_what_is_found_with_other_bytes_is_judged_after_another_driver_took_over(scripted):
    """Defect: the workers were looked up among those of the last session, which was the other driver's."""
    run = scripted(["other bytes", "good"])
    run.pool.then(7.0, lambda: another_session(run).add("session", stages=["sample"]))
    run.finish()
    assert run.of("other bytes", "first") == [["GPU"]]


def test_however_much_is_found_with_other_bytes_the_events_of_a_run_are_read_once(scripted, monkeypatch):
    """Workers that join afterwards are known nevertheless. Defect: all events were read for each such file."""
    opened, reads = LocalStorage.opened, []
    monkeypatch.setattr(LocalStorage, "opened", lambda storage, path: [reads.append(path), opened(storage, path)][1])
    run = scripted(["other bytes"] * 20, workers=None)
    another_session(run)
    run.pool.devices["n1"] = "new GPU"
    run.pool.then(50.0, lambda: run.pool.join("n1", 1))
    run.run()
    assert len(reads) == len(set(reads)) == 2, "each of the two sessions has a file"
    firsts = run.of("other bytes", "first")
    assert len(firsts) == 20
    assert firsts[0] == ["GPU"]
    assert {tuple(first) for first in firsts[-2:]} == {("GPU", "cpu"), ("GPU", "new GPU")}


@pytest.mark.parametrize(("rooms", "error"), [({}, UserError), ({"n0": 0}, RunFailed)])
def test_room_is_waited_for_a_while_with_a_line_every_minute(scripted, rooms, error):
    run = scripted(["good"], rooms, workers=2)
    with raises(error):
        run.run()
    assert MAX_WAIT_SECONDS <= run.pool.now < MAX_WAIT_SECONDS + 5
    assert 9 <= run.said("for room") <= 11
    private = scripted(["good"], {"n0": 0}, embedded=True)
    with pytest.raises(RunFailed):
        private.run()
    assert private.pool.now == pytest.approx(MAX_WAIT_SECONDS, abs=loop.POLL_SECONDS)


@pytest.mark.parametrize("another", [True, False])
def test_a_run_that_loses_its_last_node_waits_for_another_and_can_be_continued(scripted, another):
    run = scripted(["good"] * 10, workers=None)
    run.pool.then(42.0, lambda: run.pool.lose("n0"))
    if another:
        run.pool.then(500.0, lambda: run.pool.join("n1", 1))
        run.finish()
    else:
        with raises(RunFailed):
            run.run()
        assert run.pool.now == pytest.approx(42 + MAX_WAIT_SECONDS, abs=loop.POLL_SECONDS)


def test_a_node_that_drains_gets_no_more_work_and_its_place_is_taken(scripted):
    run = scripted(["good"] * 30, {"n0": 2, "n1": 1}, workers=3)
    run.pool.then(42.0, lambda: run.pool.node_is.update(n0="draining"))
    run.pool.then(60.0, lambda: run.pool.join("n2", 2))
    run.finish()
    assert max(when for when, node in run.pool.given if node == "n0") < 42.0 + worker_manager.NODE_POLL_SECONDS
    assert {node for when, node in run.pool.given if when > 80.0} == {"n1", "n2"}
    assert run.said("node n0 will") == 1
    assert {event["event"] for event in run.events}.isdisjoint({"failed", "lost"})


def test_what_is_lost_on_a_node_that_drains_is_nobodys_fault(scripted):
    """Ray may tell of the processes before it tells of the node."""
    run = scripted(["good"] * 30, {"n0": 1, "n1": 1}, workers=2)

    def preempt():
        run.pool.node_is["n0"] = "draining"
        for worker in [worker for worker, node in run.pool.where.items() if node == "n0"]:
            run.pool.then(run.pool.now + 0.1, Lost(worker, "worker process has died", False))

    run.pool.then(38.0, preempt)
    run.finish()
    assert len(run.of("lost", "worker")) == 1


def test_the_workers_that_are_lost_together_cost_one_poll_of_the_nodes(scripted, monkeypatch):
    """Defect: one for each, in the driver's loop."""
    polls, nodes = Counter(), ScriptedPool.nodes

    def polled(pool):
        polls[pool.now] += 1
        return nodes(pool)

    monkeypatch.setattr(ScriptedPool, "nodes", polled)
    run = scripted(["good"] * 60, {"n0": 20, "n1": 20}, workers=40)

    def preempt():
        run.pool.node_is["n0"] = "draining"
        for worker in [worker for worker, node in run.pool.where.items() if node == "n0"]:
            run.pool.then(11.0, Lost(worker, "worker process has died", False))

    run.pool.then(10.0, preempt)
    run.finish()
    assert len(run.of("lost", "worker")) == 20
    assert polls[11.0] == 1


def test_a_run_goes_on_while_its_head_does_not_answer(scripted):
    run = scripted(["good"] * 10)
    run.pool.then(12.0, lambda: run.pool.node_is.update(head="gone"))
    run.pool.then(60.0, lambda: run.pool.node_is.pop("head"))
    run.finish()


def drains(run, at, seconds):
    """Node n0 drains at a time and is taken away so many seconds later."""

    def notice():
        run.pool.node_is["n0"], run.pool.gone_at["n0"] = "draining", at + seconds

    run.pool.then(at, notice)
    if seconds < inf:
        run.pool.then(at + seconds, lambda: run.pool.lose("n0"))
    return run


def test_what_a_node_can_not_end_in_time_others_begin_at_once(scripted):
    """It is nobody's fault, and not done: the other node does it all."""
    run = drains(scripted(["long", "long"], {"n0": 1, "n1": 1}, workers=2), at=42.0, seconds=120.0)
    run.pool.then(43.0, lambda: run.pool.join("n2", 1))
    run.finish()
    [(when, worker)] = run.pool.stopped
    assert when < 42.0 + worker_manager.NODE_POLL_SECONDS + 1
    assert run.of("given back", "worker") == [worker]
    assert [node for _, node in run.pool.given] == ["n0", "n1", "n2"]
    assert run.pool.now < 42.0 + worker_manager.NODE_POLL_SECONDS + START_SECONDS + LONG_SECONDS + 5
    assert run.said(" in 1 min") == 1


@pytest.mark.parametrize("seconds", [LONG_SECONDS, inf])
def test_what_a_node_ends_in_time_it_ends(scripted, seconds):
    run = drains(scripted(["long", "long"], {"n0": 1, "n1": 1}, workers=2), 42.0, seconds).finish()
    assert not run.pool.stopped
    assert [node for _, node in run.pool.given] == ["n0", "n1"]


ON_CPU_NODES = {"spare": 0, "use_cpus": True}
"""Node g has GPUs, and scorers are on other nodes."""


def test_workers_without_gpus_do_what_needs_no_network_beside_those_with_one(scripted):
    run = scripted(["good"] * 20 + ["count"] * 20, {"g": 1, "c": 2}, workers=None, **ON_CPU_NODES).finish()
    where = {(event["task"].split("/")[0], event["node"]) for event in run.events if event["event"] == "assigned"}
    assert where == {("paint", "g"), ("count", "c")}
    assert run.pool.started == 3
    assert run.pool.now < 250


def test_no_worker_with_a_gpu_waits_for_room_for_what_workers_without_one_do(scripted):
    """Ray would tell an autoscaler of it, which would buy GPUs to compute scores."""
    run, seen = scripted(["count"] * 200, {"g": 1, "c": 6}, workers=8, **ON_CPU_NODES), []
    for when in range(5, 200, 10):
        run.pool.then(when, lambda: seen.append((len(run.pool.where), len(run.pool.waiting))))
    run.finish()
    assert set(seen) == {(7, 0)}


def test_the_last_node_with_gpus_may_go_while_the_others_do_all_that_is_left(scripted):
    run = scripted(["count"] * 200, {"g": 1, "c": 2}, workers=None, **ON_CPU_NODES)
    run.pool.then(30.0, lambda: run.pool.lose("g"))
    run.finish()
    assert run.pool.now > 30 + MAX_WAIT_SECONDS
    assert run.said("for room") == 0


def who_did(run):
    """Kind of task, and whether its worker had no GPU -> the number of such tasks."""
    starts = {event["worker"]: "cpu_only" in event for event in run.events if event["event"] == "starting"}
    given = zip(run.of("assigned", "task"), run.of("assigned", "worker"), strict=True)
    return Counter((task.split("/")[0], starts[worker]) for task, worker in given)


@pytest.mark.parametrize("embedded", [False, True])
def test_scorers_on_a_node_with_gpus_do_what_needs_no_network(scripted, embedded):
    """Defect 6: GPUs' workers do it all if `_poll_nodes` leaves out the node of an embedded cluster.

    Half of the node's five CPUs are for scorers.
    """
    run = scripted(["good"] * 20 + ["count"] * 20, {"g": 1}, workers=1, embedded=embedded, spare=4).finish()
    assert who_did(run) == {("paint", False): 20, ("count", True): 20}
    assert run.pool.started == 1 + 2
    assert run.pool.now < 20 * TASK_SECONDS + 20


@pytest.mark.parametrize(
    ("spare", "most", "memory", "scorers"), [(100, 3, inf, 3), (0, 8, inf, 0), (100, 0, inf, 0), (100, 8, 5e9, 2)]
)
def test_scorers_of_a_node_are_limited_and_workers_with_gpus_score_without_them(scripted, spare, most, memory, scorers):
    run = scripted(["count"] * 30, {"g": 1}, embedded=True, spare=spare, score={"workers_per_node": most})
    run.pool.memory = memory
    assert run.finish().pool.started == 1 + scorers


def test_a_worker_with_a_gpu_scores_where_no_scorer_finds_memory(scripted):
    run = scripted(["count"] * 4, {"g": 9}, workers=None, spare=0).finish()
    assert who_did(run) == {("count", False): 4}


def test_workers_on_spare_cpus_that_are_well_do_not_hide_that_no_gpu_is_fit(scripted):
    """They finish what they can; then the run ends. It never would if `broken_nodes` asked all workers of a node."""
    run = scripted(["good"] + ["count"] * 4, {"g": 1}, {"g": "GPU"}, embedded=True, spare=4)
    with raises(WorkerRefusal):
        run.run()
    assert sorted(run.done) == [f"count/{number}" for number in range(1, 5)]


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), RunFailed("taken over")], ids=["^C", "lease"])
def test_a_store_that_fails_at_the_end_does_not_hide_what_ended_the_run(scripted, cause):
    run = scripted(["good"] * 10)
    store = Faulty(run.rundir.root, fails_at=0, for_good=True)

    def end():
        run.session.storage = store
        run.session.note("ended")
        raise cause

    run.pool.then(15.0, end)
    with pytest.raises(type(cause)) as raised:
        run.run()
    assert raised.value is cause
    assert [name for name, path in store.calls] == ["append"], "one try"


def test_a_store_that_fails_ends_the_run(scripted):
    run = scripted(["good"])
    store = Faulty(run.rundir.root, fails_at=0)
    run.committed = lambda files: store.append(files[0].path, b"")
    with pytest.raises(OSError, match="planted"):
        run.run()


def test_what_happens_at_a_time_is_written_at_once(scripted, monkeypatch):
    """In an object store each write is a request, and Google takes one a second."""
    append, writes = LocalStorage.append, []
    monkeypatch.setattr(LocalStorage, "append", lambda *given, **more: [writes.append(given), append(*given, **more)])
    run = scripted(["good"] * 64, {"n0": 64}, workers=64).finish()
    assert len(run.of("worker", "worker")) == 64
    assert len(writes) < 8
