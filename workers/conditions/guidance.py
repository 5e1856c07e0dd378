"""Guidance: a network's prediction, led away from that of a weaker one (Ho & Salimans 2022; Karras et al. 2024).

    guided = p_0 + g (p - p_0)

p is what the network predicts, and p_0 what it predicts without labels (classifier-free guidance), or what another
network predicts (autoguidance). Imports torch only in a call.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from taugrid.config import Sample
from taugrid.jobs import Conditions
from taugrid.workers.diffusion.process import Point

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.workers.diffusion.denoiser import Denoiser


class Guidance(NamedTuple):
    """How a cell's predictions are guided. It travels with jobs."""

    scale: float
    """g. 1 would be no guidance."""
    calls: int
    """Guided calls for each image, of all that the sampler makes."""
    interval: tuple[float, float] | None = None
    """Noise levels sigma / alpha: a call is guided above the first and up to the second. None: every call is."""
    channels: int | None = None
    """Guided are only so many of the first channels. None: all."""
    null_label: int | None = None
    """The label with which the network itself predicts p_0, unless another one does."""
    guide_has_labels: bool = False
    """Whether that other network gets the labels too."""

    def guides(self, at: Point) -> bool:
        """Whether a call at a point is guided."""
        return self.interval is None or at.is_within(self.interval)


def inside(interval: Sequence[float] | None, points: Iterable[Point]) -> list[Point]:
    """Those of the `points` at which calls are guided."""
    return [point for point in points if interval is None or point.is_within(interval)]


def guidance_of(
    settings: Sample,
    guided_calls: int,
    takes: Conditions | None,
    guide_takes: Conditions | None = None,
) -> Guidance | None:
    """How a cell is guided that `settings` (resolved) describe; None: it is not.

    `guided_calls` are those for each image; `takes` and `guide_takes` are the labels of the network and the guide.
    """
    if not settings.is_guided:
        return None
    null_label = None if takes is None else takes.null_label
    ends, channels = settings.guidance_interval, settings.guidance_channels
    interval = None if ends is None else (ends[0], ends[1])
    return Guidance(settings.guidance, guided_calls, interval, channels, null_label, guide_takes is not None)


class Guided:
    """A Denoiser of two: each guided call is two calls of one batch each, the labelled one first."""

    def __init__(self, network: "Denoiser", guide: "Denoiser | None", how: Guidance) -> None:
        """`guide` predicts p_0. None: `network` does, with `how.null_label`."""
        self._network, self._guide, self._how = network, guide, how
        self.calls = 0
        """Guided calls so far."""

    def __call__(self, x: "Tensor", at: Point, condition: "Tensor | None" = None, /) -> "Tensor":
        """The guided prediction, shaped like x."""
        import torch

        output, how = self._network(x, at, condition), self._how
        if not how.guides(at):
            return output
        self.calls += 1
        weaker = self._weaker(x, at, condition)
        guided = weaker + how.scale * (output - weaker)
        if how.channels is None:
            return guided
        return torch.cat([guided[:, : how.channels], output[:, how.channels :]], dim=1)

    def _weaker(self, x: "Tensor", at: Point, condition: "Tensor | None") -> "Tensor":
        """p_0."""
        import torch

        if self._guide is not None:
            return self._guide(x, at, condition if self._how.guide_has_labels else None)
        assert condition is not None
        assert self._how.null_label is not None, "a plan has seen to it"
        return self._network(x, at, torch.full_like(condition, self._how.null_label))
