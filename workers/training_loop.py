"""The training loop that runs in each of Ray Train's workers: the loss, Adam, a moving average, checkpoints.

Every draw is a function of (train.seed, step, position in the global batch), so that neither the number of workers nor
a restart changes what is learnt, save for the rounding of sums.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import ray.train
import ray.util
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor, distributed

from workers import data, models
from workers.diffusion import noise
from workers.diffusion.process import diffuse
from workers.loss import Batch, Loss
from workers.training import Hopeless, TrainingSpec

LOGGED_AT_START = 50
LOGGED_LINES = 1_000
"""The first 50 steps are logged, and from then on about a thousand more, however long the training is."""


@dataclass
class State:
    """What a checkpoint holds."""

    unet: diffusers.UNet2DModel
    ema: dict[str, Tensor]
    optimizer: torch.optim.Adam
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them, over all attempts."""


class Batches:
    """The batches of one rank: a contiguous slice of the positions 0..B-1, a function of the step."""

    def __init__(self, spec: TrainingSpec, rank: int, world_size: int, device: str) -> None:
        assert spec.train.seed is not None
        size = spec.train.batch_size
        self._seed, self._flip, self._shape = spec.train.seed, spec.train.flip, spec.data.image_shape
        self._positions = torch.arange(rank * size // world_size, (rank + 1) * size // world_size, device=device)
        self._images = torch.tensor(data.load_images(spec.data), device=device)
        self._alpha_bar = torch.from_numpy(spec.diffusion.alpha_bar).to(device)

    def __getitem__(self, step: int) -> Batch:
        """The images of `step` = 0, 1, ... with noise added to them, eq. 4."""
        timesteps = len(self._alpha_bar) - 1
        draws = noise.training_draws(self._seed, step, self._positions, len(self._images), timesteps)
        x0 = self._images[draws.index].float() / 127.5 - 1
        if self._flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(-1), x0)
        eps = noise.normal(self._seed, self._positions, step, self._shape, domain="train-eps")
        return Batch(diffuse(x0, eps, self._alpha_bar[draws.t]), draws.t, x0, eps)


class Log:
    """log.jsonl: a line of step, loss and seconds for each logged step."""

    def __init__(self, path: Path, done: int) -> None:
        """Go on after step `done`: lines of later steps, which will be done again, are cut off."""
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)  # a line is one write

    def write(self, step: int, loss: float, seconds: float) -> None:
        """Add a line."""
        self._file.write(json.dumps({"step": step, "loss": loss, "seconds": round(seconds, 3)}) + "\n")


