from collections import Counter

import pytest

from taugrid.orchestrator.dispatch.policy.backlog import Retries
from taugrid.orchestrator.dispatch.policy.blame import suffices
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.policy.health import Health
from taugrid.orchestrator.dispatch.policy.in_flight import SPECULATION_SLOWNESS, Median, Running
from taugrid.orchestrator.task import Task

KINDS = ("sample", "extract", "score")


def shard(number, cost=1.0):
    return Task(f"sample/{number}", "sample", cost)


def assigned(dispatcher, now=0.0):
    return {worker: task.key for worker, task, _ in dispatcher.assign(now)}


def with_workers(tasks, *workers, max_attempts=3):
    dispatcher = Dispatcher(tasks, KINDS, max_attempts)
    for worker in workers:
        dispatcher.worker_joined(worker)
    return dispatcher


def test_the_longest_goes_first_and_equals_in_order():
    d = with_workers([shard(0, 1), shard(1, 9), shard(2, 9), shard(3, 5)], "a", "b", "c", "d")
    assert assigned(d) == {"a": "sample/1", "b": "sample/2", "c": "sample/3", "d": "sample/0"}


def test_extraction_waits_for_its_shard_and_runs_when_sampling_has_nothing_left():
    extract = Task("extract/0", "extract", 100, frozenset({"sample/0"}))
    d = with_workers([extract, shard(0), shard(1), shard(2)], "a")
    order = []
    while not d.finished:
        order += assigned(d).values()
        d.succeeded("a", 0)
    assert order == ["sample/0", "sample/1", "sample/2", "extract/0"]


def test_a_task_that_can_do_without_what_it_waits_for_is_done_once_that_is_given_up():
    """Put back by leaving it unreachable: the second cell of two that share latents gets no image."""
    alone = Task("sample/1", "sample", 1, frozenset({"sample/0"}), does_without=True)
    scores = [Task(f"score/{number}", "score", 1, frozenset({f"sample/{number}"})) for number in (0, 1)]
    d = with_workers([shard(0), alone, *scores], "a", max_attempts=1)
    order = []
    while not d.finished:
        order += assigned(d).values()
        if order[-1] == "sample/0":
            assert d.failed("a", 0).quarantined
        else:
            d.succeeded("a", 0)
    assert order == ["sample/0", "sample/1", "score/1"]
    assert d.backlog.unreachable == {"score/0"}


def test_a_lost_workers_task_goes_to_another():
    d = with_workers([shard(0), shard(1)], "a", "b")
    assert assigned(d) == {"a": "sample/0", "b": "sample/1"}
    assert not d.worker_lost("a", 0).quarantined
    assert len(d.in_flight) == 1
    assert assigned(d) == {}, "b is busy"
    d.succeeded("b", 1)
    assert assigned(d, 1) == {"b": "sample/0"}


def test_a_task_that_is_given_back_is_not_queued_again_while_a_copy_of_it_runs():
    d = with_workers([shard(0)], "a", "b")
    assigned(d)
    d.in_flight.begin("b", d.backlog.task("sample/0"), 0.0)
    d.gave_back("a", 1, "sample/0")
    assert assigned(d, 1) == {}
    assert d.succeeded("b", 2)
    assert (d.finished, d.attempts("sample/0")) == (True, 0)


def test_an_idle_worker_may_be_lost():
    d = with_workers([shard(0)], "a", "b")
    assigned(d)
    assert d.worker_lost("b", 0).key is None
    assert d.attempts("sample/0") == 0


@pytest.mark.parametrize("with_its_node", [True, False])
def test_the_workers_of_a_lost_node_may_be_heard_of_one_after_the_other(with_its_node):
    d = Dispatcher([shard(0), shard(1)], KINDS)
    for worker in ("a", "b"):
        d.worker_joined(worker, "lost", 0)
    d.worker_joined("c", "good", 0)
    assert assigned(d) == {"a": "sample/0", "b": "sample/1"}
    d.worker_lost("a", 1, "its node died", with_its_node=True)
    assert assigned(d, 1) == {"c": "sample/0"}
    d.worker_lost("b", 2, "it died", with_its_node)
    d.succeeded("c", 3)
    assert assigned(d, 3) == {"c": "sample/1"}


