"""Decoders, from a network's samples to pictures. The driver needs their shapes, so this file imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Decoder(Protocol):
    """Makes pictures of samples. It travels with jobs."""

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""

    def __call__(self, x0: "Tensor", /) -> "Tensor":
        """Pictures in [-1, 1], (B, *picture_shape) float32, of samples, (B, *network_shape) float32."""


@dataclass(frozen=True)
class Identity:
    """The decoder of networks that sample pixels."""

    shape: tuple[int, int, int]

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""
        return self.shape

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        return self.shape

    def __call__(self, x0: "Tensor", /) -> "Tensor":
        """`x0` itself."""
        return x0
