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
