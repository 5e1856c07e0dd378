"""The configuration: its sections as frozen pydantic models, their validation and their schema.

Keys of `data`, `model`, `diffusion`, `train` and `sample` are hashed into the identities of models and cells
(`grid.py`): a new key must come with a default that means "as before", and the default of an existing key never
changes, because either would orphan every run that people have.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from taugrid.errors import UserError
from taugrid.workers.diffusion import schedule
from taugrid.workers.diffusion.forward import sigma_hat
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.diffusion.variational import theorem1_sigma, theorem1_weights

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]
Spacing = Literal["linear", "quadratic", "leading", "trailing", "linspace", "ermongroup-uniform", "ermongroup-quad"]
Times = Annotated[list[Annotated[int, Field(gt=0, strict=True)]], Field(min_length=1)]
DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


class Section(BaseModel):
    """A section of the config: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Data(Section):
    """The images that a model learns and that samples are compared with."""

    name: Literal[
        "digits", "gaussian", "two-points", "fashion-mnist", "cifar10", "celeba", "lsun", "folder", "parquet"
    ] = "digits"
    """`digits`: scikit-learn's 1797 handwritten digits, grey 8x8. `gaussian` and `two-points`: distributions whose
    optimal eps is known (workers/diffusion/gaussian.py), of which 10,000 images are drawn. `fashion-mnist`, `cifar10`,
    `celeba`, `lsun`: those data sets, from `root`. `folder`: all PNG and JPEG files below `root`. `parquet`: the image
    column of Parquet files, such as Hugging Face's image data sets."""
    shape: tuple[Positive, Positive, Positive] | None = None
    """[channels, height, width]. Of `folder` and `parquet` it must be said; null: [1, 8, 8] for `gaussian` and
    `two-points`, [3, 64, 64] for `celeba`, [3, 256, 256] for `lsun`. Larger images are resized and cropped to it."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part: of digits, `train` is the first 1437 and `test` the last 360; of a distribution, `test` is other
    draws; of a folder, the subfolder of that name; of Parquet, the files whose names begin with it."""
    category: str | None = None
    """Of `lsun`: bedroom, church_outdoor, ..."""
    limit: Positive | None = None
    """Only the first so many images; null: all."""
    root: str | None = None
    """Where the files are; null: where they usually are. Not part of any identity: the images
    are."""
    download: bool = False
    """Download what is missing, where its publishers allow that."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.shape or FIXED_SHAPES.get(self.name) or DEFAULT_SHAPES[self.name]

    @property
    def full_name(self) -> str:
        """`name`, of LSUN with its category: lsun/bedroom."""
        return f"{self.name}/{self.category}" if self.category else self.name

    @property
    def held_out(self) -> "Data":
        """What a model trained on this has not seen: the whole test split, if this is the training split; else this."""
        if self.split != "train":
            return self
        return self.model_copy(update={"split": "validation" if self.name == "lsun" else "test", "limit": None})

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str | None) -> str | None:
        if root is None or "://" in root:
            return root
        return str(Path(root).expanduser().absolute())  # Ray's workers change directory

    @model_validator(mode="after")
    def _shape_is_free(self) -> "Data":
        if self.name in FIXED_SHAPES and self.shape is not None:
            raise ValueError(f"shape is not for {self.name}, whose images are of shape {list(FIXED_SHAPES[self.name])}")
        if self.name in ("folder", "parquet") and (self.shape is None or self.root is None):
            raise ValueError(f"{self.name} needs root, where the images are, and shape: [channels, height, width]")
        if self.shape is not None and self.shape[0] not in (1, 3):
            raise ValueError(f"shape must have 1 channel (grey) or 3 (RGB) in front, not {self.shape[0]}")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_name(self) -> "Data":
        if (self.name == "lsun") != (self.category is not None):
            raise ValueError("lsun needs category (bedroom, church_outdoor, ...), and nothing else has one")
        if self.split not in SPLITS.get(self.name, ("all", "train", "validation", "test")):
            raise ValueError(f"split of {self.name} must be one of {', '.join(SPLITS[self.name])}, not {self.split}")
        if self.name in ("folder", "lsun") and self.download:
            raise ValueError(f"download is not for {self.name}: taugrid does not download it; set root to where it is")
        if self.name in ("digits", "gaussian", "two-points") and (self.root is not None or self.download):
            raise ValueError(f"root and download are not for {self.name}, which comes with taugrid")
        if self.name != "parquet" and "://" in (self.root or ""):
            raise ValueError(f"root of {self.name} must be a folder, not {self.root}; hf:// is for parquet")
        return self


FIXED_SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
DEFAULT_SHAPES = {"gaussian": (1, 8, 8), "two-points": (1, 8, 8), "celeba": (3, 64, 64), "lsun": (3, 256, 256)}
SPLITS = {
    **dict.fromkeys(("digits", "gaussian", "two-points", "fashion-mnist", "cifar10"), ("all", "train", "test")),
    "lsun": ("train", "validation"),
}
"""The splits of data sets that don't have all of them."""


