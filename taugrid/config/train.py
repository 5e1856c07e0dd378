"""`train`: the optimiser, the loss and the means."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from taugrid.config.sample import Spacing, Times
from taugrid.config.section import Positive, Section, Seed


class LossWeights(Section):
    """Theorem 1's weights of the variational bound J_sigma along tau, divided by their mean over t = 1..T."""

    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Scale of eq. 16, which gives sigma along tau from the second time on."""
    sigma_1: Annotated[float, Field(gt=0)] | Literal["sigma_hat"]
    """sigma at tau's first time, where eq. 16 gives 0 and so an infinite weight: a number, or DDPM's larger sigma."""
    steps: Positive | None = None
    """Length of tau; null: all of 1..T."""
    spacing: Spacing | Times = "linear"
    """As in `sample`, but tau must end at T and may not repeat a time."""


class Train(Section):
    """Training. `workers`, `checkpoint_every` and `tensorboard` do not change the result."""

    later_keys = {"label_dropout": 0.0}

    steps: Positive = 100_000
    """Number of optimiser steps."""
    batch_size: Positive = 128
    """Global: the sum over all workers."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam, or adamw for weight decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """For adamw: decoupled from the gradient (Loshchilov & Hutter 2019)."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """The rate at the end of the warm-up."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up. `cosine` falls to 0 at the last step (Loshchilov & Hutter 2017, without restarts)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to `learning_rate`."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the exponential moving average of the weights at each step; `sample.weights: ema` uses the average."""
    ema_warmup: bool = True
    """Limit the average's decay at step n = 0, 1, ... to (1 + n) / (10 + n), so that the start is soon forgotten."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null for none."""
    loss_weights: LossWeights | None = None
    """null: L_simple, the mean square of what the network predicts (eq. 5 with gamma = 1 for epsilon). For `process:
    ddpm` only."""
    flip: bool = False
    """Random horizontal flips."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of labels that become the null class, with which a network can be guided. Needs model.unet.num_classes."""
    antithetic: bool = False
    """Draw times in pairs t, T + 1 - t (of a flow t, 1 - t). Each time stays as likely as before, and the loss varies
    less."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """tf32: on NVIDIA GPUs. bf16: the network runs under autocast; weights, the loss and the average stay float32."""
    compile: bool = False
    """torch.compile: minutes at the start, then faster steps. Like `channels_last`, it changes the last digits."""
    channels_last: bool = True
    """The memory format of convolutions, except on GPUs in float32 and tf32, which are faster without it."""
    seed: Seed | None = None
    """Defaults to the top-level `seed`."""
    workers: Positive | tuple[Positive, Positive] = 1
    """Training processes; [least, most]: as many of these as fit, adjusted when the cluster changes (elastic)."""
    checkpoint_every: Positive = 1_000
    """Steps between checkpoints, from which a killed training continues."""
    tensorboard: bool = False
    """Also write log.jsonl's numbers for TensorBoard, next to it (needs `taugrid[tensorboard]`)."""

    @property
    def fewest_workers(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _an_image_for_each_worker(self) -> "Train":
        if self.most_workers > self.batch_size:
            raise ValueError(f"workers {self.most_workers} is more than batch_size {self.batch_size}")
        if not isinstance(self.workers, int) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers must be [least, most], not {list(self.workers)}")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("weight_decay is for optimizer: adamw")
        if self.warmup_steps >= self.steps and self.learning_rate_schedule == "cosine":
            raise ValueError(
                f"warmup_steps must be less than steps ({self.steps}) for the cosine schedule, not {self.warmup_steps}"
            )
        return self
