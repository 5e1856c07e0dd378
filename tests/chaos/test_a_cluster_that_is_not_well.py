"""Several nodes misbehave at once, each in its way: the run names them, and ends with the right files."""

import os
import signal

import pytest
from command import sample_files, sample_here
from experiment import ON_NODES, Counts, compare, parts

from tools.raylets import LOST, READ_ONLY

pytestmark = pytest.mark.chaos


@pytest.mark.long
def test_bad_nodes_are_named_and_the_rest_does_all_the_work(lab, pytestconfig, monkeypatch):
    """C has a stale copy of the weights, and on A a worker dies.

    The short form only samples. In the long form B can't write either, D has no mount, a second driver comes, and both
    workers of A hang at the end; `test_planted_faults.py` has each of these alone.
    """
    is_long = pytestconfig.getoption("--long")
    bad = "BCD" if is_long else "C"
    cluster, root, undisturbed = lab.cluster, lab.shared / "run", lab.shared / "undisturbed"
    stale = lab.folder / "stale.txt"
    stale.write_text("0.7")
    cluster.begin("A", cpus=2)
    if is_long:
        cluster.start(*bad)
    else:
        cluster.begin("C")
    fast, hold = lab.weights.with_name("fast"), lab.weights.with_name("hold")
    fast.touch()
    if is_long:
        cluster.wait("A")
        lab.finish(undisturbed, "--set", "cluster.workers=2")
    else:
        with monkeypatch.context() as patch:  # while the nodes start
            patch.syspath_prepend(ON_NODES)
            patch.chdir(ON_NODES)
            sample_here(lab.config, undisturbed)
    for node in ("A", *bad):
        cluster.wait(node)
    fast.unlink()
    cluster.inside("C", f"mount --bind {stale} {lab.weights}")
    if is_long:
        cluster.inside("B", READ_ONLY.format(lab.shared))
        cluster.inside("D", LOST.format(lab.shared))
    hang, command = (("--set", "cluster.hang_seconds=6"), "run") if is_long else ((), "sample")
    with lab.start(root, *hang, command=command) as driver:
        if not is_long:
            driver.wait_until(lambda: "to do" in driver.output)  # it has tried the network in its own process
            hold.touch()  # or A might do all before C has started
            driver.wait_until(lambda: cluster.ips["C"] in driver.output)
            hold.unlink()
        driver.wait_until(lambda: len(parts(root)) > 10)
        if is_long:
            lab.finish(root, code=2)
        os.kill(cluster.workers("A")[0], signal.SIGKILL)
        if is_long:
            driver.wait_until(lambda: len(parts(root)) > 20 and len(cluster.workers("A")) == 2)  # or the third goes on
            for pid in cluster.workers("A"):
                os.kill(pid, signal.SIGSTOP)
        driver.wait(0)
        for node in bad:
            assert cluster.ips[node] in driver.output
        assert not is_long or "hang" in driver.output
    if is_long:
        assert compare(root, undisturbed) == Counts(lost=0, doubled=0, other=0, quarantined=0)
    assert sample_files(root) == sample_files(undisturbed)
    assert not (root / "damaged").exists()
