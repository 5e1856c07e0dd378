"""The training loop that runs in each of Ray Train's workers: the loss, the optimizer, an average, checkpoints.

Every draw is a function of (train.seed, step, position in the global batch), so that neither the number of workers nor
a restart changes what is learnt, save for the rounding of sums.
"""

import hashlib
import math
import os
import pickle
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import ray.train
import ray.util
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor, distributed

from taugrid import config
from taugrid.errors import UserError
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.device import set_up
from taugrid.workers.diffusion import noise
from taugrid.workers.diffusion.process import diffuse
from taugrid.workers.network.ema import ema_decay, ema_start, ema_update
from taugrid.workers.network.pipeline import save_pipeline
from taugrid.workers.network.unet import build_unet, network_time
from taugrid.workers.training.fit import Hopeless, TrainingSpec
from taugrid.workers.training.log import Log, Record, events_folder
from taugrid.workers.training.loss import Batch, Loss

LOGGED_AT_START = 50
LOGGED_LINES = 1_000
"""The first 50 steps are logged, and from then on about a thousand more, however long the training is."""

DEVICE_BYTES = 4 * 2**30
"""Data sets up to this lie on the device; of larger ones each batch is moved there, from a map of a file."""


@dataclass
class State:
    """What a checkpoint holds."""

    unet: diffusers.UNet2DModel
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them, over all attempts."""


class Step(NamedTuple):
    """What a step leaves on the device, for whoever wants to read it."""

    loss: Tensor
    """This rank's share: the sum over ranks is the mean over the global batch."""
    gradient_norm: Tensor
    """Of the global batch's loss, before clipping."""


class Batches:
    """The batches of one rank: a contiguous slice of the positions 0..B-1, a function of the step."""

    def __init__(self, spec: TrainingSpec, rank: int, world_size: int, device: str) -> None:
        assert spec.train.seed is not None
        size = spec.train.batch_size
        self._seed, self._flip, self._shape = spec.train.seed, spec.train.flip, spec.data.image_shape
        self._antithetic = spec.train.antithetic
        self._positions = torch.arange(rank * size // world_size, (rank + 1) * size // world_size, device=device)
        self._images = data.load_known_images(spec.data, spec.data_sha256)
        fits = device != "cpu" and self._images.nbytes <= DEVICE_BYTES
        self._on_device = torch.tensor(self._images, device=device) if fits else None
        self._alpha_bar = torch.from_numpy(schedules.alpha_bar(spec.diffusion)).to(device)

    def __getitem__(self, step: int) -> Batch:
        """The images of `step` = 0, 1, ... with noise added to them, eq. 4."""
        timesteps = len(self._alpha_bar) - 1
        draws = noise.training_draws(self._seed, step, self._positions, len(self._images), timesteps, self._antithetic)
        x0 = self._pixels(draws.index).float() / 127.5 - 1
        if self._flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(-1), x0)
        eps = noise.normal(self._seed, self._positions, step, self._shape, domain="train-eps")
        return Batch(diffuse(x0, eps, self._alpha_bar[draws.t]), draws.t, x0, eps)

    def _pixels(self, index: Tensor) -> Tensor:
        if self._on_device is not None:
            return self._on_device[index]
        return torch.from_numpy(self._images[index.cpu().numpy()]).to(index.device)


def run(spec: TrainingSpec) -> None:
    """Train, and commit the model from rank 0.

    Raises:
        Hopeless: if the network can't be built, a node lacks the driver's images or TensorBoard, or the training
            diverges.
    """
    if spec.final.is_dir():
        return  # a worker died after the commit, and Ray Train started the function again
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = _device(spec)
    state = new_state(spec, device)
    _resume(spec, state, rank)
    batches, log, fault = None, None, None
    try:
        batches = _batches(spec, rank, world_size, device)
        log = Log(spec.running, state.step, spec.train.tensorboard) if rank == 0 else None
    except Hopeless as error:
        fault = str(error)
    with _process_group(spec, rank, world_size, device):
        _stop_together(fault, world_size)
        assert batches is not None
        _loop(spec, state, batches, log, rank, world_size)
    if rank == 0:
        _commit(spec, state)


def _resume(spec: TrainingSpec, state: State, rank: int) -> None:
    """Restore the last checkpoint, if there is one: the one that Ray Train knows, else the newest whole one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load(state, Path(folder) / "state.pt")
        return
    newest = broadcast_from_rank_zero(newest_checkpoint(spec.running) if rank == 0 else None)
    if newest is not None:
        load(state, newest)


def newest_checkpoint(running: Path) -> Path | None:
    """The last file in Ray Train's folder that `load` can read; a kill can have cut off the writing of some."""
    for path in sorted(running.glob("checkpoint_*/state.pt"), reverse=True):  # Ray Train names them by the time
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        return path
    return None