class Unet(Section):
    """Arguments of diffusers' `UNet2DModel`; the defaults are the DDPM U-Net's conventions, not diffusers' own."""

    block_out_channels: list[Positive] = [128, 256, 256, 256]
    layers_per_block: Positive = 2
    down_block_types: list[DownBlock] = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    up_block_types: list[UpBlock] = ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm_num_groups: Positive = 32
    norm_eps: float = 1e-6
    attention_head_dim: Positive | None = None
    add_attention: bool = True
    freq_shift: int = 1
    flip_sin_to_cos: bool = False
    downsample_padding: int = 0

    @model_validator(mode="after")
    def _levels_agree(self) -> "Unet":
        levels = {len(self.block_out_channels), len(self.down_block_types), len(self.up_block_types)}
        if len(levels) != 1:
            raise ValueError("block_out_channels, down_block_types and up_block_types must have the same length")
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if uneven:
            raise ValueError(f"block_out_channels {uneven} are no multiple of norm_num_groups {self.norm_num_groups}")
        return self


class Model(Section):
    """The network: exactly one of `unet` (trained here), `checkpoint` and `callable` (made elsewhere) and `oracle`."""

    unet: Unet | None = None
    checkpoint: str | None = None
    """A diffusers folder (a pipeline's, or a bare UNet2DModel's), or a model's id on the Hugging Face hub."""
    callable: str | None = None
    """One's own network, `package.module:function`: the function is called once, and returns a function of x and t."""
    weights: str | None = None
    """A file of weights for `callable`, whose function is called with its path."""
    oracle: Literal["gaussian", "two-points"] | None = None
    """The optimal eps, in closed form, for the data of that name."""

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.]+:\w+", name):
            raise ValueError("write module:function, as in my_network:load")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        given = [key for key in ("unet", "checkpoint", "callable", "oracle") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"give one of unet (to train a network), checkpoint (to load one), callable and oracle, not {given}"
            )
        if self.weights is not None and self.callable is None:
            raise ValueError("weights are for callable; a checkpoint's lie in its folder")
        return self


