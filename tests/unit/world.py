"""A simulated cluster for tests of the dispatcher: nodes and tasks, good and bad, on a clock of their own.

What a node or a task does is one of these words:
- nodes: `good`; `raises` an error of any kind, `surroundings` (an error of that kind), `refuses` (the same, and it does
  not pass its hello), `kills` the worker or `hangs`, whatever the task.
- tasks: `good`; `raises`, `final`, `kills` or `hangs` on every node.
"""

import heapq
from collections import Counter
from itertools import count

from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher, Fault

KINDS = ("sample", "extract", "score")
HANG_SECONDS = 600.0
START_SECONDS = 5.0
FAILING_SECONDS = 0.05
POLL_SECONDS = 5.0
"""How often the driver looks up while nothing happens. Longer than in fact, so that tests are quick."""


class World:
    """Runs a dispatcher. `nodes` is name -> (behaviour, workers); `tasks` is a list of (task, behaviour).

    `takes` is node -> the kinds of tasks that its workers take, if not all. With `second`, a worker may have a second
    task in hand; it begins when the first is done, which is heard of `tail` seconds later.
    """

    def __init__(self, nodes, tasks, max_attempts=3, takes=None, second=False, tail=0.0):
        self.behaviour = {task.key: behaviour for task, behaviour in tasks}
        self.dispatcher = Dispatcher((task for task, _ in tasks), KINDS, max_attempts, HANG_SECONDS, second)
        self.tail = tail
        self.hands = {}  # worker -> the tasks that it has, of which it is at the first
        self.seconds = 0  # how often a worker was given a second
        self.nodes = {name: behaviour for name, (behaviour, _) in nodes.items()}
        self.takes = dict(takes or {})
        self.draining = set()
        self.now = 0.0
        self.where = {}  # worker -> node
        self.deaths = Counter()  # key -> workers that died with it, as `kill_one` wished
        self.failures = Counter()  # node -> tasks that it failed, by error or death
        self.quarantined_after = {}  # key -> done tasks at that time
        self._events, self._numbers, self._steps = [], count(), 0
        for name, (_, workers) in nodes.items():
            for _ in range(workers):
                self._at(0.0, "joins", f"w{next(self._numbers)}", name)

    def _at(self, delay, what, worker, detail=None):
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), what, worker, detail))

    def run(self, disturb=lambda world: None, steps=20_000):
        """To the end: True if all was done that can be, False if no node was fit."""
        while not self.dispatcher.finished:
            assert self._steps < steps, "it must come to an end"
            self._steps += 1
            disturb(self)
            self.give()
            if self.dispatcher.broken_nodes() and not any(what == "joins" for _, _, what, _, _ in self._events):
                return False
            self._wait()
        return True

    def give(self):
        d = self.dispatcher
        for worker in d.due_for_health_check(self.now):
            if self.nodes[self.where[worker]] == "refuses":
                d.health.unhealthy(worker, self.now, "read-only")
            else:
                d.health.readmitted(worker)
        for worker, task, _ in d.assign(self.now):
            node = self.where[worker]
            assert task.kind in self.takes.get(node, KINDS), "a worker got what it does not take"
            assert node not in self.draining, "a worker got a task on a node that will be gone"
            hands = self.hands.setdefault(worker, [])
            hands.append(task)
            assert d.in_flight.keys(worker)[-1] == task.key
            if len(hands) == 1:
                self._begin(worker, task)
            else:
                self.seconds += 1
        assert not d.health.available(d.in_flight.idle, d.backlog.kinds), (
            "a ready task waits while a worker idles that may do it"
        )

    def _begin(self, worker, task):
        node, itself = self.nodes[self.where[worker]], self.behaviour[task.key]
        if node in ("surroundings", "refuses"):
            self._at(FAILING_SECONDS, "fails", worker, (task.key, Fault.ENVIRONMENT))
        elif (what := node if node != "good" else itself) == "good":
            self._at(task.cost, "computes", worker, (task.key, None))
        elif what == "raises":
            self._at(FAILING_SECONDS, "fails", worker, (task.key, Fault.TASK))
        elif what == "final":
            self._at(FAILING_SECONDS, "fails", worker, (task.key, Fault.FINAL))
        elif what == "kills":
            self._at(FAILING_SECONDS, "dies", worker)

    def _wait(self):
        """Time goes on to the next event, or the driver's next look."""
        d = self.dispatcher
        then = min(self.now + POLL_SECONDS, self._events[0][0] if self._events else float("inf"))
        self.now = then
        while self._events and self._events[0][0] <= self.now:
            _, _, what, worker, detail = heapq.heappop(self._events)
            self._happen(what, worker, detail)
        busy = {worker for _, _, what, worker, _ in self._events if what != "joins"}
        for worker in d.in_flight.running:
            if worker in busy:
                d.heartbeat(worker, self.now)
        for worker in d.overdue(self.now):
            self.kill_one(worker, d.in_flight.running[worker].key)

    def _happen(self, what, worker, detail):
        d = self.dispatcher
        if what == "joins":
            if detail in self.nodes:
                self.where[worker] = detail
                d.worker_joined(worker, detail, self.now, self.takes.get(detail))
        elif worker in d.in_flight.running:
            if what == "computes":
                self._at(self.tail, "succeeds", worker, detail)
                self._go_on(worker)
            elif what == "succeeds":
                d.succeeded(worker, self.now, detail[0])
            elif what == "fails":
                self.failures[self.where[worker]] += 1
                self._note(d.failed(worker, self.now, detail[1], "it fails", detail[0]))
                self._go_on(worker)
            elif what == "dies":
                self.kill_one(worker)

    def _go_on(self, worker):
        self.hands[worker].pop(0)
        if self.hands[worker]:
            self._begin(worker, self.hands[worker][0])

    def _note(self, verdict):
        if verdict.quarantined:
            self.quarantined_after[verdict.key] = len(self.dispatcher.done)

    def kill_one(self, worker, culprit=None):
        """A worker dies; another starts on its node."""
        node = self.where.pop(worker)
        self.failures[node] += worker in self.dispatcher.in_flight.running
        self.hands.pop(worker, None)
        self._note(self.dispatcher.worker_lost(worker, self.now, "it died", culprit=culprit))
        self._at(START_SECONDS, "joins", f"w{next(self._numbers)}", node)

    def drain(self, node):
        """A node will be gone."""
        self.draining.add(node)
        self.dispatcher.health.set_draining(self.draining)

    def lose_node(self, node):
        """A node is gone with all its workers, which is heard of one after the other; another takes its place."""
        if node in self.takes:
            self.takes[f"{node}'"] = self.takes[node]
        for worker in [w for w, place in self.where.items() if place == node]:
            del self.where[worker]
            self._note(self.dispatcher.worker_lost(worker, self.now, "its node died", with_its_node=True))
            self._at(START_SECONDS, "joins", f"w{next(self._numbers)}", f"{node}'")
            self.give()
        self.nodes[f"{node}'"] = self.nodes.pop(node)