def run(spec: TrainingSpec) -> None:
    """Train, and commit the model from rank 0.

    Raises:
        Hopeless: if the network can't be built, or the loss of a step is not finite.
    """
    if spec.final.is_dir():
        return  # a worker died after the commit, and Ray Train started the function again
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = _device(spec)
    state = new_state(spec, device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load(state, Path(folder) / "state.pt")
    log = Log(spec.running / "log.jsonl", state.step) if rank == 0 else None
    with _process_group(spec, rank, world_size, device):
        _loop(spec, state, Batches(spec, rank, world_size, device), log, rank, world_size)
    if rank == 0:
        _commit(spec, state)


@contextmanager
def _process_group(spec: TrainingSpec, rank: int, world_size: int, device: str) -> Iterator[None]:
    """Lets the ranks talk, having met at a file in the run directory, a new one for each start.

    Ray Train's own way to meet, torch's TCP store, listens on all interfaces of a machine, and gloo on the one that the
    host's name resolves to. A cluster on loopback stays there.
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
    try:
        yield
    finally:
        distributed.destroy_process_group()


def new_state(spec: TrainingSpec, device: str) -> State:
    """The state before the first step, a function of `train.seed` alone.

    Raises:
        Hopeless: if `model.unet` is no network for these images.
    """
    assert spec.train.seed is not None
    shape = spec.data.image_shape
    torch.manual_seed(spec.train.seed)
    try:
        unet = models.build_unet(spec.unet, shape)  # on the CPU, whose random numbers are the same anywhere
        unet(torch.zeros(1, *shape), 0)
    except (ValueError, RuntimeError, TypeError) as error:
        raise Hopeless(f"model.unet is no network for images of shape {shape}: {error}") from error
    unet = unet.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(unet.parameters(), lr=spec.train.learning_rate, fused=True)
    return State(unet, models.ema_start(unet), optimizer)


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


def _loop(spec: TrainingSpec, state: State, batches: Batches, log: Log | None, rank: int, world_size: int) -> None:
    settings = spec.train
    loss_of = Loss(spec.diffusion, settings.loss_weights, str(next(state.unet.parameters()).device))
    network = _parallel(state.unet, batches) if world_size > 1 else state.unet
    began = time.perf_counter() - state.seconds
    while state.step < settings.steps:
        local = _step(spec, state, network, batches[state.step], loss_of, world_size)
        state.step += 1
        state.seconds = time.perf_counter() - began
        logged = is_logged(state.step, settings.steps)
        due = state.step % settings.checkpoint_every == 0 and state.step < settings.steps
        if not logged and not due:
            continue  # reading the loss makes a device wait
        loss = _sum_over_ranks(local, world_size)
        if not math.isfinite(loss):
            raise Hopeless(
                f"the loss of step {state.step} is not finite; lower train.learning_rate ({settings.learning_rate:g}), "
                f"raise train.warmup_steps ({settings.warmup_steps}), or set train.gradient_clip"
            )
        if logged and log is not None:
            log.write(state.step, loss, state.seconds)
        if due:
            _checkpoint(state, rank)


def _step(spec: TrainingSpec, state: State, network: Any, batch: Batch, loss_of: Loss, world_size: int) -> Tensor:
    """One step of Adam. Returns this rank's share of the loss: its sum over ranks is the mean over the global batch."""
    settings = spec.train
    if spec.unet.dropout > 0:
        torch.manual_seed(_dropout_seed(settings.seed, state.step))
    output = network(batch.x_t, models.network_time(batch.t), return_dict=False)[0]
    share = loss_of(output, batch).sum() / settings.batch_size
    state.optimizer.zero_grad()
    torch.autograd.backward(share * world_size)  # DDP takes the mean over ranks, where the shares want a sum
    if settings.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(state.unet.parameters(), settings.gradient_clip)
    warmup = min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * warmup
    state.optimizer.step()
    models.ema_update(state.ema, state.unet, models.ema_decay(state.step, settings.ema_decay))
    return share.detach()


def _parallel(unet: diffusers.UNet2DModel, batches: Batches) -> Any:
    """`unet` in DDP, whose gradients are means over ranks.

    DDP orders its buckets anew after the first backward pass, which changes the order of sums. A pass that counts for
    nothing comes first, so that a resumed training has the same buckets at each step as one that was not cut off.
    """
    network = torch.nn.parallel.DistributedDataParallel(unet)
    batch = batches[0]
    network(batch.x_t, models.network_time(batch.t), return_dict=False)[0].sum().backward()
    return network


def _sum_over_ranks(share: Tensor, world_size: int) -> float:
    if world_size > 1:
        distributed.all_reduce(share)
    return share.item()


def _device(spec: TrainingSpec) -> str:
    """The worker's device, set up: threads for its CPUs (Ray sets OMP_NUM_THREADS=1), true float32, repeatable sums."""
    torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
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
    temporary = spec.final.with_name(f".{spec.model_id}.{os.getpid()}.tmp")
    models.save_pipeline(temporary, state.unet, state.ema, spec.diffusion)
    (temporary / "train").mkdir()
    shutil.copyfile(spec.running / "log.jsonl", temporary / "train" / "log.jsonl")
    temporary.rename(spec.final)
