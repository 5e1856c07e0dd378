"""The interface by which samplers call a network: at a point of a path, for a batch's condition.

The driver loads this without torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from taugrid.errors import SamplerFault
from taugrid.workers.diffusion.process import Point, Prediction, PredictionType, Process, clipped, predicted

if TYPE_CHECKING:
    from torch import Tensor


class Denoiser(Protocol):
    """A network that predicts eps, x0 or v for a batch.

    Called with x, (B, C, H, W), the point of the path at which x is, and the batch's condition: a tensor with an entry
    for each image, such as its label, or None.
    """

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The prediction, shaped like x."""


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


OfTimes = Callable[..., "Tensor"]
"""A network of x, (B, C, H, W) float32, and the index of each image's time in 0..T-1, (B,); and, if it takes labels,
these, (B,) int64. It returns its prediction, shaped like x.

Indices are int64 where they are whole numbers, as on DDIM's paths, else float32. A flow map takes a second time after
the first: that which its jump leads to.
"""


class FromTimes:
    """A Denoiser from a network `OfTimes`."""

    def __init__(self, network: OfTimes) -> None:
        self._network = network

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The prediction, shaped like x."""
        import torch

        times = [time for time in (at.time, at.toward) if time is not None]
        labels = () if condition is None else (condition,)
        return self._network(x, *(torch.full((len(x),), time, device=x.device) for time in times), *labels)


class Denoise:
    """What a sampler calls with x and a point: the x0 and eps that a network predicts for one batch, without gradients.

    It knows the process, what the network predicts, and the batch's condition; it clips as `process.clipped` says, and
    counts its calls.
    """

    def __init__(
        self,
        network: Denoiser,
        process: Process,
        prediction: PredictionType = "epsilon",
        clip: str = "none",
        clip_range: float = 1.0,
        condition: "Tensor | None" = None,
    ) -> None:
        self.process, self.prediction, self.calls = process, prediction, 0
        self._network, self._condition = network, condition
        self._clip, self._clip_range = clip, clip_range

    def __call__(self, x: "Tensor", at: Point) -> Prediction:
        """The prediction for x, (B, C, H, W), at a point; raises what `output` raises."""
        import torch

        with torch.no_grad():
            output, scaling = self.output(x, at), self.process.preconditioning(at)
            found = predicted(output, x, at, self.prediction) if scaling is None else scaling.predicted(output, x, at)
            return clipped(found, x, at, self._clip, self._clip_range)

    def output(self, x: "Tensor", at: Point) -> "Tensor":
        """What the network itself returns for x, which is scaled as it expects, at a point; nothing is clipped.

        Raises:
            SamplerFault: at the path's last point.
        """
        import torch

        if not self.process.knows(at):
            raise SamplerFault(
                "the sampler calls the network at path[-1], which is time 0: networks are trained at times above it; "
                "stop at path[-1]"
            )
        self.calls += 1
        with torch.no_grad():
            scaling = self.process.preconditioning(at)
            return self._network(x if scaling is None else scaling.into * x, at, self._condition)
