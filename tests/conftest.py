import pytest
from hypothesis import settings

# Machines here share their cores: a time limit for each example would fail tests for what else is running.
settings.register_profile("taugrid", deadline=None)
settings.load_profile("taugrid")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long forms of tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long form: `make chaos` runs it"))
