"""Training a model on the cluster, as the driver sees it: what to train, Ray Train's run, and its progress.

The loop itself is in `training_loop.py`, which only the workers import, so that the driver needs no torch for it.
"""

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator import config
from orchestrator.errors import RunFailed, UserError

MAX_WORKER_FAILURES = 3
"""Killed workers per run that are replaced; the same command again gives another three."""

MAX_CONTROLLER_FAILURES = 9
"""Ray Train tries for a minute to start its workers: ten tries are enough for an autoscaler, and not for ever."""

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often its controller polls; a checkpoint waits for it (2 s)
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process whose warnings the loop would make no use of
}
"""Read by Ray Train when a run starts, and passed on to its processes; what the user has set wins."""


class Hopeless(Exception):
    """A training that would fail again in the same way, so that Ray Train must not repeat it: one line saying why."""


class Progress(NamedTuple):
    """How far a training is."""

    step: int
    """Steps done."""
    loss: float
    workers: int


@dataclass(frozen=True)
class TrainingSpec:
    """A model to train and the means; `diffusion` and `train` are resolved, with no key left `null`."""

    data: config.Data
    data_sha256: str
    """Of its images on the driver: `workers.data.content_fingerprint`."""
    unet: config.Unet
    diffusion: config.Diffusion
    train: config.Train
    model_id: str
    models_dir: str
    """Absolute, and the same folder on every node: Ray's workers change directory."""
    cpus_per_worker: float
    gpus_per_worker: float

    @property
    def final(self) -> Path:
        """Where the trained model is committed, whole or not at all."""
        return Path(self.models_dir) / self.model_id

    @property
    def running(self) -> Path:
        """Ray Train's folder while the training runs: checkpoints, the live log and TensorBoard's files."""
        return running_folder(self.models_dir, self.model_id)


def running_folder(models_dir: str | Path, model_id: str) -> Path:
    """Where a training that is not finished keeps its checkpoints and its log."""
    return Path(models_dir) / f".training-{model_id}"


def train(spec: TrainingSpec) -> None:
    """Train the model unless it is there; a training that was cut off goes on from its last checkpoint.

    Ray must be initialised. Call it outside the main thread: in it, Ray Train takes over SIGINT and keeps it.

    Raises:
        UserError: if TensorBoard is asked for and not installed.
        RunFailed: if the network can't be built, the loss is not finite, or workers failed more often than they are
            replaced.
    """
    if spec.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard needs the package tensorboard; pip install 'taugrid[tensorboard]'")
    for leftover in Path(spec.models_dir).glob(f".{spec.model_id}.*.tmp"):
        shutil.rmtree(leftover)
    if not spec.final.is_dir():
        _drop_torn_snapshot(spec.running)
        _fit(spec)
    shutil.rmtree(spec.running, ignore_errors=True)


def progress(models_dir: str | Path, model_id: str) -> Progress | None:
    """The last logged step of a training that is not finished; None before the first."""
    try:
        with (running_folder(models_dir, model_id) / "log.jsonl").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            whole_lines = log.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not whole_lines:
        return None
    record = json.loads(whole_lines[-1])
    return Progress(record["step"], record["loss"], record.get("workers", 1))  # it was not always written


def _fit(spec: TrainingSpec) -> None:
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    resources = {"CPU": spec.cpus_per_worker}
    if spec.gpus_per_worker:
        resources["GPU"] = spec.gpus_per_worker
    trainer = DataParallelTrainer(
        _work,
        train_loop_config={"spec": spec},
        backend_config=ray.train.BackendConfig(),  # the loop makes its own process group
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.train.workers, use_gpu=spec.gpus_per_worker > 0, resources_per_worker=resources
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
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(lines[-1].strip()) from error
    if result.return_value is not None:
        raise RunFailed(result.return_value)


def _work(loop_config: dict[str, Any]) -> str | None:
    """What each worker does. Returns why the training is hopeless, if it is: Ray Train would repeat an exception."""
    from workers import training_loop

    try:
        training_loop.run(loop_config["spec"])
    except Hopeless as error:
        return str(error)
    return None


def _drop_torn_snapshot(running: Path) -> None:
    """Remove Ray Train's list of checkpoints if a kill cut off its writing, which is not atomic.

    Ray Train refuses to start with it. Without it the training starts from scratch, to the same result.
    """
    snapshot = running / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        snapshot.unlink()
