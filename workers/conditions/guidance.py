"""How cells are guided, as their settings say it."""

from collections.abc import Iterable, Sequence

from taugrid.config import Sample
from taugrid.jobs import Conditions
from taugrid.workers.diffusion.denoiser import Guidance
from taugrid.workers.diffusion.process import Point


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
