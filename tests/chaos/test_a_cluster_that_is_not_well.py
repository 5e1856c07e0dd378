"""Several nodes misbehave at once, each in its way: the run names them, and ends with the right files."""

import os
import signal

import pytest
from experiment import Counts, compare, parts
from raylets import LOST, READ_ONLY

pytestmark = pytest.mark.chaos


def test_bad_nodes_are_named_and_the_rest_does_all_the_work(lab, tally, strike):
    """B can't write, C has a stale copy of the weights, D no mount; on A a worker dies, and then both hang."""
    cluster, root, undisturbed = lab.cluster, lab.shared / "run", lab.shared / "undisturbed"
    stale = lab.folder / "stale.txt"
    stale.write_text("0.7")
    cluster.begin("A", cpus=2)
    cluster.start("B", "C", "D")
    cluster.wait("A")
    lab.finish(undisturbed, "--set", "cluster.workers=2")
    cluster.inside("B", READ_ONLY.format(lab.shared))
    cluster.inside("C", f"mount --bind {stale} {lab.weights}")
    cluster.inside("D", LOST.format(lab.shared))
    with lab.start(root, "--set", "cluster.hang_seconds=6") as driver:
        driver.wait_until(lambda: len(parts(root)) > 10)
        lab.finish(root, code=2)
        strike("worker", "A", cluster.workers("A")[0])
        driver.wait_until(lambda: len(parts(root)) > 20 and len(cluster.workers("A")) == 2)  # or the third goes on
        for pid in cluster.workers("A"):
            os.kill(pid, signal.SIGSTOP)
        driver.wait(0, timeout=120)
        for node in "BCD":
            assert cluster.ips[node] in driver.output
        assert "hang" in driver.output
    tally.faults += ["read-only node", "stale weights", "no mount", "all workers stopped", "second driver"]
    found = compare(root, undisturbed)
    tally.add(found)
    assert found == Counts(lost=0, doubled=0, other=0, quarantined=0)
    assert not (root / "damaged").exists()
