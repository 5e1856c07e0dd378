"""The training loop that runs in each of Ray Train's workers.

Every draw is a function of (train.seed, step, position in the global batch), so neither the number of workers nor a
restart changes the result, apart from the rounding of sums.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray.train
import torch
from torch import Tensor, distributed

from taugrid.config import Diffusion, LossWeights, Train
from taugrid.errors import UserError, WorkerRefusal
from taugrid.jobs import Hopeless, TrainingSpec
from taugrid.run_id import check_run
from taugrid.storage import LOCAL
from taugrid.workers import schedules
from taugrid.workers.accelerator.arithmetic import kind_of, prepare_training
from taugrid.workers.accelerator.hardware import start_gpu
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.accelerator.transfer import to_device
from taugrid.workers.data.load import load_known_images, load_known_labels
from taugrid.workers.device import OomCounter, set_up
from taugrid.workers.diffusion import noise
from taugrid.workers.diffusion.objective import l_gamma, mean_square
from taugrid.workers.diffusion.process import predicted
from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.network.unet import UNet2DModel, ema_decay, ema_update
from taugrid.workers.training import checkpoints
from taugrid.workers.training.checkpoints import State, new_state, not_finite
from taugrid.workers.training.log import Log, Record, is_logged
from taugrid.workers.training.meeting import Meeting, Notice

NOT_REPEATABLE = "does not have a deterministic implementation"
"""What torch says of an operation that gives something else each time, where that is an error."""

DEVICE_BYTES = 4 * 2**30
"""Data sets up to this size are kept on the device. Larger ones are moved there batch by batch, from a mapped file."""


class TrainingBatch(NamedTuple):
    """One rank's part of a step's global batch."""

    x_t: Tensor  # (B, C, H, W), the images with noise added to them, as the network gets them
    t: Tensor  # (B,) times of the process: int64 in 1..T, or float64 if it is continuous
    x0: Tensor  # shaped like `x_t`: the images in [-1, 1]
    eps: Tensor  # shaped like `x_t`: the noise
    told: Tensor  # (B,) what the network is told
    labels: Tensor | None = None
    """(B,) int64 in 0..K, where K is the null class. None: the network takes none."""


class Loss:
    """The loss of a network's output: the mean square error of its prediction (L_simple for epsilon), or L_gamma on eps
    with Theorem 1's weights."""

    def __init__(self, diffusion: Diffusion, weights: LossWeights | None, device: str) -> None:
        """Raises ValueError if Theorem 1 has no such weights."""
        self._process = schedules.process(diffusion)
        self._gamma: Tensor | None = None
        if weights is not None:
            self._gamma = torch.from_numpy(schedules.gamma(weights, schedules.alpha_bar(diffusion))).to(device)

    def __call__(self, output: Tensor, batch: TrainingBatch) -> Tensor:
        """(B,) losses of the output (B, C, H, W)."""
        if self._gamma is not None:
            assert isinstance(self._process, DiscreteVP), "the plan refuses loss_weights of other processes"
            alpha_bar = self._process.alpha_bar_at(batch.t)
            eps = predicted(output, batch.x_t, alpha_bar, self._process.prediction).eps
            return l_gamma(eps, batch.eps, self._gamma[batch.t])
        return mean_square(output, self._process.target(batch.x0, batch.eps, batch.t))


