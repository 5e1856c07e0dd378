"""The interface by which samplers call a network: at a point of a path, for a batch's condition.

The driver loads this without torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from taugrid.errors import SamplerFault
from taugrid.workers.diffusion.process import Point, Prediction, Process, clipped

if TYPE_CHECKING:
    from torch import Tensor


class Denoiser(Protocol):
    """A network that predicts eps, x0 or v for a batch. Called with x, (B, C, H, W), the point of the path at which x
    is, and the batch's condition: a tensor with an entry for each image, such as its label, or None."""

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The prediction, shaped like x."""


class Wrapped:
    """A Denoiser that wraps another one, which gets points and conditions unchanged. `around` is called with (`call`,
    x) and returns the output for x; `call(x)` is the wrapped network's output."""

    def __init__(self, network: Denoiser, around: "Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]") -> None:
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


class Guidance(NamedTuple):
    """How a cell's predictions are led away from weaker ones (Ho & Salimans 2022; Karras et al. 2024). The guided one
    is p_0 + g (p - p_0): p is what the network predicts, and p_0 what it predicts without labels (classifier-free
    guidance), or what another network predicts (autoguidance). It travels with jobs."""

    scale: float  # g. 1 would be no guidance
    calls: int  # guided calls for each image, of all that the sampler makes
    interval: tuple[float, float] | None = None
    """Noise levels sigma / alpha: a call is guided above the first and up to the second. None: every call is."""
    channels: int | None = None
    """Guided are only so many of the first channels. None: all."""
    null_label: int | None = None  # the label with which the network itself predicts p_0, unless another one does
    guide_has_labels: bool = False  # whether that other network gets the labels too

    def guides(self, at: Point) -> bool:
        """Whether a call at a point is guided."""
        return self.interval is None or at.is_within(self.interval)


class Denoise:
    """What a sampler calls with x and a point: the x0 and eps that a network predicts for one batch, without gradients.
    Only here is a network's input scaled, its output guided and converted, and x0 clipped. It counts the calls."""

    def __init__(
        self,
        network: Denoiser,
        process: Process,
        *,
        clip: str = "none",
        clip_range: float = 1.0,
        condition: "Tensor | None" = None,
        guidance: Guidance | None = None,
        guide: Denoiser | None = None,
    ) -> None:
        """`guide` predicts p_0 of `guidance`. None: the network does, with the null label."""
        self.process, self.calls, self.guided_calls = process, 0, 0
        self._network, self._condition, self._guidance, self._guide = network, condition, guidance, guide
        self._clip, self._clip_range = clip, clip_range

    def __call__(self, x: "Tensor", at: Point) -> Prediction:
        """The prediction for x, (B, C, H, W), at a point, clipped by `process.clipped`; raises what `output` raises."""
        import torch

        with torch.no_grad():
            found = self.process.predicted(self.output(x, at), x, at)
            return clipped(found, x, at, self._clip, self._clip_range)

    def output(self, x: "Tensor", at: Point) -> "Tensor":
        """What the network itself returns for x, which is scaled as it expects, at a point, guided; nothing is clipped.
        A guided call is two calls of one batch each, the labelled one first. `SamplerFault` at the path's last
        point."""
        import torch

        if not self.process.knows(at):
            raise SamplerFault(
                "the sampler calls the network at path[-1], which is time 0: networks are trained at times above it; "
                "stop at path[-1]"
            )
        self.calls += 1
        scaling, how, condition = self.process.preconditioning(at), self._guidance, self._condition
        with torch.no_grad():
            x = x if scaling is None else scaling.into * x
            output = self._network(x, at, condition)
            if output.is_inference():
                output = output.clone()  # outside of inference mode, so that a sampler may change it in place
            if how is None or not how.guides(at):
                return output
            self.guided_calls += 1
            if self._guide is not None:
                weaker = self._guide(x, at, condition if how.guide_has_labels else None)
            else:
                assert condition is not None
                assert how.null_label is not None, "a plan has seen to it"
                weaker = self._network(x, at, torch.full_like(condition, how.null_label))
            guided, n = weaker + how.scale * (output - weaker), how.channels
            return guided if n is None else torch.cat([guided[:, :n], output[:, n:]], dim=1)
