"""`data`, `model`, `diffusion` and `train`: the images, the network, its process, and how it is trained."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from taugrid.config.sample import Spacing, Times
from taugrid.config.section import Positive, Section, Seed, absolute_path, either
from taugrid.registry.datasets import DATASETS, KEYS, Dataset
from taugrid.words import did_you_mean


def _known(name: Any) -> Any:
    if not isinstance(name, str) or name not in DATASETS:
        hint = did_you_mean(name, DATASETS) if isinstance(name, str) else ""
        raise ValueError(f"must be {either(DATASETS)}{hint and f' ({hint})'}")
    return name


def _name_schema(schema: dict[str, Any]) -> None:
    described = []
    for dataset in DATASETS.values():
        required = [key for key in KEYS if key in dataset.required]
        other = " or another" if "shape" in dataset.keys else ""
        shape = f" Shape: {list(dataset.shape)}{other}." if dataset.shape else ""
        needs = f" Requires {', '.join(required)}." if required else ""
        splits = ", ".join(dataset.splits)
        described.append(f"`{dataset.name}`: {dataset.description}.{shape}{needs} Splits: {splits}.")
    schema["enum"] = list(DATASETS)
    schema["description"] = "\n".join(described)


class Data(Section):
    """The images that a model learns and that samples are compared with."""

    name: Annotated[str, BeforeValidator(_known), Field(json_schema_extra=_name_schema)] = "digits"
    """One of `taugrid.registry.datasets.DATASETS`."""
    shape: tuple[Positive, Positive, Positive] | None = None
    """[channels, height, width]; null: the data set's default. Larger images are resized and cropped to it."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part of the data set."""
    category: str | None = None
    """A part of the data set by what it shows: bedroom, church_outdoor, ... of `lsun`, which requires it."""
    limit: Positive | None = None
    """Use only the first `limit` images; null: all."""
    root: str | None = None
    """Where the files are; null: the usual place. Not part of any id."""
    download: bool = False
    """Download what is missing, if its publishers allow that."""

    @property
    def dataset(self) -> Dataset:
        """The registered properties of the data set that `name` names."""
        return DATASETS[self.name]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        shape = self.shape or self.dataset.shape
        assert shape is not None, "a data set without a default shape requires one"
        return shape

    @property
    def full_name(self) -> str:
        """The data set's name, with its category if there is one: lsun/bedroom."""
        return f"{self.name}/{self.category}" if self.category else self.name

    @property
    def name_and_split(self) -> str:
        """The data set's full name and its split: lsun/bedroom/train."""
        return f"{self.full_name}/{self.split}"

    @property
    def held_out(self) -> "Data":
        """Images that a model trained on this has not seen: for `train`, the whole held-out split. Otherwise this."""
        if self.split != "train":
            return self
        return self.model_copy(update={"split": self.dataset.held_out, "limit": None})

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str | None) -> str | None:
        if root is None or "://" in root:
            return root
        return absolute_path(root)

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> "Data":
        dataset = self.dataset
        given = {key for key in KEYS if getattr(self, key) not in (None, False)}
        if wrong := (given - dataset.keys) | (dataset.required - given):
            keys = [f"{key}{' (required)' if key in dataset.required else ''}" for key in KEYS if key in dataset.keys]
            hint = "" if "name" in self.model_fields_set else " (data.name is digits unless you set it)"
            known = ", ".join(["split", "limit", *keys])
            raise ValueError(f"{' and '.join(sorted(wrong))}: keys of {self.name} are {known}{hint}")
        if self.shape is not None and self.shape[0] not in (1, 3):
            raise ValueError(f"shape must begin with 1 channel (grey) or 3 (RGB), not {self.shape[0]}")
        if self.split not in dataset.splits:
            raise ValueError(f"split of {self.name} must be one of {', '.join(dataset.splits)}, not {self.split}")
        if "://" in (self.root or "") and not dataset.is_on_hub:
            raise ValueError(f"root of {self.name} must be a folder, not {self.root}")
        return self


SIGMA_KEYS = ("sigma_min", "sigma_max", "rho", "sigma_data")  # keys of the process `edm`

Predicts = Literal["epsilon", "sample", "v_prediction", "consistency", "edm", "velocity", "average_velocity"]


