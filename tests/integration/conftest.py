import os
import secrets

os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # listen on loopback alone; these are read when ray is imported
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
)

import fcntl

import pytest
from command import taugrid, write_config


@pytest.fixture(scope="session")
def ray_session():
    """One embedded Ray cluster with 2 CPUs for all tests of a session."""
    import ray

    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 * 2**20, "log_to_driver": False}
    ray.init("local", **options)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory, worker_id):
    """A run that nothing disturbed, made once for all of xdist's processes; tests work on copies."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "finished" / "run"
    root.parent.mkdir(exist_ok=True)
    with (root.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root.parent / "stdout").exists():
            done = taugrid("run", config, "--out", root, "--json")
            (root.parent / "stdout").write_text(done.stdout)
    return root
