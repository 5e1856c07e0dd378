"""`sample`: how a cell is sampled."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from taugrid.config.section import Positive, Section, Seed
from taugrid.hashing import canonical_json
from taugrid.registry import samplers

Spacing = Literal[
    "linear", "quadratic", "leading", "trailing", "linspace", "ermongroup-uniform", "ermongroup-quad",
    "logsnr", "logsnr-int", "karras", "time_uniform",
]  # fmt: skip
Precision = Literal["float32", "tf32", "bf16", "fp16", "bf16-weights"]
Compilation = Literal["none", "default"]
Interval = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]
Times = Annotated[list[Annotated[int, Field(gt=0, strict=True)]], Field(min_length=1)]
Class = Annotated[int, Field(ge=0, strict=True)]

GUIDANCE_KEYS = ("guidance_interval", "guidance_channels")  # keys of `Sample` that mean nothing where guidance is 1
SAMPLER_KEYS = ("eta", "spacing", "steps_offset", "clip", "clip_range")  # those that a sampler may ignore
FORMS = f"the form {samplers.DIFFUSERS}SchedulerClass or module:function"


def _names(schema: dict[str, Any]) -> None:
    """Have the schema list the samplers that are installed, and allow a function of the user's."""
    schema |= {"anyOf": [{"enum": samplers.names()}, {"pattern": r"^[\w.]+:\w+$", "type": "string", "form": FORMS}]}


class LabelColumn(Section):
    """Labels in a Parquet file: sample n has the label in row n."""

    parquet: str
    """The file. Not part of any id: the values are."""
    column: str
    """A column of whole numbers."""


AsColumn = Annotated[LabelColumn, Field(json_schema_extra={"form": "{parquet: FILE, column: NAME}"})]


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(options)
    except (TypeError, ValueError):
        raise ValueError("must be options whose values JSON can hold, without NaN and infinity") from None
    return options


def _rising(interval: list[float] | None) -> list[float] | None:
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError("must be [low, high], two noise levels sigma, with low below high")
    return interval