class Diffusion(Section):
    """The forward process. A key left `null` comes from a loaded checkpoint, or else from `DIFFUSION_DEFAULTS`."""

    # None means the same as the value in `DIFFUSION_DEFAULTS`
    later_keys = {"process": None} | dict.fromkeys(SIGMA_KEYS)

    timesteps: Positive | None = None
    """T, the number of times. For a loaded checkpoint, T of its training. Of a flow: what the network is told at t = 1,
    so 1 for t in [0, 1]; 1000 for diffusers' networks and for those that taugrid trains. `edm` has none, except for
    consistency models."""
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "constant", "jsd"] | None = None
    """How beta_1..beta_T go from `beta_start` to `beta_end`. `cosine` (Nichol & Dhariwal 2021) and `jsd` (1/T, 1/(T-1),
    ..., 1) use neither; `constant` is `beta_end`."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    """beta_1, where the schedule has one."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """beta_T, where the schedule has one."""
    prediction: Predicts | None = None
    """What the network predicts: the noise, the image, or v (Salimans & Ho 2022). Of `edm`: `edm`, F of Karras et al.
    2022, eq. 7, or `v_prediction`, -F, or `sample`; `consistency`: the end of the ODE's path, scaled as in Song et al.
    2023, appendix C. Of `flow`: `velocity`, `sample`, or `average_velocity` between two times (flow maps)."""
    trained_betas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    """beta_1..beta_T, listed. They replace `schedule`, `beta_start` and `beta_end`, which then stay null."""
    rescale_betas_zero_snr: bool | None = None
    """Shift and scale sqrt(alpha) so that no signal is left at T (Lin et al. 2024, algorithm 1)."""
    set_alpha_to_one: bool | None = None
    """alpha_0 = 1, as in the paper; false: alpha_0 = alpha_1, so the last step does not move (diffusers' name)."""
    process: Literal["ddpm", "edm", "flow"] | None = None
    """null: the loaded checkpoint's, or else `ddpm`, from betas. `edm`: x = x_0 + sigma eps (Karras et al. 2022), told
    ln(sigma) / 4. `flow`: x = (1 - t) x_0 + t eps, told t. Both are continuous in time."""
    sigma_min: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The least noise level of `edm`."""
    sigma_max: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The largest noise level of `edm`, that of x_T."""
    rho: Annotated[float, Field(ge=1, le=100)] | None = None
    """How the noise levels of `edm` crowd at the small ones: sigma^(1/rho) is linear in time."""
    sigma_data: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The images' standard deviation as the network's scalings have it; for `edm`."""

    @property
    def predicts(self) -> Predicts:
        """`prediction`; the section must be resolved, with no key left null."""
        assert self.prediction is not None
        return self.prediction

    @property
    def named_betas(self) -> str:
        """The betas, or the noise levels, of a resolved section, in a few words."""
        if self.process == "flow":
            return "flow"
        if self.process == "edm":
            ends, shape = (self.sigma_min, self.sigma_max), (self.rho, self.sigma_data)
            return "edm with sigma from {:g} to {:g}, rho {:g}, sigma_data {:g}".format(*ends, *shape)
        if self.trained_betas is not None:
            return f"{len(self.trained_betas)} trained_betas"
        if self.schedule in ("cosine", "jsd"):  # which use neither end
            return f"{self.schedule} betas"
        if self.schedule == "constant":
            return f"constant betas of {self.beta_end:g}"
        return f"{self.schedule} betas from {self.beta_start:g} to {self.beta_end:g}"

    @property
    def in_words(self) -> str:
        """The process and the prediction of a resolved section, in a few words.

        The usual settings are left out: alpha_0 = 1, no rescaling, a network that predicts epsilon.
        """
        times = "" if self.timesteps is None else f"T = {self.timesteps}"
        if self.process == "flow":
            times = "" if self.timesteps == 1 else f"told {self.timesteps} t"
        phrases = [
            self.named_betas,
            times,
            "rescaled to zero SNR" if self.rescale_betas_zero_snr else "",
            "alpha_0 = alpha_1" if self.set_alpha_to_one is False else "",
            f"predicts {self.prediction}" if self.prediction != "epsilon" else "",
        ]
        return ", ".join(filter(None, phrases))

    @model_validator(mode="after")
    def _one_source_of_betas(self) -> "Diffusion":
        given = [key for key in SCHEDULE_KEYS if getattr(self, key) is not None]
        if self.trained_betas is not None and given:
            raise ValueError(f"trained_betas replaces {' and '.join(given)}; set one or the other")
        return self


SCHEDULE_KEYS = ("schedule", "beta_start", "beta_end")  # keys of `diffusion` that `trained_betas` replaces

DIFFUSION_DEFAULTS = Diffusion(
    timesteps=1000,
    schedule="linear",
    beta_start=1e-4,
    beta_end=2e-2,
    prediction="epsilon",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
)

EDM_DEFAULTS = Diffusion(
    prediction="edm",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
    process="edm",
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    sigma_data=0.5,
)
"""The same for `process: edm`: those of Karras et al. 2022."""

CONSISTENCY_DEFAULTS = EDM_DEFAULTS.model_copy(update={"timesteps": 40, "prediction": "consistency"})
"""The same for consistency models: those of diffusers' CMStochasticIterativeScheduler."""

FLOW_DEFAULTS = Diffusion(
    timesteps=1,
    prediction="velocity",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
    process="flow",
)
"""The same for `process: flow`."""


DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]
SOURCES = ("unet", "checkpoint", "callable", "oracle")  # exactly one of these keys says where the network comes from

# `org/name`, or `org/name@revision`
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?")


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
