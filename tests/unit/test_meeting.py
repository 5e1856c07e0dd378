"""How the ranks of a training meet, and the one line if they can't: file locks, faults of one rank, NCCL's network."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import torch
from ray.train import WorkerGroupError
from snapshots import raises, recorded
from torch import distributed

from taugrid.jobs import Hopeless
from taugrid.workers.training import fit, meeting
from taugrid.workers.training.meeting import Meeting, connect, unconnected, without_locks

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_way_of_having_no_locks_is_known_and_a_broken_disk_is_none_of_them(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    assert without_locks(tmp_path) is None
    monkeypatch.setattr(fcntl, "flock", refuse)
    for number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
        assert os.strerror(number) in without_locks(tmp_path)
    monkeypatch.setattr(meeting, "broadcast_from_rank_zero", lambda value: value)
    with raises(Hopeless):  # defect 16: no `without_locks` in `Meeting`, and torch says "Function not implemented"
        Meeting(tmp_path, 0, 2)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        without_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_see_the_folder_says_so_and_does_not_wait_for_the_file(tmp_path, monkeypatch):
    """FileStore waits half an hour for a file in a folder that is not there."""
    monkeypatch.setattr(meeting, "broadcast_from_rank_zero", lambda _: ("meeting-0", None))
    with raises(OSError):
        Meeting(tmp_path / "gone", 1, 2)


def test_a_fault_of_one_rank_stops_all_without_a_process_group(tmp_path, monkeypatch):
    """A rank without a GPU could not join NCCL's. Two threads and torch's own store."""
    monkeypatch.setattr(meeting, "broadcast_from_rank_zero", lambda _: ("meeting-0", None))

    def of_rank(number):
        place = Meeting(tmp_path, number, 2)
        place.stop_together("data", None)
        with pytest.raises(Hopeless) as caught:
            place.stop_together("device", "node b: no GPU" if number == 1 else None)
        return str(caught.value)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(of_rank, range(2))) == ["node b: no GPU"] * 2


def nccl(kind, what, last):
    """As torch words it (torch/csrc/distributed/c10d/NCCLUtils.hpp: C10D_NCCL_CHECK; see pytorch#149984)."""
    return (
        f"NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {what} (run with "
        f"NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n{kind}: System call (e.g. socket, malloc) or external "
        f"library call failed or device error. \nLast error:\n{last}"
    )


REFUSED = "socketStartConnect: Connect to 192.168.19.14<52822> failed : No route to host"


@pytest.fixture
def unreachable(monkeypatch):
    def fails(text):
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
        monkeypatch.setattr(distributed, "init_process_group", lambda *_, **__: None)
        monkeypatch.setattr(distributed, "all_reduce", Mock(side_effect=distributed.DistBackendError(text)))
        monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)

    return fails


@pytest.mark.parametrize(
    ("kind", "what", "last"),
    [
        ("ncclSystemError", "unhandled system error", REFUSED),
        ("ncclInternalError", "internal error - please report this issue", "Bootstrap : no socket interface found"),
        ("ncclRemoteError", "remote process exited or there was a network error", "Call to recv : Connection refused"),
    ],
)  # fmt: skip
def test_nccl_that_can_not_connect_says_why_and_which_variable_names_the_interface(
    unreachable, monkeypatch, kind, what, last
):
    """The patch: no collective in `connect`. The error then comes from within DDP, without the variable."""
    unreachable(nccl(kind, what, last))
    with pytest.raises(ConnectionError) as caught:
        connect(None, 0, 2, "cuda")
    recorded(str(caught.value))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    recorded(unconnected(nccl(kind, what, last)), "other")


def test_another_error_of_nccl_is_not_taken_for_the_network(unreachable):
    unreachable(nccl("ncclUnhandledCudaError", "unhandled cuda error", "Cuda failure 2 'out of memory'"))
    with raises(distributed.DistBackendError):
        connect(None, 0, 2, "cuda")


def test_ranks_that_could_not_connect_are_one_line():
    """Each has its own words; those of a rank whose connection was only closed say the least."""
    remote = unconnected(nccl("ncclRemoteError", "remote process exited", "connection closed by remote peer a<1>"))
    failures = {
        0: ConnectionError(remote),
        1: ConnectionError(unconnected(nccl("ncclSystemError", "unhandled system error", REFUSED))),
        2: ConnectionError(unconnected(nccl("ncclSystemError", "unhandled system error", REFUSED.replace("14", "15")))),
    }
    line = fit.in_one_line(WorkerGroupError("all of it", failures))
    assert REFUSED in line
    assert line.count("NCCL_SOCKET_IFNAME") == 1
    recorded(line, "worker")
