"""`model` and `train`: the network, and how one that taugrid trains is trained."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from taugrid.config.sample import Spacing, Times
from taugrid.config.section import Positive, Section, Seed

DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


SOURCES = ("unet", "checkpoint", "callable", "oracle")
"""Keys of `model` of which exactly one says where the network comes from."""

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""`org/name`, or `org/name@revision`."""


def is_hub_id(text: str) -> bool:
    """`text` could be the id of something on the hub."""
    return HUB_ID.fullmatch(text) is not None


class Unet(Section):
    """Arguments of diffusers' `UNet2DModel`; the defaults follow the DDPM U-Net, not diffusers."""

    later_keys = {"num_classes": None}

    block_out_channels: list[Positive] = [128, 256, 256, 256]
    """Width of each level, from the full resolution down."""
    layers_per_block: Positive = 2
    """Residual blocks of each level on the way down; one more on the way up."""
    down_block_types: list[DownBlock] = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    """The kind of each level on the way down. Those with Attn have self-attention."""
    up_block_types: list[UpBlock] = ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    """The kind of each level on the way up, from the lowest resolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations that training drops in residual blocks. Needs train.workers: 1."""
    norm_num_groups: Positive = 32
    """Groups of the group normalisation; every width must be a multiple of it."""
    norm_eps: float = 1e-6
    """Added to variances in the normalisation."""
    attention_head_dim: Positive | None = None
    """Channels of an attention head; null: one head with all channels."""
    add_attention: bool = True
    """Self-attention at the lowest resolution."""
    freq_shift: int = 1
    """Of the sinusoidal time embedding: its frequencies are 10000^(-i / (h - freq_shift)) for i in 0..h-1, where h is
    half of its width."""
    flip_sin_to_cos: bool = False
    """Of the time embedding: cosines before sines."""
    downsample_padding: int = 0
    """Of the convolutions that halve the resolution; 0 pads below and on the right alone, as in DDPM."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of the data set, whose labels the network takes besides x and t; null: it takes none."""

    @model_validator(mode="after")
    def _levels_agree(self) -> "Unet":
        levels = {len(self.block_out_channels), len(self.down_block_types), len(self.up_block_types)}
        if len(levels) != 1:
            raise ValueError("block_out_channels, down_block_types and up_block_types must have the same length")
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if uneven:
            raise ValueError(
                f"block_out_channels {uneven} must be multiples of norm_num_groups ({self.norm_num_groups})"
            )
        return self


class ModelSection(Section):
    """The network: exactly one of `unet` (trained by taugrid), `checkpoint`, `callable` and `oracle`."""

    later_keys = {"guide": None, "vae": None}

    unet: Unet | None = None
    """A network that taugrid trains: arguments of diffusers' `UNet2DModel`."""
    checkpoint: str | None = None
    """A diffusers folder (a pipeline or a bare UNet2DModel), or a model's id on the Hugging Face hub. In a grid also a
    pattern of folders (`runs/x/step-*`), or its newest: `{newest: 3, of: runs/x/step-*}`."""
    callable: str | None = None
    """A custom network, `package.module:function`. The function is called once and returns a function of x and t."""
    weights: str | None = None
    """A file of weights for `callable`: its path is passed to the function."""
    oracle: Literal["gaussian", "two-points", "classes"] | None = None
    """The optimal eps, in closed form, for the data set of that name."""
    guide: str | None = None
    """A diffusers folder, or a model's id on the hub: the network that `sample.guidance` leads away from
    (autoguidance). Its averaged weights are used. null: the network itself, without its labels."""
    vae: str | None = None
    """A folder or an id on the hub: another VAE that decodes the latents of `checkpoint`; null: the pipeline's own."""

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.]+:\w+", name):
            raise ValueError("must be module:function, as in my_network:load")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                "give one of unet (to train a network), checkpoint (to load one), callable and oracle, not "
                f"{' and '.join(given)}; set the others to null (model.{given[0]}: null)"
            )
        if self.weights is not None and self.callable is None:
            raise ValueError("weights is for callable; a checkpoint's weights are in its folder")
        return self


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
