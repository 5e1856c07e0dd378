"""Checkpoints of training, and the commit of the trained model."""

import pickle
import shutil
import tempfile
import uuid
from pathlib import Path

import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from taugrid.run_id import check_run
from taugrid.storage import LOCAL
from taugrid.storage.local import commit_folder
from taugrid.workers.network.pipeline import save_pipeline
from taugrid.workers.training.log import LOG, events_folder
from taugrid.workers.training.spec import TrainingSpec
from taugrid.workers.training.state import State


def save(state: State, path: Path) -> None:
    """Write a checkpoint that `load` reads."""
    tensors = {"unet": state.unet.state_dict(), "ema": state.ema, "optimizer": state.optimizer.state_dict()}
    torch.save(tensors | {"step": state.step, "seconds": state.seconds}, path)


def load(state: State, path: Path) -> None:
    """Restore `state`, in place, from a checkpoint. Only tensors and numbers are unpickled."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    state.unet.load_state_dict(saved["unet"])
    for name, average in state.ema.items():
        average.copy_(saved["ema"][name])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.seconds = saved["step"], saved["seconds"]


def newest_checkpoint(running: Path) -> Path | None:
    """The last file in Ray Train's folder that `load` can read; a kill may have cut others short."""
    for path in sorted(running.glob("checkpoint_*/state.pt"), reverse=True):  # Ray Train names them by the time
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        return path
    return None


def resume(spec: TrainingSpec, state: State, rank: int) -> None:
    """Restore the last checkpoint, if any: the one that Ray Train knows, or else the newest readable one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load(state, Path(folder) / "state.pt")
        return
    newest = broadcast_from_rank_zero(newest_checkpoint(spec.running) if rank == 0 else None)
    if newest is not None:
        load(state, newest)


def report(state: State, rank: int) -> None:
    """Hand a checkpoint to Ray Train, which keeps it in the storage folder; a barrier over the workers."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            save(state, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint=checkpoint)


def commit(spec: TrainingSpec, state: State) -> None:
    """Put the pipeline folder and the log in place, whole: nothing half-written counts as trained."""
    if spec.run is not None:
        check_run(spec.run, LOCAL)
    temporary = spec.final.with_name(f".{spec.model_id}.{uuid.uuid4().hex[:12]}.tmp")
    save_pipeline(temporary, state.unet, state.ema, spec.diffusion)
    (temporary / "train").mkdir()
    events = events_folder(spec.running).iterdir() if spec.train.tensorboard else ()
    for path in (spec.running / LOG, *events):
        shutil.copyfile(path, temporary / "train" / path.name)
    commit_folder(temporary, spec.final)