class Batches:
    """The batches of one rank: a contiguous slice of the positions 0..B-1, a function of the step."""

    def __init__(self, spec: TrainingSpec, rank: int, world_size: int, device: str) -> None:
        assert spec.train.seed is not None
        size = spec.train.batch_size
        self._seed, self._flip, self._shape = spec.train.seed, spec.train.flip, spec.data.image_shape
        self._antithetic = spec.train.antithetic
        positions = torch.arange(rank * size // world_size, (rank + 1) * size // world_size)
        self._device, self._positions = device, positions.to(device)
        self._images = load_known_images(spec.data, spec.data_sha256)
        fits = device != "cpu" and self._images.nbytes <= DEVICE_BYTES
        self._on_device = torch.tensor(self._images, device=device) if fits else None
        self._draw_positions = self._positions if fits else positions  # beside the images
        self._process = schedules.process(spec.diffusion)
        self._classes, self._label_dropout = spec.unet.num_classes, spec.train.label_dropout
        self._labels: Tensor | None = None
        if spec.labels_sha256 is not None:
            known = load_known_labels(spec.data, spec.labels_sha256).of_images
            self._labels = torch.tensor(known, dtype=torch.int64, device=device)

    def __getitem__(self, step: int) -> TrainingBatch:
        """The images of `step` = 0, 1, ... with noise added to them."""
        process, num_images = self._process, len(self._images)
        draws = noise.training_draws(
            self._seed, step, self._draw_positions, num_images, process.timesteps, self._antithetic
        )
        if self._on_device is not None:
            pixels = self._on_device[draws.index]
        else:  # nothing is read from a GPU, which still computes the step before
            pixels = to_device(torch.from_numpy(self._images[draws.index.numpy()]), self._device)
            draws = noise.TrainingDraws(*(to_device(draw, self._device) for draw in draws))
        t = process.drawn_time(draws.t)
        x0 = pixels.float() / 127.5 - 1
        if self._flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(-1), x0)
        eps = noise.normal(self._seed, self._positions, step, self._shape, domain="train-eps")
        labels = None if self._labels is None else self._labels[draws.index]
        if labels is not None and self._label_dropout:  # a share of them becomes the null class
            assert self._classes is not None, "the plan refuses label_dropout without classes"
            drops = noise.label_drops(self._seed, step, self._positions, self._label_dropout)
            labels = labels.masked_fill(drops, self._classes)
        return TrainingBatch(process.noised(x0, eps, t), t, x0, eps, process.told_at(t), labels)


def run(spec: TrainingSpec) -> bool:
    """Train, and commit the model from rank 0. Returns False if its nodes will be taken away: its last checkpoint has
    all steps that it did. Raises `Hopeless` if the network can't be built, a worker can't use its GPU, a node lacks the
    run directory, the driver's images or TensorBoard, or the training diverges."""
    if spec.final.is_dir():
        return True  # a worker died after the commit, and Ray Train started the function again
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    meeting = Meeting(spec.running, rank, world_size)
    device, batches, log, fault = "", None, None, None
    try:
        device = device_of(spec)
    except WorkerRefusal as error:
        fault = str(error)
    meeting.stop_together("device", fault)
    state = new_state(spec, device)
    checkpoints.resume(spec, state, rank)
    try:
        batches = batches_of(spec, rank, world_size, device)
        log = Log(spec.running, state.step, spec.train.tensorboard) if rank == 0 else None
    except Hopeless as error:
        fault = str(error)
    meeting.stop_together("data", fault)
    assert batches is not None
    with meeting.process_group(device), repeatable(spec.train):
        is_done = train(spec, state, batches, log, rank, world_size, Notice().is_given)
    if rank == 0 and is_done:
        checkpoints.commit(spec, state)
    return is_done


@contextmanager
def repeatable(settings: Train) -> Iterator[None]:
    """Raise `Hopeless` for an operation that torch can't repeat, where that is an error."""
    try:
        yield
    except RuntimeError as error:
        if NOT_REPEATABLE not in str(error):
            raise
        raise Hopeless(
            f"train.precision: {settings.precision}: {str(error).partition(',')[0]}; set train.precision: float32, "
            "where it is only noted, or another model.unet"
        ) from error


def batches_of(spec: TrainingSpec, rank: int, world_size: int, device: str) -> Batches:
    """The `Batches` of one rank. Made before the process group, which would not wait for slow decoding."""
    try:
        if spec.run_id is not None:
            check_run(spec.run_id, LOCAL)
        return Batches(spec, rank, world_size, device)
    except UserError as error:
        raise Hopeless(str(error)) from error