def test_a_task_that_always_fails_is_set_aside_with_what_needs_it_and_the_rest_goes_on():
    score = Task("score/0", "score", 1, frozenset({"extract/0"}))
    extract = Task("extract/0", "extract", 1, frozenset({"sample/0"}))
    d = with_workers([shard(0, 9), shard(1), extract, score], "a", max_attempts=2)
    assert assigned(d) == {"a": "sample/0"}
    assert not d.failed("a", 0).quarantined
    assert assigned(d) == {"a": "sample/1"}, "what has not failed goes first, however cheap"
    d.succeeded("a", 1)
    assert assigned(d) == {"a": "sample/0"}
    assert not d.finished
    assert d.failed("a", 1).quarantined
    assert d.quarantined == {"sample/0"}
    assert d.backlog.unreachable == {"extract/0", "score/0"}
    assert d.finished


def test_a_worker_that_fails_everything_at_once_does_not_use_up_the_attempts_of_the_queue():
    """A broken GPU, a full disk, a missing file on one node: all tasks would be given up while a healthy one works."""
    d = with_workers([shard(i) for i in range(50)], "healthy", "broken")
    now = 0.0
    while not d.finished:
        now += 1
        for worker, _, _ in d.assign(now):
            if worker == "broken":
                d.failed(worker, now)
        if "healthy" in d.in_flight.running:
            d.succeeded("healthy", now)
    assert len(d.done) == 50


def straggling():
    """a has done a task of cost 1 in 1 s; b has been at another of cost 1 since 0 s, and nothing is queued."""
    d = with_workers([shard(0), shard(1)], "a", "b")
    assigned(d)
    assert d.succeeded("a", 1.0)
    return d


def test_a_straggler_is_duplicated_once_and_the_first_to_end_counts():
    d = straggling()
    assert assigned(d, 1.49) == {}, "not late yet"
    assert assigned(d, 1.51) == {"a": "sample/1"}
    d.worker_joined("c")
    d.heartbeat("a", 99)
    d.heartbeat("b", 99)
    assert assigned(d, 100) == {}, "two copies that go on are enough"
    assert d.succeeded("a", 100) is True
    assert d.finished, "the slow copy is not waited for"
    assert d.succeeded("b", 200) is False
    assert d.done == {"sample/0", "sample/1"}


def test_a_task_whose_copies_are_all_silent_runs_three_times_at_most():
    d = straggling()
    assert assigned(d, 2) == {"a": "sample/1"}
    d.worker_joined("c")
    assert assigned(d, 59) == {}, "both are heard of as often as they should be"
    assert assigned(d, 61) == {"c": "sample/1"}
    d.worker_joined("d")
    assert assigned(d, 1000) == {}


def test_the_oldest_straggler_is_duplicated_first():
    d = with_workers([shard(i) for i in range(4)], "a", "b")
    assigned(d, 0.0)
    d.worker_joined("c")
    assert assigned(d, 0.5) == {"c": "sample/2"}
    d.succeeded("a", 1.0)
    assert assigned(d, 1.0) == {"a": "sample/3"}
    d.succeeded("a", 2.0)
    assert assigned(d, 50.0) == {"a": "sample/1"}


def simulated_seconds(tasks, speeds):
    """Time until a dispatcher's work is done by workers of the given speeds, in cost per second."""
    d = with_workers(tasks, *speeds)
    now, began, ends = 0.0, {}, {}
    while not d.finished:
        for worker, task, _ in d.assign(now):
            began[worker], ends[worker] = now, now + task.cost / speeds[worker]
        for worker in ends:
            d.heartbeat(worker, now)
        waking = [began[w] + SPECULATION_SLOWNESS * 1.01 for w in ends]  # the driver looks up
        now = min(*ends.values(), *(t for t in waking if t > now), float("inf"))
        for worker in [w for w, end in ends.items() if end <= now]:
            del ends[worker]
            d.succeeded(worker, now)
    return now


def test_a_worker_that_is_20_times_slower_costs_one_task_more_not_its_whole_time():
    """Ten tasks of 1 s: the slow worker would need 20 s for its first; the fast one has done all others after 9."""
    assert simulated_seconds([shard(i) for i in range(10)], {"fast": 1.0, "slow": 0.05}) == pytest.approx(10.0)


