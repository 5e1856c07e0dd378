"""The interface by which samplers call a network: at a point of a path, for a batch's condition.

The driver loads this without torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from taugrid.errors import SamplerFault
from taugrid.workers.diffusion.process import Point, Prediction, PredictionType, clipped, predicted

if TYPE_CHECKING:
    from torch import Tensor


class Denoiser(Protocol):
    """A network that predicts eps, x0 or v for a batch.

    Called with x, (B, C, H, W), the point of the path at which x is, and the batch's condition: a tensor with an entry
    for each image, such as its label, or None.
    """

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The prediction, shaped like x."""


Denoise = Callable[["Tensor", Point], Prediction]
"""Called with x and a point of the path; returns the x0 and eps that a network predicts."""


class Wrapped:
    """A Denoiser that wraps another one.

    `around` is called with (`call`, x) and returns the output for x; `call(x)` is the wrapped network's output. Points
    and conditions are passed to the network unchanged.
    """

    def __init__(
        self, network: Denoiser, around: Callable[[Callable[["Tensor"], "Tensor"], "Tensor"], "Tensor"]
    ) -> None:
        self._network, self._around = network, around

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The prediction, shaped like x."""
        return self._around(lambda x: self._network(x, at, condition), x)


def from_times(network: Callable[["Tensor", "Tensor"], "Tensor"]) -> Denoiser:
    """A Denoiser from an unconditional network of x and the index 0..T-1 of each image's time, (B,) int64."""
    import torch

    def denoiser(x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        return network(x, torch.full((len(x),), at.time, device=x.device))

    return denoiser


def denoising(
    network: Denoiser,
    prediction: PredictionType = "epsilon",
    clip: str = "none",
    clip_range: float = 1.0,
    condition: "Tensor | None" = None,
) -> Denoise:
    """The `Denoise` of a network that predicts `prediction`, for one batch; `clip` and `clip_range` as in `clipped`.

    It raises `SamplerFault` at the path's last point.
    """
    import torch

    @torch.no_grad()
    def denoise(x: "Tensor", at: Point) -> Prediction:
        if at.time < 0:
            raise SamplerFault(
                "the sampler calls the network at path[-1], which is time 0: networks are trained at times 1 to T; "
                "stop at path[-1]"
            )
        return clipped(predicted(network(x, at, condition), x, at, prediction), x, at, clip, clip_range)

    return denoise
