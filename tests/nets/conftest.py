import os
import secrets

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # these are read when ray is imported
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import pytest
from ray_head import started_head


@pytest.fixture(scope="module")
def one_thread():
    """Sums of convolutions have the same bits as on workers, which have a thread each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def head():
    """A cluster of two CPUs, which all tests of a process share."""
    with started_head(os.environ["RAY_AUTH_TOKEN"], dashboard=False) as started:
        yield started