class Diffusion(Section):
    """The forward process. A key left `null` is a loaded checkpoint's own, or else `DIFFUSION_DEFAULTS`'."""

    timesteps: Positive | None = None
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "constant", "jsd"] | None = None
    beta_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    prediction: Literal["epsilon", "sample", "v_prediction"] | None = None
    """What the network predicts: the noise, the image, or v (Salimans & Ho 2022)."""
    trained_betas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    """beta_1..beta_T themselves, in place of `schedule`, `beta_start` and `beta_end`, which then stay null."""
    rescale_betas_zero_snr: bool | None = None
    """Shift and scale sqrt(alpha) so that no signal is left at T (Lin et al. 2024, algorithm 1)."""
    set_alpha_to_one: bool | None = None
    """alpha_0 = 1, as in the paper; false: alpha_0 = alpha_1, so that the last step leads nowhere (diffusers' name)."""

    @property
    def predicts(self) -> Literal["epsilon", "sample", "v_prediction"]:
        """`prediction` of a section in which nothing is null."""
        assert self.prediction is not None
        return self.prediction

    @property
    def named_betas(self) -> str:
        """The betas in a few words, of a section in which nothing is null."""
        if self.trained_betas is not None:
            return f"{len(self.trained_betas)} trained_betas"
        return f"{self.schedule} betas from {self.beta_start:g} to {self.beta_end:g}"

    @property
    def in_words(self) -> str:
        """The process and the prediction in a few words, of a section in which nothing is null.

        What is usual goes without saying: alpha_0 = 1, no rescaling, a network that predicts epsilon.
        """
        said = [
            self.named_betas,
            f"T = {self.timesteps}",
            "rescaled to zero SNR" * bool(self.rescale_betas_zero_snr),
            "alpha_0 = alpha_1" * (self.set_alpha_to_one is False),
            f"predicts {self.prediction}" * (self.prediction != "epsilon"),
        ]
        return ", ".join(filter(None, said))

    @property
    def alpha_bar(self) -> NDArray[np.float64]:
        """alpha_0..alpha_T, (T + 1,) float64, of a section in which nothing is null.

        Raises:
            ValueError: if betas that can't be rescaled are to be.
        """
        if self.trained_betas is not None:
            alpha_bar = schedule.products(np.array(self.trained_betas))
        else:
            assert self.schedule is not None
            assert self.timesteps is not None
            assert self.beta_start is not None
            assert self.beta_end is not None
            alpha_bar = schedule.alpha_bar(self.schedule, self.timesteps, self.beta_start, self.beta_end)
        if self.rescale_betas_zero_snr:
            alpha_bar = schedule.rescaled_to_zero_snr(alpha_bar)
        if self.set_alpha_to_one is False:
            alpha_bar[0] = alpha_bar[1]
        return alpha_bar

    @model_validator(mode="after")
    def _one_source_of_betas(self) -> "Diffusion":
        given = [key for key in OF_A_SCHEDULE if getattr(self, key) is not None]
        if self.trained_betas is not None and given:
            raise ValueError(f"trained_betas take the place of {' and '.join(given)}; give the one or the other")
        return self


OF_A_SCHEDULE = ("schedule", "beta_start", "beta_end")
"""Keys of `diffusion` that `trained_betas` take the place of."""


class LossWeights(Section):
    """Theorem 1's weights: of the variational bound J_sigma along tau, divided by their mean over t = 1..T."""

    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of eq. 16, which gives sigma along tau from its second time on."""
    sigma_1: Annotated[float, Field(gt=0)] | Literal["sigma_hat"]
    """sigma at tau's first time, where eq. 16 gives 0 and the weight is infinite: a number, or DDPM's larger one."""
    steps: Positive | None = None
    """Length of tau; null: all of 1..T."""
    spacing: Spacing | Times = "linear"
    """As in `sample`, but tau must end at T and name no time twice."""

    def gamma(self, alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights for t = 0..T, (T + 1,), divided by their mean over 1..T.

        So the gradient keeps its scale, and with it `learning_rate` and `gradient_clip` their meaning.

        Raises:
            ValueError: if there are no such weights.
        """
        timesteps = len(alpha_bar) - 1
        times = tau(self.spacing, self.steps or timesteps, timesteps)
        first = sigma_hat(float(alpha_bar[times[0]]), 1.0) if self.sigma_1 == "sigma_hat" else self.sigma_1
        gamma = theorem1_weights(alpha_bar, times, theorem1_sigma(alpha_bar, times, self.eta, first))
        normalised: NDArray[np.float64] = gamma / gamma[1:].mean()
        return normalised


