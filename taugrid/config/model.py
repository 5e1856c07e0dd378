"""`model`: the network."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from taugrid.config.section import Positive, Section

DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""`org/name`, or `org/name@revision`."""


def is_hub_id(text: str) -> bool:
    """`text` could be the id of something on the hub."""
    return HUB_ID.fullmatch(text) is not None


class Unet(Section):
    """Arguments of diffusers' `UNet2DModel`; the defaults follow the DDPM U-Net, not diffusers."""

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
            raise ValueError(
                f"block_out_channels {uneven} must be multiples of norm_num_groups ({self.norm_num_groups})"
            )
        return self


class ModelSection(Section):
    """The network: exactly one of `unet` (trained by taugrid), `checkpoint`, `callable` and `oracle`."""

    unet: Unet | None = None
    checkpoint: str | None = None
    """A diffusers folder (a pipeline or a bare UNet2DModel), or a model's id on the Hugging Face hub. In a grid also a
    pattern of folders (`runs/x/step-*`), or its newest: `{newest: 3, of: runs/x/step-*}`."""
    callable: str | None = None
    """A custom network, `package.module:function`. The function is called once and returns a function of x and t."""
    weights: str | None = None
    """A file of weights for `callable`: its path is passed to the function."""
    oracle: Literal["gaussian", "two-points"] | None = None
    """The optimal eps, in closed form, for the data set of that name."""

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.]+:\w+", name):
            raise ValueError("must be module:function, as in my_network:load")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        given = [key for key in ("unet", "checkpoint", "callable", "oracle") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"give one of unet (to train a network), checkpoint (to load one), callable and oracle, not {given}"
            )
        if self.weights is not None and self.callable is None:
            raise ValueError("weights is for callable; a checkpoint's weights are in its folder")
        return self