class Sample(Section):
    """How a cell is sampled. `eta` is a number, or `sigma_hat` for DDPM's larger variance."""

    later_keys = {
        "compile": "none",
        "sampler_options": {},
        "guidance": 1.0,
        "guidance_interval": None,
        "guidance_channels": None,
        "labels": None,
        "vae_precision": "float32",
        "decode_batch": 32,
        "keep_latents": False,
        "rounding": "round",
        "shift": None,
    }

    steps: Positive = 50
    """S, the length of tau: the number of sampling steps."""
    eta: Annotated[float, Field(ge=0, le=1)] | Literal["sigma_hat"] = 0.0
    """Scale of the noise in each step (eq. 16): 0 is DDIM, 1 is DDPM; `sigma_hat` is DDPM's larger variance."""
    spacing: Spacing | Times = "linear"
    """How tau is chosen (docs/samplers.md), or tau itself: `steps` increasing times in 1..T. `linear` is `karras` for
    the process `edm`, and `time_uniform` for `flow`."""
    sampler: Annotated[str, AfterValidator(samplers.checked), Field(json_schema_extra=_names)] = samplers.DEFAULT
    """The update from one time to the next (eq. 12): a name, or `package.module:function` of a custom sampler."""
    clip: Literal["none", "x0", "x0_and_eps"] | None = None
    """null: the loaded pipeline's setting, else `none`."""
    clip_range: Annotated[float, Field(gt=0)] | None = None
    """x_0 is clipped to [-clip_range, clip_range]; null: the loaded pipeline's setting, else 1."""
    steps_offset: Annotated[int, Field(ge=0)] | None = None
    """Added to the times of the spacing `leading`, as in diffusers; null: the loaded pipeline's setting, else 0."""
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Of a flow: t becomes shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23); null: the pipeline's, else 1."""
    weights: Literal["ema", "raw"] = "ema"
    """`ema`: the averaged weights, or the only ones of a loaded model; `raw`: those before averaging."""
    precision: Precision = "float32"
    """How the network computes: float32 is never TF32; tf32 needs an NVIDIA GPU; bf16 and fp16 are autocast's;
    bf16-weights casts weights and x once. The sampler's own arithmetic is float32 for all of them."""
    num_samples: Positive = 1_000
    """N. Not part of a cell's identity: raising it extends the cell."""
    batch_size: Positive = 128
    """Images that the network sees at once. Part of a cell's identity: another batch may change the last bit."""
    seed: Seed | None = None
    """Defaults to the top-level `seed`."""
    shard_evaluations: Positive = 2_000
    """Number of network evaluations that one shard should take. A shard is at least one batch."""
    compile: Compilation = "none"
    """`default`: the network is compiled by torch (torch.compile), for full batches."""
    sampler_options: Annotated[dict[str, Any], AfterValidator(_as_json)] = {}
    """Options of the sampler, by name; the others keep the sampler's own defaults."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """g in p_0 + g (p - p_0): p is what the network predicts with an image's label, p_0 without it, or what
    `model.guide` predicts. 1: none, and one call; any other number is two calls. Diffusers' guidance_scale is g."""
    guidance_interval: Annotated[Interval | None, AfterValidator(_rising)] = None
    """[low, high]: only calls at low < sigma / alpha <= high are guided, in images of [-1, 1]; null: all."""
    guidance_channels: Positive | None = None
    """Guided are only so many of the first channels (DiT's paper: 3 of 4); null: all."""
    labels: Literal["balanced", "random"] | Class | Annotated[list[Class], Field(min_length=1)] | AsColumn | None = None
    """The class of each image: `balanced` has each equally often, up to one; a list is repeated. null: no classes."""
    vae_precision: Literal["float32", "bf16"] = "float32"
    """How a latent network's VAE computes, whatever `precision` is: float32 is never TF32; bf16 is autocast's."""
    decode_batch: Positive = 32
    """Latents that the VAE decodes at once. Part of a cell's identity, as `batch_size` is."""
    keep_latents: bool = False
    """Keep the latents in the sample files, so that another VAE decodes them without sampling. Changes no image."""
    rounding: Literal["round", "truncate"] = "round"
    """From [-1, 1] to 0..255: `round` to the nearest of 127.5 (x + 1), `truncate` as guided-diffusion and REPA do."""

    @property
    def is_guided(self) -> bool:
        """Whether a second prediction is made and used."""
        return self.guidance != 1

    @property
    def rounding_in_words(self) -> str:
        """The rounding as protocols spell it."""
        return "8 bits, to nearest" if self.rounding == "round" else "8 bits, truncated"

    @property
    def precision_in_words(self) -> str:
        """The precision as protocols spell it."""
        if self.precision == "tf32":
            return "TF32"
        if self.precision == "bf16-weights":
            return "bf16 weights, no TF32"
        return f"{self.precision}{' autocast' if self.precision in ('bf16', 'fp16') else ''}, no TF32"

    @property
    def spacing_name(self) -> str:
        """The spacing as tables and samples record it: its name, or the times joined by commas."""
        return self.spacing if isinstance(self.spacing, str) else ",".join(map(str, self.spacing))

    @property
    def clip_in_words(self) -> str | None:
        """How x_0 is clipped, with the range unless it is 1."""
        return self.clip if self.clip_range in (None, 1.0) else f"{self.clip} to +-{self.clip_range:g}"

    @property
    def sigma(self) -> str:
        """`eta` or `sigma_hat`: which variance, as tables and samples record it."""
        return "sigma_hat" if self.eta == "sigma_hat" else "eta"

    @property
    def eta_number(self) -> float:
        """Eta as a number, as tables and samples record it: 1.0 for sigma_hat, whose direction is that of eta = 1."""
        return 1.0 if isinstance(self.eta, str) else self.eta
