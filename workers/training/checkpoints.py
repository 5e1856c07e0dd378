"""The state of a training: new, saved in checkpoints, resumed, and committed as a model."""

import math
import pickle
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor

from taugrid.jobs import Hopeless, TrainingSpec
from taugrid.run_id import check_run
from taugrid.storage import LOCAL
from taugrid.storage.local import commit_folder
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.network.unet import UNet2DModel, build_unet, ema_start, save_pipeline
from taugrid.workers.training.log import LOG, Record, events_folder


@dataclass
class State:
    unet: UNet2DModel
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0  # done
    seconds: float = 0.0  # spent on them, over all attempts


def new_state(spec: TrainingSpec, device: str) -> State:
    """The state before the first step, of `train.seed` alone; `Hopeless` if `model.unet` does not fit the images."""
    assert spec.train.seed is not None
    shape = spec.data.image_shape
    torch.manual_seed(spec.train.seed)
    try:
        # on the CPU, whose random numbers are the same anywhere
        unet = build_unet(spec.unet, shape, has_null_label=spec.train.label_dropout > 0)
        unet(torch.zeros(1, *shape), 0, None if spec.unet.num_classes is None else torch.zeros(1, dtype=torch.int64))
    except (ValueError, RuntimeError, TypeError) as error:
        raise Hopeless(f"model.unet does not work for images of shape {shape}: {error}") from error
    how = policy(kind_of(device), spec.train.precision, trains=True)
    memory_format = getattr(torch, how.layout) if spec.train.channels_last else torch.contiguous_format
    unet = unet.to(device=device, memory_format=memory_format).train()
    weights, rate = unet.parameters(), spec.train.learning_rate
    optimizer: torch.optim.Optimizer
    if spec.train.optimizer == "adamw":
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=spec.train.weight_decay, fused=True)
    else:
        optimizer = torch.optim.Adam(weights, lr=rate, fused=True)
    return State(unet, ema_start(unet), optimizer)


def not_finite(record: Record, to_be_kept: State | None) -> str | None:
    """A phrase that names what contains NaN or infinity; None if nothing does. Weights may while the loss is finite."""
    if not math.isfinite(record.loss):
        return f"the loss of step {record.step} is"
    if not math.isfinite(record.gradient_norm):
        return f"the gradient of step {record.step} is"
    if to_be_kept is not None:
        moments = [value for values in to_be_kept.optimizer.state.values() for value in values.values()]
        kept = [*to_be_kept.unet.parameters(), *to_be_kept.ema.values(), *moments]
        if not torch.stack([tensor.isfinite().all() for tensor in kept]).all():
            return f"the weights after step {record.step} are"
    return None


def save(state: State, path: Path) -> None:
    tensors = {"unet": state.unet.state_dict(), "ema": state.ema, "optimizer": state.optimizer.state_dict()}
    torch.save(tensors | {"step": state.step, "seconds": state.seconds}, path)


def load(state: State, path: Path) -> None:
    """Restore `state`, in place, from a checkpoint. Only tensors and numbers are unpickled."""
    _restore(state, torch.load(path, map_location="cpu", weights_only=True))


def _restore(state: State, saved: dict[str, Any]) -> None:
    state.unet.load_state_dict(saved["unet"])
    for name, average in state.ema.items():
        average.copy_(saved["ema"][name])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.seconds = saved["step"], saved["seconds"]


def resume(spec: TrainingSpec, state: State, rank: int) -> None:
    """Restore the last checkpoint, if any: the one that Ray Train knows, or else the newest readable one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load(state, Path(folder) / "state.pt")
        return
    newest = broadcast_from_rank_zero(load_newest(state, spec.running) if rank == 0 else None)
    if newest is not None and rank != 0:
        load(state, newest)


def load_newest(state: State, running: Path) -> Path | None:
    """Restore `state` from the last file in Ray Train's folder that can be read, and return its path; a kill may have
    cut others short."""
    for path in sorted(running.glob("checkpoint_*/state.pt"), reverse=True):  # Ray Train names them by the time
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        _restore(state, saved)
        return path
    return None


def report(state: State, rank: int) -> None:
    """Hand a checkpoint to Ray Train, which keeps it in the storage folder; a barrier over the workers."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            save(state, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint=checkpoint)


def commit(spec: TrainingSpec, state: State) -> None:
    """Put the pipeline folder and the log in place atomically: nothing half-written counts as trained."""
    if spec.run_id is not None:
        check_run(spec.run_id, LOCAL)
    temporary = spec.final.with_name(f".{spec.model_id}.{uuid.uuid4().hex[:12]}.tmp")
    save_pipeline(temporary, state.unet, state.ema, spec.diffusion)
    (temporary / "train").mkdir()
    events = events_folder(spec.running).iterdir() if spec.train.tensorboard else ()
    for path in (spec.running / LOG, *events):
        shutil.copyfile(path, temporary / "train" / path.name)
    commit_folder(temporary, spec.final)
