"""States of a dispatcher of any size that a run comes through, for the benchmark of scale and its short form.

Each function takes numbers of workers and tasks and returns a dispatcher and the time on its clock. A node has `NODE`
workers; tasks are of ten costs, and one in ten is a score.
"""

from collections.abc import Callable

from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher, Fault
from taugrid.orchestrator.task import Task

KINDS = ("sample", "extract", "reconstruct", "interpolate", "reference", "score")
NODE = 8
COST = 10.0

State = Callable[[int, int], tuple[Dispatcher, float]]


def tasks_of(number: int) -> list[Task]:
    kinds = ["sample"] * 9 + ["score"]
    return [Task(f"{kinds[i % 10]}/{i}", kinds[i % 10], COST + i // 10 % 10) for i in range(number)]


def join(d: Dispatcher, first: int, stop: int, kinds: set[str] | None = None) -> None:
    for i in range(first, stop):
        d.worker_joined(f"w{i}", f"n{i // NODE}", 0.0, kinds)


def start(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """All workers are idle, and all tasks ready."""
    d = Dispatcher(tasks_of(tasks), KINDS)
    join(d, 0, workers)
    return d, 0.0


def middle(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """All workers are busy but one, which has just done its first task."""
    d, _ = start(workers, tasks)
    d.assign(0.0)
    d.succeeded("w0", COST)
    return d, COST


def ending(running: Callable[[int], int], seconds: float, silent: bool = False) -> State:
    """Nothing is ready; `running` of the workers run since `seconds`, the others are idle."""

    def state(workers: int, tasks: int) -> tuple[Dispatcher, float]:
        number, now = running(workers), 0.0
        rounds = max(1, (tasks - number) // workers)
        d = Dispatcher(tasks_of(rounds * workers + number), KINDS)
        join(d, 0, workers)
        for _ in range(rounds):
            for worker, task, _ in d.assign(now):
                d.succeeded(worker, now + task.cost)
            now += 2 * COST
        d.assign(now)
        now += seconds
        for worker in d.in_flight.running:
            if not silent:
                d.heartbeat(worker, now)
        return d, now

    return state


def cooling(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """All nodes but one fail whatever they do, again and again."""
    d, now = start(workers, tasks)
    for _ in range(6):
        for worker, _, _ in d.assign(now):
            if worker in {f"w{i}" for i in range(NODE)}:
                d.succeeded(worker, now + COST)
            else:
                d.failed(worker, now + COST, Fault.ENVIRONMENT, "read-only")
        now += COST
    return d, now


def failed(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """Every task has failed once, on the first node. All workers are idle; those of the other nodes have just come."""
    d = Dispatcher(tasks_of(tasks), KINDS)
    join(d, 0, NODE)
    now, failures = 0.0, 0
    while failures < tasks:
        for worker in d.due_for_health_check(now):
            d.health.readmitted(worker)
        for worker, _, _ in d.assign(now):
            if failures < tasks:
                d.failed(worker, now, Fault.TASK, "ValueError")
                failures += 1
        now += 100.0
    for worker in d.due_for_health_check(now):
        d.health.readmitted(worker)
    join(d, NODE, workers)
    return d, now


def unsuited(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """Half of the workers take only scores, and all scores are done; the other half is busy."""
    d = Dispatcher(tasks_of(tasks), KINDS)
    join(d, 0, workers // 2, {"score"})
    now = 0.0
    while given := d.assign(now):
        now += COST
        for worker, _, _ in given:
            d.succeeded(worker, now)
    join(d, workers // 2, workers)
    d.assign(now)
    return d, now


def suspected(workers: int, tasks: int) -> tuple[Dispatcher, float]:
    """Half of the workers were lost twice with their tasks; nothing else is ready, and one that may be poison runs."""
    d, now = ending(lambda number: number // 2, 0.0)(workers, tasks)
    for round in range(2):
        for i, worker in enumerate(list(d.in_flight.running)):
            d.worker_lost(worker, now, "killed")
            d.worker_joined(f"w{workers * (round + 1) + i}", f"n{i}'", now)
        now += 100.0
        for worker in d.due_for_health_check(now):
            d.health.readmitted(worker)
        d.assign(now)
    return d, now


STATES: dict[str, State] = {
    "start: all idle, all ready": start,
    "middle: one has just become idle": middle,
    "end: one runs": ending(lambda workers: 1, 1.0),
    "end: half run": ending(lambda workers: workers // 2, 1.0),
    "end: all but a node run": ending(lambda workers: workers - NODE, 1.0),
    "end: half run, all late": ending(lambda workers: workers // 2, 40.0),
    "end: half run, all silent": ending(lambda workers: workers // 2, 100.0, silent=True),
    "all nodes but one cool down": cooling,
    "every task failed once": failed,
    "half of the workers unsuited": unsuited,
    "half of the workers died twice": suspected,
}


EVENTS: dict[str, Callable[[Dispatcher, str, float], object]] = {
    "succeeded": lambda d, worker, now: d.succeeded(worker, now),
    "failed": lambda d, worker, now: d.failed(worker, now, Fault.TASK, "ValueError"),
    "failed: refused": lambda d, worker, now: d.failed(worker, now, Fault.REFUSAL, "read-only"),
    "lost": lambda d, worker, now: d.worker_lost(worker, now, "killed"),
    "lost with its node": lambda d, worker, now: d.worker_lost(worker, now, "node died", with_its_node=True),
    "beat": lambda d, worker, now: d.heartbeat(worker, now),
}
"""What may happen to a worker that runs a task."""

QUESTIONS: dict[str, Callable[[Dispatcher, float], object]] = {
    "overdue": lambda d, now: d.overdue(now),
    "due_for_health_check": lambda d, now: d.due_for_health_check(now),
    "unfit": lambda d, now: d.broken_nodes(),
    "avoided": lambda d, now: d.health.broken_nodes(),
    "demand_by_kind": lambda d, now: d.demand_by_kind(now),
}
"""What the worker manager asks after every event."""
