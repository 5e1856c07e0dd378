"""A run on a cluster that grows and shrinks under it."""

import time

import pytest
from command import events
from experiment import Counts, compare

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def nodes_of(said):
    """The addresses of the nodes that got tasks."""
    return {event["node"] for event in said if event["event"] == "assigned"}


def begun_to_drain(said):
    """How many events there were until a node began to drain; none if it has not."""
    return next((number for number, event in enumerate(said) if event["event"] == "draining"), None)


def no_demands(cluster):
    """Whether Ray's autoscaler soon hears of nothing that waits for room; it reports every 5 s."""
    end = time.monotonic() + 30
    while "(no resource demands)" not in cluster.ray("status", f"--address={cluster.address}"):
        if time.monotonic() > end:
            return False
    return True


def test_a_run_begins_without_nodes_and_follows_its_cluster(lab, tally):
    """Three nodes join one after another, one is lost and one drained: all work is done, as in a calm local run."""
    cluster, root, calm = lab.cluster, lab.shared / "run", lab.shared / "calm"
    hold = lab.weights.with_name("hold")
    less = ("--set", "sample.num_samples=120")
    with lab.start(root, *less, "--workers", "3") as driver, lab.start(calm, *less, "--address", "local") as local:
        driver.wait_until(lambda: "waiting for room for a worker of 1 CPU and 0 GPUs: no node is" in driver.output)
        local.wait_until(lambda: "to do" in local.output)  # it has tried the network in its own process
        hold.touch()  # nothing is sampled until all three nodes have work
        for node in "ABC":
            cluster.start(node)
            joined = time.monotonic()
            driver.wait_until(lambda node=node: cluster.ips[node] in nodes_of(events(root)))
            assert time.monotonic() - joined < 30
        cluster.kill("A")
        cluster.drain("B", seconds=600)
        driver.wait_until(lambda: begun_to_drain(events(root)))
        hold.unlink()
        driver.wait(0)
        local.wait(0)
    said = events(root)
    assert nodes_of(said[begun_to_drain(said) :]) == {cluster.ips["C"]}
    assert "will be taken away: it gets no more work" in driver.output
    assert [cluster.workers(node) for node in "BC"] == [[], []]
    assert no_demands(cluster)
    tally.faults += ["no node at first", "drained node"]
    tally.kills["node"] += 1
    tally.nodes.add("A")
    found = compare(root, calm)
    tally.add(found)
    assert found == Counts(lost=0, doubled=0, other=0, quarantined=0)
