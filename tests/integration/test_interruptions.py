"""Killing things on purpose: whatever dies, the same command ends with the same files."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from command import (
    LOOPBACK,
    Started,
    events,
    interrupt,
    listening,
    sample_files,
    sample_here,
    scores,
    wait_until_gone,
    worker_pids,
    write_config,
)
from shared import taugrid

from tools.machine import command_line, descendants

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("sketched")]

SLOW = {
    "data": {"name": "gaussian", "shape": [1, 8, 8]},
    "model": {"oracle": "gaussian"},  # workers that need no diffusers start in half the time
    "sample": {"batch_size": 8, "shard_evaluations": 8000},
    "grid": {"steps": [500, 1000], "eta": [0.0, 1.0]},
    "evaluate": {"metrics": ["fid"]},
}
"""Shards of a tenth of a second, small and many, so that a kill finds some done, some running and some waiting.

With Ray's start and the undisturbed run, the test of a killed worker takes 35 s in the fast tier, where it stands for
all deaths.
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory, pytestconfig):
    """27 shards or, for the long forms, 324."""
    samples = SLOW["sample"] | {"num_samples": 864 if pytestconfig.getoption("--long") else 72}
    return write_config(tmp_path_factory.mktemp("config"), **SLOW | {"sample": samples})


@pytest.fixture(scope="module")
def undisturbed(slow, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    taugrid("run", slow, "--out", root)
    return root


def parts(root):
    return list(root.glob("samples/*/part-*.parquet"))


def joined(root):
    return sum(event["event"] == "worker" for event in events(root))


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced_and_its_shard_redone(slow, undisturbed, tmp_path, kills):
    root = tmp_path / "run"

    def kill_workers():
        for kill in range(kills):
            while not (len(parts(root)) > 6 + 6 * kill and joined(root) == 2 + kill):
                time.sleep(0.02)
            os.kill(worker_pids(os.getpid())[-1], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_workers)
        done = taugrid("run", slow, "--out", root)
        killing.result()
    assert "starting another" in done.stderr
    assert sum(event["event"] == "lost" for event in events(root)) == kills
    assert sample_files(root) == sample_files(undisturbed)
    assert scores(root) == scores(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_driver_leaves_what_the_same_command_ends(slow, undisturbed, tmp_path, kills):
    """In the long form, each driver has a Ray of its own, which ends with it."""
    root, where = tmp_path / "run", () if kills > 1 else ("--address", ray.get_runtime_context().gcs_address)
    for _ in range(kills):
        kept, before = worker_pids(os.getpid()), len(parts(root))
        with Started(tmp_path / "log", "run", slow, "--out", root, *where) as run:
            run.wait_until(lambda before=before: len(parts(root)) > before + 1)
            workers = set(worker_pids(os.getpid())) - set(kept)
            os.kill(run.process.pid, signal.SIGKILL)
            run.process.wait()
            assert workers
            wait_until_gone(workers)  # what they write meanwhile is cleared by the session after the next
    taugrid("run", slow, "--out", root)
    assert sample_files(root) == sample_files(undisturbed)
    assert scores(root) == scores(undisturbed)
    assert not list(root.glob("**/.*.tmp")), "what killed writers left is removed"


@pytest.mark.long
def test_ctrl_c_keeps_the_whole_batches_of_a_long_shard(tmp_path):
    """A cell of one shard of 20 seconds on any machine: what was sampled before Ctrl-C is not sampled again.

    On the way: the cluster listens on loopback alone, and its token is in memory alone.
    """
    token = Path.home() / ".ray/auth_token"
    before = token.read_bytes() if token.exists() else None
    calls, weights = tmp_path / "slow", tmp_path / "weights"
    calls.touch()
    weights.touch()
    parts = {
        "model": {"callable": "napping:load", "weights": str(weights)},
        "sample": {"batch_size": 8, "shard_evaluations": 10**8, "num_samples": 320},
        "grid": {"steps": [25], "eta": [0.0]},
        "evaluate": {"metrics": ["fid"], "extractor": "pixels"},
    }
    config = write_config(tmp_path, **SLOW | parts)
    with Started(tmp_path / "log", "run", config, "--out", tmp_path / "run", "--workers", 1) as run:
        run.wait_until(lambda: calls.stat().st_size > 5 * 25)  # of the trials, and three batches or more
        assert listening(run.process.pid) <= LOOPBACK
        interrupt(run)
        kept = int(re.search(r"interrupted; 1 shard .*: (\d+) images kept", run.output)[1])
    calls.unlink()
    assert (token.read_bytes() if token.exists() else None) == before
    assert 16 <= kept < 320
    assert kept % 8 == 0
    taugrid("verify", tmp_path / "run", code=4)
    taugrid("run", config, "--out", tmp_path / "run")
    sample_here(config, tmp_path / "undisturbed")
    made = [event for event in events(tmp_path / "run") if event["event"] == "shard"]
    assert [(event["images"], event["copied"]) for event in made] == [(320 - kept, kept)]
    assert sample_files(tmp_path / "run") == sample_files(tmp_path / "undisturbed")


@pytest.mark.long
@pytest.mark.slow
def test_when_ray_itself_dies_the_run_ends_and_says_so(slow, tmp_path):
    root = tmp_path / "run"
    with Started(tmp_path / "log", "run", slow, "--out", root, "--set", "sample.num_samples=5000") as run:
        run.wait_until(lambda: len(parts(root)) > 2)
        raylets = [pid for pid in descendants(run.process.pid) if "raylet/raylet" in command_line(pid)]
        os.kill(raylets[0], signal.SIGKILL)
        run.wait(code=1, timeout=60)
        assert "has died" in run.output
        assert "Traceback" not in run.output


@pytest.mark.long
def test_sigterm_while_ray_starts(slow, tmp_path):
    with Started(tmp_path / "log", "run", slow, "--out", tmp_path / "run") as run:
        run.wait_until(lambda: "starting Ray" in run.output)
        interrupt(run, signal.SIGTERM)


@pytest.mark.long
def test_an_interrupt_that_python_drops_is_not_shown():
    """SIGTERM in a fork of Ray's start printed "Exception ignored in: <function _releaseLock" and a traceback."""
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=True)
    assert re.findall(r"(\w+): planted", done.stderr) == ["ValueError"]


DROPPED = """
from taugrid.orchestrator.cli.main import interruptible

class Dropped:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error

with interruptible():
    for error in (KeyboardInterrupt("planted"), SystemExit(15), ValueError("planted fault")):
        Dropped(error)
"""
