"""The workers as Ray actors: starts them, gives them jobs and reports the results. Decides nothing."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from taugrid.errors import last_line
from taugrid.jobs import Job, Result, WorkerInfo


@dataclass(frozen=True)
class Joined:
    """A worker is ready."""

    worker: str
    info: WorkerInfo


@dataclass(frozen=True)
class Done:
    """A worker did its job."""

    worker: str
    result: Result


@dataclass(frozen=True)
class Failed:
    """A job raised an error; its worker is alive."""

    worker: str
    cause: BaseException
    """The worker's exception, of its original type."""
    traceback: str
    """The whole traceback, as text."""

    @property
    def summary(self) -> str:
        """The name of the error's type and its last line."""
        lines = [line for line in (str(self.cause) or repr(self.cause)).splitlines() if line.strip()]
        name = type(self.cause).__name__
        return f"{name}: {lines[-1]}" if lines else name


@dataclass(frozen=True)
class Lost:
    """A worker is gone."""

    worker: str
    reason: str
    with_its_node: bool


PoolEvent = Joined | Done | Failed | Lost

NODE_DEATHS = ("node has died", "node has crashed", "node died")
"""Parts of Ray's message when an actor died with its node. There is no type for it: `ActorDiedError` keeps only the
text of its cause, and its flag `preempted` is only for nodes that an autoscaler removed."""


class Pool:
    """Actors of one class with the methods `hello(probe)` and `do(job)`.

    Actors have `max_restarts=0` and `max_task_retries=0`: the dispatcher does the retrying, and each result comes once.
    """

    def __init__(self, actor: type, arguments: tuple[Any, ...], cpus: float, gpus: float, probe: str) -> None:
        self._remote = ray.remote(actor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._arguments = arguments
        self._probe = probe
        self._handles: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # object ref of a call -> worker
        self._joining: set[str] = set()
        self._started = 0

    def start(self) -> None:
        """Start one more worker; a `Joined` or `Lost` follows."""
        worker = f"worker-{self._started}"
        self._started += 1
        handle = self._remote.remote(*self._arguments)
        self._handles[worker] = handle
        self._joining.add(worker)
        self._waiting[handle.hello.remote(self._probe)] = worker

    def give(self, worker: str, job: Job) -> None:
        """Have `worker` do `job`; a `Done`, `Failed` or `Lost` follows."""
        self._waiting[self._handles[worker].do.remote(job)] = worker

    def events(self, timeout_seconds: float) -> Iterator[PoolEvent]:
        """What has happened since, waiting up to `timeout_seconds` for a first event."""
        refs = list(self._waiting)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_seconds)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            yield self._outcome(self._waiting.pop(ref), ref)

    def _outcome(self, worker: str, ref: Any) -> PoolEvent:
        try:
            value = ray.get(ref)
        except RayTaskError as error:
            return Failed(worker, error.cause, click.unstyle(str(error)))
        except RayError as error:  # its process or node died, ran out of memory, could not be started, ...
            return self._lost(worker, error)
        if worker in self._joining:
            self._joining.discard(worker)
            return Joined(worker, value)
        return Done(worker, value)

    def _lost(self, worker: str, error: RayError) -> Lost:
        handle = self._handles.pop(worker)
        self._joining.discard(worker)
        if not isinstance(error, ActorDiedError):
            ray.kill(handle)  # it may or may not have done the job: the commit decides, and it must not linger
        with_its_node = any(words in str(error) for words in NODE_DEATHS)
        said = textwrap.shorten(last_line(error), 160, placeholder=" ...")
        return Lost(worker, said, with_its_node)

    def close(self) -> None:
        """Kill all workers, whatever they are doing."""
        for handle in self._handles.values():
            ray.kill(handle)
        self._handles.clear()
        self._waiting.clear()
