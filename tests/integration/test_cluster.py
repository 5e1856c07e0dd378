"""A Ray cluster that taugrid did not start."""

import json
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import events, sample_files, taugrid_alone
from ray_head import free_port, started_head
from shared import taugrid

from taugrid.orchestrator.dispatch import address
from taugrid.workers import ray_compat
from taugrid.workers.ray_compat import accepts_token


@pytest.fixture(scope="module")
def cluster():
    """The address of a head node with a token, in processes of its own."""
    token = secrets.token_hex(32)
    with started_head(token, dashboard=False) as head, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token)
        yield head.gcs


def test_a_run_on_a_cluster_elsewhere_has_the_same_files(cluster, config, finished, tmp_path):
    """It samples and scores; the training is of the other run: where a cluster is makes no difference to Ray Train."""
    shutil.copytree(finished / "models", tmp_path / "run/models")
    done = taugrid_alone("run", config, "--out", tmp_path / "run", "--address", cluster, "--json")
    assert json.loads(done.stdout)["status"] == "done", "nothing else is on stdout"
    assert sample_files(tmp_path / "run") == sample_files(finished)
    assert sum(event["event"] == "worker" for event in events(tmp_path / "run")) == 2


def test_a_cluster_that_demands_a_token_is_known_to_be_closed(cluster):
    assert not accepts_token(cluster, None)


@pytest.mark.parametrize(
    ("token", "said"), [("0" * 64, "does not accept the token in RAY_AUTH_TOKEN"), ("", "demands")]
)
def test_a_wrong_or_missing_token_is_one_line_at_once(cluster, config, tmp_path, monkeypatch, token, said):
    """Ray itself prints 20 lines of C++ over 22 seconds."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("HOME", str(tmp_path))
    began = time.monotonic()
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", cluster, code=2)
    assert time.monotonic() - began < 10
    assert said in done.stderr.splitlines()[-1]
    assert done.stderr.count(cluster) == 2  # connecting to it, and why not


def test_a_machine_that_is_no_node_of_the_cluster_is_told_so(cluster, config, tmp_path, monkeypatch):
    """Ray looks for a node for a minute, then speaks of attributes; where it finds another cluster's, it crashes."""
    monkeypatch.setattr(address, "NODE_SECONDS", 0)
    monkeypatch.setattr(ray_compat, "node_ids_here", lambda: {"0" * 56})
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", cluster, code=2)
    assert "this machine is not a node of that cluster" in done.stderr.splitlines()[-1]
    assert "`taugrid submit`" in done.stderr


def test_a_local_run_leaves_a_cluster_of_this_machine_alone(cluster, tmp_path):
    """Ray by itself joins a cluster that `ray start` began here, and refuses the CPUs that a private one is given."""
    one_cell = ("--set", "grid=[]", "--set", "sample.num_samples=8", "--set", "evaluate.metrics=[fid]")
    taugrid_alone("sample", "gaussian", "--out", tmp_path / "run", "--workers", 1, *one_cell)


def test_a_cluster_elsewhere_needs_a_folder_that_all_see(config):
    done = taugrid("run", config, "--address", "127.0.0.1:6379", code=2)
    assert "absolute" in done.stderr


def test_a_cluster_that_is_not_there_is_one_line(config, tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", nowhere, code=2)
    assert nowhere in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_beyond_this_machine_needs_a_token(config, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", "192.0.2.1:6379", code=2)
    assert "token" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_ctrl_c_as_ray_starts_leaves_nothing_of_it_in_a_process_that_goes_on():
    """As a notebook's does: what had started of Ray lived on beside the next run's, and SIGTERM was Ray's."""
    command, here = [sys.executable, "-c", INTERRUPTED_START], Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "[]"], done.stderr


INTERRUPTED_START = """
import os, signal
from command import descendants
from taugrid.config import Cluster
from taugrid.orchestrator.dispatch import cluster

cluster.prepare_embedded()
import ray
init, before = ray.init, signal.getsignal(signal.SIGTERM)

def interrupted(**options):
    init(**options)
    signal.raise_signal(signal.SIGINT)

ray.init = interrupted
try:
    with cluster.connected("local", Cluster()):
        pass
except KeyboardInterrupt:
    print(not ray.is_initialized(), signal.getsignal(signal.SIGTERM) == before, descendants(os.getpid()))
"""