@contextmanager
def _process_group(spec: TrainingSpec, rank: int, world_size: int, device: str) -> Iterator[None]:
    """Lets the ranks talk, having met at a file in the run directory, a new one for each start.

    Ray Train's own way to meet, torch's TCP store, listens on all interfaces of a machine, and gloo on the one that the
    host's name resolves to. A cluster on loopback stays there.

    A rank that fails leaves the group be: the others wait until Ray Train ends them, where its end would make each of
    them fail too, and its error one among theirs.
    """
    if world_size == 1:
        yield
        return
    if ray.util.get_node_ip_address() == "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    meeting = broadcast_from_rank_zero(f"meeting-{uuid.uuid4().hex[:12]}" if rank == 0 else None)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{spec.running / str(meeting)}",
        rank=rank,
        world_size=world_size,
    )
    yield
    distributed.destroy_process_group()


def _batches(spec: TrainingSpec, rank: int, world_size: int, device: str) -> Batches:
    """`Batches` of one rank; outside of the process group, which would not wait for a node that decodes for long."""
    try:
        return Batches(spec, rank, world_size, device)
    except UserError as error:
        raise Hopeless(str(error)) from error


def _stop_together(fault: str | None, world_size: int) -> None:
    """If a rank has a `fault`, all of them stop, for none can go on without it."""
    faults = [fault] * world_size
    if world_size > 1:
        distributed.all_gather_object(faults, fault)
    if any(faults):
        raise Hopeless(next(filter(None, faults)))


def new_state(spec: TrainingSpec, device: str) -> State:
    """The state before the first step, a function of `train.seed` alone.

    Raises:
        Hopeless: if `model.unet` is no network for these images.
    """
    assert spec.train.seed is not None
    shape = spec.data.image_shape
    torch.manual_seed(spec.train.seed)
    try:
        unet = build_unet(spec.unet, shape)  # on the CPU, whose random numbers are the same anywhere
        unet(torch.zeros(1, *shape), 0)
    except (ValueError, RuntimeError, TypeError) as error:
        raise Hopeless(f"model.unet is no network for images of shape {shape}: {error}") from error
    memory_format = torch.channels_last if spec.train.channels_last else torch.contiguous_format
    unet = unet.to(device=device, memory_format=memory_format).train()
    return State(unet, ema_start(unet), _optimizer(spec.train, unet))


def _optimizer(settings: config.Train, unet: diffusers.UNet2DModel) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        decay = settings.weight_decay
        return torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(unet.parameters(), lr=settings.learning_rate, fused=True)


def save(state: State, path: Path) -> None:
    """Write a checkpoint that `load` reads."""
    tensors = {"unet": state.unet.state_dict(), "ema": state.ema, "optimizer": state.optimizer.state_dict()}
    torch.save(tensors | {"step": state.step, "seconds": state.seconds}, path)