def learning_rate(step: int, settings: Train) -> float:
    """The rate at `step` = 0, 1, ...: it rises linearly during the warm-up, then stays constant or falls as a cosine.
    `cosine`: times (1 + cos(pi k / K)) / 2 at the k-th of the K steps after the warm-up, which is 0 at the last
    (Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts)."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    k, K = step + 1 - settings.warmup_steps, settings.steps - settings.warmup_steps
    if settings.learning_rate_schedule == "cosine" and k > 0:
        rate *= (1 + math.cos(math.pi * k / K)) / 2
    return rate


def train(
    spec: TrainingSpec,
    state: State,
    batches: Batches,
    log: Log | None,
    rank: int,
    world_size: int,
    must_leave: Callable[[int], bool] = lambda step: False,
) -> bool:
    """Train to the end or, after a checkpoint, until `must_leave(step)`; returns whether it is the end."""
    settings = spec.train
    device = str(next(state.unet.parameters()).device)
    loss_of, shortages = Loss(spec.diffusion, settings.loss_weights, device), OomCounter(device)
    network = network_to_train(settings, state.unet, batches, world_size)
    began = time.perf_counter() - state.seconds
    checkpointed = state.step
    while state.step < settings.steps:
        rate = learning_rate(state.step, settings)
        loss, gradient_norm = _step(spec, state, network, batches[state.step], loss_of, rate, world_size)
        state.step += 1
        state.seconds = time.perf_counter() - began
        logged, last = is_logged(state.step, settings.steps), state.step == settings.steps
        leaves = not last and must_leave(state.step)
        due = leaves or (state.step % settings.checkpoint_every == 0 and not last)
        if not logged and not due:
            continue  # reading the loss makes the device wait
        if world_size > 1:
            distributed.all_reduce(loss)
        record = Record(state.step, loss.item(), rate, gradient_norm.item(), world_size, state.seconds)
        if (fault := not_finite(record, state if due or last else None)) is not None:
            kept = f"; its checkpoint of step {checkpointed} stays in {spec.running}" if checkpointed else ""
            raise Hopeless(
                f"{fault} not finite; lower train.learning_rate ({settings.learning_rate:g}), set a lower "
                f"train.gradient_clip, or raise train.warmup_steps ({settings.warmup_steps}){kept}"
            )
        if due or last:
            shortages.require_none()  # else Ray Train goes on from the last checkpoint, in new processes
        if logged and log is not None:
            log.write(record)
        if due:
            checkpoints.report(state, rank)
            if log is not None:
                log.checkpointed(state.step)
            checkpointed = state.step
        if leaves:
            return False
    return True


def _step(
    spec: TrainingSpec, state: State, network: Any, batch: TrainingBatch, loss_of: Loss, rate: float, world_size: int
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer and of the average. Returns, on the device, this rank's share of the loss (the sum over
    ranks is the mean over the global batch), and the norm of the global gradient before clipping."""
    settings = spec.train
    if spec.unet.dropout > 0:
        digest = hashlib.sha256(f"taugrid/train-dropout/{settings.seed}/{state.step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    share = loss_of(_output(settings, network, batch), batch).sum() / settings.batch_size
    state.optimizer.zero_grad()
    torch.autograd.backward(share * world_size)  # DDP averages over ranks, but the shares must be summed
    max_norm = math.inf if settings.gradient_clip is None else settings.gradient_clip
    gradient_norm = torch.nn.utils.clip_grad_norm_(state.unet.parameters(), max_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    ema_update(state.ema, state.unet, ema_decay(state.step, settings.ema_decay, settings.ema_warmup))
    return share.detach(), gradient_norm


def _output(settings: Train, network: Any, batch: TrainingBatch) -> Tensor:
    """The network's output, as float32 for any `precision`. bf16 has float32's range, so the loss needs no scaling."""
    with torch.autocast(batch.x_t.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        output: Tensor = network(batch.x_t, batch.told, batch.labels, return_dict=False)[0]
    return output.float()


def network_to_train(settings: Train, unet: UNet2DModel, batches: Batches, world_size: int) -> Any:
    """`unet`, compiled in place if `compile` is set; with several ranks, wrapped in DDP, which averages gradients. DDP
    reorders its buckets after the first backward pass, which changes the order of sums. A backward pass without effect
    comes first, so that a resumed training has the same buckets at each step as an uninterrupted one."""
    device = str(next(unet.parameters()).device)
    if settings.compile and device == "cpu":
        unet.compile()
    elif settings.compile:
        from taugrid.workers.accelerator.compiled import options

        unet.compile(options=options(policy(kind_of(device), settings.precision, trains=True).layout))
    if world_size == 1:
        return unet
    network = torch.nn.parallel.DistributedDataParallel(unet)
    torch.autograd.backward(_output(settings, network, batches[0]).sum())
    return network


def device_of(spec: TrainingSpec) -> str:
    """The worker's device, set up with a thread for each of its CPUs. Raises `WorkerRefusal`."""
    set_up(threads=max(1, int(spec.cpus_per_worker)))
    if not spec.gpus_per_worker:
        prepare_training(spec.train.precision, "cpu", "a CPU", spec.train.compile)
        return "cpu"
    prepare_training(spec.train.precision, "cuda", start_gpu("a training worker"), spec.train.compile)
    return "cuda"
