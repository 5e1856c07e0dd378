"""Trains a model on the cluster, from the driver's side: starts Ray Train, and removes what a kill left behind.

The loop itself is in loop.py, which only the workers import, because it needs torch.
"""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taugrid.config import Train
from taugrid.errors import RunFailed, UserError, last_line
from taugrid.jobs import Hopeless, TrainingSpec, running_folder
from taugrid.workers import ray_compat
from taugrid.workers.importing import uncollected

if TYPE_CHECKING:
    from ray.train import TrainingFailedError

MAX_WORKER_FAILURES = 3
"""How many killed workers are replaced in one run; running the same command again allows three more."""

MAX_CONTROLLER_FAILURES = 9
"""Each attempt to start the workers takes Ray Train up to a minute. Ten attempts give an autoscaler enough time."""

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often its controller polls; a checkpoint waits for it (2 s)
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of the notices that `Notice` asks for (5 s)
}
"""Read by Ray Train when a run starts, and passed on to its processes. Variables that the user has set win."""

COLLATERAL = re.compile(
    r"gloo|nccl|DistBackendError|DistNetworkError|DistStoreError|connection (closed|reset|refused)", re.I
)
"""Matches the error of a worker that failed only because another worker did."""

AFTERMATH = re.compile(r"connection (closed|reset)|remote process exited", re.I)
"""Matches those that say the least: another worker ended."""

LOW_MEMORY = re.compile(r"low on memory|OutOfMemory", re.I)
"""Matches Ray's message for a worker that Ray itself killed. Ray does not detect kills by the system's kernel."""


class FailsAgain(RunFailed):
    """A training that would fail in the same way if it were tried again."""


class NoRoom(RunFailed):
    """No node had room for a training's workers in any attempt. There may be room later."""


class NodesLeave(RunFailed):
    """A training's nodes will be taken away, and its last checkpoint has all its steps. It can begin again at once."""


NODES_LEAVE = "its nodes will be taken away"
"""What `_work` returns then: Ray Train takes any return for success."""


def check(settings: Train) -> None:
    """Raise `UserError` if TensorBoard is requested but not installed."""
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard needs the package tensorboard; pip install 'taugrid[tensorboard]'")


def remove_leftovers(models_dir: str | Path, model_id: str) -> None:
    """Remove what a killed training left behind: half a commit, or its running folder after a commit."""
    for leftover in Path(models_dir).glob(f".{model_id}.*.tmp"):
        shutil.rmtree(leftover)
    if (Path(models_dir) / model_id).is_dir():
        shutil.rmtree(running_folder(models_dir, model_id), ignore_errors=True)


def train(spec: TrainingSpec) -> None:
    """Train the model unless it already exists. An interrupted training continues from its last checkpoint.

    Don't call this in the main thread: there, Ray Train takes over SIGINT and keeps it.

    Raises `FailsAgain` if the network can't be built, or the loss is not finite; `NodesLeave` if its nodes will be
    taken away; `NoRoom` if other work took the room for its workers, in all `MAX_CONTROLLER_FAILURES` + 1 attempts;
    `RunFailed` if workers failed more often than `MAX_WORKER_FAILURES`; `UserError` if there is a link in its folder,
    to which Ray Train and TensorBoard write by paths."""
    for path in (Path(spec.models_dir), spec.running, *spec.running.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path} is a link, and a training would write to where it leads; remove it")
    remove_leftovers(spec.models_dir, spec.model_id)
    if not spec.final.is_dir():
        _drop_torn_snapshot(spec.running)
        _fit(spec)
        remove_leftovers(spec.models_dir, spec.model_id)


def _fit(spec: TrainingSpec) -> None:
    import ray.train

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    resources = {"CPU": spec.cpus_per_worker}
    if spec.gpus_per_worker:
        resources["GPU"] = spec.gpus_per_worker
    trainer = ray_compat.trainer_without_process_group()(
        _work,
        train_loop_config={"spec": spec},
        backend_config=ray.train.BackendConfig(),  # the loop makes the process group
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.train.workers,
            use_gpu=spec.gpus_per_worker > 0,
            resources_per_worker=resources,
            label_selector=dict(spec.label_selector) or None,
        ),
        run_config=ray.train.RunConfig(
            name=spec.running.name,
            storage_path=spec.models_dir,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_WORKER_FAILURES, controller_failure_limit=MAX_CONTROLLER_FAILURES
            ),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        has_no_room = ray_compat.is_placement_timeout(getattr(error, "controller_failure", None))
        raise (NoRoom if has_no_room else RunFailed)(in_one_line(error)) from error
    if result.return_value is not None:
        raise (NodesLeave if result.return_value == NODES_LEAVE else FailsAgain)(result.return_value)


def in_one_line(error: "TrainingFailedError") -> str:
    """The last lines of the workers' errors, with ranks, but for those that only follow from another worker's. If all
    are about connections, one of them is shown."""
    from ray.train import WorkerGroupError

    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return _of_worker(getattr(error, "controller_failure", error))
    ranks: dict[str, list[str]] = {}
    for rank, failure in sorted(error.worker_failures.items()):
        ranks.setdefault(_of_worker(failure), []).append(str(rank))
    causes = [line for line in ranks if not COLLATERAL.search(line)]
    causes = causes or [min(ranks, key=lambda line: AFTERMATH.search(line) is not None)]
    return "; ".join(f"{line} (worker {', '.join(ranks[line])})" for line in causes)


def _of_worker(failure: BaseException) -> str:
    """The last line of a worker's error or, if its process is gone, the likely causes and what to do."""
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

    cause = getattr(failure, "health_check_failure", failure)
    never_began = ray_compat.failed_to_start(cause)
    if not never_began and not isinstance(cause, OutOfMemoryError | RayActorError | WorkerCrashedError):
        return last_line(failure)
    if LOW_MEMORY.search(str(cause)):
        return (
            "Ray killed a training worker because its node was low on memory; use a node with more, or fewer workers "
            "on it, and run the same command again to continue from the last checkpoint"
        )
    when = " as it started" if never_began else ""
    return (
        f"a training worker died{when}, killed from outside, for want of memory, or by a crash: its node's kernel log "
        "(dmesg) tells which; run the same command again to continue from the last checkpoint"
    )


def _work(loop_config: dict[str, Any]) -> str | None:
    """Run the loop in a worker. Returns `NODES_LEAVE` or `Hopeless`'s message: Ray Train would repeat an exception."""
    with uncollected():
        from taugrid.workers.training import loop

    try:
        return None if loop.run(loop_config["spec"]) else NODES_LEAVE
    except Hopeless as error:
        return str(error)


def _drop_torn_snapshot(running: Path) -> None:
    """Remove Ray Train's list of checkpoints if a kill left it half-written: it would refuse to start. Without a list,
    the workers find the newest checkpoint themselves."""
    snapshot = running / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        snapshot.unlink()
