"""configs/cluster/slurm.sh with the real `ray symmetric-run`, on one node.

SLURM itself is not here: `srun` and `scontrol` are stand-ins that run a command on this node. The node is a set of
Linux namespaces with processes and a network of its own, because symmetric-run refuses a machine with another Ray, and
ends with `ray stop`, which would end every Ray of this machine.
"""

import importlib.resources
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(str(importlib.resources.files("taugrid.configs"))) / "cluster" / "slurm.sh"
NODE = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
NETWORK = "ip link set lo up; ip link add node type veth peer name wire; ip addr add 10.7.0.1/24 dev node; "
UP = "ip link set node up; ip link set wire up; "
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@"
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1]" ]] && echo node1
"""


def possible():
    return shutil.which("ip") and subprocess.run([*NODE, "bash", "-c", NETWORK], capture_output=True).returncode == 0


pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.skipif(not possible(), reason="needs namespaces")]


def run(tmp_path, *arguments):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "node[1]",
        "SLURM_JOB_ID": f"test{os.getpid()}",
    }
    line = f'{NETWORK}{UP}exec bash {SCRIPT} "$@"'
    return subprocess.run(
        [*NODE, "bash", "-c", line, "slurm.sh", *map(str, arguments)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_script_makes_a_cluster_with_a_token_and_its_exit_code_is_the_runs(tmp_path):
    config = {"name": "mine", "data": {"name": "gaussian"}, "model": {"oracle": "gaussian"}, "cluster": {"workers": 1}}
    config |= {"sample": {"num_samples": 60}, "grid": {"steps": [2]}, "evaluate": {"metrics": ["fid"]}}
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    done = run(tmp_path, "mine.yaml", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "On head node. Starting Ray cluster head" in done.stdout
    assert "FID (lower is better)" in done.stdout
    assert "10.7.0.1:6379" in done.stdout + done.stderr, "not loopback, so taugrid demands that there is a token"
    assert (tmp_path / "run" / "tables" / "quality.csv").exists()
    refused = run(tmp_path, "nothing.yaml", tmp_path / "run")
    assert refused.returncode == 2
    assert "no config file, run directory or shipped config is called 'nothing.yaml'" in refused.stderr
    shutil.rmtree(f"/tmp/ray-test{os.getpid()}", ignore_errors=True)
