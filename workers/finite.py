"""Watches a network for NaN and infinity, which clipping x0 would silently turn into black or white."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from taugrid.config import Sample
from taugrid.errors import NotFinite
from taugrid.registry.samplers import DEFAULT
from taugrid.workers.diffusion.denoiser import Wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser


PLAIN = Sample()
"""Of DDIM's own passes: float32."""

BY_VAE = "; the VAE made them: set sample.vae_precision: float32 or, if it is that, check the VAE's weights"
"""What to do about pictures of latents that are not finite."""


class Watched(Wrapped):
    """A network that records whether all its outputs were finite, on the device until it is read: no step waits."""

    def __init__(self, network: "Denoiser") -> None:
        super().__init__(network, self._noting)
        self._finite: Tensor | None = None

    def also(self, network: "Denoiser") -> "Denoiser":
        """Another network, whose outputs count too."""
        return Wrapped(network, self._noting)

    def _noting(self, call: Callable[["Tensor"], "Tensor"], x: "Tensor") -> "Tensor":
        output = call(x)
        finite = output.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return output

    def answer(self) -> "Tensor":
        """Whether all outputs since the last answer were finite: a bool, on the network's device."""
        finite, self._finite = self._finite, None
        assert finite is not None, "the network was not called"
        return finite

    def require_finite(self, first: int, stop: int, settings: Sample = PLAIN) -> None:
        """Raise `NotFinite` if an output since the last answer was not; it was for images `first` to `stop` - 1."""
        if not bool(self.answer()):
            raise not_finite(first, stop, settings)


def not_finite(first: int, stop: int, settings: Sample = PLAIN) -> NotFinite:
    """The error of a network whose output for images `first` to `stop` - 1 was not finite."""
    remedy = {
        "fp16": "fp16 holds no number above 65,504: set sample.precision: bf16 or float32",
        "float32": "check that its weights are finite and that its schedule is the one that it was trained with",
    }.get(settings.precision, "set sample.precision: float32 or, if that changes nothing, check its weights")
    return NotFinite(
        f"the network returned nan or infinity for images {first} to {stop - 1}; its images would be meaningless, and "
        f"trying again would change nothing; {remedy}{blame(settings.sampler)}"
    )


def blame(sampler: str) -> str:
    """A custom sampler's share in NaN and infinity, as the end of a message."""
    return "" if sampler == DEFAULT else f"; or the arithmetic of the sampler {sampler} makes them: check its divisions"