class Train(Section):
    """Training. `workers`, `checkpoint_every` and `tensorboard` change no result."""

    steps: Positive = 100_000
    batch_size: Positive = 128
    """Global: the sum over all workers."""
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of adamw: decoupled from the gradient (Loshchilov & Hutter 2019)."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up. `cosine` falls to 0 at the last step (Loshchilov & Hutter 2017, without restarts)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to `learning_rate`."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    ema_warmup: bool = True
    """The average's decay at step n = 0, 1, ... is at most (1 + n) / (10 + n), so that the start is soon forgotten."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null for none."""
    loss_weights: LossWeights | None = None
    """null: L_simple, the mean square of what the network predicts (eq. 5 with gamma = 1 for epsilon)."""
    flip: bool = False
    """Random horizontal flips."""
    antithetic: bool = False
    """Times in pairs t, T + 1 - t: half of them drawn, each as often as before, and the loss varies less."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: the network runs under autocast; weights, the loss and the average stay float32."""
    compile: bool = False
    """torch.compile: minutes at the start, then faster steps. It moves the last digits, as `channels_last` does."""
    channels_last: bool = True
    """The memory format of convolutions."""
    seed: Seed | None = None
    """Defaults to the top-level `seed`."""
    workers: Positive | tuple[Positive, Positive] = 1
    """Training processes; [least, most]: as many as there is room for, and anew when that changes (elastic)."""
    checkpoint_every: Positive = 1_000
    tensorboard: bool = False
    """Write what log.jsonl holds for TensorBoard too, beside it (`taugrid[tensorboard]`)."""

    @property
    def fewest_workers(self) -> int:
        """The number of workers, or the smallest."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers, or the largest."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _an_image_for_each_worker(self) -> "Train":
        if self.most_workers > self.batch_size:
            raise ValueError(f"workers {self.most_workers} is more than batch_size {self.batch_size}")
        if not isinstance(self.workers, int) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers is [least, most], not {list(self.workers)}")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("weight_decay is for optimizer: adamw")
        if self.warmup_steps >= self.steps and self.learning_rate_schedule == "cosine":
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of {self.steps} steps to the cosine")
        return self


class Sample(Section):
    """How a cell is sampled. `eta` is a number, or `sigma_hat` for DDPM's larger variance."""

    steps: Positive = 50
    """S, the length of tau: the number of sampling steps."""
    eta: Annotated[float, Field(ge=0, le=1)] | Literal["sigma_hat"] = 0.0
    spacing: Spacing | Times = "linear"
    """How tau is chosen (workers/diffusion/timesteps.py), or tau itself: `steps` increasing times in 1..T."""
    sampler: Literal["ddim"] = "ddim"
    clip: Literal["none", "x0", "x0_and_eps"] | None = None
    """null: a loaded pipeline's own, else `none`."""
    clip_range: Annotated[float, Field(gt=0)] | None = None
    """x_0 is clipped to [-clip_range, clip_range]; null: a loaded pipeline's own, else 1."""
    steps_offset: Annotated[int, Field(ge=0)] | None = None
    """Added to the times of the spacing `leading`, as in diffusers; null: a loaded pipeline's own, else 0."""
    weights: Literal["ema", "raw"] = "ema"
    precision: Literal["float32"] = "float32"
    num_samples: Positive = 1_000
    """N. Not part of a cell's identity: raising it extends the cell."""
    batch_size: Positive = 256
    seed: Seed | None = None
    """Defaults to the top-level `seed`."""
    shard_evaluations: Positive = 50_000
    """Network evaluations a shard is sized for."""

    @property
    def spacing_name(self) -> str:
        """The spacing as tables and samples have it: its name, or the times joined by commas."""
        return self.spacing if isinstance(self.spacing, str) else ",".join(map(str, self.spacing))

    @property
    def sigma(self) -> str:
        """`eta` or `sigma_hat`: which variance, as tables and samples have it."""
        return "sigma_hat" if self.eta == "sigma_hat" else "eta"

    @property
    def eta_number(self) -> float:
        """Eta as a number, as tables and samples have it: 1.0 for sigma_hat, whose direction is that of eta = 1."""
        return 1.0 if isinstance(self.eta, str) else self.eta


