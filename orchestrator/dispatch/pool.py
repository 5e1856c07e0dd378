"""The workers as Ray actors: starts them, submits jobs, and turns answers into events. Decides nothing."""

import pickle
import textwrap
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import click
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from taugrid.errors import is_out_of_memory, last_line
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch.capacity import Node, Size, nodes
from taugrid.orchestrator.dispatch.cluster import head_accepts
from taugrid.workers.actor import CONCURRENCY_GROUPS, LastHeartbeat

MAX_HEARTBEATS_PER_SECOND = 100  # of all workers together: each costs the driver about half a millisecond
SCORER_BYTES = 2_000_000_000  # that a scorer may need, estimated: torch, SciPy, a cell's and the reference's features

# Parts of Ray's message when an actor died with its node, and when only its process did. `ActorDiedError` has no type
# for it, and its flag `preempted` is only for nodes that an autoscaler removed.
NODE_DEATHS = ("node has died", "node has crashed", "node died", "was drained", "is drained")
PROCESS_DEATH = "worker process has died"


class Located(NamedTuple):
    """A worker's process has started. Its health is checked next."""

    worker: str
    node: str  # the node's address
    node_id: str


class Joined(NamedTuple):
    """A worker has passed a health check, its first or a later one: it is ready."""

    worker: str
    info: WorkerInfo


class Alive(NamedTuple):
    """A heartbeat: `done` of `of` of a worker's job is done."""

    worker: str
    key: str  # the job's task
    done: float
    of: float
    doing: str = ""  # what it does that is no progress, such as `compiling`


class Done(NamedTuple):
    worker: str
    result: Result
    key: str  # the job's task


class Failed(NamedTuple):
    """A job or a health check raised an error; its worker is alive."""

    worker: str
    cause: BaseException  # the worker's exception, of its original type
    traceback: str  # the whole traceback, as text
    key: str | None = None  # the job's task; None: it was a health check

    @property
    def summary(self) -> str:
        """The name of the error's type and its last line."""
        name = type(self.cause).__name__
        line = last_line(self.cause)
        return name if line == name else f"{name}: {line}"


class Lost(NamedTuple):
    worker: str
    reason: str  # for messages
    with_its_node: bool
    details: str = ""  # Ray's error, for the logs


PoolEvent = Located | Joined | Alive | Done | Failed | Lost


class _Call(NamedTuple):
    """A call of a worker that has not been answered."""

    worker: str
    is_heartbeat_call: bool = False  # of `locate` or `next_heartbeat`, not of `check_health` or `perform`
    key: str | None = None  # the job's task, for a call of `perform`


