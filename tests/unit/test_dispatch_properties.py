"""Whatever goes wrong in a simulated cluster: no ready task waits, no good one is given up, and everything ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import World

from taugrid.orchestrator.task import Task

BAD_NODES = ("raises", "surroundings", "refuses", "kills", "hangs")
BAD_TASKS = ("raises", "final", "kills", "hangs")


@st.composite
def plans(draw, poisons=BAD_TASKS):
    """Some shards, good or not, each perhaps with its extraction, and perhaps a score of all extractions."""
    behaviours = st.sampled_from(("good", "good", "good", *poisons))
    tasks = [
        (Task(f"sample/{i}", "sample", draw(st.floats(0.1, 20))), draw(behaviours))
        for i in range(draw(st.integers(1, 10)))
    ]
    extracts = [(Task(f"extract/{task.key}", "extract", 1, frozenset({task.key})), draw(behaviours))
                for task, _ in tasks if draw(st.booleans())]  # fmt: skip
    needed = frozenset(task.key for task, _ in extracts)
    return tasks + extracts + ([(Task("score", "score", 1, needed), "good")] if draw(st.booleans()) else [])


@st.composite
def clusters(draw, healthy=1):
    """At least `healthy` good nodes, and up to three of any kind."""
    behaviours = ["good"] * healthy + draw(st.lists(st.sampled_from(("good", *BAD_NODES)), max_size=3))
    return {f"n{i}": (each, draw(st.integers(1, 3))) for i, each in enumerate(draw(st.permutations(behaviours)))}


def disturbances(data, number):
    """Kills workers and nodes, but never the only good one; at most one worker with each task.

    Where a node kills its workers, only idle ones die otherwise: an accident and such a node may convict a task.
    """
    left = [number]

    def disturb(world):
        if not left[0] or data.draw(st.integers(0, 3)):
            return
        left[0] -= 1
        killers = {"kills", "hangs"} & set(world.nodes.values())
        busy = {worker: keys[0] for worker in world.where if (keys := world.dispatcher.in_flight.keys(worker))}
        victims = [w for w in world.where if w not in busy or not (killers or world.deaths[busy[w]])]
        good = {node for node in world.where.values() if world.nodes[node] == "good"}
        nodes = sorted(set(world.where.values()) - (good if len(good) == 1 else set()))
        if nodes and data.draw(st.integers(0, 4)) == 0:
            world.lose_node(data.draw(st.sampled_from(nodes)))
        elif victims:
            worker = data.draw(st.sampled_from(sorted(victims)))
            if worker in busy:
                world.deaths[busy[worker]] += 1
            world.kill_one(worker)

    return disturb


TAILS = st.sampled_from((None, 0.0, 0.02, 3.0))
"""How late the end of a task is heard of by whoever may have a second one in hand; None: nobody may."""


def seconds(tail):
    return {"second": tail is not None, "tail": tail or 0.0}


def examples(few, **strategies):
    """A test of a property with so many examples, and with ten times as many in `make test-long`."""

    def decorated(holds):
        @pytest.mark.parametrize("number", [few, pytest.param(10 * few, marks=pytest.mark.long)])
        def test(number):
            settings(max_examples=number)(given(**strategies)(holds))()

        return test

    return decorated


def require_all_done(d, tasks):
    """What is good is done, and what is not is given up, with all that needs it."""
    bad = d.quarantined | d.backlog.unreachable
    assert d.done | bad == {task.key for task, _ in tasks}
    assert d.quarantined == {t.key for t, behaviour in tasks if behaviour != "good"} - d.backlog.unreachable
    assert all(task.requires & bad for task, _ in tasks if task.key in d.backlog.unreachable)
    assert not d.done & bad


@examples(30, nodes=clusters(), tasks=plans(), data=st.data(), max_attempts=st.integers(2, 4), tail=TAILS)
def test_while_a_node_is_good_all_good_tasks_are_done_and_all_others_given_up(nodes, tasks, data, max_attempts, tail):
    world = World(nodes, tasks, max_attempts, **seconds(tail))
    assert world.run(disturbances(data, 12)), "a good node is left"
    require_all_done(world.dispatcher, tasks)


@examples(10, nodes=clusters(healthy=2), tasks=plans(), data=st.data(), tail=TAILS)
def test_nodes_that_take_some_kinds_or_drain_keep_no_task_from_the_good_node_that_stays(nodes, tasks, data, tail):
    """One of the two good nodes takes everything and stays; any others may drain, and may take only scores."""
    stays = next(name for name, (behaviour, _) in nodes.items() if behaviour == "good")
    others = [name for name in nodes if name != stays]
    some = st.sampled_from((("score",), ("extract", "score")))
    takes = {name: data.draw(some) for name in others if data.draw(st.booleans())}
    world = World(nodes, tasks, 3, takes, **seconds(tail))
    turns = iter(range(100))  # of some 600, most of which wait for a node to cool down; a draw costs more than a turn

    def drain(world):
        at = [node for node in set(world.where.values()) if node != stays]
        if at and next(turns, None) is not None and data.draw(st.integers(0, 5)) == 0:
            node = data.draw(st.sampled_from(sorted(at)))
            if node not in world.draining:
                world.drain(node)
            elif not any(world.where[worker] == node for worker in world.dispatcher.in_flight.running):
                world.lose_node(node)

    assert world.run(drain)
    require_all_done(world.dispatcher, tasks)


@examples(
    15,
    behaviours=st.lists(st.sampled_from(BAD_NODES), min_size=1, max_size=3),
    tasks=plans(),
    data=st.data(),
    max_attempts=st.integers(1, 3),
    tail=TAILS,
)
def test_it_ends_even_if_no_node_is_good(behaviours, tasks, data, max_attempts, tail):
    nodes = {f"n{i}": (behaviour, 2) for i, behaviour in enumerate(behaviours)}
    world = World(nodes, tasks, max_attempts, **seconds(tail))
    finished = world.run(disturbances(data, 5))
    assert finished or set(world.dispatcher.broken_nodes()) == set(world.where.values())


@pytest.mark.parametrize("behaviour", BAD_NODES)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tail", [None, 0.02])
def test_a_bad_node_of_two_costs_no_task(behaviour, workers, tail):
    tasks = [(Task(f"sample/{i}", "sample", 10.0), "good") for i in range(48)]
    world = World({"bad": (behaviour, workers), "good": ("good", workers)}, tasks, **seconds(tail))
    assert world.run()
    assert (world.seconds > 20) == (tail is not None)
    assert len(world.dispatcher.done) == 48
    assert world.failures["bad"] < 30, "a node that fails all it gets is not given the queue"


@pytest.mark.parametrize("behaviour", ["raises", "kills"])
@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("tail", [None, 0.02])
def test_the_costliest_tasks_may_all_be_bad_and_the_rest_is_done_first(behaviour, nodes, tail):
    bad = [(Task(f"sample/{i}", "sample", 100.0), behaviour) for i in range(20)]
    good = [(Task(f"sample/{i}", "sample", 1.0), "good") for i in range(20, 520)]
    world = World({f"n{i}": ("good", 2) for i in range(nodes)}, bad + good, **seconds(tail))
    assert world.run()
    assert len(world.dispatcher.done) == 500
    assert len(world.quarantined_after) == 20
    assert all(done >= 500 - 2 * nodes for done in world.quarantined_after.values()), "all but those that still run"
    assert world.now < 1000
