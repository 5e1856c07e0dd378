"""A Ray cluster that taugrid did not start."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command import events, sample_files, taugrid_alone
from shared import taugrid

from taugrid.orchestrator.dispatch.address import is_open


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def cluster():
    """The address of a head node with a token, in a process of its own."""
    folder = tempfile.mkdtemp(prefix="taugrid-")  # a short name: sockets in it may have 107 characters in all
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": folder,
    }
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        options = [
            "--num-cpus=2",
            "--include-dashboard=false",
            "--include-log-monitor=false",
            "--node-ip-address=127.0.0.1",
            f"--ray-client-server-port={free_port()}",
        ]
        head = subprocess.Popen([*ray, *options], stdout=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 60
        started = Path(folder, "ray", "ray_current_cluster")  # the last thing that it writes
        while time.monotonic() < end and head.poll() is None and not started.exists():
            time.sleep(0.2)
        assert started.exists(), f"Ray's head did not start: exit {head.poll()}"
        yield f"127.0.0.1:{port}"
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    shutil.rmtree(folder, ignore_errors=True)  # its children may be at their last words


def test_a_run_on_a_cluster_elsewhere_has_the_same_files(cluster, config, finished, tmp_path):
    done = taugrid_alone("run", config, "--out", tmp_path / "run", "--address", cluster, "--json")
    assert json.loads(done.stdout)["status"] == "done", "nothing else is on stdout, though it trains and samples"
    assert sample_files(tmp_path / "run") == sample_files(finished)
    assert sum(event["event"] == "worker" for event in events(tmp_path / "run")) == 2


def test_a_cluster_that_demands_a_token_is_known_to_be_closed(cluster):
    assert not is_open(cluster)


def test_a_local_run_leaves_a_cluster_of_this_machine_alone(cluster, tmp_path):
    """Ray by itself joins a cluster that `ray start` began here, and refuses the CPUs that a private one is given."""
    one_cell = ("--set", "grid=[]", "--set", "sample.num_samples=8", "--set", "evaluate.metrics=[fid]")
    taugrid_alone("sample", "gaussian", "--out", tmp_path / "run", "--workers", 1, *one_cell)


def test_a_cluster_elsewhere_needs_a_folder_that_all_see(config):
    done = taugrid("run", config, "--address", "127.0.0.1:6379", code=2)
    assert "absolute" in done.stderr


def test_a_cluster_that_is_not_there_is_one_line(config, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", address, code=2)
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_beyond_this_machine_needs_a_token(config, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", "192.0.2.1:6379", code=2)
    assert "token" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