class Evaluate(Section):
    """How cells are scored."""

    extractor: str | None = None
    """Name of a feature extractor; null chooses by data (`digits-convnet` for digits, `pixels` for distributions)."""
    weights: str | None = None
    """Path of the extractor's weights, where it doesn't ship with taugrid."""
    reference: Data | str | None = None
    """What samples are compared with: null is `data`; a data section ({name: digits, split: test}); or a folder of PNG
    or JPEG, Parquet, an .npz of images or of mu and sigma, or a data set's name in torch-fidelity (cifar10-train)."""
    metrics: list[Literal["fid", "isc", "kid", "prc", "fid_infinity"]] = ["fid", "isc", "kid"]
    """Any of fid, isc, kid, prc (precision and recall) and fid_infinity (extrapolated, Chong & Forsyth 2020)."""
    batch_size: Positive = 250
    isc_splits: Positive = 10
    kid_subsets: Positive = 100
    kid_subset_size: Positive = 1_000
    """Reduced to N or to the reference's size where those are smaller, and recorded."""
    prc_neighborhood: Positive = 3
    """Which nearest neighbour a ball of precision and recall reaches to."""
    keep_features: bool = True
    """Keep the features of scored cells; without them another metric has to extract them anew."""
    seed: Seed = 2020
    """Shuffles of IS, subsets of KID and of fid_infinity; torch-fidelity's default."""


class Report(Section):
    """What the tables and figures show."""

    images_per_cell: Positive = 8
    """Images of each cell in figures/samples.png."""
    join_protocols: bool = False
    """Have cells in one table whose protocols differ (versions, say), and mark the fewer; else they stand apart."""
    reconstructed_images: Positive = 1_000
    """Images that `taugrid reconstruct` encodes and decodes: the first so many of those held out, or all."""
    interpolated_pairs: Positive = 4
    """Rows of figures/interpolations-<cell>.png."""


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """Sampling and evaluation actors; null: as many as the cluster has room for."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """null: 1 where the cluster has GPUs, else 0."""
    max_attempts: Positive = 3
    """A piece of work that failed this often is set aside and said; the rest goes on."""


class Config(Section):
    """An experiment: everything that `taugrid run` needs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Seed = 0
    data: Data = Data()
    model: Model = Model()
    diffusion: Diffusion = Diffusion()
    train: Train = Train()
    sample: Sample = Sample()
    grid: list[dict[str, list[Any]]] = []
    """A mapping of key -> list of values, or a list of such mappings whose products are joined. A bare key belongs to
    `sample`; a dotted key (`diffusion.schedule`) makes further models."""
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    cluster: Cluster = Cluster()

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_is_a_list_of_mappings(cls, grid: Any) -> Any:
        mappings = [grid] if isinstance(grid, Mapping) else grid
        for mapping in mappings if isinstance(mappings, list) else []:
            for key, values in mapping.items() if isinstance(mapping, Mapping) else []:
                if not isinstance(values, list) or not values:
                    example = values if values and not isinstance(values, dict) else "value"
                    raise ValueError(f"grid.{key} must be a list with at least one value, as in {key}: [{example}]")
        return mappings


DIFFUSION_DEFAULTS = Diffusion(
    timesteps=1000,
    schedule="linear",
    beta_start=1e-4,
    beta_end=2e-2,
    prediction="epsilon",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
)
GRID_SECTIONS = ("data", "model", "diffusion", "train")

S = TypeVar("S", bound=Section)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `cls`; `UserError` with one line per mistake, and a suggestion for an unknown key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        mistakes: dict[str, list[str]] = {}
        for one in error.errors(include_url=False):
            key, text = _explain(cls, dict(one))
            mistakes.setdefault(key, []).append(text)
        lines = (f"{key} {' or '.join(dict.fromkeys(texts))}" for key, texts in mistakes.items())
        raise UserError(f"{where}: " + "; ".join(lines)) from None


def _explain(cls: type[BaseModel], error: dict[str, Any]) -> tuple[str, str]:
    """(key, what is wrong with it); the branches of a union give one each for the same key."""
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        parent: type[BaseModel] | None = cls
        for part in path[:-1]:
            parent = _section_of(parent, part)
        known = list(parent.model_fields) if parent else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {'.'.join(path)!r}", f"({hint})"
    if error["type"] == "missing":
        return ".".join(path), "is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # A union reports each of its branches, named in the location after the field: the field is what people wrote.
    field = [part for part in path if part.replace("_", "").isalnum() and part not in {"float", "int", "str"}]
    given = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{'.'.join(field) or 'config'}:", f"{message}{given}"


def _section_of(parent: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = parent.model_fields.get(name) if parent else None
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    return Config.model_json_schema()
