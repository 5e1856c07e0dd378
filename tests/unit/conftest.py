import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine cost more than they bring with arrays and networks this small.

    A module that wants it says `pytestmark = pytest.mark.usefixtures("one_thread")`.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """A user's cache of the test's own, and no images remembered from other tests."""
    from taugrid.workers.data import load

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load._load.cache_clear()
    return tmp_path / "cache" / "taugrid"
