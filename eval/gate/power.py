"""Detection power of a nightly run: the smallest regression it would detect, and the N that detects a given one."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

POWER = 0.80
"""The probability with which a regression of `DetectionPower.detectable` is called worse."""

NORMAL = NormalDist()

VARIANCE_GROWTH = 0.7
"""The growth of the paired error's square with D / FID, in units of the square of the baseline's own error."""


class Variance(NamedTuple):
    """The variance of a difference as a function of the true change D, which a regression makes larger.

    An influence phi(x) says how far sample x moves an FID; the paired error se of a difference is the standard error of
    the mean of phi_new - phi_baseline. A network that is worse by D has other influences than the baseline, so

        se(D)^2 = se^2 + slope * D,    slope = `VARIANCE_GROWTH` * fid_se^2 / fid, both of the baseline's FID alone.

    The form comes from an FID of |delta|^2, where delta leads from the mean of the reference's features to m, that of
    the samples'. Moving m by Delta at right angles to delta gives D = |Delta|^2 and changes the influences,
    2 delta . (x - m), by 2 Delta . (x - m). Where features vary alike in all directions, the variances of the two have
    the ratio D / FID. `python -m benchmarks.gate --parts power` measures how well this holds for other changes. KID,
    CMMD and MIND are squared distances as well and grow by the same law; the factor was measured for FID alone.
    """

    at_zero: float
    slope: float = 0.0

    def at(self, change: float) -> float:
        """The variance at a true change; an improvement has that of no change."""
        return self.at_zero + self.slope * max(0.0, change)


@dataclass(frozen=True)
class DetectionPower:
    """Which regressions of a cell are detected. A comparison's JSON has these fields."""

    margin: float
    errors: float  # by how many standard errors a change must exceed the margin to be called worse with `POWER`
    sampling: Variance  # from drawing N samples; it shrinks with N

    @property
    def detectable(self) -> float:
        """The smallest true change D that is called worse with probability `POWER`.

        It solves D - margin = errors * sampling.at(D)^1/2, a quadratic equation in D - margin.
        """
        square = self.errors**2
        half = square * self.sampling.slope / 2
        return self.margin + half + math.sqrt(half**2 + square * self.sampling.at(self.margin))

    def samples_needed(self, num_samples: int, regression: float) -> int | None:
        """The N at which `regression` is called worse with probability `POWER`, rounded up to two digits.

        `num_samples` is the N that `sampling` is for. None: no N would do, as the regression is within the margin.
        """
        if regression <= self.margin:
            return None
        variance_budget = ((regression - self.margin) / self.errors) ** 2
        return rounded_up(num_samples * self.sampling.at(regression) / variance_budget)

    def samples_to_decide(self, num_samples: int) -> int | None:
        """The N at which an equal network is called not worse with probability `POWER`, rounded up to two digits.

        The margin stays as it is. None if no N above `num_samples`, which `sampling` is for, is needed or would do.
        """
        if self.margin <= 0:
            return None
        needed = rounded_up(num_samples * self.sampling.at_zero * (self.errors / self.margin) ** 2)
        return needed if needed > num_samples else None


def standard_errors_for_power(critical: float) -> float:
    """The number of standard errors by which a true T must exceed 0 to exceed `critical` with probability `POWER`."""
    return critical + NORMAL.inv_cdf(POWER)


def rounded_up(n: float) -> int:
    """`n` with two significant digits, rounded up."""
    unit: int = 10 ** max(0, math.floor(math.log10(n)) - 1)
    return math.ceil(n / unit) * unit
