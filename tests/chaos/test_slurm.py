"""configs/cluster/slurm.sh as shipped, on a real SLURM: nodes drained and lost, jobs requeued, cancelled, out of time.

SLURM counts a limit in minutes, looks at limits every 30 s, and waits 2 minutes before it starts a requeued job again.
So a test changes the limit, or the start, of a job that is there, as a user can.
"""

import csv
import importlib.resources
import os
import re
from pathlib import Path

import pytest
import slurm
import yaml
from command import events
from experiment import CONFIG, ON_NODES, Counts, compare, parts

SCRIPT = Path(str(importlib.resources.files("taugrid.configs"))) / "cluster" / "slurm.sh"

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]

ENDED = "SLURM ends "


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "scale.txt"
    path.write_text("0.3")
    return path


def pace(weights, kind):
    """Let the network be fast, slow, or hold every batch (on_nodes/slow_network.py)."""
    for name in ("hold", "fast"):
        file = weights.with_name(name)
        file.touch() if name == kind else file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def cluster(weights, tmp_path_factory):
    """Three nodes of two CPUs."""
    shared = tmp_path_factory.mktemp("shared")
    changes = {"model": {"callable": "slow_network:load", "weights": str(weights)}}
    changes |= {"sample": CONFIG["sample"] | {"shard_evaluations": 400}, "cluster": {"cpus_per_worker": 2}}
    (shared / "mine.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    made = slurm.Slurm(
        shared, nodes=3, environment={"PYTHONPATH": str(ON_NODES), "RAY_prestart_worker_first_driver": "0"}
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(cluster, weights):
    """A run on two nodes, and the number of its job. Beside it, a job on the third node whose config does not exist."""
    pace(weights, "fast")
    root = cluster.shared / "undisturbed"
    job, refused = (cluster.submit(*start, root) for start in ((SCRIPT, "mine.yaml"), ("--nodes=1", SCRIPT, "no.yaml")))
    assert cluster.wait(refused, "FAILED")["ExitCode"] == "2:0", "the job's exit code is the run's"
    assert "called 'no.yaml'" in cluster.log(refused)
    assert cluster.wait(job, "COMPLETED")["ExitCode"] == "0:0"
    return root, job


def workers(root, session=-1):
    """The addresses of the nodes whose workers joined."""
    return {event["node"] for event in events(root, session) if event["event"] == "worker"}


def told(cluster, job):
    """What the script itself has said in a job's log, without the time of day."""
    return [line.partition(f" job {job}: ")[2] for line in cluster.log(job).splitlines() if f" job {job}: " in line]


def more_done(cluster, job, root):
    """Wait until a job has made three more files."""
    expected = len(parts(root)) + 3
    cluster.wait_until(lambda: len(parts(root)) >= expected, job=job)


def whole(root, undisturbed):
    """When each file was written that has all images of its shard; the whole file takes the place of a shorter one."""
    same = (path for path in parts(root) if path.read_bytes() == (undisturbed / path.relative_to(root)).read_bytes())
    return {path: path.stat().st_mtime_ns for path in same}


def start_now(cluster, job):
    cluster.wait(job, "PENDING")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+5", "TimeLimit=240")  # at once: no credential


def table(root):
    with (root / "tables/quality.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def same_results(root, undisturbed):
    assert compare(root, undisturbed) == Counts(lost=0, doubled=0, other=0, quarantined=0)
    assert table(root) == table(undisturbed)


def test_two_nodes_become_one_cluster_with_a_token_which_ends_with_the_run(cluster, undisturbed):
    root, job = undisturbed
    assert workers(root) == {cluster.address("n1"), cluster.address("n2")}, "an address that demands a token"
    log = cluster.log(job)
    [start] = told(cluster, job)
    assert start.startswith("start 1 on n[1-2]; ")
    assert f"taugrid-{job}-ray-1.log" in start
    assert "FID (lower" in log
    assert "srun" not in log
    assert "Traceback" not in log
    assert [cluster.node(name) for name in ("n1", "n2")] == ["IDLE", "IDLE"]
    assert not [line for name in ("n1", "n2") for line in cluster.processes(name).values() if "ray" in line]


def test_a_job_that_is_killed_at_its_limit_five_times_in_a_row_loses_nothing(cluster, weights, undisturbed):
    pace(weights, "slow")
    root = cluster.shared / "limits"
    job = cluster.submit("--signal=B:URG@1", SCRIPT, "mine.yaml", root)  # a signal that is ignored: no warning
    more_done(cluster, job, root)
    started = [*cluster.processes("n1").items(), *cluster.processes("n2").items()]
    cpus = {len(os.sched_getaffinity(pid)) for pid, line in started if "ray::Worker" in line}
    assert cpus == {os.cpu_count()}, "SLURM may bind a node's only task to one CPU"
    pace(weights, "hold")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    cluster.wait(job, "TIMEOUT")
    [_, ended] = told(cluster, job)
    assert ended.startswith(ENDED)
    job, done = cluster.submit(SCRIPT, "mine.yaml", root), whole(root, undisturbed[0])
    for start in range(1, 5):
        pace(weights, "slow")
        more_done(cluster, job, root)
        pace(weights, "hold")
        done |= whole(root, undisturbed[0])
        minutes = 2 + int(cluster.job(job)["RunTime"].split(":")[1])
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        cluster.wait_until(lambda start=start: cluster.log(job).count("is near") == start, job=job)
        pace(weights, "slow")  # batches in progress end now, and are kept
        start_now(cluster, job)
        assert cluster.log(job).count("requeued: SLURM") == start
        assert told(cluster, job)[-1].startswith("requeued")
    pace(weights, "fast")
    cluster.wait(job, "COMPLETED")
    assert told(cluster, job)[-1].startswith("start 5 on n[1-2]")
    assert any(int(kept) for kept in re.findall(r"(\d+) images kept", cluster.log(job))), "of shards in progress"
    assert whole(root, undisturbed[0]).items() >= done.items(), "no file was written twice"
    same_results(root, undisturbed[0])


def test_nodes_that_are_drained_and_lost_and_a_job_that_is_requeued(cluster, weights, undisturbed):
    pace(weights, "slow")
    root = cluster.shared / "nodes"
    cluster.run("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    job = cluster.submit(SCRIPT, "mine.yaml", root)
    more_done(cluster, job, root)
    assert workers(root) == {cluster.address("n2"), cluster.address("n3")}
    cluster.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=test")
    more_done(cluster, job, root)
    cluster.run("scontrol", "requeue", job)  # as an administrator does
    cluster.run("scontrol", "update", "NodeName=n1,n3", "State=RESUME")
    start_now(cluster, job)
    more_done(cluster, job, root)
    _, ended, start = told(cluster, job)
    assert ended.startswith(ENDED)
    assert start.startswith("start 2 on n[1-2]; ")
    assert f"taugrid-{job}-ray-2.log" in start
    pace(weights, "hold")
    cluster.kill("n2")
    cluster.wait_until(lambda: cluster.node("n2").startswith("DOWN"), job=job)
    pace(weights, "slow")
    more_done(cluster, job, root)
    assert cluster.job(job)["JobState"] == "RUNNING", "the run goes on, on the first node"
    pace(weights, "hold")
    cluster.start("n2")
    cluster.kill("n1")  # the first one: SLURM requeues the job
    start_now(cluster, job)
    pace(weights, "fast")
    cluster.wait(job, "COMPLETED")
    assert told(cluster, job)[-1].startswith("start 3 on n[2-3]")
    cluster.start("n1")
    same_results(root, undisturbed[0])


def test_a_job_that_is_cancelled_keeps_what_is_done_and_does_not_come_back(cluster, weights, undisturbed):
    pace(weights, "slow")
    root = cluster.shared / "cancelled"
    job = cluster.submit("--nodes=1", SCRIPT, "mine.yaml", root)
    more_done(cluster, job, root)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    pace(weights, "fast")
    [_, ended] = told(cluster, job)
    assert ended.startswith(ENDED)
    assert "to continue" in cluster.log(job)
    assert cluster.run("squeue", "--noheader") == ""
    cluster.wait(cluster.submit("--nodes=1", SCRIPT, "mine.yaml", root), "COMPLETED")
    same_results(root, undisturbed[0])
