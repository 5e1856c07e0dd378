import gc
import os
import random

import pytest
from hypothesis import settings

gc.disable()  # until all files are imported: passes over what stays are a third of the time

# Machines here share their cores: a time limit for each example would fail tests for what else is running.
settings.register_profile("taugrid", deadline=None)
settings.load_profile("taugrid")


@pytest.fixture(scope="session", autouse=True)
def users_state(tmp_path_factory):
    """Tests name code that the user's own trust file should not hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """What a test's process writes need not survive a power loss: it would wait for the disk ten thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def s3():
    """Moto's S3 server on loopback, proven to refuse what a condition forbids."""
    from buckets import ENVIRONMENT, Server

    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.endpoint}).items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture
def bucket(s3):
    """A folder in a new bucket, and its storage."""
    from taugrid.storage import open_place

    return open_place(f"s3://{s3.bucket()}/some/run", "--out")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long forms of tests too")
    parser.addoption("--seed", type=int, default=random.randrange(1_000_000), help="of what the chaos tests kill, when")


def pytest_report_header(config):
    return f"chaos: seed {config.getoption('--seed')}" if config.getoption("--long") else None


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long form: `make chaos` runs it"))
