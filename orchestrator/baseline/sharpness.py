"""How small a loss a comparison can see."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Sharpness(NamedTuple):
    """The smallest loss that would be called worse in 4 of 5 nights, as a share of the baseline's FID."""

    loss: float
    """In half of the judged cells."""
    cells: int
    """How many cells were judged."""

    @property
    def in_words(self) -> str:
        """Such as "would miss losses below 19 %"."""
        where = " in half of its cells" if self.cells > 1 else ""
        return f"would miss losses below {100 * self.loss:.2g} %{where}"

    def complaints(self, wanted: float) -> list[str]:
        """What to say if losses of `wanted` are not seen in half of the cells."""
        if self.loss <= wanted:
            return []
        return [f"--sharpness {wanted:g}: it {self.in_words}"]


def sharpness(losses: Sequence[float]) -> Sharpness | None:
    """The sharpness from the smallest loss of each judged cell."""
    return Sharpness(float(np.median(losses)), len(losses)) if losses else None