class Pool:
    """Actors of one class, a `workers.actor.HeartbeatActor` with a method `check_health(probe)`.

    Actors have `max_restarts=0` and `max_task_retries=0`: the dispatcher does the retrying, and each result comes once.
    `label_selector` restricts the nodes of workers. With `scorer`, its arguments, there may also be actors that compute
    scores beside workers with a GPU.

    Each answer puts itself into a queue, so an event costs the same with two workers and with a thousand."""

    def __init__(
        self,
        actor: type,
        arguments: tuple[Any, ...],
        cpus: float,
        gpus: float,
        probe: Any,
        label_selector: Mapping[str, str] | None = None,
        scorer: tuple[Any, ...] | None = None,
    ) -> None:
        self.size, self.scorer = Size(cpus, gpus), scorer
        self.selector = dict(label_selector or {})  # the labels of the nodes that workers may be on
        self._remote = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            label_selector=self.selector,
            concurrency_groups=CONCURRENCY_GROUPS,
        )(actor)
        self._arguments, self._probe = arguments, probe
        self._handles: dict[str, Any] = {}
        self._calls: dict[Future[Any], _Call] = {}
        self._answers: SimpleQueue[Future[Any]] = SimpleQueue()  # completed calls
        self._heartbeats: dict[str, int] = {}  # worker -> the number of its last heartbeat, -1 before the first answer
        self._usable: dict[str, Located] = {}  # the workers whose process has started, and that were not stopped
        self._scorers: set[str] = set()
        self._started = 0

    def start(self, avoid: Collection[str] = ()) -> str:
        """Start one more worker, not on the nodes `avoid` (ids); `Located` follows, then `Joined`, `Failed` or `Lost`.
        Returns its name. It waits until a node has room; meanwhile Ray's autoscaler counts it as demand."""
        remote = self._remote
        if avoid:
            others = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
            remote = remote.options(label_selector=others | self.selector)
        return self._add(remote.remote(*self._arguments))

    def start_scorer(self, nodes: Collection[str]) -> str:
        """Start one more worker without a GPU, on one of these nodes (ids), as `start` does. It takes memory alone."""
        assert self.scorer is not None
        there = {"ray.io/node-id": f"in({','.join(sorted(nodes))})"}  # replaces `selector`, by which they were chosen
        remote = self._remote.options(num_cpus=0, num_gpus=0, memory=SCORER_BYTES, label_selector=there)
        worker = self._add(remote.remote(*self.scorer))
        self._scorers.add(worker)
        return worker

    def _add(self, handle: Any) -> str:
        worker = f"worker-{self._started}"
        self._started += 1
        self._handles[worker] = handle
        self._call(handle.locate.remote(), _Call(worker, is_heartbeat_call=True))
        return worker

    def _call(self, ref: Any, call: _Call) -> None:
        answer: Future[Any] = ref.future()
        self._calls[answer] = call
        answer.add_done_callback(self._answers.put)  # in a thread of Ray's

    def take_over(self) -> list[tuple[Located, bool]]:
        """The workers that have nothing to do, from an earlier loop, and whether each is a scorer. All others are
        killed: what they do, such as a copy of a task that is done, nobody waits for."""
        for _ in self.events(0.0):  # of copies that have ended, and of workers that have died meanwhile
            pass
        busy = {call.worker for call in self._calls.values() if not call.is_heartbeat_call}
        idle = [event for worker, event in self._usable.items() if worker not in busy]
        for worker in self._handles.keys() - {event.worker for event in idle}:
            self.kill(worker)
        return [(event, event.worker in self._scorers) for event in idle]

    def check_health(self, worker: str) -> None:
        """Check the health of `worker`, perhaps again; a `Joined`, `Failed` or `Lost` follows."""
        self._call(self._handles[worker].check_health.remote(self._probe), _Call(worker))

    def submit(self, worker: str, job: Job, key: str) -> None:
        """Submit `job`, of the task `key`, to `worker`; perhaps `Alive`s follow, then a `Done`, `Failed` or `Lost`. Up
        to `workers.actor.MAX_IN_FLIGHT` jobs may be submitted before one is done: they run in order."""
        work = pickle.dumps((job, key))  # in C: Ray would pickle in Python, and each argument alone
        self._call(self._handles[worker].perform.remote(work), _Call(worker, key=key))

    def kill(self, worker: str) -> None:
        """End `worker` at once, unless its `Lost` was already made. No other event follows."""
        if worker in self._handles:
            _kill(self._forget(worker))

    def stop(self, workers: Collection[str] | None = None) -> list[str]:
        """Ask these workers (None: all) to end their jobs soon, with what they can keep. They can do no others. Returns
        the keys of their tasks; a `Done`, `Failed` or `Lost` follows for each."""
        asked = self._handles.keys() if workers is None else set(workers)
        for worker in asked:
            self._handles[worker].stop.remote()
            self._usable.pop(worker, None)
        return [call.key for call in self._calls.values() if call.key is not None and call.worker in asked]

    def nodes(self) -> list[Node] | None:
        """The nodes that are alive and that workers may be on, whether or not there is room for one. None while the
        cluster's head accepts no connection: the call would wait for it and, if another head took its place, Ray would
        end this process with a stack trace."""
        return nodes(self.selector) if head_accepts(ray.get_runtime_context().gcs_address) else None

    def events(self, timeout_seconds: float) -> Iterator[PoolEvent]:
        """The events since the last call, waiting up to `timeout_seconds` for a first one."""
        try:
            ready = [self._answers.get(timeout=timeout_seconds)]
        except Empty:
            return
        ready += [self._answers.get() for _ in range(self._answers.qsize())]
        heartbeats = [answer for answer in ready if answer in self._calls and self._calls[answer].is_heartbeat_call]
        for answer in dict.fromkeys([*heartbeats, *ready]):  # heartbeats first: they came before the results
            if (call := self._calls.pop(answer, None)) is not None:  # else its worker is gone
                event = self._heartbeat(call.worker, answer) if call.is_heartbeat_call else self._outcome(call, answer)
                if event is not None:
                    yield event

    def _heartbeat(self, worker: str, future: Future[Any]) -> PoolEvent | None:
        """The event of an answer to `locate` or `next_heartbeat`, if there is one; calls `next_heartbeat` again."""
        try:
            answer = future.result()
        except RayError as error:
            has_call = any(call.worker == worker for call in self._calls.values())  # it will report the loss
            return None if has_call else self._lost(worker, error)
        before = self._heartbeats.get(worker)
        is_located = not isinstance(answer, LastHeartbeat)
        number = self._heartbeats[worker] = -1 if is_located else answer.number
        pause = len(self._handles) / MAX_HEARTBEATS_PER_SECOND
        self._call(self._handles[worker].next_heartbeat.remote(number, pause), _Call(worker, is_heartbeat_call=True))
        if is_located:
            self.check_health(worker)
            self._usable[worker] = Located(worker, *answer)
            return self._usable[worker]
        # The first answer after `locate` returns at once, with whatever heartbeat was the last; an equal number means
        # that the wait timed out.
        is_new = before not in (-1, number)
        return Alive(worker, *answer[1:]) if is_new else None

    def _outcome(self, call: _Call, answer: Future[Any]) -> PoolEvent:
        try:
            value = answer.result()
        except RayTaskError as error:
            return Failed(call.worker, error.cause, click.unstyle(str(error)), call.key)
        except RayError as error:  # its process or node died, ran out of memory, could not be started, ...
            return self._lost(call.worker, error)
        return Joined(call.worker, value) if call.key is None else Done(call.worker, value, call.key)

    def _lost(self, worker: str, error: RayError) -> Lost:
        handle = self._forget(worker)
        if not isinstance(error, ActorDiedError):
            _kill(handle)  # it may be alive and must not go on; whether its job is done, the commit shows
        preempted = isinstance(error, ActorDiedError) and error.preempted
        with_its_node = preempted or any(words in str(error) for words in NODE_DEATHS)
        if with_its_node:
            reason = "its node died or was taken away"
        elif is_out_of_memory(error):
            reason = "it was killed, because its node ran out of memory"
        elif PROCESS_DEATH in str(error):
            reason = "its process was killed, perhaps for lack of memory, or crashed"
        else:
            reason = textwrap.shorten(last_line(error), 160, placeholder=" ...")
        return Lost(worker, reason, with_its_node, str(error))

    def _forget(self, worker: str) -> Any:
        self._heartbeats.pop(worker, None)
        self._usable.pop(worker, None)
        self._calls = {answer: call for answer, call in self._calls.items() if call.worker != worker}
        return self._handles.pop(worker)

    def close(self) -> None:
        """Kill all workers, whatever they are doing."""
        for handle in self._handles.values():
            _kill(handle)
        self._handles.clear()
        self._calls.clear()


def _kill(handle: Any) -> None:
    with suppress(RayError):  # a head that took another's place knows none of its workers
        ray.kill(handle)