def test_a_task_is_not_duplicated_while_others_are_queued():
    d = with_workers([shard(0), shard(1), shard(2)], "a", "b")
    assigned(d)
    d.succeeded("a", 1.0)
    assert assigned(d, 1000.0) == {"a": "sample/2"}


def test_a_copy_that_fails_does_not_put_the_task_back_while_the_other_runs():
    d = straggling()
    assigned(d, 10)
    assert not d.failed("a", 10).quarantined
    d.worker_joined("c")
    d.worker_lost("c", 10)
    assert d.attempts("sample/1") == 1
    assert d.succeeded("b", 20)
    assert d.finished


def test_both_copies_lost_puts_the_task_back_once():
    d = straggling()
    assigned(d, 10)
    d.worker_lost("a", 10)
    d.worker_lost("b", 10)
    d.worker_joined("c")
    d.worker_joined("d")
    assert list(assigned(d, 20).values()) == ["sample/1"]


def losing_a_worker_each_time(tasks):
    """The tasks that workers of one node died of, until one is quarantined or three have died."""
    d, lost = Dispatcher(tasks, KINDS, max_attempts=2), []
    for number in range(3):
        d.worker_joined(f"w{number}", "n")
        lost += assigned(d, number).values()
        if d.worker_lost(f"w{number}", number).quarantined:
            return lost, True
    return lost, False


def test_a_task_is_to_blame_for_losses_in_a_row_and_another_ones_loss_in_between_starts_the_row_again():
    assert losing_a_worker_each_time([shard(0)]) == (["sample/0", "sample/0"], True)
    assert losing_a_worker_each_time([shard(0, 2), shard(1, 1)]) == (["sample/0", "sample/1", "sample/0"], False)


def with_helpers(tasks, helpers=2):
    """Two workers for all kinds, and one helper that is there, of `helpers` that could be."""
    d = Dispatcher(tasks, ("sample", "score"))
    for worker, kinds in (("gpu", None), ("gpu too", None), ("cpu", {"score"})):
        d.worker_joined(worker, "n", 0.0, kinds)
    d.expect_helpers(helpers, {"score"})
    return d


def scores(number):
    return [Task(f"score/{i}", "score", 1.0) for i in range(number)]


def test_others_leave_scores_to_helpers_while_they_may_get_other_work():
    """Defect 6: with `leave = False` in `_ready`, "gpu too" takes a score, and samples may wait for it."""
    d = with_helpers([Task("sample/0", "sample", 1.0), *scores(3)])
    assert assigned(d, 0.0) == {"cpu": "score/0", "gpu": "sample/0"}
    assert assigned(d, 1.0) == {}, "two scores wait, and two helpers are there or could soon be"
    d.succeeded("cpu", 2.0)
    assert assigned(d, 2.0) == {"cpu": "score/1"}


def test_others_take_the_scores_that_are_too_many_for_helpers_or_all_that_is_left():
    d = with_helpers([Task("sample/0", "sample", 1.0), *scores(4)])
    assert assigned(d, 0.0) == {"cpu": "score/0", "gpu": "sample/0", "gpu too": "score/1"}
    d = with_helpers(scores(3))
    assert assigned(d, 0.0) == {"cpu": "score/0", "gpu": "score/1", "gpu too": "score/2"}


def node(*workers):
    health = Health()
    for worker in workers:
        health.joined(worker, "n", 0.0, frozenset({"sample"}))
    return health


def test_a_node_that_did_a_task_is_no_witness_any_more_once_three_of_its_workers_died():
    health = node("a", "b", "c", "d")
    health.succeeded("d")
    for number, worker in enumerate("abc"):
        assert health.proven() == {"n"}
        cooldown = health.lost(worker, number, "killed")
        health.left(worker, number)
    assert cooldown.whole_node
    assert health.proven() == set()


def test_a_node_without_workers_counts_as_fit_for_two_minutes():
    health = node("a")
    health.lost("a", 0.0, "killed")
    health.left("a", 0.0)
    assert health.usable_nodes(119, "sample") == {"n"}
    assert health.usable_nodes(121, "sample") == set()


