"""Axes of charts: from values to places in pixels, and ticks at round numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

ROUND_NUMBERS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
"""Within a decade; the first that gives `FEWEST_TICKS` is taken."""
FEWEST_TICKS = 4
EVEN_STEPS = (5.0, 2.0, 1.0)
"""Where none of these choices has as many, ticks are a step apart that is such a multiple of a power of ten."""
LEAST_RATIO = 1.2
"""An axis ends at no less than this many times its start; otherwise nearly equal values would look far apart."""
LABEL_GAP = 34.0
"""Pixels between two labels of the horizontal axis."""


class Tick(NamedTuple):
    """A place on an axis in pixels, and its label; the label is empty where it would touch another."""

    at: float
    label: str


class LogAxis(NamedTuple):
    """A logarithmic axis from `low`, at the pixel `start`, to `high`, at the pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, margin: float = 0.05) -> "LogAxis":
        """An axis with room for all `values`, which are positive, and `margin` (a share of it) on both sides."""
        low, high = math.log(min(values, default=1.0)), math.log(max(values, default=1.0))
        widening = max(0.0, math.log(LEAST_RATIO) - (high - low)) / 2 + margin * max(high - low, math.log(LEAST_RATIO))
        return cls(math.exp(low - widening), math.exp(high + widening), start, end)

    def at(self, value: float) -> float:
        """The pixel of a value; a value beyond an end is put at it."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def round_ticks(self) -> list[Tick]:
        """Ticks at round numbers."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for choice in ROUND_NUMBERS:
            found = [part * 10.0**decade for decade in decades for part in choice]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= FEWEST_TICKS:
                return self._without_crowding(found)
        return self._without_crowding(self._even_values())

    def _even_values(self) -> list[float]:
        """Values equally far apart, the fewest that are enough."""
        largest = math.floor(math.log10(self.high - self.low))
        for step in (part * 10.0**power for power in (largest, largest - 1) for part in EVEN_STEPS):
            multiples = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            if len(multiples) >= FEWEST_TICKS:
                break
        return [multiple * step for multiple in multiples]

    def ticks_at(self, values: Sequence[float]) -> list[Tick]:
        """Ticks at these values, which increase."""
        return self._without_crowding(values)

    def _without_crowding(self, values: Sequence[float]) -> list[Tick]:
        """Labels from the largest value down, each that is not too near to the one before."""
        ticks: list[Tick] = []
        last = math.inf
        for value in reversed(values):
            at = self.at(value)
            has_room = abs(last - at) >= (LABEL_GAP if self.end > self.start else LABEL_GAP / 2)
            ticks.append(Tick(at, f"{value:,g}" if has_room else ""))
            last = at if has_room else last
        return ticks[::-1]