def load(state: State, path: Path) -> None:
    """Restore `state`, in place, from a checkpoint; nothing but tensors and numbers is unpickled."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    state.unet.load_state_dict(saved["unet"])
    for name, average in state.ema.items():
        average.copy_(saved["ema"][name])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.seconds = saved["step"], saved["seconds"]


def is_logged(step: int, steps: int) -> bool:
    """Whether `step` = 1, 2, ... of `steps` has a line in the log."""
    return step <= LOGGED_AT_START or step % max(1, steps // LOGGED_LINES) == 0 or step == steps


def learning_rate(step: int, settings: config.Train) -> float:
    """The rate at `step` = 0, 1, ...: it rises linearly over the warm-up, and then stays or falls along a cosine.

    `cosine`: at the k-th of the K steps after the warm-up, the rate times (1 + cos(pi k / K)) / 2, which is 0 at the
    last (Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts and down to 0).
    """
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    k, K = step + 1 - settings.warmup_steps, settings.steps - settings.warmup_steps
    if settings.learning_rate_schedule == "cosine" and k > 0:
        rate *= (1 + math.cos(math.pi * k / K)) / 2
    return rate


def _loop(spec: TrainingSpec, state: State, batches: Batches, log: Log | None, rank: int, world_size: int) -> None:
    settings = spec.train
    loss_of = Loss(spec.diffusion, settings.loss_weights, str(next(state.unet.parameters()).device))
    network = _network(settings, state.unet, batches, world_size)
    began = time.perf_counter() - state.seconds
    checkpointed = state.step
    while state.step < settings.steps:
        rate = learning_rate(state.step, settings)
        step = _step(spec, state, network, batches[state.step], loss_of, rate, world_size)
        state.step += 1
        state.seconds = time.perf_counter() - began
        logged, last = is_logged(state.step, settings.steps), state.step == settings.steps
        due = state.step % settings.checkpoint_every == 0 and not last
        if not logged and not due:
            continue  # reading the loss makes a device wait
        loss = _sum_over_ranks(step.loss, world_size)
        record = Record(state.step, loss, rate, step.gradient_norm.item(), world_size, state.seconds)
        if (found := _not_finite(record, state if due or last else None)) is not None:
            raise Hopeless(_diverged(spec, found, checkpointed))
        if logged and log is not None:
            log.write(record)
        if due:
            _checkpoint(state, rank)
            checkpointed = state.step


def _step(
    spec: TrainingSpec, state: State, network: Any, batch: Batch, loss_of: Loss, rate: float, world_size: int
) -> Step:
    """One step of the optimizer and of the average. Reads nothing from the device."""
    settings = spec.train
    if spec.unet.dropout > 0:
        torch.manual_seed(_dropout_seed(settings.seed, state.step))
    share = loss_of(_output(settings, network, batch), batch).sum() / settings.batch_size
    state.optimizer.zero_grad()
    torch.autograd.backward(share * world_size)  # DDP takes the mean over ranks, where the shares want a sum
    most = math.inf if settings.gradient_clip is None else settings.gradient_clip
    gradient_norm = torch.nn.utils.clip_grad_norm_(state.unet.parameters(), most)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    ema_update(state.ema, state.unet, ema_decay(state.step, settings.ema_decay, settings.ema_warmup))
    return Step(share.detach(), gradient_norm)


def _output(settings: config.Train, network: Any, batch: Batch) -> Tensor:
    """The network's output, float32 in any `precision`. bf16 has float32's range, so the loss needs no scaling."""
    with torch.autocast(batch.x_t.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        output: Tensor = network(batch.x_t, network_time(batch.t), return_dict=False)[0]
    return output.float()


def _network(settings: config.Train, unet: diffusers.UNet2DModel, batches: Batches, world_size: int) -> Any:
    """`unet`, with `compile` compiled in place; several ranks have it in DDP, whose gradients are means over them.

    Compiled within DDP, as torch advises (torch.compiler, "Where to apply torch.compile?").

    DDP orders its buckets anew after the first backward pass, which changes the order of sums. A pass that counts for
    nothing comes first, so that a resumed training has the same buckets at each step as one that was not cut off.
    """
    if settings.compile:
        unet.compile()
    if world_size == 1:
        return unet
    network = torch.nn.parallel.DistributedDataParallel(unet)
    torch.autograd.backward(_output(settings, network, batches[0]).sum())
    return network


def _not_finite(record: Record, to_be_kept: State | None) -> str | None:
    """What has NaN or infinity in it, if anything has. A step's loss can be finite and what it leaves behind not."""
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


def _diverged(spec: TrainingSpec, what: str, checkpointed: int) -> str:
    """The line for people: what was seen, what to change, and what is left."""
    settings = spec.train
    clip = "set train.gradient_clip"
    if settings.gradient_clip is not None:
        clip = f"lower train.gradient_clip ({settings.gradient_clip:g})"
    left = "there is no checkpoint from before"
    if checkpointed:
        left = f"its last good checkpoint, of step {checkpointed}, stays in {spec.running}"
    return (
        f"{what} not finite; lower train.learning_rate ({settings.learning_rate:g}), raise train.warmup_steps "
        f"({settings.warmup_steps}), or {clip}, which makes it another model that starts anew; {left}"
    )


def _sum_over_ranks(share: Tensor, world_size: int) -> float:
    if world_size > 1:
        distributed.all_reduce(share)
    return share.item()


def _device(spec: TrainingSpec) -> str:
    """The worker's device, set up with a thread for each of its CPUs."""
    set_up(threads=max(1, int(spec.cpus_per_worker)))
    return "cuda" if spec.gpus_per_worker else "cpu"


def _dropout_seed(seed: int | None, step: int) -> int:
    digest = hashlib.sha256(f"taugrid/train-dropout/{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _checkpoint(state: State, rank: int) -> None:
    """Hand a checkpoint to Ray Train, which keeps it in the storage folder; a barrier over the workers."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            save(state, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint=checkpoint)


def _commit(spec: TrainingSpec, state: State) -> None:
    """Put the pipeline folder and the log in place, in one step."""
    temporary = spec.final.with_name(f".{spec.model_id}.{uuid.uuid4().hex[:12]}.tmp")
    save_pipeline(temporary, state.unet, state.ema, spec.diffusion)
    (temporary / "train").mkdir()
    events = events_folder(spec.running).iterdir() if spec.train.tensorboard else ()
    for path in (spec.running / "log.jsonl", *events):
        shutil.copyfile(path, temporary / "train" / path.name)
    temporary.rename(spec.final)
