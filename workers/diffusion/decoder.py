"""Decoders, from a network's samples to pictures. The driver needs their shapes, so this file imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from taugrid.jobs import SavedNetwork

if TYPE_CHECKING:
    from torch import Tensor

Decode = Callable[["Tensor"], "Tensor"]
"""Makes pictures in [-1, 1], (B, *picture_shape) float32, of samples, (B, *network_shape) float32."""

Around = Callable[[Decode, "Tensor"], "Tensor"]


def pictures(decoder: "Decoder", decode: Decode, x0: "Tensor", size: int, around: Around | None = None) -> "Tensor":
    """The pictures of a batch of samples; a `Vae` decodes at most `size` at once, in calls by `around`."""
    if not isinstance(decoder, Vae):
        return decode(x0)
    import torch

    parts = torch.split(x0, size)
    return torch.cat([decode(part) if around is None else around(decode, part) for part in parts])


def as_function(decoder: "Decoder") -> Decode:
    """A decoder that needs nothing to be loaded, such as `Identity`."""
    assert callable(decoder), "Device.decoder loads a VAE"
    return decoder


class Decoder(Protocol):
    """Makes pictures of samples, as plain data that travels with jobs. `Device.decoder` loads it."""

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""


@dataclass(frozen=True)
class Identity:
    """The decoder of networks that sample pixels."""

    network_shape: tuple[int, int, int]

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """That of the network."""
        return self.network_shape

    def __call__(self, x0: "Tensor", /) -> "Tensor":
        """`x0` itself."""
        return x0


@dataclass(frozen=True)
class Vae:
    """The decoder of networks that sample latents: a VAE in a folder, as the driver found it."""

    path: str  # the value in the config: of the pipeline, or of `model.vae`
    saved: SavedNetwork
    scaling_factor: float
    shift_factor: float  # what is decoded is `latent / scaling_factor + shift_factor`
    network_shape: tuple[int, int, int]  # (channels, height, width) of what the network sees
    picture_shape: tuple[int, int, int]  # (channels, height, width) of a picture
    commit: str | None = None  # of the repository on the hub that `model.vae` names

    @property
    def identity(self) -> dict[str, Any]:
        """The values that determine its pictures, for ids."""
        return {
            "class": self.saved.kind,
            "weights": self.saved.weights_sha256,
            "config": self.saved.config_sha256,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
        }

    @property
    def recorded(self) -> dict[str, Any]:
        """As JSON, see `restored`."""
        saved = {key: getattr(self.saved, key) for key in ("folder", "weights_sha256", "config_sha256", "kind")}
        shapes = {"network_shape": list(self.network_shape), "picture_shape": list(self.picture_shape)}
        factors = {"scaling_factor": self.scaling_factor, "shift_factor": self.shift_factor}
        commit = {} if self.commit is None else {"commit": self.commit}
        return {"path": self.path, "saved": saved, **factors, **shapes, **commit}

    @classmethod
    def restored(cls, recorded: Mapping[str, Any]) -> "Vae":
        """From what `recorded` returned."""
        shapes = {key: tuple(recorded[key]) for key in ("network_shape", "picture_shape")}
        return cls(**{**recorded, **shapes, "saved": SavedNetwork(**recorded["saved"])})
