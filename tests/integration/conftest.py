import os
import secrets

os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # listen on loopback alone; these are read when ray is imported
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
)

import pytest
from taugrid import taugrid, write_config


@pytest.fixture(scope="session")
def ray_session():
    """One embedded Ray cluster with 2 CPUs for all tests of a session."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory):
    """A run that nothing disturbed; tests work on copies."""
    root = tmp_path_factory.mktemp("finished") / "run"
    done = taugrid("run", config, "--out", root, "--json")
    (root.parent / "stdout").write_text(done.stdout)
    return root