@pytest.mark.parametrize(
    "tasks",
    [[shard(0), shard(0)], [Task("x", "paint", 1)], [Task("x", "sample", 1, frozenset({"nothing"}))]],
    ids=["twice", "kind", "requirement"],
)
def test_an_impossible_plan_is_refused(tasks):
    with pytest.raises(ValueError, match="task"):
        Dispatcher(tasks, KINDS)


def test_two_thousand_shards_take_little_time_to_think_about():
    d = with_workers([shard(i, i) for i in range(2000)], *(f"w{i}" for i in range(64)))
    done = 0
    now = 0.0
    while not d.finished:
        d.assign(now)
        for worker in list(d.in_flight.running):
            now += 0.01
            done += d.succeeded(worker, now)
    assert done == 2000


def test_a_worker_gets_only_tasks_of_the_kinds_that_it_takes():
    d = Dispatcher([shard(0), shard(1), Task("score/0", "score", 1.0)], KINDS)
    d.worker_joined("cpu", "n0", kinds={"score"})
    assert assigned(d) == {"cpu": "score/0"}
    d.succeeded("cpu", 1)
    assert assigned(d, 1) == {}, "two shards are ready, but not for it"
    d.worker_joined("gpu", "n1")
    assert assigned(d, 1) == {"gpu": "sample/0"}
    d.succeeded("gpu", 2)
    assert assigned(d, 2) == {"gpu": "sample/1"}
    assert assigned(d, 1000) == {}, "no copy of what it does not take"


def test_a_task_that_may_be_poison_waits_for_a_worker_that_takes_its_kind():
    d = Dispatcher([shard(0)], KINDS)
    d.worker_joined("cpu", "n0", kinds={"score"})
    for number in range(2):
        d.worker_joined(f"gpu{number}", "n1")
        assert assigned(d) == {f"gpu{number}": "sample/0"}
        d.worker_lost(f"gpu{number}", number)
    assert assigned(d, 2) == {}
    d.worker_joined("gpu2", "n1")
    assert assigned(d, 2) == {"gpu2": "sample/0"}, "n0 has failed it less often, but can't do it"


def test_the_workers_of_a_draining_node_end_their_tasks_and_get_no_others():
    d = with_workers([shard(i) for i in range(3)], "a", "b")
    assert assigned(d) == {"a": "sample/0", "b": "sample/1"}
    d.health.set_draining({"a"})
    assert d.succeeded("a", 1)
    assert assigned(d, 1) == {}
    d.health.set_draining(set())
    assert assigned(d, 1) == {"a": "sample/2"}


def test_each_cooldown_is_twice_as_long_up_to_a_minute():
    health = node("a")
    assert [health.unhealthy("a", 100.0 * n, "no GPU").seconds for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_failures_on_eight_nodes_suffice_where_no_node_has_done_anything():
    nodes = [f"n{number}" for number in range(20)]
    assert suffices(Counter(nodes[:8]), 3, set(nodes), set())
    assert not suffices(Counter(nodes[:7]), 3, set(nodes), set())


def test_a_task_that_was_taken_again_counts_no_more_for_the_places_where_it_failed():
    retries = Retries()
    retries.add(1, frozenset({"a"}))
    assert retries.take(None) == 1
    retries.add(2, frozenset({"b"}))
    assert retries.take("a") == 2


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    median = Median()
    for number in (4.0, 1.0, 9.0, 2.0):
        median.add(number)
    assert median.value == 3.0


@pytest.mark.parametrize(
    ("fraction", "gone_in", "batches", "stops"),
    [
        (0.0, 100, 10, False),  # nothing is known of its speed
        (0.0, 5, 10, True),  # it still has to write
        (0.5, 106, 10, False),  # it ends in 100 s
        (0.5, 104, 10, False),  # the ninth batch ends in 80 s
        (0.55, 14, 10, True),  # the sixth ends in 9.1 s, too late to be written
        (0.55, 16, 10, False),
        (0.99, 7, 1, False),
        (0.5, 104, 1, True),
    ],
)
def test_a_job_whose_node_will_be_gone_is_stopped_after_the_last_batch_that_can_be_kept(
    fraction, gone_in, batches, stops
):
    """It has run for 100 s, up to its last heartbeat."""
    running = Running(Task("a", "sample", 1.0), since=50.0, heartbeat=150.0, fraction=fraction)
    assert running.must_stop(150.0, 150.0 + gone_in, batches) is stops
