"""The values of a table as text: decimals, errors, marks.

With an error, value and error get as many decimals as show two significant digits of the error, but are never rounded
left of the point (14.21 ± 0.32, 367 ± 12, 4.160 ± 0.012). Without one, a value has two decimals, or three significant
digits if that is more (13.36, 0.00412). There are never more than six decimals. A missing value is a dash. A mean over
replicates also has their standard deviation, in brackets, and their number n where others have more.
"""

import math
from typing import NamedTuple

MISSING = "–"
NOTHING = 5e-7
"""Smaller values have no digit that is shown."""
ROUNDING = 1e-9
"""A spread or a standard error below this share of what it belongs to is rounding: it occurs if every subset is the
whole set, or if two cells have the same samples, as any eta at S = 1."""
Z_95 = 1.96
"""|z| from which on a single difference is significant: chance alone reaches it 1 time in 20. For the best of a column
and all others, ablation/seeds.py has the limit."""
INDISTINGUISHABLE = "≈"
JOINED = "‡"
MEANINGS = {
    INDISTINGUISHABLE: "not distinguishable from the best of its column by {test}, 95 % jointly for all cells of the "
    "column{untested}",
    JOINED: "has another protocol than most, see the notes",
}
"""The marks after values, and their explanations below a table."""


class Entry(NamedTuple):
    """A cell of a table as text; missing parts are empty."""

    value: str
    error: str
    best: bool
    mark: str
    number: float
    """The value itself; NaN if it is missing."""
    cell: str
    """The cell's id."""

    @property
    def shown(self) -> str:
        return self.joined(" ")

    def joined(self, separator: str) -> str:
        return f"{self.value}{separator}{self.error}" if self.error else self.value


def write_mean(value: float, error: float, spread: float, fewer: int | None) -> tuple[str, str]:
    """The texts of `write_number`, with the spread between replicates, and their number `fewer` if others have more."""
    shown, behind = write_number(value, error)
    if behind and math.isfinite(spread):
        behind += f" ({spread:.{_decimals(error, digits=2)}f})"
    if fewer is not None and math.isfinite(value):
        behind = f"{behind} (n = {fewer})".lstrip()
    return shown, behind


def write_number(value: float, error: float = math.nan) -> tuple[str, str]:
    """Value and "± error" by the rules in the module's docstring; the error is empty if there is none."""
    if not math.isfinite(value):
        return MISSING, ""
    # A single split has spread 0, and subsets that equal the whole set have nearly none: neither means anything.
    if not (math.isfinite(error) and error > ROUNDING * abs(value)):
        value = 0.0 if abs(value) < NOTHING else value
        return f"{value:z.{max(2, _decimals(value, digits=3))}f}", ""
    decimals = _decimals(error, digits=2)
    return f"{value:z.{decimals}f}", f"± {error:.{decimals}f}"


def shown_number(value: float | None, error: float | None = None) -> str:
    """`write_number` as one text; None is a missing value, or no error."""
    texts = write_number(math.nan if value is None else value, math.nan if error is None else error)
    return " ".join(filter(None, texts))


def _decimals(number: float, digits: int) -> int:
    """The number of decimals that show `digits` significant digits, at most 6, after rounding: 0.0999 becomes 0.10."""
    exponent = int(f"{number:.{digits - 1}e}".split("e")[1]) if number else 0
    return min(max(0, digits - 1 - exponent), 6)
