"""How the ranks of a training meet, through a file in the run directory, and leave together before their nodes do.

Ray Train would use torch's TCP store, which listens on all of a machine's interfaces, and gloo listens on the one that
the host's name resolves to. A cluster on loopback must not listen anywhere else.
"""

import errno
import fcntl
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray.train
import ray.util
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import distributed
from torch.distributed import FileStore, Store  # type: ignore[attr-defined]  # public, but not to mypy
from torch.distributed.constants import default_pg_timeout

from taugrid.jobs import Hopeless
from taugrid.words import this_node


class Meeting:
    """Where the ranks of one start of a training exchange what each of them knows, before and while they compute."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        """All ranks make it at the same time. `Hopeless` if the folder's file system has no locks; OSError if only this
        rank's node can't lock files there: Ray Train then stops the others."""
        self.rank, self.world_size = rank, world_size
        if world_size == 1:
            return
        fault = without_locks(folder)
        name, fault_of_all = broadcast_from_rank_zero(
            (f"meeting-{uuid.uuid4().hex[:12]}", fault) if rank == 0 else None
        )
        if fault_of_all is not None:
            raise Hopeless(fault_of_all)
        if fault is not None:
            raise OSError(fault)
        self._store = store_in(folder / name, world_size)

    def stop_together(self, about: str, fault: str | None) -> None:
        """Raise `Hopeless` in all ranks if any of them has a fault `about` something. It needs no process group, which
        a rank without a GPU could not join."""
        faults = [fault or ""]
        if self.world_size > 1:
            self._store.set(f"{about}/{self.rank}", fault or "")
            faults = [self._store.get(f"{about}/{rank}").decode() for rank in range(self.world_size)]
        if any(faults):
            raise Hopeless(next(filter(None, faults)))

    @contextmanager
    def process_group(self, device: str) -> Iterator[None]:
        """Connect the ranks. One that fails does not destroy the group: all others would fail too and bury its error
        under theirs. Instead they wait until Ray Train stops them."""
        if self.world_size == 1:
            yield
            return
        if ray.util.get_node_ip_address() == "127.0.0.1":
            stay_on_loopback()
        connect(self._store, self.rank, self.world_size, device)
        yield
        distributed.destroy_process_group()


def store_in(file: Path, world_size: int) -> Store:
    """The store of `world_size` ranks in a file, opened by its path: in a URL a name would end before # or ?."""
    store = FileStore(str(file), world_size)
    store.set_timeout(default_pg_timeout)
    return store


def connect(store: Store, rank: int, world_size: int, device: str) -> None:
    """Make the process group of the ranks that have this store."""
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    if backend == "nccl":  # it connects at the first collective, which would be one deep in DDP
        distributed.all_reduce(torch.zeros(1, device=device))


def without_locks(folder: Path) -> str | None:
    """What is wrong if this node does not see `folder`, or can't lock files there, as torch's FileStore must."""
    if not folder.is_dir():
        return f"node {this_node()} does not see {folder}; every training worker must see it at the same path"
    path = folder / f".lock-{uuid.uuid4().hex[:12]}"
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno == errno.EIO:  # a disk, which may come back
            raise
        return (
            f"node {this_node()}: can't lock files in {folder} (flock: {error.strerror}), as a training with several "
            "workers must; mount its file system with locks (Lustre: -o flock), keep the run directory elsewhere, or "
            "set train.workers: 1"
        )
    finally:
        os.close(file)
        path.unlink()
    return None


def stay_on_loopback() -> None:
    """Have gloo and NCCL listen on the loopback interface alone."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)


LOOK_SECONDS = 1.0
"""How often the workers ask: each time is a barrier over them, of some milliseconds. Spot nodes get 30 s or more."""


class Notice:
    """A notice that a worker's node will be taken away. All ranks make it, and call it after the same steps: only rank
    0's clock and knowledge count, so that all leave together."""

    def __init__(self) -> None:
        self._next = 0  # the first step after which they ask
        self._every = 1
        self._asked = time.perf_counter()

    def is_given(self, step: int) -> bool:
        """Whether to leave after `step`."""
        if step < self._next:
            return False
        if ray.train.get_preemption_info() is not None:
            return True
        now = time.perf_counter()
        fit = int(self._every * LOOK_SECONDS / max(now - self._asked, 1e-9))
        self._every = broadcast_from_rank_zero(max(1, min(fit, 2 * self._every)))  # the first steps may be quick
        self._next, self._asked = step + self._every, now
        return False
