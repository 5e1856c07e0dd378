"""A run on a cluster that grows and shrinks under it."""

import json
import re
import time

import pytest
from command import events
from experiment import Counts, compare

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STEPS = 400
"""Of a training that is disturbed: on two cores, some 20 s."""


def nodes_of(said):
    """The addresses of the nodes that got tasks."""
    return {event["node"] for event in said if event["event"] == "assigned"}


def begun_to_drain(said):
    """How many events there were until a node began to drain; none if it has not."""
    return next((number for number, event in enumerate(said) if event["event"] == "draining"), None)


def no_demands(cluster):
    """Whether Ray's autoscaler soon hears of nothing that waits for room; it reports every 5 s."""
    end = time.monotonic() + 30
    while "no resource" not in cluster.ray("status", f"--address={cluster.address}"):
        if time.monotonic() > end:
            return False
    return True


def test_a_run_begins_without_nodes_and_follows_its_cluster(lab):
    """Three nodes join one after another, one is lost and one drained: all work is done, as in a calm local run."""
    cluster, root, calm = lab.cluster, lab.shared / "run", lab.shared / "calm"
    hold = lab.weights.with_name("hold")
    less = ("--set", "sample.num_samples=120")
    with lab.start(root, *less, "--workers", "3") as driver, lab.start(calm, *less, "--address", "local") as local:
        driver.wait_until(lambda: "no node" in driver.output)
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
    assert "more work" in driver.output
    assert [cluster.workers(node) for node in "BC"] == [[], []]
    assert no_demands(cluster)
    assert compare(root, calm) == Counts(lost=0, doubled=0, other=0, quarantined=0)


def trained(root):
    """The files of the weights, and the steps of the log."""
    (model,) = root.glob("models/[!.]*")
    weights = {path.relative_to(model): path.read_bytes() for path in model.rglob("*.safetensors")}
    return weights, [json.loads(line)["step"] for line in (model / "train/log.jsonl").read_text().splitlines()]


def test_a_training_leaves_a_node_that_will_be_taken_away_and_loses_no_step(lab):
    """Two workers on two of three nodes: one of these drains. The weights are those of a calm training, bit by bit."""
    cluster, root, calm = lab.cluster, lab.shared / "training", lab.shared / "calm-training"
    cluster.start(*[node for node in "DEF" if node not in cluster.names])
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False, **blocks}
    train = {"steps": STEPS, "batch_size": 8, "workers": 2, "checkpoint_every": 10 * STEPS}
    changes = {"data": {"name": "digits"}, "model": {"unet": unet}, "train": train, "grid": {"steps": [1]}}
    config = lab.write_config("training.yaml", **changes, sample={"num_samples": 10, "batch_size": 10})
    with lab.start(calm, config=config) as driver:
        driver.wait(0, timeout=300)
    with lab.start(root, config=config) as driver:

        def steps_done():
            logs = list(root.glob("models/.training-*/log.jsonl"))
            return len(logs[0].read_text().splitlines()) if logs else 0

        driver.wait_until(lambda: steps_done() > STEPS / 4, timeout=400)
        leaving = next(node for node in cluster.names if cluster.workers(node, "ray::RayTrainWorker"))
        cluster.drain(leaving, seconds=30)
        driver.wait_until(lambda: "left its" in driver.output)
        assert not cluster.workers(leaving, "ray::RayTrainWorker")
        cluster.kill(leaving)
        driver.wait(0, timeout=300)
    left = re.search(r"at step (\d+); .*, of step (\d+)", driver.output)
    assert left[1] == left[2]
    assert STEPS / 4 < int(left[1]) < STEPS
    assert trained(root) == trained(calm)
    assert compare(root, calm) == Counts(lost=0, doubled=0, other=0, quarantined=0)
    assert "lost" not in driver.output
