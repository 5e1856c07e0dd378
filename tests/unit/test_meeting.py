"""How the ranks of a training meet, and the one line if they can't: file locks, faults of one rank, NCCL's network."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.train import WorkerGroupError
from snapshots import raises
from torch import distributed

from taugrid.jobs import Hopeless
from taugrid.workers.training import fit, meeting
from taugrid.workers.training.meeting import Meeting, without_locks

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


def test_ranks_that_could_not_connect_are_one_line():
    """Each has its own words; those of a rank whose connection was only closed say the least."""
    remote = nccl("ncclRemoteError", "remote process exited", "connection closed by remote peer a<1>")
    refused = nccl("ncclSystemError", "unhandled system error", REFUSED)
    failures = {0: distributed.DistBackendError(remote), 1: distributed.DistBackendError(refused)}
    assert fit.in_one_line(WorkerGroupError("all of it", failures)) == f"{REFUSED} (worker 1)"
