from functools import cache

import pytest

from taugrid.workers.custom.syntax import without_comments

WITHOUT_COMMENTS = cache(without_comments)


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


@pytest.fixture
def quick_hashes(monkeypatch):
    """Remembers what each file is without comments: a process of pytest has loaded a hundred test modules, and the
    identity of what a user's code loads covers them all, each time."""
    from taugrid.workers.custom import content

    monkeypatch.setattr(content, "without_comments", WITHOUT_COMMENTS)
