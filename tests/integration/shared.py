"""taugrid's commands in this process, on one Ray for all tests of it, whose workers outlive a command.

A worker imports torch and diffusers for seconds, and so does a driver: tests of what a command does pay that once.
Tests of starting, ending, signals and death run the command in a process of its own (`command.py`).
"""

import dataclasses
import io
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import pytest
import ray
from ray.exceptions import RayError, RayTaskError

from taugrid.jobs import TrainingSpec
from taugrid.orchestrator.cli.main import run_command
from taugrid.orchestrator.dispatch import cluster, pool


class Ended(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def shared_ray() -> None:
    """Start an embedded Ray cluster with 2 CPUs, which ends with this process, unless it is there."""
    if not ray.is_initialized():
        options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 * 2**20}
        ray.init("local", log_to_driver=False, **options)


class KeptPool(pool.Pool):
    """A pool whose workers are kept for the next pool, once they have nothing to do.

    They ask Ray for no CPUs, so that a training has room beside them.
    """

    kept: ClassVar[list[Any]] = []
    size: ClassVar[tuple[float, float]] = (0, 0)

    def __init__(self, actor: type, arguments: tuple[Any, ...], cpus: float, gpus: float, *others: Any) -> None:
        super().__init__(actor, arguments, 0, gpus, *others)
        if (cpus, gpus) != KeptPool.size:
            self.release()
            KeptPool.size = cpus, gpus
        self._new, self._remote = self._remote, self

    def remote(self, *arguments: Any) -> Any:
        return self.kept.pop() if self.kept else self._new.remote(*arguments)

    def close(self) -> None:
        """Keep the workers, those too that are at the copy of a task that another has done meanwhile."""
        waiting = {answer: call.worker for answer, call in self._calls.items() if not call.is_heartbeat_call}
        unfinished = futures.wait(waiting, timeout=20).not_done
        gone = {worker for answer, worker in waiting.items() if answer in unfinished or _has_died(answer)}
        keep = [self._handles.pop(worker) for worker in list(self._handles) if worker not in gone]
        for handle in keep:
            handle.beat.remote(0.0, 0.0)  # its `next_heartbeat` answers; else the next `locate` waits 10 s for that
        self.kept += keep
        super().close()

    @classmethod
    def release(cls) -> None:
        """End the workers that are kept."""
        while cls.kept:
            ray.kill(cls.kept.pop())


def _has_died(answer: futures.Future[Any]) -> bool:
    """Whether a call has failed because its actor is gone, and not because of what it raised."""
    try:
        answer.result()
    except RayTaskError:
        return False
    except RayError:
        return True
    return False


@contextmanager
def connected(address: str, *arguments: Any) -> Iterator[None]:
    if address != "local":
        with cluster_connected(address, *arguments):
            yield
        return
    shared_ray()
    yield


cluster_connected = cluster.connected


def taugrid(*arguments: object, code: int = 0, workers: type[pool.Pool] = KeptPool) -> Ended:
    """Run a command to its end in this process; fails the test if it ends otherwise than with `code`."""
    out, err = io.StringIO(), io.StringIO()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with (
            pytest.raises(SystemExit) as end,
            mock.patch.object(sys, "argv", ["taugrid", *map(str, arguments)]),
            mock.patch.object(cluster, "connected", connected),
            mock.patch.object(pool, "Pool", workers),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            run_command()
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    assert end.value.code == code, f"exit {end.value.code}, not {code}\n{out.getvalue()}\n{err.getvalue()}"
    return Ended(out.getvalue(), err.getvalue())


def train_here(spec: TrainingSpec, from_newest: Callable[[TrainingSpec, Any], None] = lambda spec, state: None) -> None:
    """Train with one worker's loop, after `from_newest` has restored a checkpoint: Ray Train must not change a byte."""
    import torch

    from taugrid.workers.accelerator import arithmetic
    from taugrid.workers.training import checkpoints, loop
    from taugrid.workers.training.log import Log
    from taugrid.workers.training.loop import Batches

    unreported = spec.train.model_copy(update={"checkpoint_every": spec.train.steps})  # Ray Train would take them
    spec, threads = dataclasses.replace(spec, train=unreported), torch.get_num_threads()
    with arithmetic.restored():
        device = loop.device_of(spec)
        state = checkpoints.new_state(spec, device)
        from_newest(spec, state)
        log = Log(spec.running, state.step, tensorboard=False)
        loop.train(spec, state, Batches(spec, 0, 1, device), log, 0, 1)
    torch.set_num_threads(threads)
    checkpoints.commit(spec, state)
    shutil.rmtree(spec.running)
